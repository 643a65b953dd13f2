package pack

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture opens a pack as it was first written.
func TestFixture(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, 0, at(start))
	stage(t, l, []byte("hello"), []byte{}, make([]byte, 300))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(filepath.Join(dir, fileName(0)))
	if err != nil {
		t.Fatal(err)
	}
	held := fixture.Check(t, "pack-1.hex", map[string][]byte{fileName(0): made})

	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName(0)), held[fileName(0)], 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, 0, at(start))
	for _, want := range []string{"hello", "", string(make([]byte, 300))} {
		if got, ok := l.Get(blake3.Sum256([]byte(want))); !ok || string(got) != want {
			t.Errorf("%.10q: %.10q, %v", want, got, ok)
		}
	}
	if st := l.Stats(); st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
