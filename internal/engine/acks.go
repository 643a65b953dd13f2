package engine

import (
	"context"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// CountInSync tells the group which in-sync set is recorded and who is in sets that were proposed; see
// core.Group.CountInSync. False: refused, or the group has stopped.
func (g *Group) CountInSync(term uint64, recorded core.InSync, proposed []uint64) bool {
	reply := make(chan bool, 1)
	if !g.box.call(func() { reply <- g.core.CountInSync(term, recorded, proposed) }) {
		return false
	}
	select {
	case ok := <-reply:
		return ok
	case <-g.ended:
		return false
	}
}

// proposeOwn proposes a command of the engine itself.
func (g *Group) proposeOwn(ctx context.Context, payload []byte) core.Answer {
	return g.Propose(ctx, core.Proposal{Ack: core.AckQuorum, Engine: true, Payload: payload})
}

// Losses is how many writes this replica has answered Accepted, as the leader, that were never committed: what is
// known of it, ever.
func (g *Group) Losses() (uint64, error) { return g.rep.Losses() }

// noteLost logs and counts losses; each is reported by the core once.
func (g *Group) noteLost(lost []core.Loss) {
	var writes uint64
	for _, l := range lost {
		if !l.Known {
			g.lg.Warn("accepted writes of an unknown fate: it is no longer known which entry was committed there",
				"writes", l.Writes, "term", l.Term, "index", l.Index)
			continue
		}
		writes += uint64(l.Writes)
		g.lg.Warn("accepted writes are lost: another leader was elected before a majority had them",
			"writes", l.Writes, "term", l.Term, "index", l.Index)
	}
	if writes == 0 {
		return
	}
	g.jobs.call(func() {
		if err := g.rep.AddLosses(writes); err != nil {
			g.eng.failed(err)
		}
	})
}

// Fate tells what became of an entry that a leader had accepted: as soon as that is decided, or FateOpen when ctx
// ends before.
func (g *Group) Fate(ctx context.Context, entry core.Position) core.Fate {
	return fate(ctx, g.rep, g.moved, entry)
}

// Fate is Group.Fate, by what the observer has applied.
func (o *Observer) Fate(ctx context.Context, entry core.Position) core.Fate {
	return fate(ctx, o.rep, o.moved, entry)
}

func fate(ctx context.Context, rep *replica.Replica, moved *signal, entry core.Position) core.Fate {
	for {
		next := moved.wait()
		covered, terms := rep.Covered()
		if f := core.FateOf(entry, covered, terms); f != core.FateOpen {
			return f
		}
		select {
		case <-next:
		case <-ctx.Done():
			return core.FateOpen
		}
	}
}
