package files

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// knows waits until the board has something to do for each of paths: the hints for them have come.
func (nd *node) knows(paths ...string) {
	nd.f.t.Helper()
	b := nd.agent.board
	eventually(nd.f.t, func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range paths {
			if b.paths[p] == nil {
				return fmt.Sprintf("%s: no hint of %q", nd.name, p)
			}
		}
		return ""
	})
}

// found waits until n changes are on their way into the log.
func (nd *node) found(n int64) {
	nd.f.t.Helper()
	eventually(nd.f.t, func() string {
		if got := nd.agent.status.pending.Load(); got != n {
			return fmt.Sprintf("%s: %d changes are on their way, not %d", nd.name, got, n)
		}
		return ""
	})
}

// TestMovedOnItsWay: a directory is moved away, and another one takes its name, while what was found in it is on its way
// into the log. Its records come after the scan that the move leads to, which so sees nothing that is gone.
func TestMovedOnItsWay(t *testing.T) {
	f, nd := twoInStep(t)
	must(t, os.Mkdir(nd.path("c"), 0o755))
	f.flush()
	nd.setCut(true)
	nd.write("c/f", "moved with its directory")
	nd.found(2) // with c
	must(t, os.Rename(nd.path("c"), nd.path("d")))
	must(t, os.Mkdir(nd.path("c"), 0o755))
	nd.write("c/g", "in the new one")
	nd.knows("d/f", "c/g") // found by the scans of both: one runs after the other, d's last
	nd.setCut(false)
	f.flush()
	f.same()
	if got := f.nodes[1].read("c/f"); !strings.HasPrefix(got, "!") {
		t.Errorf("n2 has c/f: %q", got)
	}
	if got := f.nodes[1].read("d/f"); got != "moved with its directory" {
		t.Errorf("n2 has d/f: %q", got)
	}
}

// claimLook claims path, which waits for a look, as a look worker does; the board of nd is stopped.
func (nd *node) claimLook(path string) {
	b := nd.agent.board
	b.mu.Lock()
	defer b.mu.Unlock()
	b.looks = slices.DeleteFunc(b.looks, func(p string) bool { return p == path })
	b.paths[path].lookQueued = false
	b.claimLook(path, b.paths[path])
}

// twoInStep are two nodes with nothing in their directories, and the first of them.
func twoInStep(t *testing.T) (*farm, *node) {
	t.Helper()
	f := newFarm(t, 2)
	f.up()
	f.flush()
	return f, f.nodes[0]
}

// settled brings everything in step again after the boards were stopped, and compares.
func (f *farm) settled() {
	f.t.Helper()
	for _, nd := range f.nodes {
		nd.agent.board.resume()
	}
	f.flush()
	f.same()
}

// TestRemovedAfterItLost: a change of a directory lost against its removal elsewhere, and it is removed here before the
// placer could: the look at it finds nothing to propose, but the directory above has other times.
func TestRemovedAfterItLost(t *testing.T) {
	f, nd := twoInStep(t)
	must(t, os.MkdirAll(nd.path("a/x"), 0o755))
	f.flush()
	nd.setCut(true)
	must(t, os.Chmod(nd.path("a/x"), 0o700))
	nd.found(1)
	must(t, os.Remove(f.nodes[1].path("a/x")))
	must(t, f.nodes[1].agent.Flush(t.Context()))
	nd.agent.board.stop()
	nd.setCut(false)
	nd.found(0)
	if rec, err := nd.agent.table.get("a/x"); err != nil || rec.Version != 0 || rec.Stat.Kind != manifest.Dir {
		t.Fatalf("the change did not lose: %+v %v", rec, err)
	}
	must(t, os.Remove(nd.path("a/x")))
	nd.knows("a/x")
	nd.claimLook("a/x")
	nd.agent.results <- nd.agent.lookAt(newReader(nd.agent), "a/x", nil)
	f.settled()
}

// TestReplacedBeforePlacing: somebody makes a directory anew just before the placer sets its metadata, which makes the
// record one of the new directory: the look at it finds nothing, but the directory above has other times.
func TestReplacedBeforePlacing(t *testing.T) {
	f, nd := twoInStep(t)
	must(t, os.MkdirAll(nd.path("a/x"), 0o755))
	f.flush()
	nd.agent.board.stop()
	must(t, os.Chmod(f.nodes[1].path("a/x"), 0o700))
	must(t, f.nodes[1].agent.Flush(t.Context()))
	must(t, os.Remove(nd.path("a/x")))
	must(t, os.Mkdir(nd.path("a/x"), 0o755))
	nd.knows("a/x")
	must(t, nd.agent.place(context.Background(), nd.agent.board.takeWants(placeMax)))
	f.settled()
}

// TestStagedForAnother: a change of metadata is placed while the same content is staged for a path that waits. That is the
// only place where it may be in the end.
func TestStagedForAnother(t *testing.T) {
	f, nd := twoInStep(t)
	nd.write("f", "content of two")
	f.flush()
	rec, err := nd.agent.table.get("f")
	must(t, err)
	nd.agent.board.stop()
	must(t, nd.agent.store.Put(rec.Hash, []byte("content of two")))
	must(t, os.Chmod(f.nodes[1].path("f"), 0o600))
	must(t, f.nodes[1].agent.Flush(t.Context()))
	must(t, nd.agent.place(context.Background(), nd.agent.board.takeWants(placeMax)))
	if in, err := os.Stat(nd.path("f")); err != nil || in.Mode() != 0o600 {
		t.Fatalf("not placed: %v %v", in, err)
	}
	if !nd.agent.store.Has(rec.Hash) {
		t.Error("what was staged for another path is gone")
	}
	f.settled()
}

// TestNotKeptChangesItsDirectory: what is not kept is not proposed, but the times of its directory are.
func TestNotKeptChangesItsDirectory(t *testing.T) {
	f, nd := twoInStep(t)
	must(t, os.Mkdir(nd.path("a"), 0o755))
	f.flush()
	must(t, unix.Mkfifo(nd.path("a/fifo"), 0o600))
	f.flush()
	in, err := os.Stat(nd.path("a"))
	must(t, err)
	there, err := os.Stat(f.nodes[1].path("a"))
	must(t, err)
	if !there.ModTime().Equal(in.ModTime()) {
		t.Errorf("n1 has %v, n2 %v", in.ModTime(), there.ModTime())
	}
}
