package engine

import (
	"sort"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// Every maintainTicks the published status is refreshed and the log is looked at.
const maintainTicks = 10

func (g *Group) tick() {
	g.ticks++
	if g.ticks%maintainTicks != 0 {
		return
	}
	g.refresh()
	g.settle()
	g.truncate()
	g.scheduleCheck()
}

// truncate cuts the log once it holds more than twice what is to be retained. It never cuts what is not
// applied, what an active follower, an attached observer or a snapshot in flight still needs, or what the
// owner of the group still reads from it (GroupConfig.Floor).
func (g *Group) truncate() {
	if g.cutting {
		return // the state of a slow disk, or a full one, may be long in coming
	}
	first, err := g.log.FirstIndex()
	if err != nil || g.log.Bytes(first) <= 2*g.cfg.RetainBytes {
		return
	}
	to := g.retainFrom(first) - 1
	last, err := g.log.LastIndex()
	if err != nil {
		return
	}
	// A state that is being installed is ahead of the log, and it stays ahead of what raft has applied if its term is over
	// when raft hears of it: then raft still asks for the entries that the state covers.
	to = min(to, last, g.rep.Applied().Index, g.Core().Applied, g.followersHave())
	if g.cfg.Floor != nil {
		to = min(to, g.cfg.Floor())
	}
	if to = g.pins.cut(to); to < first {
		return
	}
	g.cutting = true
	g.tasks.Go(func() {
		g.compact(to)
		g.box.call(func() { g.cutting = false })
	})
}

// retainFrom is the first index of the newest RetainBytes of log.
func (g *Group) retainFrom(first uint64) uint64 {
	n := int(g.rep.Applied().Index - min(first, g.rep.Applied().Index))
	return first + uint64(sort.Search(n, func(i int) bool {
		return g.log.Bytes(first+uint64(i)) <= g.cfg.RetainBytes
	}))
}

// followersHave is the lowest index that every follower that is alive holds durably.
func (g *Group) followersHave() uint64 {
	have := g.rep.Applied().Index
	for _, p := range g.Core().Peers {
		if p.RecentActive && p.State == core.Replicating {
			have = min(have, p.Match)
		}
	}
	return have
}

// compact makes the state durable first: the log below it is then not needed after any crash.
func (g *Group) compact(to uint64) {
	if err := g.eng.cfg.State.Sync(); err != nil {
		g.eng.failed(err)
		return
	}
	err := g.eng.writer.do(func(s logstore.Store) error { return s.Compact(g.cfg.ID, to) })
	if err != nil && err != ErrClosed {
		g.eng.failed(err)
	}
}
