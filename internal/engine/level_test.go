package engine

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// mixed is a farm whose programs know what its map says, level 1 if nothing; who knows more acts under level.
func mixed(t *testing.T, knows map[uint64]uint64, level *atomic.Uint64, ended chan<- *replica.NewerLevelError) *farm {
	return newFarm(t, 3, func(f *farm) {
		f.config.RetainBytes = 1
		f.adjust = func(node uint64, cfg *Config) {
			cfg.Knows = max(knows[node], core.FirstLevel)
			cfg.Level = func() uint64 { return min(level.Load(), cfg.Knows) }
			cfg.Fault = func(err error) {
				var newer *replica.NewerLevelError
				if !errors.As(err, &newer) {
					t.Errorf("node %d: %v", node, err)
				}
				ended <- newer
			}
		}
	})
}

// leads has a voter lead.
func (f *farm) leads(node uint64) {
	f.t.Helper()
	ctx, cancel := f.ctx()
	defer cancel()
	for _, g := range f.groups {
		if g.Fresh().Role == core.Leader && g.Replica() != node {
			if err := g.Transfer(ctx, node); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// A node whose program does not know the level of an entry ends in front of it, voter and observer alike; the others
// go on, and so does the node with a newer program, with all that came meanwhile.
func TestNodeEndsInFrontOfANewerLevel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		knows := map[uint64]uint64{1: 2, 2: 2}
		var level atomic.Uint64
		level.Store(1)
		ended := make(chan *replica.NewerLevelError, 8)
		f := mixed(t, knows, &level, ended)
		defer f.close()
		f.observe(11, 1, 2)
		f.write(5, 100)
		for _, n := range []uint64{3, 11} {
			f.reaches(n)
		}
		f.leads(1)
		at := f.index
		level.Store(2)
		f.write(3, 100)
		for range 2 {
			select {
			case newer := <-ended:
				if newer.Level != 2 || newer.Knows != 1 {
					t.Errorf("ended with %+v", newer)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("a node goes on that does not know the level")
			}
		}
		for n, applied := range map[uint64]uint64{3: f.groups[3].Applied().Index, 11: f.observers[11].Applied().Index} {
			if applied > at+1 { // at most the entry with which a term begins
				t.Errorf("node %d has applied %d, it may up to %d", n, applied, at)
			}
		}
		f.kill(3)
		f.kill(11)
		f.write(5, 100)
		knows[3], knows[11] = 2, 2
		f.startVoter(3)
		f.observe(11, 1, 2)
		f.reaches(3)
		f.reaches(11)
	})
}
