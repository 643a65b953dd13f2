package engine

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
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

// An observer takes an entry above what the cluster has reached for damage of its source. Once the cluster is there, the
// same entry ends a program that does not know the level.
func TestObserverDoubtsALevelThatTheClusterHasNotReached(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var level atomic.Uint64
		level.Store(1)
		ended := make(chan *replica.NewerLevelError, 8)
		knows := map[uint64]uint64{11: 2}
		f := mixed(t, knows, &level, ended)
		defer f.close()
		var reached atomic.Pointer[func() uint64]
		say := func(level func() uint64) { reached.Store(&level) }
		say(func() uint64 { return 1 })
		adjust := f.adjust
		f.adjust = func(node uint64, cfg *Config) {
			adjust(node, cfg)
			cfg.Reached = func() uint64 { return (*reached.Load())() }
		}
		o := f.observe(11, 1)
		f.write(3, 100)
		f.reaches(11)
		take := func(levels ...uint64) (from, to uint64, err error) {
			err = o.between(func() error {
				at := o.rep.Applied()
				var entries []*raftpb.Entry
				for i, level := range levels {
					entries = append(entries, &raftpb.Entry{Index: proto.Uint64(at.Index + 1 + uint64(i)), Term: proto.Uint64(at.Term),
						Data: core.EncodeBatch(&core.Batch{Level: level, Proposer: 1, ID: 1 << 40})})
				}
				from = at.Index
				err := o.apply(entries)
				to = o.rep.Applied().Index
				return err
			})
			return from, to, err
		}
		for _, altered := range []uint64{65, 2} { // what the program does not know, and what it does
			if from, to, err := take(altered); !errors.Is(err, replica.ErrDamaged) || to != from {
				t.Errorf("an entry of level %d: %v, from %d to %d", altered, err, from, to)
			}
		}
		select {
		case newer := <-ended:
			t.Fatalf("the node ends for %v", newer)
		default:
		}
		f.write(3, 100)
		f.reaches(11)

		before := o.rep.Applied().Index
		say(func() uint64 { // as the control group's own entries tell of the level
			if o.rep.Applied().Index > before {
				return 65
			}
			return 1
		})
		if from, to, err := take(1, 2); err != nil || to != from+2 {
			t.Errorf("entries that raise the level: %v, from %d to %d", err, from, to)
		}
		if from, to, err := take(65); err == nil || errors.Is(err, replica.ErrDamaged) || to != from {
			t.Errorf("an entry of a level that the cluster has reached: %v, from %d to %d", err, from, to)
		}
		if newer := <-ended; *newer != (replica.NewerLevelError{Level: 65, Knows: 2}) {
			t.Errorf("ended with %v", newer)
		}
	})
}

// A state above the level that the node acts under is not installed. It is of a newer program only if this one does not
// know the level.
func TestInstallAboveTheLevelInForce(t *testing.T) {
	limits := replica.DefaultLimits()
	limits.Level = 2
	rep, err := replica.OpenLimited(kv.NewMemory(), counter{}, limits)
	if err != nil {
		t.Fatal(err)
	}
	first := &raftpb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: &raftpb.ConfState{Voters: []uint64{1}}}
	entry := &raftpb.Entry{Index: proto.Uint64(2), Term: proto.Uint64(1), Data: core.EncodeBatch(&core.Batch{Level: 2, Proposer: 1, ID: 1})}
	if err := rep.InitLine(first, replica.Line{History: [16]byte{1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := rep.Apply([]*raftpb.Entry{entry}, nil); err != nil {
		t.Fatal(err)
	}
	view := rep.StateView()
	defer view.Close()
	var snapshot bytes.Buffer
	if err := rep.WriteSnapshot(view, &snapshot); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		knows, level uint64
		ok, newer    bool
	}{{1, 1, false, true}, {2, 1, false, false}, {2, 2, true, false}} {
		e := Open(Config{
			Node: 1, Cluster: [16]byte{1}, Logs: logstore.NewMemory(), State: kv.NewMemory(), Transport: port{&mesh{nodes: map[uint64]*Engine{}}, 1},
			Now: time.Now, Log: testLog(1), Fault: func(err error) { t.Errorf("storage: %v", err) },
			Knows: c.knows, Level: func() uint64 { return c.level },
		})
		err := e.Install(RecoverConfig{Group: testGroup, Replica: 1, History: [16]byte{2}, Fork: rep.Applied()}, bytes.NewReader(snapshot.Bytes()))
		if newer := (*replica.NewerLevelError)(nil); (err == nil) != c.ok || errors.As(err, &newer) != c.newer {
			t.Errorf("who knows %d and acts under %d: %v", c.knows, c.level, err)
		}
		e.Close()
	}
}
