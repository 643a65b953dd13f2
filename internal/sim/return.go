package sim

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A replica whose log is found damaged does not run again under its id. Its host plays what the server does about it:
// it asks whether the group's leader can do without the replica, has its seat given to another replica id, asks again,
// and drops the log. As the new replica it learns, from the others, whatever it does not know; the configuration lets
// the old one go when the new one votes. If the leader cannot do without it, or nobody leads, everything stays as it is.
//
// What must hold: a voter that drops its log leaves a quorum of disks that have everything acknowledged (mayDrop); nothing
// is ever sent by a replica that has stepped aside (silentIfDamaged); in the end everybody that could return has.

// taken is for how long a leader at most takes a voter for there that has fallen silent: two election timeouts.
const taken = 2 * second

// askFor is for how long a host waits for its peers' word.
const askFor = 2 * second

// found is called when the log of the replica turns out to be damaged, at every start anew, or while it runs (damage.go).
func (m *member) found() {
	if !m.damaged {
		m.damaged, m.foundAt = true, m.h.w.now
		m.h.w.report.Damaged++
	}
	m.comeBack()
}

// comeBack takes the next step, now and then.
func (m *member) comeBack() {
	d := 5 * milli
	if r := m.h.w.dice.clock; r.IntN(2) == 0 {
		d = 50*milli + spread(r, 500*milli)
	}
	m.h.later(d, func() {
		if !m.gone {
			m.nextStep()
		}
	})
}

func (m *member) nextStep() {
	seats := m.seatsKnown()
	seat, seated := seats.Member(m.h.id)
	switch {
	case !m.damaged && m.rotten == nil:
		return // it was started again, and nothing was found
	case m.alive():
		m.handOver()
		m.ask(seats, func(s *core.Status) bool { return s.Spares(m.id) }, func(int64) { m.stepAside() })
	case !seated:
		m.ask(seats, func(s *core.Status) bool { return !configured(s, m.id) }, func(int64) { m.giveUp() })
	case seat.Replica == m.id:
		m.ask(seats, func(s *core.Status) bool { return s.Spares(m.id) }, func(int64) { m.renew() })
	case seat.Replica > m.id:
		m.ask(seats, func(s *core.Status) bool { return s.Spares(m.id) }, func(asked int64) { m.beginAgain(seat, asked) })
	default: // ids only grow: what the host knows is old
		m.comeBack()
	}
}

func configured(s *core.Status, id uint64) bool {
	return slices.Contains(s.Voters, id) || slices.Contains(s.Learners, id) || slices.Contains(s.Outgoing, id)
}

// ask asks the holders for the word of the one that leads, after a barrier, and goes on with then if that is yes, at once
// or a while later; asked is when the question was put. It always ends with another step to come.
func (m *member) ask(seats *control.Group, agrees func(*core.Status) bool, then func(asked int64)) {
	h, w, asked := m.h, m.h.w, m.h.w.now
	spared, done := false, false
	end := func() {
		switch {
		case done || m.gone: // it may have asked twice: at every start it begins to
			return
		case spared:
			then(asked)
		default:
			w.report.Waits++
		}
		done = true
		m.comeBack()
	}
	for _, holder := range seats.Holders() {
		peer := w.hosts[holder-1].members[m.gr.id-1]
		if peer == nil || peer.h == h { // nil: it has not begun yet, or ended
			continue
		}
		w.net.carry(h.id, peer.h.id, 0, func(bool) {
			peer.do(func() {
				if role, _, _ := peer.g.Lead(); role != core.Leader {
					return
				}
				peer.read(func(a core.Answer) {
					if s := peer.g.Status(); a.Code == core.Ready && agrees(&s) {
						w.net.carry(peer.h.id, h.id, 0, func(bool) {
							if spared = true; w.dice.clock.IntN(2) == 0 {
								h.later(0, end)
							}
						})
					}
				})
				id := peer.nextID
				peer.later(askFor, func() { peer.g.Expire(id) })
			})
		})
	}
	h.later(w.dice.clock.Int64N(askFor), end)
}

// renew asks the control group for another id; what it asks for may come late, twice or never.
func (m *member) renew() {
	w := m.h.w
	for range 1 + w.dice.net.IntN(2) {
		at := spread(w.dice.net, 100*milli)
		w.net.client(func() {
			w.after(at, func() {
				m.gr.reseat(func(g *control.Group) bool { return g.Renew(m.h.id, m.id) })
			})
		})
	}
}

// giveUp drops what is left of a group that has no seat for the host any more.
func (m *member) giveUp() {
	m.gone = true
	must(m.h.logs.Remove(m.gr.id), "remove damaged log")
}

// beginAgain gives the replica up for the one that has its seat now.
func (m *member) beginAgain(seat control.Member, asked int64) {
	m.gr.mayDrop(m, asked)
	m.gone = true
	next := m.gr.addMember(m.h, seat.Replica)
	next.before, next.recasts, next.seatsRead = m.id, true, m.seatsRead
	m.gr.renewed = append(m.gr.renewed, next.id)
	m.h.w.report.Renewed++
	next.start()
}

// recast makes what the replica before left fit for this one, as engine.Recast does; false if a crash falls between its
// steps: then it is done again.
func (m *member) recast() bool {
	h, w := m.h, m.h.w
	must(replica.Recast(kv.Prefixed(h.store, m.gr.prefix()), true), "recast state")
	if !w.over && w.dice.disk.IntN(4) == 0 {
		w.after(0, func() {
			if h.members[m.gr.id-1] == m && !w.nemesis.crash(w, h, milli) {
				m.start()
			}
		})
		return false
	}
	must(h.logs.Remove(m.gr.id), "remove damaged log")
	if m.recasts = false; !h.doubtful {
		m.begun = w.now // what was altered before has nothing to do with it
	}
	return true
}

// mayDrop holds that m does not vote, or a quorum of the others' disks has everything that was acknowledged, at the moment
// in which it gives its log up. What was found damaged only after m had asked counts, or so shortly before that the leader
// still took the other for there: none could know.
func (gr *group) mayDrop(m *member, asked int64) {
	e, ok := gr.ledger.entry(gr.ledger.told)
	if !ok {
		return
	}
	at := core.Position{Term: e.term, Index: gr.ledger.told}
	has := func(id uint64) bool {
		other := gr.member(id)
		switch {
		case other == m:
			return false
		case other.h.lost:
			return other.h.lostAt > asked-taken
		case other.damaged:
			return other.foundAt > asked-taken
		case other.gone || other.recasts:
			return false
		}
		return other.holds(at)
	}
	if recent := gr.ledger.confs[max(0, len(gr.ledger.confs)-3):]; !notMissed(m.id, recent, has) {
		fail("%s gives its log up, and %+v, which was acknowledged, is left on the disks of no quorum: %v", m, at, recent)
	}
}

// notMissed says whether a replica may drop its log, if has tells who of the others has everything on its disk and recent are
// the last configurations that came into force: a leader counts by what it has applied, one or two behind the log's.
//
// Who does not vote by the last of them is not missed, whatever the others have. Either it never counted, or the change
// that left it out was committed: too few to elect one of them lack anything that was acknowledged with its help
// (TestWhoIsLeftOutIsNotMissed in core), and whatever is acknowledged later is counted without it. If disks of others are
// damaged then, that is not its doing.
func notMissed(id uint64, recent []*raftpb.ConfState, has func(uint64) bool) bool {
	last := recent[len(recent)-1]
	return !slices.Contains(last.GetVoters(), id) && !slices.Contains(last.GetVotersOutgoing(), id) ||
		slices.ContainsFunc(recent, func(cs *raftpb.ConfState) bool {
			return majority(cs.GetVoters(), has) && majority(cs.GetVotersOutgoing(), has)
		})
}

// majority says whether more than half of ids are such; of none always.
func majority(ids []uint64, such func(uint64) bool) bool {
	n := 0
	for _, id := range ids {
		if such(id) {
			n++
		}
	}
	return len(ids) == 0 || 2*n > len(ids)
}

// sound says whether what the replica has on its disk can be relied on: it runs, or will again.
func (m *member) sound() bool { return !m.damaged && !m.gone && !m.recasts && !m.h.suspect() }

// silentIfDamaged holds that a replica that has stepped aside sends nothing. Others may still pass on what it has asked
// before: a read that goes to the next leader names who asked first.
func (m *member) silentIfDamaged() {
	if m.damaged || m.gone {
		fail("%s speaks, after its log was found damaged", m)
	}
}
