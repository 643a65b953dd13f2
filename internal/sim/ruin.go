package sim

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// Now and then the logs of most voters of a group are altered at once, while all machines go down; one of the others has
// everything that was ever applied. If so many turn out to be damaged that nobody can lead, no damaged replica may give
// up what it has: in the end an operator recovers the group, as lockstep group recover does, and nothing that was
// acknowledged is missing. Observers stay as they are, on the history that was given up, and come to the new one by rule R6:
// from what they have if that ends at or below the fork, else with the whole state. Voters of the history before that come
// back are played in bubbles, and so is a majority that takes with it what it acknowledged.

// ruin alters the logs of a majority, if the rest has all that was applied.
func (n *nemesis) ruin(w *world) {
	gr := w.groups[0]
	if n.over || !w.shape.ruins || len(w.groups) > 1 || len(gr.open) > 0 || gr.leader() == nil {
		return
	}
	cs := gr.ledger.confs[len(gr.ledger.confs)-1]
	voters := slices.Clone(cs.GetVoters())
	if len(cs.GetVotersOutgoing()) > 0 || slices.ContainsFunc(voters, func(id uint64) bool { m := gr.member(id); return !m.alive() || !m.sound() }) {
		return
	}
	w.dice.fate.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
	most := len(voters)/2 + 1
	last := uint64(len(gr.ledger.log) - 1)
	e, _ := gr.ledger.entry(last)
	has := func(id uint64) bool { return gr.member(id).holds(core.Position{Term: e.term, Index: last}) }
	if !slices.ContainsFunc(voters[most:], has) {
		return
	}
	for _, id := range voters[:most] {
		h := gr.member(id).h
		for range 16 {
			h.doubtful = h.logs.flip() || h.doubtful
		}
		if h.doubtful {
			h.alteredAt = w.now
		}
	}
	for _, h := range w.hosts {
		n.crash(w, h, milli)
	}
	w.report.Ruins++
}

// ruined says whether too few voters are left that could elect one.
func (gr *group) ruined() bool {
	cs := gr.ledger.confs[len(gr.ledger.confs)-1]
	sound := func(id uint64) bool { return gr.member(id).sound() }
	lost := func(voters, outgoing []uint64) bool { return !majority(voters, sound) || !majority(outgoing, sound) }
	// The latest configuration may be known only to one that was damaged since: the others of it go by the one before.
	up, stuck := 0, 0
	gr.eachMember(func(m *member) {
		if !slices.Contains(cs.GetVoters(), m.id) && !slices.Contains(cs.GetVotersOutgoing(), m.id) {
			return
		}
		up++
		if s := m.g.Status(); lost(s.Voters, s.Outgoing) {
			stuck++
		}
	})
	return lost(cs.GetVoters(), cs.GetVotersOutgoing()) || up > 0 && stuck == up
}

// recoverAll has an operator recover the groups that are ruined; false if none is.
func (w *world) recoverAll() (any bool) {
	for _, gr := range w.groups {
		if gr.ruined() {
			gr.recover()
			any = true
		}
	}
	return any
}

// recover begins a new history on the replica that goes farthest; the other members end.
func (gr *group) recover() {
	var ms []*member
	var ends []engine.Standpoint
	var last []engine.LogEnd
	for _, m := range gr.present() {
		if m.gone || m.h.lost {
			continue
		}
		m.stop()
		must(m.h.store.Sync(), "sync state")
		st, end, err := engine.StoppedEnd(m.h.logs, m.h.store, gr.id)
		must(err, "look where a replica ends")
		ms, last = append(ms, m), append(last, end)
		ends = append(ends, engine.Standpoint{History: st.Line.History, Last: end.Last})
	}
	best := engine.Farthest(ends, gr.history)
	if best < 0 {
		fail("group %d: nobody has anything", gr.id)
	}
	seed := ms[best]
	for _, m := range gr.present() {
		if m != seed {
			m.gone, m.h.members[gr.id-1] = true, nil
		}
	}
	line, err := engine.Recover(seed.h.logs, seed.h.store, engine.RecoverConfig{
		Group: gr.id, Replica: seed.id, History: [16]byte{byte(gr.id), 2}, Fork: last[best].Commit, Start: last[best].Last.Index + 1, StateOnly: seed.damaged,
	})
	must(err, "recover group")
	gr.recovered, gr.history, seed.damaged = true, line.History, false
	gr.reseat(func(g *control.Group) bool {
		g.Members = slices.DeleteFunc(g.Members, func(m control.Member) bool { return m.Replica != seed.id })
		return true
	})
	gr.ledger.turn(&raftpb.ConfState{Voters: []uint64{seed.id}})
	gr.work.turn()
	gr.inSync = inSyncRecord{states: []control.InSync{{}}, upTo: gr.inSync.upTo}
	gr.w.report.Recovered++
	seed.start()
}
