package engine

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// TestHeldCommitEndsWithItsLog: a commit index that waits for the next write rides along with that, unless the log is another
// one by then.
func TestHeldCommitEndsWithItsLog(t *testing.T) {
	create := func(s logstore.Store) error {
		_, err := s.Create(testGroup, initialSnapshot(nil))
		return err
	}
	hard := func(term, vote, commit uint64) *raftpb.HardState {
		return &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
	}
	entries := func(term, from, to uint64) (list []*raftpb.Entry) {
		for i := from; i <= to; i++ {
			list = append(list, &raftpb.Entry{Index: proto.Uint64(i), Term: &term})
		}
		return list
	}
	for name, c := range map[string]struct {
		between []func(logstore.Store) error
		next    []*raftpb.Entry
		want    *raftpb.HardState
	}{
		"the same log": {nil, entries(5, 3, 3), hard(5, 2, 2)},
		"a new log": {[]func(logstore.Store) error{func(s logstore.Store) error { return s.Remove(testGroup) }, create},
			entries(5, 1, 3), hard(5, 0, 0)},
		"reset to a state": {[]func(logstore.Store) error{func(s logstore.Store) error {
			meta := &raftpb.SnapshotMetadata{ConfState: &raftpb.ConfState{}, Index: proto.Uint64(30), Term: proto.Uint64(7)}
			return s.Write([]logstore.Write{{Group: testGroup, Snapshot: meta, HardState: hard(7, 3, 30)}})
		}}, entries(7, 31, 31), hard(7, 3, 30)},
	} {
		t.Run(name, func(t *testing.T) {
			store := logstore.NewMemory()
			w := newWriter(store, func(err error) { t.Error(err) })
			var jobs []writeJob
			call := func(f func(logstore.Store) error) {
				jobs = append(jobs, writeJob{call: f, result: make(chan error, 1)})
			}
			write := func(a *core.Append) {
				jobs = append(jobs, writeJob{group: testGroup, append: a, done: func() {}})
			}
			call(create)
			write(&core.Append{Entries: entries(5, 1, 2), HardState: hard(5, 2, 1), Sync: true})
			write(&core.Append{HardState: hard(5, 2, 2)})
			for _, f := range c.between {
				call(f)
			}
			write(&core.Append{Entries: c.next, Sync: true})
			if err := w.carryOut(jobs); err != nil {
				t.Fatal(err)
			}
			for _, j := range jobs {
				if j.call == nil {
					continue
				}
				if err := <-j.result; err != nil {
					t.Fatal(err)
				}
			}
			log, found, err := store.Log(testGroup)
			if err != nil || !found {
				t.Fatal(found, err)
			}
			hs, _, err := log.InitialState()
			if err != nil || hs.GetTerm() != c.want.GetTerm() || hs.GetVote() != c.want.GetVote() || hs.GetCommit() != c.want.GetCommit() {
				t.Errorf("hard state %v, %v, want %v", hs, err, c.want)
			}
		})
	}
}

// idles counts how often the store is told that nothing waits.
type idles struct {
	logstore.Store
	count atomic.Int32
}

func (s *idles) Idle() error {
	s.count.Add(1)
	return s.Store.Idle()
}

// TestMarkWaitsForQuiet: writes that follow each other cost no mark each; the last one gets its own soon.
func TestMarkWaitsForQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &idles{Store: logstore.NewMemory()}
		w := newWriter(store, func(err error) { t.Error(err) })
		var ran sync.WaitGroup
		ran.Go(w.run)
		if err := w.do(func(s logstore.Store) error {
			_, err := s.Create(testGroup, initialSnapshot(nil))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(20) {
			done := make(chan struct{})
			w.append(testGroup, &core.Append{Entries: []*raftpb.Entry{{Index: proto.Uint64(i + 1), Term: proto.Uint64(1)}}, Sync: true}, func() { close(done) })
			<-done
			<-time.After(markAfter * 3 / 4)
		}
		if n := store.count.Load(); n != 0 {
			t.Errorf("%d marks between writes that follow each other", n)
		}
		<-time.After(10 * markAfter)
		if n := store.count.Load(); n != 1 {
			t.Errorf("%d marks after the last write, want 1", n)
		}
		w.close()
		ran.Wait()
	})
}
