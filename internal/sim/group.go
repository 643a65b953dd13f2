package sim

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// group is one replicated data set, with those who use it and the ledger of what happened to it.
type group struct {
	w         *world
	id        uint64
	history   catchup.History
	founders  []uint64 // the first voters
	ledger    ledger
	inSync    inSyncRecord
	wirings   []wiring // of its observers; the last is in force
	topology  string   // of it
	places    []uint64 // hosts of observers, in the order of their seats
	record    seatRecord
	recovered bool               // begun anew by one of its replicas, after most were lost
	replicas  map[uint64]*member // all that ever were, by id
	renewed   []uint64           // those that began again in the place of one with a damaged log
	work      workload
	people    []*client
	sessions  int            // begun by them
	changes   int            // of membership, that were begun
	changing  bool           // the last one a short while ago
	open      map[int]uint64 // those whose fate is open, with the terms of their leaders
}

// prefix of the group's state in a host's store.
func (gr *group) prefix() []byte { return fmt.Appendf(nil, "g/%016x/", gr.id) }

// addGroup puts a group on the hosts: the first on all that may vote, others on some of them.
func (w *world) addGroup(id uint64) {
	r := w.dice.fate
	gr := &group{w: w, id: id, history: catchup.History{byte(id), 1}, replicas: map[uint64]*member{}, open: map[int]uint64{}}
	voters := make([]uint64, w.shape.voters)
	for i := range voters {
		voters[i] = uint64(i + 1)
	}
	if id > 1 {
		r.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
		voters = voters[:1+r.IntN(len(voters))]
		slices.Sort(voters)
	}
	gr.founders = voters
	gr.inSync.states = []control.InSync{{}}
	gr.record.states = []control.Group{{ID: id, NextReplica: uint64(w.shape.voters) + 1}}
	for _, v := range voters { // the first replicas have their hosts' ids
		gr.record.states[0].Members = append(gr.record.states[0].Members, control.Member{Node: v, Replica: v, Role: control.RoleVoter})
	}
	gr.ledger.init(gr)
	gr.ledger.confs = []*raftpb.ConfState{{Voters: voters}}
	if w.script != nil {
		gr.work = w.script
	} else if w.shape.mixed && id == 1 {
		w.cluster = newCluster(gr)
		gr.work = w.cluster
	} else if r.IntN(3) == 0 {
		gr.work = newFiles(gr)
	} else {
		gr.work = newRegisters(gr)
	}
	w.groups = append(w.groups, gr)
	for _, v := range voters {
		gr.addMember(w.hosts[v-1], v).initial = true
	}
	for _, h := range w.hosts[w.shape.voters:] {
		if id == 1 || r.IntN(2) == 0 {
			gr.addObserver(h)
			gr.places = append(gr.places, h.id)
		}
	}
	gr.topology = w.shape.topology
	gr.rewire()
}

// member of the group with a replica id; nil if there never was one.
func (gr *group) member(id uint64) *member {
	return gr.replicas[id]
}

// eachMember visits the replicas that run, by host.
func (gr *group) eachMember(visit func(*member)) {
	for _, h := range gr.w.hosts {
		if m := h.members[gr.id-1]; m.alive() {
			visit(m)
		}
	}
}

func (gr *group) eachObserver(visit func(*observer)) {
	for _, h := range gr.w.hosts {
		if o := h.observers[gr.id-1]; o.alive() {
			visit(o)
		}
	}
}

// present are the replicas that hosts have, those included that their group has removed.
func (gr *group) present() (ms []*member) {
	for _, h := range gr.w.hosts {
		if m := h.members[gr.id-1]; m != nil {
			ms = append(ms, m)
		}
	}
	return ms
}

// leader is a replica that believes to lead, if one is up.
func (gr *group) leader() (leader *member) {
	gr.eachMember(func(m *member) {
		if role, _, _ := m.g.Lead(); leader == nil && !m.h.paused && role == core.Leader {
			leader = m
		}
	})
	return leader
}

// members is the leader's view, or nil if nobody leads.
func (gr *group) members() []uint64 {
	s := gr.led()
	return slices.Concat(s.Voters, s.Learners, s.Outgoing)
}

// led is the status of the leader of the latest term; zero if nobody leads.
func (gr *group) led() (best core.Status) {
	gr.eachMember(func(m *member) {
		if role, _, _ := m.g.Lead(); role != core.Leader {
			return
		}
		if s := m.g.Status(); s.TermBegun && s.Term > best.Term {
			best = s
		}
	})
	return best
}

// voters of the latest configuration that is in force anywhere.
func (gr *group) voters() []uint64 {
	cs := gr.ledger.confs[len(gr.ledger.confs)-1]
	return cs.GetVoters()
}

// patience of an operator with a group that does not come back: damaged replicas may do meanwhile what they must not.
const patience = 10 * second

// converge waits until every request has its answer and every replica has the same state, and has groups recovered that
// need it: those whose logs were altered on purpose soon, and any that is ruined by what happens to be damaged, as a
// single log is enough for with two voters, when it has not settled.
func (w *world) converge() {
	if w.shape.ruins {
		w.pass(patience)
		w.recoverAll()
	}
	for deadline := w.now + 60*second; ; w.pass(500 * milli) {
		i := slices.IndexFunc(w.groups, func(gr *group) bool { return !gr.settled() })
		switch {
		case i < 0:
			return
		case w.now <= deadline:
		case w.recoverAll():
			deadline = w.now + 60*second
		default:
			w.groups[i].explain()
		}
	}
}

// pass lets some time pass.
func (w *world) pass(d int64) {
	for until := w.now + d; w.now < until; {
		w.step()
	}
}

func (gr *group) settled() bool {
	for _, c := range gr.people {
		if c.busy() {
			return false
		}
	}
	ids := gr.members()
	if len(ids) == 0 {
		return false
	}
	var at core.Position
	for _, id := range ids {
		m := gr.member(id)
		if !m.alive() {
			if node, ok := gr.seats().NodeOf(id); ok && gr.w.hosts[node-1].lost || gr.outstays(m) {
				continue // nobody has taken it out of the group yet
			}
			return false
		}
		if at.Index == 0 {
			at = m.rep.Applied()
		}
		if m.rep.Applied() != at || m.jobs.running {
			return false
		}
	}
	same := true
	gr.eachObserver(func(o *observer) { same = same && o.rep.Applied() == at })
	return same && !gr.returning()
}

func (gr *group) explain() {
	var lines bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&lines, format+"\n", args...) }
	gr.eachMember(func(m *member) {
		s := m.g.Status()
		line("%s (gone %v) %v term %d leader %d commit %d applied %d/%d last %d voters %v learners %v outgoing %v peers %+v",
			m, m.gone, s.Role, s.Term, s.Leader, s.Commit, s.Applied, m.rep.Applied().Index, s.Last, s.Voters, s.Learners, s.Outgoing, s.Peers)
	})
	gr.eachObserver(func(o *observer) { line("%s applied %+v attached %v", o, o.rep.Applied(), o.feed != nil) })
	for _, m := range gr.present() {
		if !m.alive() {
			line("%s is down: damaged %v, gone %v, its host lost %v", m, m.damaged, m.gone, m.h.lost)
		}
	}
	line("seats %+v, of before %+v", gr.seats().Members, gr.seats().Former)
	for i, c := range gr.people {
		if c.busy() {
			line("client %d still waits", i)
		}
	}
	fail("group %d: not converged a minute after the last fault\n%s", gr.id, lines.String())
}

// finish compares the final states and has the workload look for what it was promised.
func (gr *group) finish() {
	ids := gr.members()
	var last *member
	for _, id := range ids {
		if m := gr.member(id); m.alive() {
			gr.ledger.compare(m.String(), m.rep)
			last = m
		}
	}
	gr.eachObserver(func(o *observer) { gr.ledger.compare(o.String(), o.rep) })
	for _, op := range slices.Sorted(maps.Keys(gr.ledger.executed)) {
		gr.w.trace(traceDigest, op, gr.ledger.executed[op].index)
	}
	gr.work.check(last)
}
