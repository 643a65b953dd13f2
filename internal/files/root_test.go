package files

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// access is mode, owner and group of a directory.
func access(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%04o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
}

// umask runs f under another umask than the one that the other tests have.
func umask(mask int, f func()) {
	defer syscall.Umask(syscall.Umask(mask))
	f()
}

// made has the root of a node made, as that of one whose directory did not exist.
func (nd *node) made(t *testing.T) {
	t.Helper()
	must(t, os.Remove(nd.root))
	umask(0o077, func() { must(t, MakeRoot(nd.table, nd.root)) })
}

// TestLiveDirectoryKeepsItsAccess: one node has a directory in use, the others none, or an empty one. Whichever comes first,
// and whatever happens in those of the others before, all have the mode and owner of the one in use.
func TestLiveDirectoryKeepsItsAccess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners are set by root only")
	}
	const want = "2775 33:33"
	for name, order := range map[string][]int{"in use first": {0, 1, 2}, "in use last": {1, 2, 0}, "in between": {2, 0, 1}} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 3)
			live := f.nodes[0]
			live.write("index", "text")
			must(t, os.Chown(live.root, 33, 33))
			must(t, os.Chmod(live.root, 0o775|os.ModeSetgid))
			f.nodes[1].made(t)
			if got := access(t, f.nodes[1].root); got != fmt.Sprintf("0755 %d:%d", os.Geteuid(), os.Getegid()) {
				t.Errorf("made: %s", got)
			}
			must(t, os.Chmod(f.nodes[2].root, 0o700))
			for _, i := range order {
				nd := f.nodes[i]
				nd.up()
				f.flush()
				if i > 0 {
					nd.write("of "+nd.name, "x") // changes the root's time
				}
				f.flush()
				if live.isUp() {
					if got := access(t, live.root); got != want {
						t.Fatalf("after %s came: %s", nd.name, got)
					}
				}
			}
			for _, nd := range f.nodes {
				eventually(t, func() string {
					if got := access(t, nd.root); got != want {
						return nd.name + ": " + got
					}
					return ""
				})
			}
			f.same()
			must(t, os.Chmod(f.nodes[1].root, 0o750))
			f.flush()
			f.same()
			if got := access(t, live.root); got != "0750 33:33" {
				t.Errorf("a change of the mode later on: %s", got)
			}
		})
	}
}

// TestAllMade: where no node had the directory, all have what it was made with, and a change of that is taken in.
func TestAllMade(t *testing.T) {
	f := newFarm(t, 2)
	for _, nd := range f.nodes {
		nd.made(t)
	}
	f.up()
	f.flush()
	f.nodes[0].write("file", "x")
	f.flush()
	f.same()
	f.nodes[1].down()
	must(t, os.Chmod(f.nodes[0].root, 0o2750))
	f.flush()
	f.nodes[1].up()
	f.flush()
	f.same()
}

// TestMakeRoot: what is missing is made so that everybody can get there, whatever the umask; what is there is left alone,
// and the binding is still one that was never taken up.
func TestMakeRoot(t *testing.T) {
	base, table := t.TempDir(), newMemory()
	root := filepath.Join(base, "a", "b", "c")
	must(t, os.Mkdir(filepath.Join(base, "a"), 0o700))
	umask(0o077, func() { must(t, MakeRoot(table, root)) })
	for dir, want := range map[string]os.FileMode{"a": 0o700, "a/b": 0o755, "a/b/c": 0o755} {
		if st, err := os.Stat(filepath.Join(base, dir)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", dir, st, err)
		}
	}
	if fresh, err := Fresh(table); !fresh || err != nil {
		t.Errorf("fresh %v, %v", fresh, err)
	}
	other := newMemory()
	must(t, os.Chmod(root, 0o711))
	must(t, MakeRoot(other, root))
	if st, err := os.Stat(root); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", st, err)
	}
	if _, said, err := other.Get(metaKey(metaMade)); said || err != nil {
		t.Errorf("a directory that was there is said to be made: %v", err)
	}
}
