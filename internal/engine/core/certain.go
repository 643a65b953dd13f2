package core

// Ahead is what is on its way in front of a proposal: taken by this leader, not known to be part of the state.
type Ahead struct {
	Sessions int    // other sessions than the proposal's own that have proposals there
	Floor    uint64 // the highest that the own session's proposals there state
	Top      uint64 // the highest Seq of them
}

// aloft is what one session has on its way. floor and top may be those of a proposal that raft refused: what is
// judged by them is then judged too strictly, until nothing of the session is on its way.
type aloft struct {
	proposals  int
	floor, top uint64
}

// takeOff judges p and counts it among what is on its way. Accepted promises that the write is executed if its entry
// is committed, so AckLocal of a write of which that is not certain becomes AckQuorum, for the log too.
func (g *Group) takeOff(p *Proposal) waiter {
	if p.Client == ([16]byte{}) || p.Engine {
		return waiter{id: p.ID, ack: p.Ack} // no session decides: it is executed wherever it is committed
	}
	if p.Ack == AckLocal && !g.executes(p) {
		p.Ack = AckQuorum
	}
	a := g.aloft[p.Client]
	g.aloft[p.Client] = aloft{a.proposals + 1, max(a.floor, p.Floor), max(a.top, p.Seq)}
	return waiter{id: p.ID, client: p.Client, ack: p.Ack}
}

// executes says whether p, put behind everything that is on its way, is certain to be executed if it is committed.
// Nobody can tell before the state covers an entry of this term: until then entries of earlier leaders, which are
// not counted here, may still be applied in front of p.
func (g *Group) executes(p *Proposal) bool {
	if g.cfg.Executes == nil || !g.termBegun || g.applied < g.begunAt {
		return false
	}
	own, there := g.aloft[p.Client]
	ahead := Ahead{Sessions: len(g.aloft), Floor: own.floor, Top: own.top}
	if there {
		ahead.Sessions--
	}
	return g.cfg.Executes(p, ahead)
}

// land takes what leaves the queue, or never got into it, off the count.
func (g *Group) land(ws []waiter) {
	for i := range ws {
		if ws[i].client == ([16]byte{}) {
			continue
		}
		a := g.aloft[ws[i].client]
		if a.proposals--; a.proposals == 0 {
			delete(g.aloft, ws[i].client)
			continue
		}
		g.aloft[ws[i].client] = a
	}
}
