package sim

import (
	"bytes"
	"hash/fnv"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// ledger remembers what has happened, in the whole group and for all time, and fails on what must not.
type ledger struct {
	w        *world
	leaders  map[uint64]uint64            // term → replica
	log      map[uint64]logged            // index → the entry that was committed there
	executed map[uint64]executed          // operation → where it was executed
	digests  map[uint64][2]machine.Digest // index → state of whoever was there first
	times    map[uint64]int64             // index → time of its commands
	timedAt  uint64                       // highest index in times
	time     int64                        // its time
	told     uint64                       // highest index that was acknowledged
	confs    []*raftpb.ConfState          // every configuration that came into force, in log order
	confAt   uint64                       // index of the latest
}

type logged struct{ term, hash uint64 }

type executed struct {
	index  uint64
	result []byte
}

func (l *ledger) init(w *world) {
	*l = ledger{
		w: w, leaders: map[uint64]uint64{}, log: map[uint64]logged{},
		executed: map[uint64]executed{}, digests: map[uint64][2]machine.Digest{},
		times: map[uint64]int64{},
	}
}

// stepped is called after every step of a host.
func (l *ledger) stepped(h *host) {
	role, _, term := h.g.Lead()
	if role != core.Leader {
		return
	}
	if was, ok := l.leaders[term]; ok && was != h.id {
		fail("term %d has two leaders, replicas %d and %d", term, was, h.id)
	} else if !ok {
		l.leaders[term] = h.id
		l.w.report.Elections++
	}
}

// applied is called when a replica has executed entries.
func (l *ledger) applied(h *host, es []*raftpb.Entry, _ [][][]byte) {
	for _, e := range es {
		sum := fnv.New64a()
		sum.Write(e.GetData())
		now := logged{e.GetTerm(), sum.Sum64()}
		if was, ok := l.log[e.GetIndex()]; ok && was != now {
			fail("replica %d applied %+v at %d, another replica %+v", h.id, now, e.GetIndex(), was)
		}
		l.log[e.GetIndex()] = now
		if e.GetType() != raftpb.EntryNormal && e.GetIndex() > l.confAt {
			l.confs, l.confAt = append(l.confs, h.rep.ConfState()), e.GetIndex()
		}
		l.w.trace(traceApply, h.id, e.GetIndex(), now.term, now.hash)
	}
	at := h.rep.Applied().Index
	if at < h.commit {
		fail("replica %d went back from %d to %d", h.id, h.commit, at)
	}
	h.commit = at
	if at%digestEvery == 0 {
		l.compare(h)
	}
}

// opened is called when a replica starts: what it holds to be committed must be what was committed.
func (l *ledger) opened(h *host) {
	l.compare(h)
	commit := h.g.Status().Commit
	i, err := h.log.FirstIndex()
	must(err, "look at log")
	for ; i <= commit; i++ {
		term, err := h.log.Term(i)
		must(err, "look at log")
		if was, ok := l.log[i]; ok && was.term != term {
			fail("replica %d starts with an entry of term %d committed at %d, the one there is of term %d", h.id, term, i, was.term)
		}
	}
}

// compare holds the replica's state against that of the others at the same index.
func (l *ledger) compare(h *host) {
	at := h.rep.Applied()
	if at.Index == 0 {
		return
	}
	if was, ok := l.log[at.Index]; ok && was.term != at.Term {
		fail("replica %d is at %+v, the entry there is of term %d", h.id, at, was.term)
	}
	d, err := h.rep.Digest()
	must(err, "digest")
	now := [2]machine.Digest{d, h.rep.EngineDigest()}
	if was, ok := l.digests[at.Index]; ok && was != now {
		which := "machine"
		if was[0] == now[0] {
			which = "sessions"
		}
		fail("replica %d at %d: its state differs from another replica's: %s", h.id, at.Index, which)
	}
	l.digests[at.Index] = now
}

// execute is called for every command that a machine executes; it says whether that is the first time, as
// against replays and the other replicas.
func (l *ledger) execute(h *host, op, index uint64, result []byte) (first bool) {
	was, ok := l.executed[op]
	switch {
	case !ok:
		l.executed[op] = executed{index: index, result: bytes.Clone(result)}
	case was.index != index:
		fail("replica %d executed operation %d at %d, it was executed at %d", h.id, op, index, was.index)
	case !bytes.Equal(was.result, result):
		fail("replica %d: operation %d at %d gave another result than elsewhere", h.id, op, index)
	}
	return !ok
}

// ticked holds that a log's time does not go back and is the same for everyone.
func (l *ledger) ticked(h *host, index uint64, time int64) {
	was, ok := l.times[index]
	if ok && was != time || index >= l.timedAt && time < l.time {
		fail("replica %d executes %d at time %d, before %d at %d", h.id, index, time, l.timedAt, l.time)
	}
	if index >= l.timedAt {
		l.timedAt, l.time = index, time
	}
	l.times[index] = time
}

// answered checks that an answer is true at the moment in which it is given.
func (l *ledger) answered(h *host, a *core.Answer) {
	l.w.trace(traceAnswer, h.id, a.ID, uint64(a.Code), a.Position.Index, a.Position.Term)
	at := a.Position
	switch a.Code {
	case core.Accepted:
		if !h.holds(at) {
			fail("replica %d accepted %+v without having it on disk", h.id, at)
		}
	case core.Committed, core.CommittedAll, core.CommittedQuorumOnly:
		l.checkCommitted(h, at, a.Code == core.CommittedAll)
		l.told = max(l.told, at.Index)
	case core.Ready:
		if h.rep.Applied().Index < at.Index {
			fail("replica %d is ready to read at %d, but its state is at %d", h.id, at.Index, h.rep.Applied().Index)
		}
	}
}

func (l *ledger) checkCommitted(h *host, at core.Position, all bool) {
	if was, ok := l.log[at.Index]; !ok || was.term != at.Term {
		fail("replica %d acknowledged %+v, applied there is %+v", h.id, at, was)
	}
	s := h.g.Status()
	if s.Role != core.Leader {
		return // it has stepped down, but the entry was committed before; the configuration may be another
	}
	// A leader counts by the configuration that it has applied, which may be one or two behind the log's.
	recent := l.confs[max(0, len(l.confs)-3):]
	if !slices.ContainsFunc(recent, func(cs *raftpb.ConfState) bool { return l.quorumHolds(cs, at) }) {
		fail("replica %d acknowledged %+v, which no quorum has on disk: %v", h.id, at, recent)
	}
	if !all {
		return
	}
	for _, id := range slices.Concat(s.Voters, s.Learners) {
		if !l.w.hosts[id-1].holds(at) {
			fail("replica %d acknowledged %+v as held by all, replica %d has it not on disk", h.id, at, id)
		}
	}
}

// quorumHolds says whether enough disks of a configuration have the entry at at.
func (l *ledger) quorumHolds(cs *raftpb.ConfState, at core.Position) bool {
	for _, set := range [][]uint64{cs.GetVoters(), cs.GetVotersOutgoing()} {
		have := 0
		for _, id := range set {
			if l.w.hosts[id-1].holds(at) {
				have++
			}
		}
		if len(set) > 0 && have*2 <= len(set) {
			return false
		}
	}
	return true
}

// holds says whether the host's disk has the committed entry at at, in the log or covered by the state.
func (h *host) holds(at core.Position) bool {
	log, found, err := h.logs.Log(group)
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

// converge waits until every request has its answer and every member has the same state.
func (w *world) converge() {
	deadline := w.now + 60*second
	for !w.settled() {
		if w.now > deadline {
			w.explain()
		}
		until := w.now + 500*milli
		for w.now < until {
			w.step()
		}
	}
}

// members is the leader's view, or nil if nobody leads.
func (w *world) members() []uint64 {
	var best core.Status
	for _, h := range w.hosts {
		if !h.up {
			continue
		}
		if s := h.g.Status(); s.Role == core.Leader && s.TermBegun && s.Term > best.Term {
			best = s
		}
	}
	return slices.Concat(best.Voters, best.Learners, best.Outgoing)
}

func (w *world) settled() bool {
	for _, c := range w.people {
		if c.busy() {
			return false
		}
	}
	ids := w.members()
	if len(ids) == 0 {
		return false
	}
	at := w.hosts[ids[0]-1].rep.Applied()
	for _, id := range ids {
		if h := w.hosts[id-1]; h.rep.Applied() != at || h.applying {
			return false
		}
	}
	return true
}

func (w *world) explain() {
	var lines bytes.Buffer
	for _, h := range w.hosts {
		if !h.up {
			continue
		}
		s := h.g.Status()
		writeLine(&lines, "replica %d (gone %v) %v term %d leader %d commit %d applied %d/%d last %d voters %v learners %v outgoing %v peers %+v",
			h.id, h.gone, s.Role, s.Term, s.Leader, s.Commit, s.Applied, h.rep.Applied().Index, s.Last, s.Voters, s.Learners, s.Outgoing, s.Peers)
	}
	for i, c := range w.people {
		if c.busy() {
			writeLine(&lines, "client %d still waits", i)
		}
	}
	fail("not converged a minute after the last fault\n%s", lines.String())
}

// finish compares the final states and has the workload look for what it was promised.
func (w *world) finish() {
	ids := w.members()
	for _, id := range ids {
		w.ledger.compare(w.hosts[id-1])
	}
	for _, op := range slices.Sorted(maps.Keys(w.ledger.executed)) {
		w.trace(traceDigest, op, w.ledger.executed[op].index)
	}
	w.work.check(w.hosts[ids[0]-1])
}
