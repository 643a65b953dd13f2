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

// failing is a group that takes no proposals while it is told so, and counts the changes that came all the same.
type failing struct {
	*node
	fail  atomic.Bool
	asked atomic.Int64
}

func (l *failing) Propose(ctx context.Context, payload []byte) (uint64, []byte, error) {
	if !l.fail.Load() {
		return l.node.Propose(ctx, payload)
	}
	b, err := manifest.DecodeBatch(payload)
	if err == nil {
		err = errors.New("not now")
	}
	l.asked.Add(int64(len(b.Changes)))
	return 0, nil, err
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
		if n := log.asked.Load(); n < 2*deleted {
			return fmt.Sprintf("%d changes were proposed", n)
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
