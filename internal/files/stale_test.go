package files

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestStaleDirectory: a directory that was never in step, or not since it was put back to an earlier moment, is merged by
// the policy wherever it differs, also where a node of this name was the last author.
func TestStaleDirectory(t *testing.T) {
	for name, begins := range map[string]func(f *farm, nd *node){
		"bound again": func(_ *farm, nd *node) { nd.table = newMemory() },
		"replaced": func(_ *farm, nd *node) {
			nd.table, nd.state, nd.applied = newMemory(), newMemory(), 0
		},
		"restored": func(f *farm, nd *node) { // all others were bound before
			for _, other := range f.nodes {
				other.down()
				other.table = newMemory()
			}
			f.cut = f.last()
			for _, other := range f.nodes {
				if other != nd {
					other.up()
				}
			}
			f.flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 3)
			f.up()
			nd := f.nodes[0]
			nd.write("f", "new")
			nd.write("same", "the same")
			must(t, os.Symlink("new", nd.path("link")))
			f.flush()
			nd.down()
			begins(f, nd)
			nd.write("f", "old")
			must(t, os.Remove(nd.path("link")))
			must(t, os.Symlink("old", nd.path("link")))
			nd.up()
			f.flush()
			f.same()
			for _, at := range f.nodes {
				copies, err := filepath.Glob(at.path("f.conflict-*"))
				if got := at.read("f"); got != "new" || err != nil || len(copies) != 1 {
					t.Fatalf("%s: %q and %q: what is newer has lost", at.name, got, copies)
				}
				if b, err := os.ReadFile(copies[0]); err != nil || string(b) != "old" {
					t.Errorf("%s: the copy holds %q (%v)", at.name, b, err)
				}
				links, err := filepath.Glob(at.path("link.conflict-*"))
				if to, _ := os.Readlink(at.path("link")); to != "new" || err != nil || len(links) != 1 {
					t.Errorf("%s: link to %q, copies %q", at.name, to, links)
				}
				if copies, err := filepath.Glob(at.path("same.conflict-*")); err != nil || len(copies) > 0 {
					t.Errorf("%s: what did not differ is kept twice: %q", at.name, copies)
				}
			}
		})
	}
}

// TestOwnEditOfANewBinding: what a binding itself has brought it also knows when its record is lost, whatever a node of
// its name brought before.
func TestOwnEditOfANewBinding(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	nd := f.nodes[0]
	nd.write("f", "of the binding before")
	f.flush()
	nd.down()
	nd.table = newMemory()
	must(t, os.Remove(nd.path("f")))
	nd.up()
	f.flush()
	nd.write("f", "first")
	f.flush()
	nd.down()
	putRecord(nd, "f", record{})
	nd.write("f", "second")
	nd.up()
	f.flush()
	alone(f, "f", "second")
}

// TestPlacedAgainBeforeTheSystemWentDown: a file that was placed again as it was, or rewritten as it was, since the last
// checkpoint is not trusted either, although its version is older than that.
func TestPlacedAgainBeforeTheSystemWentDown(t *testing.T) {
	good := "good content"
	for name, again := range map[string]func(nd *node){
		"repaired": func(nd *node) {
			nd.agent.board.stop()
			damage(nd, "f", "bad  content")
			nd.agent.board.resume()
			must(t, nd.agent.Flush(t.Context())) // nobody looks at f any more
			v, err := nd.agent.Verify(t.Context(), true)
			if err != nil || v.Repaired != 1 {
				t.Fatalf("%+v %v", v, err)
			}
		},
		"rewritten": func(nd *node) {
			in, err := os.Stat(nd.path("f"))
			must(t, err)
			nd.write("tmp", good)
			must(t, os.Chtimes(nd.path("tmp"), in.ModTime(), in.ModTime()))
			must(t, os.Rename(nd.path("tmp"), nd.path("f")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 2)
			nd := f.nodes[1]
			nd.change = func(c *Config) { c.Checkpoint = time.Hour }
			f.up()
			f.nodes[0].write("f", good)
			f.flush()
			nd.down() // a checkpoint covers it
			nd.up()
			f.flush()
			before, err := nd.agent.table.get("f")
			must(t, err)
			again(nd)
			eventually(t, func() string {
				rec, err := nd.agent.table.get("f")
				if err != nil || rec.Version != before.Version || rec.Stat.Ino == before.Stat.Ino || nd.read("f") != good {
					return fmt.Sprintf("f is not as it was: %+v %v", rec, err)
				}
				return ""
			})
			f.flush()
			powerFails(nd)
			must(t, os.Truncate(nd.path("f"), 5)) // so much of it reached the disk
			nd.up()
			f.flush()
			f.same()
			for _, at := range f.nodes {
				if got := at.read("f"); got != good {
					t.Errorf("%s: what did not reach a disk has won: %q", at.name, got)
				}
			}
		})
	}
}

// powerFails ends the agent as if the system went down now: the placed table is as it is, with all of its records, and there
// was no last checkpoint.
func powerFails(nd *node) {
	t := nd.f.t
	t.Helper()
	now := newMemory()
	b := now.Batch()
	must(t, nd.table.View().Scan(nil, nil, func(k, v []byte) error { return b.Set(k, v) }))
	must(t, b.Commit())
	nd.down()
	nd.table, nd.boot = now, "b2"
}
