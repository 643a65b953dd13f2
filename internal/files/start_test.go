package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/watch"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// countedWatcher counts the watchers that are open.
type countedWatcher struct {
	watch.Watcher
	open *atomic.Int64
}

func (w countedWatcher) Close() error {
	w.open.Add(-1)
	return w.Watcher.Close()
}

// refusing is a group that cannot be reached.
type refusing struct{ *node }

var errRefusing = errors.New("no leader")

func (refusing) Fence(context.Context) error { return errRefusing }

// TestFailedStartClosesWatcher: an owner that opens the agent again and again must not collect watchers.
func TestFailedStartClosesWatcher(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	var open, opened atomic.Int64
	nd.change = func(c *Config) {
		c.Log = refusing{nd}
		next := c.Watch
		c.Watch = func(wc watch.Config) (watch.Watcher, error) {
			w, err := next(wc)
			open.Add(1)
			opened.Add(1)
			return countedWatcher{w, &open}, err
		}
	}
	nd.up()
	if err := <-nd.ended; !errors.Is(err, errRefusing) {
		t.Fatal(err)
	}
	nd.ended <- nil
	if open.Load() != 0 || opened.Load() != 1 {
		t.Errorf("%d of %d watchers are open", open.Load(), opened.Load())
	}
}

// TestUnverifiable: files that cannot be verified after a crash are problems of theirs; the binding goes on.
func TestUnverifiable(t *testing.T) {
	f := newFarm(t, 1)
	f.up()
	f.flush()
	nd := f.nodes[0]
	nd.write("f", "content")
	nd.write("g", "another")
	f.flush()
	crash(nd)
	for _, name := range []string{"f", "g"} {
		damage(nd, name, "damaged")
	}
	nd.change = func(c *Config) {
		next := c.Watch
		c.Watch = func(wc watch.Config) (watch.Watcher, error) { // after New, before anything is verified
			kept := filepath.Join(nd.work, "kept")
			must(t, os.RemoveAll(kept))
			must(t, os.WriteFile(kept, nil, 0o600)) // nothing can be kept aside
			return next(wc)
		}
	}
	nd.up()
	eventually(t, func() string {
		st, err := nd.agent.Status()
		if err != nil || len(st.Problems) != 2 {
			return fmt.Sprintf("%+v %v", st.Problems, err)
		}
		return ""
	})
	if got := nd.read("f"); got != "damaged" {
		t.Errorf("what could not be kept aside is %q", got)
	}
}

// TestReserve: free space is left without anybody asking for it, and as much as is asked for.
func TestReserve(t *testing.T) {
	f := newFarm(t, 2)
	f.nodes[1].change = func(c *Config) { c.Reserve = 12345 }
	f.up()
	var st unix.Statfs_t
	must(t, unix.Statfs(f.nodes[0].work, &st))
	want := min(st.Blocks*uint64(st.Bsize)/100, 64<<20)
	if got := f.nodes[0].agent.cfg.Reserve; got != want || got == 0 {
		t.Errorf("%d bytes are left free, want %d", got, want)
	}
	if got := f.nodes[1].agent.cfg.Reserve; got != 12345 {
		t.Errorf("%d bytes are left free", got)
	}
}

// crash ends the agent as if the system had gone down in another boot, without a checkpoint.
func crash(nd *node) {
	t := nd.f.t
	t.Helper()
	nd.stop()
	must(t, <-nd.ended)
	nd.ended <- nil
	b := nd.table.Batch()
	must(t, nd.agent.table.setNumber(b, metaPlaced, 0))
	must(t, nd.agent.table.setNumber(b, metaSynced, 0))
	must(t, nd.agent.table.setNumber(b, metaBoot, 12345))
	must(t, b.Commit())
	nd.down()
	nd.boot = "b2"
}

// damage puts other content of the same size into a file that was placed, with a record as if no time of the file told of it.
func damage(nd *node, path, data string) {
	t := nd.f.t
	t.Helper()
	rec, err := table{nd.table}.get(path)
	must(t, err)
	must(t, os.WriteFile(nd.path(path), []byte(data), 0o644))
	must(t, os.Chtimes(nd.path(path), time.Time{}, time.Unix(0, rec.Stat.MTime)))
	f, err := os.Open(nd.path(path))
	must(t, err)
	in, err := vfs.StatFd(int(f.Fd()))
	must(t, err)
	must(t, f.Close())
	then := rec.Stat
	rec.Stat = place.StatOf(in)
	if then.CTime == 0 {
		rec.Stat.CTime = 0
	}
	e := table{nd.table}.edit()
	must(t, e.set(path, rec))
	must(t, e.commit())
}

// TestNothingCountsAsPlacedBeforeTheFirstComparison: what is committed while the binding is being taken up must not
// cover what was committed before and is not on disk.
func TestNothingCountsAsPlacedBeforeTheFirstComparison(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	var cfg Config
	nd.change = func(c *Config) { cfg = *c }
	nd.up()
	nd.down()
	// An owner opens an agent long after the replica: nobody tells this one that the state was restored.
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	a.Changed(1000, nil)
	if at := a.Placed(); at != 0 {
		t.Errorf("%d counts as placed though nothing was compared", at)
	}
}

// TestOwnEditAfterLostRecord: a process that is killed may lose the placed records of its last edits. An edit that
// comes then follows them; it is not in conflict with what the same node wrote before.
func TestOwnEditAfterLostRecord(t *testing.T) {
	for name, step := range map[string]struct {
		edit func(nd *node)
		want string
	}{
		"changed":        {func(nd *node) { nd.write("f", "third") }, "third"},
		"changed back":   {func(nd *node) { nd.write("f", "first") }, "first"},
		"removed":        {func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) }, ""},
		"as it was last": {func(nd *node) {}, "second"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 2)
			f.up()
			nd := f.nodes[0]
			nd.write("f", "first")
			f.flush()
			forgetting(nd, func() { nd.write("f", "second"); f.flush() })
			step.edit(nd)
			nd.up()
			f.flush()
			alone(f, "f", step.want)
		})
	}
	t.Run("made and changed", func(t *testing.T) {
		f := newFarm(t, 2)
		f.up()
		nd := f.nodes[0]
		forgetting(nd, func() { nd.write("f", "first"); f.flush() })
		nd.write("f", "second")
		nd.up()
		f.flush()
		alone(f, "f", "second")
	})
	// What was made, committed, not recorded and removed or moved while nobody looked does not come back.
	for name, step := range map[string]struct {
		made, then func(nd *node)
		others     func(nd *node)
		want       string // of what is left at "f"
	}{
		"file":      {func(nd *node) { nd.write("f", "first") }, func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) }, nil, ""},
		"link":      {func(nd *node) { must(nd.f.t, os.Symlink("x", nd.path("f"))) }, func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) }, nil, ""},
		"directory": {func(nd *node) { must(nd.f.t, os.Mkdir(nd.path("f"), 0o755)) }, func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) }, nil, ""},
		"tree": {func(nd *node) {
			must(nd.f.t, os.MkdirAll(nd.path("f/d/e"), 0o755))
			nd.write("f/d/e/g", "x")
			nd.write("f/h", "x")
		}, func(nd *node) { must(nd.f.t, os.RemoveAll(nd.path("f"))) }, nil, ""},
		"tree in which others worked": {func(nd *node) { must(nd.f.t, os.MkdirAll(nd.path("f/d"), 0o755)) },
			func(nd *node) { must(nd.f.t, os.RemoveAll(nd.path("f"))) },
			func(nd *node) { nd.write("f/d/g", "x"); nd.f.flush(); must(nd.f.t, os.Remove(nd.path("f/d/g"))) }, ""},
		"moved": {func(nd *node) { must(nd.f.t, os.Mkdir(nd.path("x"), 0o755)); nd.write("x/g", "first") },
			func(nd *node) {
				must(nd.f.t, os.Rename(nd.path("x/g"), nd.path("f")))
				must(nd.f.t, os.Remove(nd.path("x")))
			}, nil, "first"},
		"replaced by somebody else": {func(nd *node) { nd.write("f", "first") }, func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) },
			func(nd *node) { nd.write("f", "second") }, "second"},
		"removed and made by somebody else": {func(nd *node) { nd.write("f", "first") }, func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) },
			func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))); nd.f.flush(); nd.write("f", "second") }, "second"},
	} {
		for _, first := range []bool{false, true} { // whether no checkpoint was made before
			t.Run(fmt.Sprintf("made and gone: %s, first: %v", name, first), func(t *testing.T) {
				f := newFarm(t, 2)
				f.up()
				nd := f.nodes[0]
				nd.write("before", "")
				f.flush()
				must(t, os.Remove(nd.path("before")))
				f.flush()
				nd.down()
				old := nd.table
				floor, err := table{old}.number(metaPlaced)
				must(t, err)
				nd.table = copyOf(t, old)
				nd.up()
				step.made(nd)
				f.flush()
				nd.down()
				nd.table = old // as if it had been killed before it could write a record, or a checkpoint
				b := nd.table.Batch()
				if first {
					floor = 0
				}
				must(t, table{nd.table}.setNumber(b, metaPlaced, floor))
				must(t, b.Commit())
				if step.others != nil {
					step.others(f.nodes[1])
					f.flush()
				}
				step.then(nd)
				nd.up()
				f.flush()
				alone(f, "f", step.want)
			})
		}
	}
	// What it had proposed waits in the leader's log, and is committed when the next process is there already.
	for name, step := range map[string]struct {
		then func(nd *node)
		want string
	}{
		"changed":   {func(nd *node) { nd.write("f", "third") }, "third"},
		"removed":   {func(nd *node) { must(nd.f.t, os.Remove(nd.path("f"))) }, ""},
		"as it was": {func(*node) {}, "second"},
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("in flight, %s, there before: %v", name, first), func(t *testing.T) {
				f := newFarm(t, 2)
				f.up()
				nd := f.nodes[0]
				if first {
					nd.write("f", "first")
				}
				f.flush()
				f.stall(nd, func() { nd.write("f", "second") })
				nd.down()
				step.then(nd)
				nd.up()
				f.flush()
				alone(f, "f", step.want)
			})
		}
	}
	// Others have replaced the edit since. They knew it, so there is no conflict, unless the path was changed again without
	// them to what is nowhere else.
	for name, step := range map[string]struct {
		edit   func(nd *node)
		copies int
	}{
		"replaced by somebody else":     {func(*node) {}, 0},
		"replaced, and changed here":    {func(nd *node) { nd.write("f", "fourth") }, 1},
		"replaced, and changed back":    {func(nd *node) { nd.write("f", "first") }, 0},
		"replaced, other metadata here": {func(nd *node) { must(nd.f.t, os.Chmod(nd.path("f"), 0o600)) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 2)
			f.up()
			nd := f.nodes[0]
			nd.write("f", "first")
			f.flush()
			old, err := table{nd.table}.get("f")
			must(t, err)
			forgetting(nd, func() { nd.write("f", "second"); f.flush() })
			b := nd.table.Batch() // it was killed: the last checkpoint was before
			must(t, table{nd.table}.setNumber(b, metaPlaced, old.Version))
			must(t, b.Commit())
			f.nodes[1].write("f", "third")
			f.flush()
			step.edit(nd)
			nd.up()
			f.flush()
			f.same()
			copies, err := filepath.Glob(nd.path("f.conflict-*"))
			if got := nd.read("f"); err != nil || got != "third" || len(copies) != step.copies {
				t.Errorf("%q, and %d conflict copies (%v), want %d", got, len(copies), err, step.copies)
			}
		})
	}
	t.Run("somebody else's between", func(t *testing.T) {
		f := newFarm(t, 2)
		f.up()
		nd := f.nodes[0]
		nd.write("f", "first")
		f.flush()
		nd.down()
		f.nodes[1].write("f", "other")
		f.flush()
		nd.write("f", "third")
		nd.up()
		f.flush()
		if got := f.nodes[1].read("f"); got != "other" {
			t.Errorf("an edit that knew nothing of %q won: %q", "other", got)
		}
	})
	t.Run("the system went down", func(t *testing.T) {
		f := newFarm(t, 2)
		f.up()
		nd := f.nodes[0]
		nd.write("f", "first")
		f.flush()
		nd.write("f", "second")
		f.flush()
		old, err := table{nd.table}.get("f")
		must(t, err)
		nd.write("f", "third")
		f.flush()
		crash(nd)
		putRecord(nd, "f", old)
		b := nd.table.Batch() // the last checkpoint was before the third: what it covers is not verified
		must(t, table{nd.table}.setNumber(b, metaPlaced, old.Version))
		must(t, table{nd.table}.setNumber(b, metaSynced, old.After+1))
		must(t, b.Commit())
		nd.write("f", "torn")
		nd.up()
		f.flush()
		if got := nd.read("f"); got != "third" {
			t.Errorf("what a disk that went back holds has won: %q", got)
		}
	})
}

// TestMadeAgainAfterLostRecord: a directory was removed, which is committed and not recorded when the process dies, and is
// made again before the next one starts.
func TestMadeAgainAfterLostRecord(t *testing.T) {
	for name, make := range map[string]func(nd *node){
		"directory": func(nd *node) { must(nd.f.t, os.Mkdir(nd.path("f"), 0o700)) },
		"file":      func(nd *node) { nd.write("f", "again") },
		"nothing":   func(*node) {},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFarm(t, 2)
			f.up()
			nd := f.nodes[0]
			must(t, os.Mkdir(nd.path("f"), 0o755))
			f.flush()
			nd.down()
			old := nd.table
			floor, err := table{old}.number(metaPlaced)
			must(t, err)
			nd.table = copyOf(t, old)
			nd.up()
			must(t, os.Remove(nd.path("f")))
			f.flush()
			nd.down()
			nd.table = old
			b := nd.table.Batch()
			must(t, table{nd.table}.setNumber(b, metaPlaced, floor))
			must(t, b.Commit())
			make(nd)
			nd.up()
			f.flush()
			f.same()
			if _, err := os.Lstat(nd.path("f")); errors.Is(err, os.ErrNotExist) != (name == "nothing") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestTouchedIsNotEdited: what only got another ctime while a node was down, as what the placer puts back does that was
// killed at the wrong moment, is no edit: if others have removed it meanwhile, it goes.
func TestTouchedIsNotEdited(t *testing.T) {
	for name, kind := range map[string]struct {
		made func(nd *node)
		edit func(nd *node) // really, which beats the deletion; the time is that of before
	}{
		"file": {func(nd *node) { nd.write("f", "first") }, func(nd *node) { nd.write("f", "other") }},
		"link": {func(nd *node) { must(nd.f.t, os.Symlink("first", nd.path("f"))) }, func(nd *node) {
			var st unix.Stat_t
			must(nd.f.t, unix.Lstat(nd.path("f"), &st))
			must(nd.f.t, os.Remove(nd.path("f")))
			must(nd.f.t, os.Symlink("other", nd.path("f")))
			must(nd.f.t, unix.UtimesNanoAt(unix.AT_FDCWD, nd.path("f"), []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
		}},
	} {
		for _, edited := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, edited: %v", name, edited), func(t *testing.T) {
				f := newFarm(t, 2)
				f.up()
				kind.made(f.nodes[0])
				f.flush()
				nd := f.nodes[1]
				nd.down()
				must(t, os.Rename(nd.path("f"), nd.path("aside")))
				must(t, os.Rename(nd.path("aside"), nd.path("f")))
				if edited {
					kind.edit(nd)
				}
				must(t, os.Remove(f.nodes[0].path("f")))
				f.flush()
				nd.up()
				f.flush()
				f.same()
				if _, err := os.Lstat(nd.path("f")); errors.Is(err, os.ErrNotExist) == edited {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

// forgetting stops the node after do, and has it lose the records of f that do has led to.
func forgetting(nd *node, do func()) {
	nd.f.t.Helper()
	old, err := table{nd.table}.get("f")
	must(nd.f.t, err)
	do()
	nd.down()
	putRecord(nd, "f", old)
}

// copyOf is a store with the same records.
func copyOf(t *testing.T, s *kv.Memory) *kv.Memory {
	t.Helper()
	c := kv.NewMemory()
	b := c.Batch()
	must(t, s.Scan(nil, nil, func(k, v []byte) error { return b.Set(bytes.Clone(k), bytes.Clone(v)) }))
	must(t, b.Commit())
	return c
}

func putRecord(nd *node, path string, rec record) {
	nd.f.t.Helper()
	e := table{nd.table}.edit()
	must(nd.f.t, e.set(path, rec))
	must(nd.f.t, e.commit())
}

// alone checks that all nodes hold path with this content, or do not hold it, and nothing else.
func alone(f *farm, path, want string) {
	f.t.Helper()
	f.same()
	for _, nd := range f.nodes {
		entries, err := os.ReadDir(nd.root)
		must(f.t, err)
		for _, e := range entries {
			if e.Name() != path && e.Name() != ".lockstep" {
				f.t.Errorf("%s holds %s too", nd.name, e.Name())
			}
		}
		b, err := os.ReadFile(nd.path(path))
		_, there := os.Lstat(nd.path(path))
		if string(b) != want || (want == "") != errors.Is(there, os.ErrNotExist) {
			f.t.Errorf("%s: %q, %v, want %q", nd.name, b, err, want)
		}
	}
}
