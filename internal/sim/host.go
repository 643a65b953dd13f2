package sim

import (
	"bytes"
	"errors"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

const (
	group     = 1
	tickEvery = 100 * milli
	// digestEvery: at each multiple of this index every replica's digest is compared.
	digestEvery = 32
)

// host is a process with its disk: it does with a core's effects what the engine's runner does, with every
// disk write and message taking its time.
type host struct {
	w       *world
	id      uint64
	initial bool // of the first configuration
	gone    bool // removed from the group for good

	logs  *logstore.Memory // the disk
	store *kv.Memory

	up, paused bool
	run        int // counts starts; what belongs to an earlier one is void
	held       []func()
	skew       int64
	drift      int64 // added to each tick
	slow       int64 // factor of disk times

	g         *core.Group
	rep       *replica.Replica
	log       logstore.Log
	pumping   bool
	queue     []core.Proposal
	batches   uint64
	waiting   map[uint64]func(core.Answer)
	nextID    uint64
	appends   []*core.Append
	writing   []*core.Append
	lazy      []logstore.Write // written without a sync: on the disk with the next one that is synced
	applies   []func(done func())
	applying  bool
	offers    map[uint64]int // snapshots on their way, by receiver
	commit    uint64
	snapshots int
}

func (w *world) addHost(initial bool) *host {
	h := &host{
		w: w, id: uint64(len(w.hosts) + 1), initial: initial, slow: 1,
		logs: logstore.NewMemory(), store: kv.NewMemory(),
		skew:  int64(w.dice.clock.NormFloat64() * float64(second)),
		drift: int64(w.dice.clock.NormFloat64() * float64(3*milli)),
	}
	w.hosts = append(w.hosts, h)
	return h
}

// startMeta is the position that a new group's replicas begin at; a later member begins with nothing.
func (h *host) startMeta() *raftpb.SnapshotMetadata {
	meta := &raftpb.SnapshotMetadata{ConfState: &raftpb.ConfState{}}
	if h.initial {
		meta.Index, meta.Term = proto.Uint64(1), proto.Uint64(1)
		for i := range h.w.shape.voters {
			meta.ConfState.Voters = append(meta.ConfState.Voters, uint64(i+1))
		}
	}
	return meta
}

// logWithState is the log with raft's snapshots named by the state that can be streamed.
type logWithState struct {
	logstore.Log
	rep *replica.Replica
}

func (l logWithState) Snapshot() (*raftpb.Snapshot, error) {
	return &raftpb.Snapshot{Metadata: l.rep.SnapshotMeta()}, nil
}

// start opens log and state as they are on the disk and runs.
func (h *host) start() {
	log, found, err := h.logs.Log(group)
	must(err, "open log")
	if !found {
		log, err = h.logs.Create(group, h.startMeta())
		must(err, "create log")
	}
	h.log = log
	h.rep, err = replica.Open(kv.Prefixed(h.store, []byte("g/1/")), h.w.work.machine(h))
	must(err, "open replica")
	if h.initial {
		must(h.rep.Init(h.startMeta()), "initialise replica")
	}
	fits, err := core.LogFits(log, h.rep.Applied())
	must(err, "compare log and state")
	if !fits {
		must(h.logs.Write([]logstore.Write{{Group: group, Snapshot: h.rep.SnapshotMeta()}}), "reset log")
	}
	h.run++
	h.g, err = core.New(core.Config{
		Group: group, Replica: h.id, Nonce: h.w.seed<<16 + h.id<<8 + uint64(h.run),
		Storage: logWithState{log, h.rep},
		Applied: h.rep.Applied().Index, AppliedTerm: h.rep.Applied().Term, ConfState: h.rep.ConfState(),
		MaxEntryBytes: h.w.shape.entryBytes, MaxUncommitted: h.w.shape.uncommitted,
		MaxInflight: h.w.shape.inflight, ElectionTicks: h.w.shape.election,
	})
	must(err, "open core")
	h.w.ledger.opened(h)
	h.up, h.paused = true, false
	h.waiting, h.offers = map[uint64]func(core.Answer){}, map[uint64]int{}
	h.commit = 0
	h.later(h.w.dice.clock.Int64N(tickEvery), h.tick)
	h.later(spread(h.w.dice.disk, h.w.shape.checkpoint), h.checkpoint)
	h.pump()
}

// crash ends the process; what its disk then holds is drawn.
func (h *host) crash() {
	r := h.w.dice.disk
	var inFlight []logstore.Write
	if n := len(h.writing); n > 0 || len(h.lazy) > 0 {
		inFlight = slices.Concat(h.lazy, writesOf(h.writing[:r.IntN(n+1)]))
		inFlight = inFlight[:r.IntN(len(inFlight)+1)]
	}
	keep := func(n int) int { return r.IntN(n + 1) }
	logs, err := h.logs.Crash(inFlight, keep)
	must(err, "crash log")
	h.logs, h.store = logs, h.store.Crash(keep)
	h.stop()
	h.w.report.Crashes++
	h.w.trace(traceCrash, h.id)
}

func (h *host) stop() {
	h.up = false
	h.run++
	h.g, h.rep, h.log = nil, nil, nil
	h.held, h.queue, h.waiting, h.offers = nil, nil, nil, nil
	h.appends, h.writing, h.lazy, h.applies, h.applying = nil, nil, nil, nil, false
}

// do runs an event of the host now, or when its pause ends, or never if it is down.
func (h *host) do(f func()) {
	switch {
	case !h.up:
	case h.paused:
		h.held = append(h.held, f)
	default:
		f()
		h.pump()
	}
}

// later is after, void once the process has ended.
func (h *host) later(d int64, f func()) {
	run := h.run
	h.w.after(d, func() {
		if h.run == run {
			h.do(f)
		}
	})
}

func (h *host) pause() { h.paused = true }

func (h *host) resume() {
	if !h.up || !h.paused {
		return
	}
	h.paused = false
	held := h.held
	h.held = nil
	for _, f := range held {
		h.do(f)
	}
}

func (h *host) tick() {
	h.g.Tick()
	h.later(tickEvery+h.drift, h.tick)
}

// pump carries out effects until there are none.
func (h *host) pump() {
	if h.pumping {
		return
	}
	h.pumping = true
	defer func() { h.pumping = false }()
	for h.up {
		e, any := h.g.Effects()
		h.w.ledger.stepped(h)
		if !any {
			return
		}
		for _, m := range e.Send {
			h.w.net.send(m)
			if m.GetType() == raftpb.MsgVoteResp && !m.GetReject() && h.w.strikes(crashVoter) {
				h.w.after(0, func() { h.w.nemesis.crash(h.w, h, milli) })
			}
		}
		if e.Append != nil {
			h.appends = append(h.appends, e.Append)
			h.write()
		}
		if e.Apply != nil {
			h.apply(e.Apply)
		}
		for _, m := range e.Snapshots {
			h.offer(m)
		}
		for _, a := range e.Answers {
			h.answer(a)
		}
	}
}

func (h *host) answer(a core.Answer) {
	h.w.ledger.answered(h, &a)
	if f := h.waiting[a.ID]; f != nil {
		delete(h.waiting, a.ID)
		f(a)
	}
}

// propose queues p as the engine's mailbox does: what comes within a moment shares a batch.
func (h *host) propose(p core.Proposal, done func(core.Answer)) {
	h.nextID++
	p.ID = h.nextID
	h.waiting[p.ID] = done
	h.queue = append(h.queue, p)
	if len(h.queue) > 1 {
		return
	}
	h.later(h.w.dice.work.Int64N(2*milli), func() {
		ps := h.queue
		h.queue = nil
		h.batches++
		h.g.Propose(h.w.now+h.skew, h.batches, ps)
	})
}

func (h *host) read(done func(core.Answer)) {
	h.nextID++
	h.waiting[h.nextID] = done
	h.g.Read(h.nextID)
}

func (h *host) change(cc *raftpb.ConfChangeV2, done func(core.Answer)) {
	h.nextID++
	h.waiting[h.nextID] = done
	h.g.Change(h.nextID, cc)
}

func writesOf(as []*core.Append) []logstore.Write {
	ws := make([]logstore.Write, len(as))
	for i, a := range as {
		ws[i] = logstore.Write{Group: group, Entries: a.Entries, HardState: a.HardState}
		if a.Snapshot != nil {
			ws[i].Snapshot = a.Snapshot.GetMetadata()
		}
	}
	return ws
}

// write takes everything that waits into one write, synced if one of it asks for that: group commit.
func (h *host) write() {
	if len(h.writing) > 0 || len(h.appends) == 0 {
		return
	}
	h.writing, h.appends = h.appends, nil
	sync := slices.ContainsFunc(h.writing, func(a *core.Append) bool { return a.Sync })
	d := 5 * micro
	if sync {
		d = 20*micro + h.slow*spread(h.w.dice.disk, h.w.shape.syncTime)
	}
	h.later(d, func() {
		done := h.writing
		h.writing = nil
		h.lazy = append(h.lazy, writesOf(done)...)
		if sync {
			must(h.logs.Write(h.lazy), "write log")
			h.lazy = nil
		}
		for _, a := range done {
			h.g.Appended(a)
		}
		h.write()
	})
}

// enqueue runs a job of the applier: jobs go one after the other, each until it calls done.
func (h *host) enqueue(job func(done func())) {
	h.applies = append(h.applies, job)
	if !h.applying {
		h.nextJob()
	}
}

func (h *host) nextJob() {
	if h.applying = len(h.applies) > 0; !h.applying {
		return
	}
	job := h.applies[0]
	h.applies = h.applies[1:]
	job(h.nextJob)
}

func (h *host) apply(a *core.Apply) {
	h.enqueue(func(done func()) {
		h.later(h.slow*spread(h.w.dice.disk, 100*micro), func() {
			results := h.applyEntries(a.Entries)
			h.later(spread(h.w.dice.disk, 100*micro), func() {
				h.g.Applied(a, results)
				done()
			})
		})
	})
}

// applyEntries ends a batch where digests are compared.
func (h *host) applyEntries(es []*raftpb.Entry) [][][]byte {
	var results [][][]byte
	for len(es) > 0 {
		n := 1
		for n < len(es) && es[n-1].GetIndex()%digestEvery != 0 {
			n++
		}
		rs, err := h.rep.Apply(es[:n], func(e *raftpb.Entry) *raftpb.ConfState {
			cs, err := h.g.ApplyConf(e)
			must(err, "apply configuration")
			return cs
		})
		must(err, "apply")
		h.w.ledger.applied(h, es[:n], rs)
		results, es = append(results, rs...), es[n:]
	}
	return results
}

// checkpoint makes the state durable and truncates the log below it.
func (h *host) checkpoint() {
	h.later(h.slow*spread(h.w.dice.disk, 5*milli), func() {
		durable := h.rep.Applied().Index
		must(h.store.Sync(), "sync state")
		last, err := h.log.LastIndex()
		must(err, "look at log")
		// After an installed snapshot the log ends before the state until raft has it reset.
		if len(h.writing) == 0 && durable > h.w.shape.retain && durable <= last {
			must(h.logs.Compact(group, durable-h.w.shape.retain), "truncate log")
		}
		h.later(spread(h.w.dice.disk, h.w.shape.checkpoint), h.checkpoint)
	})
}

// offer streams a snapshot of the present state to a follower. Raft hears of the end once.
func (h *host) offer(m *raftpb.Message) {
	to := m.GetTo()
	h.snapshots++
	number := h.snapshots
	h.offers[to] = number
	ended := func(ok bool) {
		if h.offers[to] == number {
			delete(h.offers, to)
			h.g.SnapshotSent(to, ok)
		}
	}
	h.later(second+spread(h.w.dice.net, second), func() { ended(false) })
	if int(to) > len(h.w.hosts) {
		return
	}
	view := h.rep.StateView()
	var stream bytes.Buffer
	must(h.rep.WriteSnapshot(view, &stream), "write snapshot")
	must(view.Close(), "close view")
	data := stream.Bytes()
	r := h.w.dice.net
	if r.IntN(10) == 0 {
		data = data[:r.IntN(len(data))] // the connection breaks
	}
	dst := h.w.hosts[to-1]
	h.w.net.carry(h.id, to, spread(r, 50*milli), func(bool) {
		dst.do(func() {
			dst.install(m, data, func(ok bool) {
				h.w.net.carry(to, h.id, 0, func(bool) { h.do(func() { ended(ok) }) })
			})
		})
	})
}

// install replaces the state between two batches of entries and then lets raft see the message.
func (h *host) install(m *raftpb.Message, data []byte, done func(ok bool)) {
	h.enqueue(func(next func()) {
		err := h.rep.Restore(bytes.NewReader(data))
		if err != nil && !errors.Is(err, replica.ErrSnapshot) {
			must(err, "restore")
		}
		if err == nil && !h.w.over && h.w.dice.disk.IntN(8) == 0 {
			h.w.after(0, func() { h.w.nemesis.crash(h.w, h, milli) })
		}
		h.later(spread(h.w.dice.disk, milli), func() {
			if err == nil {
				h.w.report.Snapshots++
				h.w.ledger.compare(h)
				own := proto.CloneOf(m)
				own.Snapshot.Metadata = h.rep.SnapshotMeta()
				_ = h.g.Receive(own) // refused: from a member that is none any more
			}
			done(err == nil)
			next()
		})
	})
}
