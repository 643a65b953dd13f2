package sim

import (
	"slices"
	"strconv"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// inSyncRecord plays the control group as far as a group's in-sync set goes: it takes proposals by the rules of
// control's SetInSync, some of them late, twice or never, and replicas read what was recorded a while ago.
//
// What must hold is core.InSync's invariant. It must not depend on what is proposed, so some proposals are silly.
type inSyncRecord struct {
	states []control.InSync // one after the other; the last is in force
	upTo   core.Position    // the highest that was ever answered CommittedAll
}

func (r *inSyncRecord) now() control.InSync { return r.states[len(r.states)-1] }

// set is a proposal that takes effect, or does not.
func (gr *group) setInSync(c control.SetInSync) {
	rec := gr.inSync.now()
	if c.Term < rec.Term || c.Version != rec.Version || len(c.Replicas) == 0 {
		return
	}
	rec.Term = c.Term
	if rec.Version == 0 || !slices.Equal(c.Replicas, rec.Replicas) {
		if len(c.Replicas) < len(rec.Replicas) {
			gr.w.report.Shrunk++
		}
		rec.Version, rec.Replicas = rec.Version+1, c.Replicas
		gr.w.report.InSync++
	}
	gr.inSync.states = append(gr.inSync.states, rec)
	gr.checkInSync()
}

// checkInSync holds that every member of the set in force has whatever was answered CommittedAll.
func (gr *group) checkInSync() {
	rec := gr.inSync.now()
	for _, id := range rec.Replicas {
		if at := gr.inSync.upTo; at.Index > 0 && !gr.member(id).holds(at) {
			fail("group %d: replica %d is in in-sync set %d of %v and has %+v not on disk, which was answered COMMITTED_ALL",
				gr.id, id, rec.Version, rec.Replicas, at)
		}
	}
}

// committedAll is called when m answers so.
func (gr *group) committedAll(m *member, a *core.Answer) {
	i := slices.IndexFunc(gr.inSync.states, func(s control.InSync) bool { return s.Version == a.Set })
	if a.Set == 0 || i < 0 {
		fail("%s counted in-sync set %d for %+v", m, a.Set, a.Position)
	}
	for _, id := range gr.inSync.states[i].Replicas {
		if !gr.member(id).holds(a.Position) {
			fail("%s counted in-sync set %d for %+v, replica %d of it has it not on disk", m, a.Set, a.Position, id)
		}
	}
	if a.Position.Index > gr.inSync.upTo.Index {
		gr.inSync.upTo = a.Position
	}
	gr.checkInSync()
}

// keeper looks after the in-sync set where the group is led, as the server's does.
type keeper struct {
	term     uint64
	proposed []control.SetInSync
	commit   uint64
	members  map[uint64]*followed
	read     int // up to which state of the record the node has come
}

// followed is what was seen of a voter over time.
type followed struct{ behind, current int64 }

// keepInSync is one look, and the next ones.
func (m *member) keepInSync() {
	m.later(50*milli+spread(m.h.w.dice.clock, 250*milli), m.keepInSync)
	st := m.g.Status()
	if st.Role != core.Leader || !st.TermBegun {
		return
	}
	k, states := &m.keeper, m.gr.inSync.states
	k.read += m.h.w.dice.clock.IntN(len(states) - k.read)
	rec := states[k.read]
	if k.term != st.Term {
		*k = keeper{term: st.Term, members: map[uint64]*followed{}, read: k.read}
	}
	members := k.observe(st, m.h.w.now)
	change := control.SetInSync{Term: st.Term, Version: rec.Version, Replicas: rec.Replicas}
	switch {
	case rec.Term < st.Term || rec.Version == 0:
		if len(change.Replicas) == 0 {
			change.Replicas = []uint64{m.id}
		}
		m.proposeInSync(change)
		return
	case rec.Term > st.Term:
		return
	}
	k.proposed = slices.DeleteFunc(k.proposed, func(c control.SetInSync) bool { return c.Version < rec.Version })
	var open []uint64
	for _, c := range k.proposed {
		open = append(open, c.Replicas...)
	}
	recorded := core.InSync{Version: rec.Version, Replicas: rec.Replicas}
	if !m.g.CountInSync(st.Term, recorded, open) {
		return
	}
	next := m.nextInSync(rec.Replicas, st, members)
	if next == nil || !m.g.CountInSync(st.Term, recorded, append(open, next...)) {
		return
	}
	change.Replicas = next
	k.proposed = append(k.proposed, change)
	m.proposeInSync(change)
}

// nextInSync is what production plans, or now and then any voters at all.
func (m *member) nextInSync(set []uint64, st core.Status, members []control.InSyncMember) (next []uint64) {
	r := m.h.w.dice.clock
	if r.IntN(4) > 0 {
		next, _ = control.PlanInSync(set, m.id, members, time.Duration(m.h.w.shape.inSyncAfter))
		return next
	}
	for _, id := range st.Voters {
		if r.IntN(2) == 0 {
			next = append(next, id)
		}
	}
	slices.Sort(next)
	return next
}

func (m *member) proposeInSync(c control.SetInSync) {
	w := m.h.w
	for range 1 + w.dice.net.IntN(2) {
		at := spread(w.dice.net, 100*milli)
		w.net.client(func() { w.after(at, func() { m.gr.setInSync(c) }) })
	}
}

// observe brings what is known of the voters up to date.
func (k *keeper) observe(st core.Status, now int64) (members []control.InSyncMember) {
	for _, id := range st.Voters {
		o := k.members[id]
		if o == nil {
			o = &followed{current: now}
			k.members[id] = o
		}
		current := id == st.Replica
		for _, p := range st.Peers {
			if p.Replica == id && p.RecentActive {
				current = current || p.Match >= k.commit
			}
		}
		switch {
		case current && o.behind != 0:
			o.behind, o.current = 0, now
		case !current && o.behind == 0:
			o.behind = now
		}
		view := control.InSyncMember{Replica: id, Name: "replica " + strconv.FormatUint(id, 10), Votes: true}
		if o.behind == 0 {
			view.Current = time.Duration(now - o.current)
		} else {
			view.Behind = time.Duration(now - o.behind)
		}
		members = append(members, view)
	}
	k.commit = st.Commit
	return members
}
