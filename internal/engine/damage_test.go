package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// rotten is a log store of which entries cannot be read any more, though they were written.
type rotten struct {
	logstore.Store
	mu       sync.Mutex
	from, to uint64
	exact    bool // says which entries those are
	reads    int  // that met them
}

func (r *rotten) rot(from, to uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.from, r.to = from, to
}

func (r *rotten) met() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads
}

func (r *rotten) Log(group uint64) (logstore.Log, bool, error) {
	l, found, err := r.Store.Log(group)
	if l != nil {
		l = rottenLog{l, r}
	}
	return l, found, err
}

func (r *rotten) Create(group uint64, snap *raftpb.SnapshotMetadata) (logstore.Log, error) {
	l, err := r.Store.Create(group, snap)
	return rottenLog{l, r}, err
}

type rottenLog struct {
	logstore.Log
	r *rotten
}

func (l rottenLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	switch {
	case hi <= l.r.from || lo > l.r.to:
		return l.Log.Entries(lo, hi, maxSize)
	case l.r.exact:
		l.r.reads++
		return nil, fmt.Errorf("read: %w", &logstore.Unreadable{First: l.r.from, Last: l.r.to, Cause: errors.New("altered")})
	}
	l.r.reads++
	return nil, fmt.Errorf("read: %w", logstore.ErrDamaged)
}

// rotting is a farm in which a node's log may rot. troubles has a token when that node's engine has told of trouble.
func rotting(t *testing.T, size int, node uint64, exact bool) (f *farm, r *rotten, troubles chan uint64) {
	r, troubles = &rotten{exact: exact}, make(chan uint64, 100)
	f = newFarm(t, size, func(f *farm) {
		f.adjust = func(n uint64, cfg *Config) {
			if n == node {
				r.Store = cfg.Logs
				cfg.Logs = r
				cfg.Troubled = func(group uint64) { troubles <- group }
			}
		}
	})
	return f, r, troubles
}

func told(t *testing.T, troubles chan uint64) {
	t.Helper()
	select {
	case group := <-troubles:
		if group != testGroup {
			t.Errorf("trouble in group %d", group)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody was told")
	}
}

// TestDamagedSourceFeedsTheState: the only voter cannot read what an observer lacks. It is asked for that once; then the
// observer gets the state, and later ones get entries again that can be read.
func TestDamagedSourceFeedsTheState(t *testing.T) {
	for name, exact := range map[string]bool{"known which": true, "not known which": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, r, troubles := rotting(t, 1, 1, exact)
				defer f.close()
				f.write(20, 100)
				f.observe(11, 1)
				f.reaches(11)
				f.kill(11)
				at := f.index
				f.write(20, 100)
				r.rot(at+5, at+7)
				o := f.observe(11, 1)
				f.reaches(11)
				if c := o.Catchup(); c.By != ModeSnap || c.Rule != "R5" {
					t.Errorf("it caught up by %s, %s: %s", c.By, c.Rule, c.Why)
				}
				if n := r.met(); n != 1 {
					t.Errorf("what is damaged was read %d times", n)
				}
				told(t, troubles)
				g := f.groups[1]
				if !errors.Is(g.Damage(), logstore.ErrDamaged) || g.Stopped() != nil {
					t.Errorf("damage %v, stopped %+v", g.Damage(), g.Stopped())
				}
				f.kill(11)
				f.write(5, 100)
				o = f.observe(11, 1)
				f.reaches(11)
				f.until("it is live", func() bool { return o.Catchup().Mode == ModeLive })
				if c := o.Catchup(); c.By != ModeDiff {
					t.Errorf("behind the damage it caught up by %s: %s", c.By, c.Why)
				}
			})
		})
	}
}

// TestDamagedLeaderFeedsTheState: a leader cannot read what a follower lacks that was away. It goes on leading, and the
// follower gets the state. Once it stops, its log is not handed out again.
func TestDamagedLeaderFeedsTheState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, r, troubles := rotting(t, 3, 1, true)
		defer f.close()
		f.write(5, 100)
		g := f.groups[1]
		f.until("1 leads", func() bool {
			if lead := f.groups[g.Core().Leader]; lead != nil && lead != g {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := lead.Transfer(ctx, 1); err != nil {
					t.Log(err)
				}
			}
			return g.Core().Role == core.Leader
		})
		f.kill(3)
		at := f.index
		f.write(20, 100)
		r.rot(at+5, at+7)
		f.startVoter(3)
		f.reaches(3)
		if g.Core().Role != core.Leader || g.Stopped() != nil {
			t.Fatalf("1 is %v, stopped %+v", g.Core().Role, g.Stopped())
		}
		if c := f.groups[3].Catchup(); c.By != ModeSnap {
			t.Errorf("3 caught up by %s: %s", c.By, c.Why)
		}
		told(t, troubles)
		f.write(5, 100)
		f.reaches(3)
		e := f.fabric.engine(1)
		if err := e.StopGroup(testGroup, false); err != nil {
			t.Fatal(err)
		}
		cfg := f.config
		cfg.Replica, cfg.Machine = 1, f.machine(1)
		if _, err := e.StartGroup(cfg); !errors.Is(err, logstore.ErrDamaged) {
			t.Errorf("its log was opened again: %v", err)
		}
		if err := e.Recast(testGroup, true); err != nil {
			t.Error(err)
		}
		r.rot(0, 0)
		cfg.Replica = 4
		if _, err := e.StartGroup(cfg); err != nil {
			t.Errorf("begin anew: %v", err)
		}
	})
}

// TestDamageOfWhatIsNotApplied ends a replica, which says so; whoever writes through that node, and from another that asked
// it last, goes on with who leads then.
func TestDamageOfWhatIsNotApplied(t *testing.T) {
	for name, leads := range map[string]bool{"the leader": true, "a follower": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f, r, troubles := rotting(t, 3, 1, true)
				defer f.close()
				f.write(5, 100)
				g := f.groups[1]
				f.until("it has its role", func() bool {
					st := g.Core()
					if lead := f.groups[st.Leader]; lead != nil && (st.Leader == 1) != leads {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						defer cancel()
						if err := lead.Transfer(ctx, map[bool]uint64{true: 1, false: 2}[leads]); err != nil {
							t.Log(err)
						}
						return false
					}
					return st.Leader != 0
				})
				f.observe(11, 2, 3)
				f.reaches(11)
				sessions := []*Session{f.session, f.fabric.engine(11).NewSession(testGroup, f.voters, [16]byte{11})}
				for _, f.session = range sessions {
					f.write(1, 100) // both know who leads
				}
				r.rot(f.index+1, f.index+1000)
				for _, f.session = range sessions {
					began := time.Now()
					f.write(3, 100)
					if took := time.Since(began); took > 5*time.Second {
						t.Errorf("the write took %v", took)
					}
				}
				told(t, troubles)
				s := g.Stopped()
				if s == nil || !errors.Is(s.Err, logstore.ErrDamaged) || !errors.Is(g.Damage(), logstore.ErrDamaged) || s.Since.IsZero() {
					t.Fatalf("stopped %+v, damage %v", s, g.Damage())
				}
				if g.Core().Leader != 0 || g.Core().Role == core.Leader {
					t.Errorf("it says that %d leads", g.Core().Leader)
				}
				if _, why := f.fabric.engine(1).sourceOf(hello{Version: feedVersion, Group: testGroup}); !strings.Contains(why, "stopped") {
					t.Errorf("it feeds others: %q", why)
				}
				f.reaches(2)
				f.reaches(11)
			})
		})
	}
}

// TestSessionsPassOverWhoDecidesNothing: a replica that has stopped, or is in quarantine, answers every write at once and
// takes none. Whoever asked it asks another one next.
func TestSessionsPassOverWhoDecidesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(1, 100)
		f.observe(11, 1, 2, 3)
		f.reaches(11)
		for code, remembers := range map[core.Code]bool{core.Unknown: false, core.Busy: false, core.Full: true,
			core.Accepted: true, core.Committed: true, core.CommittedAll: true, core.CommittedQuorumOnly: true} {
			s := f.fabric.engine(11).NewSession(testGroup, f.voters, [16]byte{11})
			s.setLeader(2)
			s.answeredBy(2, served{Answer: core.Answer{Code: code}})
			for try := range 3 {
				if node, _ := s.pick(try); (node == 2) != remembers && (remembers || try%3 == 1) {
					t.Errorf("%v: asks %d in attempt %d", code, node, try)
				}
			}
		}
	})
}
