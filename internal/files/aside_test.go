package files

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// wanted makes a manifest of files with contents, a directory where a name ends in '/', a symlink where the content
// begins with "->".
func wanted(t *testing.T, files map[string]string) kv.Reader {
	t.Helper()
	store := kv.NewMemory()
	m := manifest.New(manifest.Config{})
	b := manifest.Batch{Author: "n1"}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := manifest.Change{Path: name, Node: manifest.Node{Kind: manifest.File, Mode: 0o644, Size: int64(len(files[name])), Hash: blake3.Sum256([]byte(files[name]))}}
		switch text := files[name]; {
		case name[len(name)-1] == '/':
			c.Path, c.Node = name[:len(name)-1], manifest.Node{Kind: manifest.Dir, Mode: 0o755}
		case len(text) > 2 && text[:2] == "->":
			c.Node = manifest.Node{Kind: manifest.Symlink, Mode: 0o777, Target: text[2:]}
		}
		b.Changes = append(b.Changes, c)
	}
	tx := store.Batch()
	if _, err := m.Apply(tx, machine.Command{Index: 2, Time: 1, Payload: manifest.EncodeBatch(b)}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return store
}

func TestSetAside(t *testing.T) {
	view := wanted(t, map[string]string{"same": "1", "differs": "1", "d/": "", "d/same": "2", "link": "->there", "was a file/": "", "size": "12"})
	dir, aside := t.TempDir(), filepath.Join(t.TempDir(), "kept", "r")
	for name, text := range map[string]string{
		"same": "1", "differs": "2", "d/same": "2", "d/more": "3", "gone/a": "4", "was a file": "5", "size": "123", ".lockstep/root": "marker",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": "there", "other link": "/etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	moved, err := SetAside(dir, aside, view)
	if err != nil || moved != 6 {
		t.Fatalf("moved %d, %v", moved, err)
	}
	for name, want := range map[string]string{
		"differs": "2", "d/more": "3", "gone/a": "4", "was a file": "5", "size": "123",
	} {
		if b, err := os.ReadFile(filepath.Join(aside, name)); err != nil || string(b) != want {
			t.Errorf("%s aside: %q, %v", name, b, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if target, err := os.Readlink(filepath.Join(aside, "other link")); err != nil || target != "/etc/passwd" {
		t.Errorf("link: %q, %v", target, err)
	}
	for name, want := range map[string]string{"same": "1", "d/same": "2", ".lockstep/root": "marker"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	// Again, as after an interruption: what was moved is not replaced.
	if err := os.WriteFile(filepath.Join(dir, "differs"), []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	if moved, err := SetAside(dir, aside, view); err != nil || moved != 1 {
		t.Errorf("again: %d, %v", moved, err)
	}
	for name, want := range map[string]string{"differs": "2", "differs.1": "3"} {
		if b, err := os.ReadFile(filepath.Join(aside, name)); err != nil || string(b) != want {
			t.Errorf("%s aside: %q, %v", name, b, err)
		}
	}
}

func TestForgetAbove(t *testing.T) {
	store := kv.NewMemory()
	tab := table{store}
	e := tab.edit()
	for path, version := range map[string]uint64{"a": 5, "b": 6, "d": 3, "d/c": 7, "d/e": 1} {
		rec := record{Placed: place.Placed{Version: version, Stat: place.Stat{Kind: manifest.File, Size: 1}}}
		if err := e.set(path, rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.commit(); err != nil {
		t.Fatal(err)
	}
	if err := ForgetAbove(store, 5); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint64{"a": 5, "b": 0, "d": 3, "d/c": 0, "d/e": 1} {
		if r, err := tab.get(path); err != nil || r.Version != want || (want == 0) != (r.Stat.Kind == manifest.Absent) {
			t.Errorf("%s: %+v, %v", path, r, err)
		}
	}
}
