package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// waiter is one caller's place in line; done receives exactly one answer.
type waiter struct {
	proposal core.Proposal
	done     chan core.Answer
}

// allPatience is how long AckAll waits for the last members; then the answer is CommittedQuorumOnly.
const allPatience = 10 * time.Second

// Propose asks this replica, which should be the leader, to commit p (its ID is assigned here). The answer says
// what is known; when ctx ends first it is Unknown (or CommittedQuorumOnly for AckAll). What a state says that is found
// to be doubtful before the answer is out is not passed on: results, and by the table of sessions what is accepted, are
// Unknown then, and the session asks the next leader. The engine's own commands ask nothing of the state.
func (g *Group) Propose(ctx context.Context, p core.Proposal) core.Answer {
	if p.Ack == core.AckAll {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, allPatience)
		defer cancel()
	}
	p.ID = g.eng.ids.Add(1)
	before := g.distrusted.Load()
	if g.rep.Quarantine() != nil { // what its machine says is not the group's word
		return core.Answer{ID: p.ID, Code: core.Busy}
	}
	w := &waiter{proposal: p, done: make(chan core.Answer, 1)}
	if !g.box.propose(w) {
		return core.Answer{ID: p.ID, Code: core.Unknown}
	}
	a := g.await(ctx, w)
	// Counted rather than looked at: the state may have been replaced since.
	if !p.Engine && decided(a.Code) && g.distrusted.Load() != before {
		return core.Answer{ID: p.ID, Code: core.Unknown, Position: a.Position}
	}
	return a
}

func (g *Group) await(ctx context.Context, w *waiter) core.Answer {
	select {
	case a := <-w.done:
		return a
	case <-ctx.Done():
	case <-g.ended:
	}
	if !g.box.call(func() { g.expire(w.proposal.ID) }) {
		return core.Answer{ID: w.proposal.ID, Code: core.Unknown}
	}
	select {
	case a := <-w.done:
		return a
	case <-g.ended:
		return core.Answer{ID: w.proposal.ID, Code: core.Unknown}
	}
}

// proposeHeld hands what waits to the core, if it is time.
func (g *Group) proposeHeld() {
	now := g.eng.cfg.Now()
	g.flight.landed(g.core.InFlight(), now)
	if g.flight.due(g.held) {
		g.propose(now, g.held)
		g.held = emptied(g.held)
		g.flight.left(g.core.InFlight(), now)
	}
}

// expire gives up on a proposal, read or change.
func (g *Group) expire(id uint64) {
	for i, w := range g.held {
		if w.proposal.ID == id {
			g.held = slices.Delete(g.held, i, i+1)
			w.done <- core.Answer{ID: id, Code: core.Unknown}
			return
		}
	}
	g.core.Expire(id)
}

// propose hands proposals to the core as one batch.
func (g *Group) propose(now time.Time, ws []*waiter) {
	ps := make([]core.Proposal, len(ws))
	for i, w := range ws {
		g.waiters[w.proposal.ID] = w
		ps[i] = w.proposal
	}
	g.core.Propose(now.UnixNano(), g.eng.ids.Add(1), ps)
}

func (g *Group) answer(a core.Answer) {
	if w, ok := g.waiters[a.ID]; ok {
		delete(g.waiters, a.ID)
		w.done <- a
	}
}

// Barrier returns an index such that the local state, which covers it, includes everything that was committed
// anywhere in the group before the call (raft's ReadIndex). ErrQuarantined: the local state is not what the others have.
func (g *Group) Barrier(ctx context.Context) (uint64, error) {
	for {
		if g.rep.Quarantine() != nil {
			return 0, ErrQuarantined
		}
		changed := g.changed.wait()
		w := &waiter{proposal: core.Proposal{ID: g.eng.ids.Add(1)}, done: make(chan core.Answer, 1)}
		if !g.box.call(func() {
			g.waiters[w.proposal.ID] = w
			g.core.Read(w.proposal.ID)
		}) {
			return 0, ErrClosed
		}
		a := g.await(ctx, w)
		switch {
		case a.Code == core.Ready && g.rep.Quarantine() != nil: // found while the read was under way
			return 0, ErrQuarantined
		case a.Code == core.Ready:
			return a.Position.Index, nil
		case ctx.Err() != nil:
			return 0, fmt.Errorf("engine: group %d: no linearizable read: %w", g.cfg.ID, ctx.Err())
		case g.stopping.Err() != nil:
			return 0, ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
		case <-g.stopping.Done():
		}
	}
}

// WaitApplied returns once the state covers index.
func (g *Group) WaitApplied(ctx context.Context, index uint64) error {
	for {
		moved := g.moved.wait()
		if g.rep.Applied().Index >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-g.stopping.Done():
			return ErrClosed
		}
	}
}

// Change proposes a configuration change on the leader of a term; one at a time. In another term the answer is NotLeader,
// even if it is led here again: somebody else may have changed the configuration meanwhile.
func (g *Group) Change(ctx context.Context, term uint64, cc *raftpb.ConfChangeV2) core.Answer {
	w := &waiter{proposal: core.Proposal{ID: g.eng.ids.Add(1)}, done: make(chan core.Answer, 1)}
	if !g.box.call(func() {
		if _, leader, now := g.core.Lead(); now != term {
			w.done <- core.Answer{ID: w.proposal.ID, Code: core.NotLeader, Leader: leader}
			return
		}
		g.waiters[w.proposal.ID] = w
		g.core.Change(w.proposal.ID, cc)
	}) {
		return core.Answer{Code: core.Unknown}
	}
	return g.await(ctx, w)
}

// transferRetry is how often a transfer is asked for: raft ignores one to a member that does not vote yet.
const transferRetry = 200 * time.Millisecond

// Transfer moves leadership to a replica and returns once somebody else leads, or with ctx's error.
func (g *Group) Transfer(ctx context.Context, to uint64) error {
	again := time.NewTicker(transferRetry)
	defer again.Stop()
	for {
		changed := g.changed.wait()
		st := g.Core()
		if st.Leader == to {
			return nil
		}
		g.box.call(func() { g.core.Transfer(to) })
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("engine: group %d: leadership stayed with replica %d: %w", g.cfg.ID, g.Core().Leader, ctx.Err())
		case <-g.stopping.Done():
			return ErrClosed
		}
	}
}

// HandOver gives leadership, if it is here, to the voter that has the most of the log.
func (g *Group) HandOver(ctx context.Context) {
	st := g.Fresh()
	if st.Role != core.Leader {
		return
	}
	var best uint64
	var match uint64
	room := groupRoom{g.eng, g}
	for _, p := range st.Peers {
		if room.Scarce() && room.FullAt(p.Replica) {
			continue // it would not take over
		}
		if p.Replica != g.cfg.Replica && !p.Learner && p.RecentActive && p.Match >= match {
			best, match = p.Replica, p.Match
		}
	}
	if best == 0 {
		return
	}
	if err := g.Transfer(ctx, best); err != nil {
		g.lg.Warn("leadership not handed over", "to", best, "err", err)
	}
}
