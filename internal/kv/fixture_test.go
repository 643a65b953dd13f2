package kv

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture opens a database beside a file of batches as level 1 wrote it.
func TestFixture(t *testing.T) {
	open := func(dir string) Store {
		s, err := OpenPebble(dir, PebbleOptions{OnError: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	dir := t.TempDir()
	s := open(dir)
	put(t, s.Through(), "p/a", "1")
	b := s.Through().Batch()
	if err := errors.Join(b.Set([]byte("p/a"), []byte("2")), b.Set([]byte("p/b"), nil), b.Delete([]byte("p/gone")),
		b.DeleteRange([]byte("p/c"), []byte("p/d")), b.Commit()); err != nil {
		t.Fatal(err)
	}
	name := throughName + "1"
	made, err := os.ReadFile(filepath.Join(dir, name))
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	held := fixture.Check(t, "through-1.hex", map[string][]byte{name: made})

	dir = t.TempDir()
	s = open(dir)
	for _, key := range []string{"p/gone", "p/c", "p/cc", "p/d"} {
		put(t, s, key, "before")
	}
	if err := errors.Join(s.Close(), os.WriteFile(filepath.Join(dir, name), held[name], 0o600)); err != nil {
		t.Fatal(err)
	}
	s = open(dir)
	for key, want := range map[string]string{"p/a": "2", "p/b": "", "p/d": "before", string(throughKey): "\x02\x00\x00\x00\x00\x00\x00\x00"} {
		if v, ok, err := s.Get([]byte(key)); err != nil || !ok || string(v) != want {
			t.Errorf("%s: %q, %v, %v", key, v, ok, err)
		}
	}
	for _, key := range []string{"p/gone", "p/c", "p/cc"} {
		if v, ok, err := s.Get([]byte(key)); err != nil || ok {
			t.Errorf("%s: %q, %v", key, v, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
