package engine

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// What a replica does whose log turns out to be damaged while it runs. A start reads the whole log; what rots later is
// found by who reads it.
//
// An entry that the state covers is needed for nobody but those that lack it, and votes and terms are not read from the
// disk again. So the log counts as cut behind such an entry: whoever lacks it gets the whole state (SNAP), which is
// sound, and the replica goes on. An entry that has not been applied yet it cannot do without, and it ends (Fault).
// The owner is told of either (Config.Troubled). A log that was found damaged is handed out no more once its replica has
// stopped (logstore.Condemn): a replica of another id begins anew.

// Stopped says why a replica runs no more though nobody stopped it, and since when.
type Stopped struct {
	Err   error
	Since time.Time
}

// Stopped is not nil once the replica has found that its log or its state contradicts itself.
func (g *Group) Stopped() *Stopped { return g.stopped.Load() }

// Damage is what was found last to be wrong with the log of this replica, which wraps logstore.ErrDamaged, or nil.
func (g *Group) Damage() error {
	if err := g.damage.Load(); err != nil {
		return *err
	}
	return nil
}

// unreadable notes that a read of entries up to index to found the log damaged: what is damaged counts as cut, as far as
// the state covers it.
func (g *Group) unreadable(to uint64, err error) {
	g.damage.Store(&err)
	if g.pins.spoil(CutBehind(to, g.rep.Applied().Index, err)) {
		g.lg.Error("the log is damaged: who lacks what cannot be read gets the whole state", "through", to, "err", err)
		g.troubled()
	}
}

// CutBehind is the last index that counts as cut after a read of entries up to index to met damage (err) in the log of a
// replica whose state is at applied: what the state does not cover cannot be cut.
func CutBehind(to, applied uint64, err error) uint64 {
	var bad *logstore.Unreadable
	if errors.As(err, &bad) {
		to = bad.Last
	}
	return min(to, applied)
}

// fail ends what runs of the replica; the process goes on, and so do its other groups. The loop calls it last.
func (g *Group) fail(f *core.Fault) {
	var err error = f
	switch damage := g.Damage(); {
	case errors.Is(f, logstore.ErrDamaged):
		g.damage.Store(&err)
	case damage != nil:
		err = fmt.Errorf("%w: %w", f, damage)
	}
	g.lg.Error("replica stopped: its log or state contradicts itself", "err", err)
	g.box.close()
	g.abandon()
	last := g.Core()
	last.Role, last.Leader = core.Follower, 0 // whatever it was: it is no more
	g.status.Store(&last)
	now := g.eng.cfg.Now()
	g.leaderless.CompareAndSwap(0, now.UnixNano())
	g.stopped.Store(&Stopped{err, now})
	g.src.cutAll()
	g.changed.broadcast()
	g.troubled()
}

func (g *Group) troubled() {
	if g.eng.cfg.Troubled != nil {
		g.eng.cfg.Troubled(g.cfg.ID)
	}
}

// condemn sees to it that a log that was found damaged is not opened again.
func (g *Group) condemn() {
	why := g.Damage()
	if why == nil {
		return
	}
	if err := g.eng.writer.do(func(s logstore.Store) error { s.Condemn(g.cfg.ID, why); return nil }); err != nil {
		g.lg.Debug("damaged log not marked; the next start finds the damage", "err", err)
	}
}

// Storage is the log as raft reads it, with the snapshot that this node could stream right now.
type Storage struct {
	logstore.Log
	Rep   *replica.Replica
	Found func(to uint64, err error) // a read up to index to found damage; nil until the replica runs
}

// Snapshot implements raft.Storage.
func (s *Storage) Snapshot() (*raftpb.Snapshot, error) {
	return &raftpb.Snapshot{Metadata: s.Rep.SnapshotMeta()}, nil
}

// Entries has damage of what the state covers look like a log that was cut: raft reads that for others only, and sends
// them a snapshot instead.
func (s *Storage) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	entries, err := s.Log.Entries(lo, hi, maxSize)
	if s.Found == nil || !errors.Is(err, logstore.ErrDamaged) {
		return entries, err
	}
	s.Found(hi-1, err)
	if lo > s.Rep.Applied().Index {
		return nil, err
	}
	return nil, raft.ErrCompacted
}
