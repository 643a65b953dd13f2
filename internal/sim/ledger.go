package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// ledger remembers what has happened in a group, everywhere and for all time, and fails on what must not.
type ledger struct {
	gr        *group
	leaders   map[uint64]uint64            // term → replica
	log       []logged                     // by index: the entry that was committed there
	executed  map[uint64]executed          // operation → where it was executed
	givenUp   map[core.Position]bool       // said to be lost: must never be committed
	digests   map[uint64][2]machine.Digest // index → state of whoever was there first
	times     []int64                      // by index: time of its commands; 0: none
	timedAt   uint64                       // highest index in times
	time      int64                        // its time
	levels    []uint64                     // by index: level of its commands; 0: none
	leveledAt uint64                       // highest index in levels
	level     uint64                       // its level
	told      uint64                       // highest index that was acknowledged
	confs     []*raftpb.ConfState          // every configuration that came into force, in log order
	confAt    uint64                       // index of the latest
}

type logged struct{ term, hash uint64 }

type executed struct {
	index  uint64
	result []byte
}

func (l *ledger) init(gr *group) {
	*l = ledger{
		gr: gr, leaders: map[uint64]uint64{},
		executed: map[uint64]executed{}, givenUp: map[core.Position]bool{}, digests: map[uint64][2]machine.Digest{},
	}
}

// turn begins a new history: terms are counted anew, under the configuration cs.
func (l *ledger) turn(cs *raftpb.ConfState) {
	l.leaders, l.givenUp = map[uint64]uint64{}, map[core.Position]bool{}
	l.confs = append(l.confs, cs, cs, cs) // nobody counts by those before
}

// entry that was committed at an index, as far as anybody applied it.
func (l *ledger) entry(index uint64) (e logged, ok bool) {
	if index < uint64(len(l.log)) {
		e = l.log[index]
	}
	return e, e.term != 0
}

// stepped is called after every step of a member.
func (l *ledger) stepped(m *member) {
	role, _, term := m.g.Lead()
	if role != core.Leader {
		return
	}
	if was, ok := l.leaders[term]; ok && was != m.id {
		fail("group %d: term %d has two leaders, replicas %d and %d", l.gr.id, term, was, m.id)
	} else if !ok {
		l.leaders[term] = m.id
		l.gr.w.report.Elections++
	}
}

// applied is called when a member has executed entries.
func (l *ledger) applied(m *member, es []*raftpb.Entry) {
	for _, e := range es {
		at, now := e.GetIndex(), logged{e.GetTerm(), sum(e.GetData())}
		if was, ok := l.entry(at); ok && was != now {
			fail("%s applied %+v at %d, another replica %+v", m, now, at, was)
		}
		if l.givenUp[core.Position{Term: now.term, Index: at}] {
			fail("%s applied %+v at %d, which was said to be lost", m, now, at)
		}
		for uint64(len(l.log)) <= at {
			l.log = append(l.log, logged{})
		}
		l.log[at] = now
		if e.GetType() != raftpb.EntryNormal && at > l.confAt {
			l.confs, l.confAt = append(l.confs, m.rep.ConfState()), at
			l.gr.newConf(m.rep.ConfState())
		}
		l.gr.w.trace(traceApply, l.gr.id, m.id, at, now.term, now.hash)
	}
	at := m.rep.Applied().Index
	if at < m.applied {
		fail("%s went back from %d to %d", m, m.applied, at)
	}
	m.applied = at
	if at%digestEvery == 0 {
		l.compare(m.String(), m.rep)
	}
}

// observed is called when an observer has executed entries: a member must have committed and executed each of them.
func (l *ledger) observed(o *observer, es []*raftpb.Entry) {
	for _, e := range es {
		now := logged{e.GetTerm(), sum(e.GetData())}
		if was, ok := l.entry(e.GetIndex()); !ok || was != now {
			fail("%s applied %+v at %d, members %+v", o, now, e.GetIndex(), was)
		}
	}
	at := o.rep.Applied().Index
	if at < o.at {
		fail("%s went back from %d to %d", o, o.at, at)
	}
	o.at = at
	l.gr.w.trace(traceFeed, l.gr.id, o.h.id, at)
	if at%digestEvery == 0 {
		l.compare(o.String(), o.rep)
	}
}

// sum is FNV-1a, with the words of eight bytes that most of an entry consists of.
func sum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for ; len(b) >= 8; b = b[8:] {
		h = (h ^ binary.LittleEndian.Uint64(b)) * 1099511628211
		h ^= h >> 32
	}
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// opened is called when a replica starts: what it holds to be committed must be what was committed.
func (l *ledger) opened(m *member) {
	l.compare(m.String(), m.rep)
	commit := m.g.Status().Commit
	i, err := m.log.FirstIndex()
	must(err, "look at log")
	if i > commit {
		return
	}
	es, err := m.log.Entries(i, commit+1, math.MaxUint64)
	must(err, "read log")
	for _, e := range es {
		now := logged{e.GetTerm(), sum(e.GetData())}
		if was, ok := l.entry(e.GetIndex()); ok && was != now {
			fail("%s starts with %+v committed at %d, what was committed there is %+v", m, now, e.GetIndex(), was)
		}
	}
	if uint64(len(es)) != commit+1-i {
		fail("%s starts with %d entries from %d to %d", m, len(es), i, commit)
	}
}

// compare holds a replica's state against that of the others at the same index.
func (l *ledger) compare(who string, rep *replica.Replica) {
	at := rep.Applied()
	if at.Index == 0 {
		return
	}
	if was, ok := l.entry(at.Index); ok && was.term != at.Term {
		fail("%s is at %+v, the entry there is of term %d", who, at, was.term)
	}
	if n := rep.Sessions(); n > l.gr.w.shape.limits.Sessions {
		fail("%s remembers %d sessions", who, n)
	}
	d, err := rep.Digest()
	must(err, "digest")
	l.gr.w.report.Digests++
	now := [2]machine.Digest{d, rep.EngineDigest()}
	if was, ok := l.digests[at.Index]; ok && was != now {
		which := "machine"
		if was[0] == now[0] {
			which = "sessions"
		}
		fail("%s at %d: its state differs from another replica's: %s", who, at.Index, which)
	}
	l.digests[at.Index] = now
}

// execute is called for every command that a machine executes; it says whether that is the first time, as
// against replays and the other replicas.
func (l *ledger) execute(who uint64, op, index uint64, result []byte) (first bool) {
	was, ok := l.executed[op]
	switch {
	case !ok:
		l.executed[op] = executed{index: index, result: bytes.Clone(result)}
	case was.index != index:
		fail("replica %d executed operation %d at %d, it was executed at %d", who, op, index, was.index)
	case !bytes.Equal(was.result, result):
		fail("replica %d: operation %d at %d gave another result than elsewhere", who, op, index)
	}
	return !ok
}

// ticked holds that a log's time does not go back and is the same for everyone.
func (l *ledger) ticked(who, index uint64, time int64) {
	for uint64(len(l.times)) <= index {
		l.times = append(l.times, 0)
	}
	was := l.times[index]
	if was != 0 && was != time || index >= l.timedAt && time < l.time {
		fail("replica %d executes %d at time %d, before %d at %d", who, index, time, l.timedAt, l.time)
	}
	if index >= l.timedAt {
		l.timedAt, l.time = index, time
	}
	l.times[index] = time
}

// answered checks that an answer is true at the moment in which it is given.
func (l *ledger) answered(m *member, a *core.Answer) {
	l.gr.w.trace(traceAnswer, l.gr.id, m.id, a.ID, uint64(a.Code), a.Position.Index, a.Position.Term)
	at := a.Position
	switch a.Code {
	case core.Accepted:
		if !m.holds(at) {
			fail("%s accepted %+v without having it on disk", m, at)
		}
	case core.Committed, core.CommittedAll, core.CommittedQuorumOnly:
		l.checkCommitted(m, at, a.Code == core.CommittedAll && !l.gr.w.shape.inSync)
		if a.Code == core.CommittedAll && l.gr.w.shape.inSync {
			l.gr.committedAll(m, a)
		}
		l.told = max(l.told, at.Index)
	case core.Ready:
		if m.rep.Applied().Index < at.Index {
			fail("%s is ready to read at %d, but its state is at %d", m, at.Index, m.rep.Applied().Index)
		}
	}
}

// lost is called when a replica says that what it accepted will never be committed.
func (l *ledger) lost(m *member, loss core.Loss) {
	if was, _ := l.entry(loss.Index); was.term == loss.Term && loss.Known {
		fail("%s says that %+v is lost, and it is committed", m, loss)
	}
	if loss.Known {
		l.givenUp[loss.Position] = true
	}
	l.gr.w.report.LossesTold += loss.Writes
}

// fate of an accepted position: the core's word for it must agree with what was committed.
func (l *ledger) fate(m *member, at core.Position) (committed bool) {
	e, ok := l.entry(at.Index)
	committed = ok && e.term == at.Term
	want := core.FateLost
	if committed {
		want = core.FateCommitted
	}
	f := core.FateOf(at, m.rep.Applied(), m.rep.Terms())
	if f != want && !(f == core.FateOpen && !ok) {
		fail("%s says of %+v, which it accepted: %s; it is: %s", m, at, f, want)
	}
	return committed
}

func (l *ledger) checkCommitted(m *member, at core.Position, all bool) {
	if was, ok := l.entry(at.Index); !ok || was.term != at.Term {
		fail("%s acknowledged %+v, applied there is %+v", m, at, was)
	}
	s := m.g.Status()
	if s.Role != core.Leader {
		return // it has stepped down, but the entry was committed before; the configuration may be another
	}
	// A leader counts by the configuration that it has applied, which may be one or two behind the log's.
	recent := l.confs[max(0, len(l.confs)-3):]
	if !slices.ContainsFunc(recent, func(cs *raftpb.ConfState) bool { return l.quorumHolds(cs, at) }) {
		fail("%s acknowledged %+v, which no quorum has on disk: %v", m, at, recent)
	}
	if !all {
		return
	}
	for _, id := range slices.Concat(s.Voters, s.Learners) {
		if !l.gr.member(id).holds(at) {
			fail("%s acknowledged %+v as held by all, replica %d has it not on disk", m, at, id)
		}
	}
}

// quorumHolds says whether enough disks of a configuration have the entry at at.
func (l *ledger) quorumHolds(cs *raftpb.ConfState, at core.Position) bool {
	for _, set := range [][]uint64{cs.GetVoters(), cs.GetVotersOutgoing()} {
		have := 0
		for _, id := range set {
			if l.gr.member(id).holds(at) {
				have++
			}
		}
		if len(set) > 0 && have*2 <= len(set) {
			return false
		}
	}
	return true
}

// holds says whether the member's disk has the committed entry at at, in the log or covered by the state.
func (m *member) holds(at core.Position) bool {
	if m.damaged || m.h.lost {
		return true // it had, and nobody counts on it any more
	}
	if m.recasts {
		return false
	}
	log, found, err := m.h.logs.Log(m.gr.id)
	if m.h.alteredAt > 0 && errors.Is(err, logstore.ErrDamaged) {
		return true // likewise
	}
	must(err, "look at log")
	if !found {
		return false
	}
	first, err := log.FirstIndex()
	must(err, "look at log")
	if at.Index < first {
		return true // truncated: the checkpoint covers it
	}
	term, err := log.Term(at.Index)
	return err == nil && term == at.Term
}
