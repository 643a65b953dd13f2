package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

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
	gone := func(n int) []finding {
		out := make([]finding, n)
		for i := range out {
			out[i].old.Stat.Kind = manifest.File
		}
		return out
	}
	first, ok := g.admit(gone(60))
	if _, too := g.admit(gone(60)); !ok || too {
		t.Fatal("deletions that are on their way do not count")
	}
	g.giveBack(first)
	if g.deletions() != 60 {
		t.Errorf("%d are left", g.deletions())
	}
	now = now.Add(2 * deletionsWindow)
	if _, ok = g.admit(gone(50)); !ok {
		t.Fatal("a new window begins with none")
	}
	g.giveBack(first)
	if g.deletions() != 50 {
		t.Errorf("%d are counted", g.deletions())
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
