package sim

import (
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// seatRecord plays the control group as far as a group's members go: who has a seat, under which replica id. Hosts
// read what was recorded a while ago. Every member wants to vote.
type seatRecord struct {
	states []control.Group // one after the other; the last is in force, none is changed again
}

func (gr *group) seats() *control.Group { return &gr.record.states[len(gr.record.states)-1] }

// reseat records a change of the seats, if change says that it is one.
func (gr *group) reseat(change func(*control.Group) bool) {
	next := *gr.seats()
	next.Members, next.Former = slices.Clone(next.Members), slices.Clone(next.Former)
	if change(&next) {
		gr.record.states = append(gr.record.states, next)
		gr.rewire()
	}
}

// seat gives a host one.
func (gr *group) seat(h *host) (replica uint64) {
	gr.reseat(func(g *control.Group) bool {
		replica = g.NextReplica
		g.NextReplica++
		g.Members = append(g.Members, control.Member{Node: h.id, Replica: replica, Role: control.RoleVoter})
		return true
	})
	return replica
}

// unseat takes a replica's seat away.
func (gr *group) unseat(replica uint64) {
	gr.reseat(func(g *control.Group) bool {
		i := slices.IndexFunc(g.Members, func(m control.Member) bool { return m.Replica == replica })
		if i < 0 {
			return false
		}
		g.Former = append(g.Former, control.Former{Replica: replica, Node: g.Members[i].Node})
		g.Members = slices.Delete(g.Members, i, i+1)
		return true
	})
}

// seatsKnown are the seats as the member's host knows them; the record is followed at some distance. The server looks once
// more before it acts; that what was acknowledged stays must not hang on it.
func (m *member) seatsKnown() *control.Group {
	states := m.gr.record.states
	m.seatsRead += m.h.w.dice.clock.IntN(len(states) - m.seatsRead)
	return &states[m.seatsRead]
}

// returning says whether a replica that stepped aside is in the configuration, or one that begins again does not vote
// yet, or somebody has still to do either.
func (gr *group) returning() bool {
	for _, h := range gr.w.hosts {
		if m := h.members[gr.id-1]; m != nil && m.damaged && !m.gone && !h.lost && !gr.outstays(m) {
			return true
		}
	}
	cs := gr.ledger.confs[len(gr.ledger.confs)-1]
	for _, id := range gr.renewed {
		m := gr.member(id)
		if m.h.lost {
			continue
		}
		switch voters := cs.GetVoters(); {
		case slices.Contains(cs.GetLearners(), m.before), slices.Contains(voters, m.before), slices.Contains(cs.GetVotersOutgoing(), m.before):
			return true
		case !slices.Contains(voters, id) && seated(gr.seats(), id):
			return true
		}
	}
	return false
}

// outstays says whether a replica that stepped aside and has no seat any more is kept in by a seat on a host that is lost for
// good: whoever has that seat was to take its place (control.PlanMembership), and nobody has taken that one out of the group.
func (gr *group) outstays(m *member) bool {
	seats := gr.seats()
	return m != nil && m.damaged && !seated(seats, m.id) && slices.ContainsFunc(seats.Members, func(seat control.Member) bool {
		return gr.w.hosts[seat.Node-1].lost
	})
}

func seated(g *control.Group, replica uint64) bool {
	return slices.ContainsFunc(g.Members, func(m control.Member) bool { return m.Replica == replica })
}

// driven says whether the configuration is to come to where the seats are: always if the seed has it so, in the end, and
// while somebody comes back.
func (gr *group) driven() bool { return gr.w.shape.driven || gr.w.over || gr.returning() }

// drive takes the next step of membership where the group is led, as the server does (see its drive).
func (m *member) drive() {
	if role, _, _ := m.g.Lead(); role != core.Leader || m.gr.changing || !m.gr.driven() {
		return
	}
	s := m.g.Status()
	if s.Transferee != 0 || !s.TermBegun {
		return
	}
	step := control.PlanMembership(m.seatsKnown(), control.Lead{
		Self: m.id,
		Conf: &raftpb.ConfState{Voters: s.Voters, Learners: s.Learners, VotersOutgoing: s.Outgoing},
		Progress: func(replica uint64) control.Progress {
			for _, p := range s.Peers {
				if p.Replica == replica {
					return control.ProgressOf(p.RecentActive, p.State == core.Replicating, p.Match, s.Commit)
				}
			}
			return control.Absent
		},
	})
	switch {
	case step.Transfer != 0:
		m.g.Transfer(step.Transfer)
	case step.Change != nil && !m.gr.risky(step.Change, &s):
		m.reconfigure(step.Change)
	}
}

// risky says whether a change takes a sound voter out, and no sound one in, while the log of another is lost: the rest would
// be fewer than a group can bear, and nobody knows of some of them yet. So it is to have one vote whose log was lost a
// moment ago.
func (gr *group) risky(cc *raftpb.ConfChangeV2, s *core.Status) bool {
	sound := func(id uint64) bool { m := gr.member(id); return m != nil && m.sound() }
	balance := 0
	for _, c := range cc.Changes {
		id := c.GetNodeId()
		switch m := gr.member(id); {
		case c.GetType() == raftpb.ConfChangeAddNode && m != nil && m.h.lost:
			return true
		case c.GetType() == raftpb.ConfChangeAddNode && sound(id):
			balance++
		case c.GetType() == raftpb.ConfChangeRemoveNode && slices.Contains(s.Voters, id) && sound(id):
			balance--
		}
	}
	return balance < 0 && slices.ContainsFunc(slices.Concat(s.Voters, s.Learners), func(id uint64) bool { return !sound(id) })
}

// reconfigure has the leader change the configuration. Nobody changes it meanwhile, nor for a while if the fate of
// this change is open.
func (m *member) reconfigure(cc *raftpb.ConfChangeV2) {
	gr, w := m.gr, m.h.w
	gr.changes++
	number := gr.changes
	_, _, term := m.g.Lead()
	gr.changing, gr.open[number] = true, term
	free := func() { gr.changing = gr.changing && gr.changes != number }
	w.after(5*second, free)
	m.do(func() {
		m.change(cc, func(a core.Answer) {
			switch a.Code {
			case core.Rejected:
				fail("%s rejected %v in %+v", m, cc, m.g.Status())
			case core.Committed:
				w.report.Changes++
				w.after(milli, free)
				gr.decided(number, term)
			}
			if a.Code != core.Unknown {
				delete(gr.open, number)
			}
		})
	})
}

// decided is called when a change was committed under a leader of a term: those that were begun before, under leaders of
// no later term, are in front of it in the log, or will never be in it.
func (gr *group) decided(number int, term uint64) {
	maps.DeleteFunc(gr.open, func(n int, t uint64) bool { return n <= number && t <= term })
}

// newConf is called when a configuration came into force for the first time anywhere.
func (gr *group) newConf(cs *raftpb.ConfState) {
	for _, id := range gr.renewed {
		if m := gr.member(id); !m.returned && slices.Contains(cs.GetVoters(), id) {
			m.returned = true
			gr.w.report.Returned++
		}
	}
}
