package sim

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// digestEvery: at each multiple of this index every replica's digest is compared.
const digestEvery = 32

// jobs is what runs on an applier: one after the other, each until it calls done.
type jobs struct {
	waiting []func(done func())
	running bool
}

func (j *jobs) add(job func(done func())) {
	j.waiting = append(j.waiting, job)
	if !j.running {
		j.next()
	}
}

func (j *jobs) next() {
	if j.running = len(j.waiting) > 0; !j.running {
		return
	}
	job := j.waiting[0]
	j.waiting = j.waiting[1:]
	job(j.next)
}

// member is a replica that raft feeds: it does with a core's effects what the engine's runner does, with every
// disk write and message taking its time.
type member struct {
	children
	h        *host
	gr       *group
	id       uint64
	initial  bool   // of the first configuration
	gone     bool   // it never starts again: removed from the group, or given up for the one that has its seat
	damaged  bool   // its log was found damaged: it does not start
	foundAt  int64  // when that was
	rotten   error  // met in its log while it runs, see damage.go; nil: nothing was
	losing   bool   // what it writes from here on cannot be read again
	spoilt   uint64 // up to there its log counts as cut for that
	before   uint64 // whose seat it has taken since that one's log was damaged; 0: nobody's
	begun    int64  // when its log was, on a disk of which nothing was in doubt; 0: it is not known to have been sound then
	recasts  bool   // log and state are still those of the one before, which the host remembers
	returned bool   // it votes in the place of that one

	run       int // counts starts
	g         *core.Group
	rep       *replica.Replica
	log       logstore.Log
	pumping   bool
	queue     []core.Proposal
	batches   uint64
	waiting   map[uint64]func(core.Answer)
	nextID    uint64
	jobs      jobs
	offers    map[uint64]int // snapshots on their way, by receiver
	applied   uint64
	snapshots int
	keeper    keeper
	seatsRead int // up to which state of the record of seats the host has come
}

// alive says whether the replica runs; of a nil member it does not.
func (m *member) alive() bool { return m != nil && m.g != nil }

func (gr *group) addMember(h *host, id uint64) *member {
	m := &member{h: h, gr: gr, id: id}
	h.members[gr.id-1], gr.replicas[id] = m, m
	return m
}

// startMeta is the position that a new group's replicas begin at; a later member begins with nothing.
func (m *member) startMeta() *raftpb.SnapshotMetadata {
	meta := &raftpb.SnapshotMetadata{ConfState: &raftpb.ConfState{}}
	if m.initial {
		meta.Index, meta.Term = proto.Uint64(1), proto.Uint64(1)
		meta.ConfState.Voters = m.gr.founders
	}
	return meta
}

// start opens log and state as they are on the disk and runs.
func (m *member) start() {
	if m.gone || m.recasts && !m.recast() {
		return
	}
	h, s := m.h, &m.h.w.shape
	rep, err := replica.OpenLimited(kv.Prefixed(h.store, m.gr.prefix()), m.gr.work.machine(h), h.limits())
	if h.unknown(err) {
		return
	}
	must(err, "open replica")
	h.fits(rep)
	log, err := m.openLog(rep)
	if m.initial && err == nil {
		must(rep.InitLine(m.startMeta(), replica.Line{History: m.gr.history}), "initialise replica")
	}
	fits := false
	if err == nil {
		fits, err = engine.LogFits(log, rep.Standing())
	}
	if h.alteredAt > m.begun && errors.Is(err, logstore.ErrDamaged) {
		m.found()
		return
	}
	must(err, "open log")
	m.rep, m.log = rep, log
	if !fits {
		hard, err := core.HardStateFrom(log, m.rep.Applied())
		must(err, "look at log")
		must(h.logs.Write([]logstore.Write{{Group: m.gr.id, Snapshot: m.rep.SnapshotMeta(), HardState: hard}}), "reset log")
	}
	m.run++
	m.g, err = core.New(core.Config{
		Group: m.gr.id, Replica: m.id, Nonce: h.w.seed<<20 + m.id<<12 + uint64(m.run),
		Storage: &engine.Storage{Log: rottenLog{log, m}, Rep: m.rep, Found: m.unreadable},
		Applied: m.rep.Applied().Index, AppliedTerm: m.rep.Applied().Term, ConfState: m.rep.ConfState(),
		MaxEntryBytes: s.entryBytes, MaxUncommitted: s.uncommitted,
		MaxInflight: s.inflight, ElectionTicks: s.election, HeartbeatTicks: s.heartbeat, Terms: m.rep.Terms, Executes: m.rep.Executes, InSync: s.inSync, Room: hostRoom{m}, Level: h.act,
	})
	must(err, "open core")
	m.waiting, m.offers = map[uint64]func(core.Answer){}, map[uint64]int{}
	m.applied, m.spoilt, m.rotten = 0, 0, nil
	m.gr.ledger.opened(m)
	if s.inSync {
		m.keeper = keeper{}
		m.later(spread(h.w.dice.clock, 250*milli), m.keepInSync)
	}
	h.later(0, m.pumpIfAlive)
}

// openLog opens the log, as the engine does: one that is missing was never there if there is no state either.
func (m *member) openLog(rep *replica.Replica) (logstore.Log, error) {
	if m.rotten != nil && m.damaged { // a start finds what a read has found
		m.h.logs.Condemn(m.gr.id, m.rotten)
	}
	log, found, err := m.h.logs.Log(m.gr.id)
	switch {
	case err != nil || found:
		return log, err
	case rep.Applied().Index > 0:
		return nil, fmt.Errorf("the state is at %+v, its log is gone: %w", rep.Applied(), logstore.ErrDamaged)
	}
	return m.h.logs.Create(m.gr.id, m.startMeta())
}

// stop ends the replica; its process goes on, or ends as well.
func (m *member) stop() {
	m.run++
	m.g, m.rep, m.log = nil, nil, nil
	m.queue, m.waiting, m.offers = nil, nil, nil
	m.losing = false
	m.jobs = jobs{}
	m.cutAll()
}

// do runs an event of the replica, as the host does.
func (m *member) do(f func()) {
	if !m.alive() {
		return
	}
	run := m.run
	m.h.do(func() {
		if m.alive() && m.run == run {
			f()
			m.pumpIfAlive()
		}
	})
}

// later is after, void once the replica has ended.
func (m *member) later(d int64, f func()) {
	run := m.run
	m.h.w.after(d, func() {
		if m.run == run {
			m.do(f)
		}
	})
}

func (m *member) pumpIfAlive() {
	if m.alive() {
		m.pump()
	}
}

// pump carries out effects until there are none.
func (m *member) pump() {
	if m.pumping {
		return
	}
	m.pumping = true
	defer func() { m.pumping = false }()
	w := m.h.w
	for m.alive() {
		e, any := m.g.Effects()
		m.gr.ledger.stepped(m)
		if !any {
			return
		}
		for _, msg := range e.Send {
			m.silentIfDamaged()
			w.net.send(m.gr, msg)
			if msg.GetType() == raftpb.MsgVoteResp && !msg.GetReject() && w.strikes(crashVoter) {
				w.after(0, func() { w.nemesis.crash(w, m.h, milli) })
			}
		}
		if e.Append != nil {
			m.h.charge(m, e.Append)
			m.h.appends = append(m.h.appends, queued{m, m.run, e.Append})
			m.h.write()
		}
		if e.Apply != nil {
			m.apply(e.Apply)
		}
		for _, msg := range e.Snapshots {
			m.offer(msg)
		}
		for _, a := range e.Answers {
			m.answer(a)
		}
		for _, l := range e.Lost {
			m.gr.ledger.lost(m, l)
		}
	}
}

func (m *member) answer(a core.Answer) {
	m.h.w.report.answer(a.Code)
	m.gr.ledger.answered(m, &a)
	if f := m.waiting[a.ID]; f != nil {
		delete(m.waiting, a.ID)
		f(a)
	}
}

// propose queues p as the engine's mailbox does: what comes within a moment shares a batch.
func (m *member) propose(p core.Proposal, done func(core.Answer)) {
	p.ID = m.wait(done)
	m.queue = append(m.queue, p)
	if len(m.queue) > 1 {
		return
	}
	w := m.h.w
	m.later(w.dice.work.Int64N(2*milli), func() {
		ps := m.queue
		m.queue = nil
		m.batches++
		m.g.Propose(m.h.clock(), m.batches, ps)
	})
}

// wait registers done for the answer to the id that it returns.
func (m *member) wait(done func(core.Answer)) (id uint64) {
	m.nextID++
	m.waiting[m.nextID] = done
	return m.nextID
}

func (m *member) read(done func(core.Answer)) { m.g.Read(m.wait(done)) }

func (m *member) change(cc *raftpb.ConfChangeV2, done func(core.Answer)) {
	m.g.Change(m.wait(done), cc)
}

func (m *member) apply(a *core.Apply) {
	r := m.h.w.dice.disk
	m.jobs.add(func(done func()) {
		m.later(m.h.slow*spread(r, 100*micro), func() {
			results, ok := m.applyEntries(a.Entries)
			if !ok {
				return
			}
			m.later(spread(r, 100*micro), func() {
				m.g.Applied(a, results)
				m.advance()
				done()
			})
		})
	})
}

// applyEntries ends a batch where digests are compared. It is not ok if the host's program does not know what is there.
func (m *member) applyEntries(es []*raftpb.Entry) (results [][][]byte, ok bool) {
	ok = true
	eachRun(es, func(es []*raftpb.Entry) {
		if !ok {
			return
		}
		rs, err := m.rep.Apply(es, func(e *raftpb.Entry) *raftpb.ConfState {
			if e.GetIndex() <= m.rep.Line().Start {
				return m.rep.ConfState() // of before a fork, as the engine does
			}
			cs, err := m.g.ApplyConf(e)
			must(err, "apply configuration")
			return cs
		})
		if m.h.unknown(err) {
			ok = false
			return
		}
		must(err, "apply")
		m.gr.ledger.applied(m, es)
		results = append(results, rs...)
	})
	return results, ok
}

// eachRun cuts entries after the indexes at which digests are compared.
func eachRun(es []*raftpb.Entry, run func([]*raftpb.Entry)) {
	for len(es) > 0 {
		n := 1
		for n < len(es) && es[n-1].GetIndex()%digestEvery != 0 {
			n++
		}
		run(es[:n])
		es = es[n:]
	}
}

// truncate cuts the log below what a sync of the state has just made durable, as far as no feed needs it.
func (m *member) truncate() {
	settles, err := engine.Settles(m.log, m.rep.Standing(), m.g.Status().Applied)
	must(err, "look at log")
	if settles && !m.jobs.running {
		must(m.rep.Settled(), "settle")
	}
	durable := m.rep.Applied().Index
	last, err := m.log.LastIndex()
	must(err, "look at log")
	// After an installed snapshot the log ends before the state until raft has it reset. If raft has not heard of it,
	// since its term was over by then, it still asks for the entries that the state covers.
	if durable <= m.h.w.shape.retain || durable > last {
		return
	}
	to := min(durable-m.h.w.shape.retain, m.g.Status().Applied)
	must(m.h.logs.Compact(m.gr.id, min(to, m.lacking(to+1)-1)), "truncate log")
}

func (m *member) String() string { return fmt.Sprintf("group %d replica %d", m.gr.id, m.id) }
