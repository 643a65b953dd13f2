package files

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// failing is a group that takes no proposals while it is told so, and counts those that came all the same.
type failing struct {
	*node
	fail  atomic.Bool
	asked atomic.Int64
}

func (l *failing) Propose(ctx context.Context, payload []byte, lacking []uint64) (uint64, []byte, error) {
	if !l.fail.Load() {
		return l.node.Propose(ctx, payload, lacking)
	}
	l.asked.Add(1)
	return 0, nil, errors.New("not now")
}

// TestRetriedDeletions: deletions that have to be proposed again and again are no mass deletion.
func TestRetriedDeletions(t *testing.T) {
	const files, deleted = 80, 70
	f := newFarm(t, 1)
	nd := f.nodes[0]
	log := &failing{node: nd}
	nd.change = func(c *Config) { c.Log = log }
	f.up()
	f.flush()
	for i := range files {
		nd.write(fmt.Sprintf("f%d", i), "x")
	}
	f.flush()
	log.fail.Store(true)
	for i := range deleted {
		must(t, os.Remove(nd.path(fmt.Sprintf("f%d", i))))
	}
	eventually(t, func() string {
		if n := log.asked.Load(); n < 3 {
			return fmt.Sprintf("%d proposals came", n)
		}
		return ""
	})
	log.fail.Store(false)
	f.flush()
	if n := len(mustSnapshot(t, nd.root)); n != files-deleted+1 {
		t.Errorf("%d entries are left", n)
	}
}

// TestGuardGivesBack: what is given back late does not count against another window.
func TestGuardGivesBack(t *testing.T) {
	now := created
	g := guard{now: func() time.Time { return now }}
	first, ok := g.admitLost(60, false)
	if _, too := g.admitLost(60, false); !ok || too {
		t.Fatal("deletions that are on their way do not count")
	}
	g.giveBack(first)
	if g.deletions() != 60 {
		t.Errorf("%d are left", g.deletions())
	}
	now = now.Add(2 * deletionsWindow)
	if _, ok = g.admitLost(50, false); !ok {
		t.Fatal("a new window begins with none")
	}
	g.giveBack(first)
	if g.deletions() != 50 {
		t.Errorf("%d are counted", g.deletions())
	}
}

// TestJudgedAfterEverythingElse: deletions that are withheld stop the binding only when nothing else is to be done, however
// long that takes: the files may be on their way into the log at other paths, and the group may be slow.
func TestJudgedAfterEverythingElse(t *testing.T) {
	const files = 300
	for name, other := range map[string]func(a *Agent) (end func()){
		"in flight": func(a *Agent) func() {
			a.board.claimIdle("elsewhere")
			return func() { a.board.lookDone("elsewhere", time.Time{}) }
		},
		"to be looked at": func(a *Agent) func() {
			a.board.hint("elsewhere", time.Time{})
			return func() { a.board.lookDone(a.board.takeLooks(1)[0], time.Time{}) }
		},
		"scan due": func(a *Agent) func() {
			a.scanSoon("elsewhere")
			return func() { a.scanDue.take(); a.scanDue.done() }
		},
		"scan under way": func(a *Agent) func() {
			a.scanSoon("elsewhere")
			a.scanDue.take()
			return a.scanDue.done
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := created
			clock := func() time.Time { return now }
			a := &Agent{cfg: Config{Now: clock}, board: newBoard(clock), table: table{newMemory()}, log: slog.New(slog.DiscardHandler),
				rescan: make(chan struct{}, 1)}
			a.status.start(clock)
			a.guard.now = clock
			a.guard.files.Store(files)
			again := func() {
				t.Helper()
				now = now.Add(retryTime)
				gone := make([]finding, files)
				for i := range gone {
					gone[i].change.Path = fmt.Sprint(i)
					gone[i].old.Stat.Kind = manifest.File
					if !a.board.claimIdle(gone[i].change.Path) {
						t.Fatal("somebody has it")
					}
				}
				if admitted, _, err := a.admit(gone); err != nil || len(admitted) > 0 {
					t.Fatalf("%d deletions are admitted, %v", len(admitted), err)
				}
			}
			end := other(a)
			for range 3 * graceTime / retryTime {
				again()
			}
			if a.guard.reason != running {
				t.Fatal("the binding is stopped while something else goes on")
			}
			end()
			for range graceTime/retryTime + 1 {
				again()
			}
			if a.guard.reason != stopDeletions {
				t.Error("the binding is not stopped although nothing else goes on")
			}
		})
	}
}

// TestWithheldIsForgotten: when files that were gone are back where they were, nothing waits any more, and nothing says so.
func TestWithheldIsForgotten(t *testing.T) {
	const files = 300
	now := created
	clock := func() time.Time { return now }
	a := &Agent{cfg: Config{Now: clock}, board: newBoard(clock), table: table{newMemory()}, log: slog.New(slog.DiscardHandler),
		rescan: make(chan struct{}, 1)}
	a.status.start(clock)
	a.guard.now = clock
	a.guard.files.Store(files)
	said := func() bool {
		var out api.DirNode
		a.status.fill(&out)
		return len(out.Problems) > 0
	}
	a.forgetWithheld()
	gone := make([]finding, files)
	for i := range gone {
		gone[i].change.Path = fmt.Sprint(i)
		gone[i].old.Stat.Kind = manifest.File
		if !a.board.claimIdle(gone[i].change.Path) {
			t.Fatal("somebody has it")
		}
	}
	if admitted, _, err := a.admit(gone); err != nil || len(admitted) > 0 || !said() {
		t.Fatalf("%d deletions are admitted, %v; problem: %v", len(admitted), err, said())
	}
	for _, wait := range []struct {
		d    time.Duration
		said bool
	}{{deletionsWindow, true}, {retryTime, false}} {
		now = now.Add(wait.d)
		if a.forgetWithheld(); said() != wait.said {
			t.Errorf("after %v the problem is said: %v", now.Sub(created), said())
		}
	}
	if len(a.board.withheld) > 0 {
		t.Errorf("%d paths are still withheld", len(a.board.withheld))
	}
}

// TestDeletedTreeStops: most of a tree is removed, with its directories, while the agent runs, and while it does not.
func TestDeletedTreeStops(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			f := newFarm(t, 1)
			f.up()
			nd := f.nodes[0]
			for i := range 9 {
				must(t, os.MkdirAll(nd.path(fmt.Sprintf("release/a/d%d", i)), 0o755))
			}
			for i := range 600 {
				nd.write(fmt.Sprintf("release/a/d%d/f%d", i%9, i), fmt.Sprintf("content of %d", i))
			}
			f.flush()
			if !running {
				nd.down()
			}
			must(t, os.RemoveAll(nd.path("release")))
			if !running {
				nd.up()
			}
			eventually(t, func() string {
				if st, err := nd.agent.Status(); err != nil || st.Mode != "stopped" {
					return fmt.Sprintf("mode %q, %v", st.Mode, err)
				}
				return ""
			})
			must(t, nd.agent.Confirm())
			f.flush()
			if n := len(mustSnapshot(t, nd.root)); n != 1 {
				t.Errorf("%d entries are left", n)
			}
		})
	}
}

// TestMovedIsNotDeleted: a directory that holds most of the files is renamed, once while the agent runs and once while
// it does not.
func TestMovedIsNotDeleted(t *testing.T) {
	const files = 400
	f := newFarm(t, 2)
	f.up()
	f.flush()
	nd := f.nodes[0]
	for i := range 7 {
		must(t, os.MkdirAll(nd.path(fmt.Sprintf("release/d%d", i)), 0o755))
	}
	for i := range files {
		nd.write(fmt.Sprintf("release/d%d/f%d", i%7, i), fmt.Sprintf("content of %d", i))
	}
	f.flush()
	must(t, os.Rename(nd.path("release"), nd.path("current")))
	f.flush()
	nd.down()
	must(t, os.Rename(nd.path("current"), nd.path("previous")))
	nd.up()
	f.flush()
	f.same()
	for _, n := range f.nodes {
		entries, err := os.ReadDir(n.path("previous"))
		must(t, err)
		if len(entries) != 7 {
			t.Errorf("%s has %d of 7 directories", n.name, len(entries))
		}
		if st, err := n.agent.Status(); err != nil || len(st.Problems) > 0 {
			t.Errorf("%s: %+v, %v", n.name, st.Problems, err)
		}
	}
}

// TestConfirmedWhileJudged: deletions that are confirmed while they are judged a second time do not stop the binding again.
func TestConfirmedWhileJudged(t *testing.T) {
	g := guard{now: func() time.Time { return created }}
	if !g.halt(stopDeletions) || g.halt(stopDeletions) {
		t.Fatal("a binding that runs is stopped, once")
	}
	if !g.allow() || g.allow() {
		t.Fatal("a stop is confirmed, once")
	}
	if g.halt(stopDeletions) {
		t.Error("what was confirmed stops it again")
	}
	if !g.halt(stopGone) || g.allow() {
		t.Error("that deletions are meant says nothing of a directory that is gone")
	}
}

// TestOrdinaryWorkIsNoMassDeletion: what a program that is at work removes is not taken for an accident.
func TestOrdinaryWorkIsNoMassDeletion(t *testing.T) {
	start := func(t *testing.T, files int) (*farm, *node) {
		f := newFarm(t, 2)
		f.up()
		f.flush()
		nd := f.nodes[0]
		must(t, os.Mkdir(nd.path("a"), 0o755))
		for i := range files {
			nd.write(fmt.Sprintf("a/f%d", i), "")
		}
		f.flush()
		return f, nd
	}
	t.Run("temporary files", func(t *testing.T) {
		f, nd := start(t, 10)
		must(t, os.Remove(nd.path("a/f0"))) // a window begins
		f.flush()
		for i := range 8 {
			for k := range 20 {
				nd.write(fmt.Sprintf("tmp%d-%d", i, k), "soon gone")
			}
			f.flush()
			for k := range 20 {
				must(t, os.Remove(nd.path(fmt.Sprintf("tmp%d-%d", i, k))))
			}
			f.flush()
		}
		f.same()
	})
	t.Run("files saved by renaming", func(t *testing.T) {
		f, nd := start(t, 10)
		for i := range 120 {
			tmp := fmt.Sprintf("a/save%d", i)
			nd.write(tmp, fmt.Sprint("version ", i))
			must(t, nd.agent.Flush(t.Context())) // it is in the group before it gets its name
			must(t, os.Rename(nd.path(tmp), nd.path(fmt.Sprintf("a/f%d", i%10))))
		}
		must(t, os.Remove(nd.path("a/f3")))
		f.flush()
		f.same()
	})
	t.Run("equal files moved", func(t *testing.T) {
		f, nd := start(t, 160)
		must(t, os.Rename(nd.path("a"), nd.path("b")))
		f.flush()
		f.same()
	})
}

// TestBackAgainIsNotGone: a tree is replaced by a copy while a scan judges whether too much is gone.
func TestBackAgainIsNotGone(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	nd := f.nodes[0]
	must(t, os.Mkdir(nd.path("a"), 0o755))
	for i := range 300 {
		nd.write(fmt.Sprintf("a/f%d", i), fmt.Sprint("content of ", i))
	}
	f.flush()
	var gone []string
	for i := range 300 {
		gone = append(gone, fmt.Sprintf("a/f%d", i))
	}
	nd.agent.board.stop() // nothing that happens now is found before all of it has happened
	must(t, os.RemoveAll(nd.path("a")))
	if n, err := nd.agent.countLost(gone, 150); err != nil || n != 300 {
		t.Fatalf("%d of 300 are lost, %v", n, err)
	}
	must(t, os.Mkdir(nd.path("a"), 0o755))
	for i := range 300 {
		nd.write(fmt.Sprintf("a/f%d", i), fmt.Sprint("copy of ", i))
	}
	if n, err := nd.agent.countLost(gone, 150); err != nil || n != 0 {
		t.Errorf("%d of 300 are lost though they are back, %v", n, err)
	}
	nd.agent.board.resume()
	f.flush()
	f.same()
}

// TestNamesOfOneFileAreDeleted: a tree in which each file has two names is removed. No name was moved to the other.
func TestNamesOfOneFileAreDeleted(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	nd := f.nodes[0]
	for i := range 120 {
		nd.write(fmt.Sprintf("f%d", i), fmt.Sprint("content of ", i))
		must(t, os.Link(nd.path(fmt.Sprintf("f%d", i)), nd.path(fmt.Sprintf("g%d", i))))
	}
	f.flush()
	nd.agent.board.stop() // all of it is found at once
	for i := range 120 {
		must(t, os.Remove(nd.path(fmt.Sprintf("f%d", i))))
		must(t, os.Remove(nd.path(fmt.Sprintf("g%d", i))))
	}
	nd.agent.board.resume()
	eventually(t, func() string {
		if st, err := nd.agent.Status(); err != nil || st.Mode != "stopped" {
			return fmt.Sprintf("%+v %v", st, err)
		}
		return ""
	})
}
