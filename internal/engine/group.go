package engine

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// GroupConfig describes this node's replica of a group.
type GroupConfig struct {
	ID, Replica uint64
	Machine     machine.Machine
	Differ      Differ // optional: moves only what differs when a whole state is needed
	// Nodes maps the group's replicas to nodes; SetNodes changes it later.
	Nodes map[uint64]uint64
	// Initial are the voters that the group was created with, if this replica is one of them and starts
	// for the first time; empty for a replica that joins a group which exists.
	Initial []uint64
	// History that the group is on; of a replica that has a state the state knows better. Zero: not known.
	History [16]byte
	// Floor bounds log truncation from outside: entries above it are still needed here (nil: no bound).
	Floor func() uint64
	// InSync makes AckAll count the set that CountInSync names, and nothing before it names one; without it
	// AckAll counts every member of the configuration.
	InSync bool
	// RetainBytes of applied log are kept so that members that were away catch up by DIFF; default 64 MiB.
	RetainBytes uint64
}

// Group is a running replica.
type Group struct {
	cfg  GroupConfig
	eng  *Engine
	log  logstore.Log
	lg   *slog.Logger
	core *core.Group // touched by the loop only
	rep  *replica.Replica
	box  *mailbox
	jobs *applyQueue

	// Owned by the loop.
	waiters map[uint64]*waiter
	held    []*waiter // proposals that wait for the entries on their way
	flight  flight
	commits commitNews
	offers  map[uint64]*pin // followers that were told to pull a snapshot, and what is pinned for each
	pulling bool            // this replica is installing one
	decided bool            // how it catches up with the present leader
	beats   int             // of the present leader, before that was decided
	ticks   int
	cutting bool // a cut of the log is under way

	newsDue     *time.Timer // has the loop call sendOverdue
	newsAwaited bool        // it is set; owned by the loop

	nodesMu sync.RWMutex
	nodes   map[uint64]uint64 // replica → node

	status  atomic.Pointer[core.Status]
	since   atomic.Int64 // when role, leader or term last changed, Unix ns
	changed *signal      // broadcast when leader or role changed
	reign   *reign       // of the leader that is known here
	moved   *signal      // broadcast when applied moved
	catchup catchupLog
	pins    pinSet
	pulls   pullSet
	src     *source

	book       *digestBook
	distrusted atomic.Uint64 // how often the state was put in quarantine
	checks     checks        // owned by the loop
	checkEvery atomic.Int64  // a duration
	leaderless atomic.Int64  // since when no leader is known, Unix ns; 0: one is
	alarm      atomic.Pointer[string]
	damage     atomic.Pointer[error] // found in the log, last
	stopped    atomic.Pointer[Stopped]

	stopping context.Context
	stop     context.CancelFunc
	ended    chan struct{} // closed when the loop has ended
	tasks    sync.WaitGroup
}

// StartGroup opens a replica from what log and state hold, or makes a new one.
func (e *Engine) StartGroup(cfg GroupConfig) (*Group, error) {
	g, err := e.openGroup(cfg)
	if err != nil {
		return nil, fmt.Errorf("engine: start group %d: %w", cfg.ID, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if _, ok := e.groups[cfg.ID]; ok {
		return nil, fmt.Errorf("engine: group %d runs already", cfg.ID)
	}
	e.groups[cfg.ID] = g
	e.replicas[cfg.ID] = g.rep
	g.tasks.Go(g.loop)
	g.tasks.Go(g.applier)
	if g.rep.Quarantine() != nil {
		g.tasks.Go(g.heal)
	}
	return g, nil
}

func (e *Engine) openGroup(cfg GroupConfig) (*Group, error) {
	if cfg.ID > maxGroup {
		return nil, fmt.Errorf("group ids go up to %d", uint64(maxGroup))
	}
	if cfg.RetainBytes == 0 {
		cfg.RetainBytes = 64 << 20
	}
	rep, err := replica.OpenLimited(kv.Prefixed(e.cfg.State, groupPrefix(cfg.ID)), cfg.Machine, e.limits())
	if err != nil {
		return nil, err
	}
	log, err := e.openLog(cfg, rep)
	if err != nil {
		return nil, err
	}
	if len(cfg.Initial) > 0 {
		if err := rep.InitLine(initialSnapshot(cfg.Initial), replica.Line{History: cfg.History}); err != nil {
			return nil, err
		}
	}
	if err := e.repairLog(cfg.ID, log, rep); err != nil {
		return nil, err
	}
	room, store := &groupRoom{eng: e}, &Storage{Log: log, Rep: rep}
	c, err := core.New(core.Config{
		Group: cfg.ID, Replica: cfg.Replica, Nonce: e.ids.Add(1), Storage: store,
		Applied: rep.Applied().Index, AppliedTerm: rep.Applied().Term, ConfState: rep.ConfState(),
		InSync: cfg.InSync, Terms: rep.Terms, Executes: rep.Executes, Room: room, Level: e.level,
		Logger: core.NewLogger(cfg.ID, cfg.Replica, func(msg string) { e.cfg.Log.Debug(msg, "group", cfg.ID) }),
	})
	if err != nil {
		return nil, err
	}
	g := &Group{
		cfg: cfg, eng: e, log: log, core: c, rep: rep,
		lg:      e.cfg.Log.With("group", cfg.ID, "replica", cfg.Replica),
		box:     newMailbox(),
		jobs:    newApplyQueue(),
		waiters: map[uint64]*waiter{},
		offers:  map[uint64]*pin{},
		ended:   make(chan struct{}),
		changed: newSignal(),
		reign:   newReign(),
		moved:   newSignal(),
		book:    newDigestBook(rep),
	}
	room.g, store.Found = g, g.unreadable
	g.newsDue = time.AfterFunc(newsPatience, func() { g.box.call(g.sendOverdue) })
	rep.Watch(replica.Hooks{
		Marked: func(m replica.Mark) { g.book.marked(m, g.tasks.Go, func() { g.jobs.call(g.compare) }) },
		Judged: g.judged,
	})
	g.SetCheckEvery(DefaultCheckEvery)
	g.stopping, g.stop = context.WithCancel(context.Background())
	g.src = &source{
		eng: e, group: cfg.ID, voter: true, lg: g.lg, rep: rep, differ: cfg.Differ, moved: g.moved,
		log:  logPrefix{log, &g.pins, rep.Applied, func() uint64 { return g.Core().Applied }, g.unreadable},
		pins: &g.pins, between: g.onApplier, path: g.path, news: g.news, stopping: g.stopping,
	}
	g.catchup.start(rep.Applied().Index)
	g.SetNodes(cfg.Nodes)
	c.Hurry()
	g.publish()
	g.box.nudge()
	return g, nil
}

// openLog opens the group's log; a first start creates it after the position that every initial replica
// starts from, or empty for one that joins.
func (e *Engine) openLog(cfg GroupConfig, rep *replica.Replica) (logstore.Log, error) {
	log, found, err := e.cfg.Logs.Log(cfg.ID)
	if err != nil || found {
		return log, err
	}
	if rep.Applied().Index > 0 {
		// Votes and acknowledgements went with the log: under this id the replica could take them back.
		return nil, fmt.Errorf("the state is at %d but its log is gone: %w", rep.Applied().Index, logstore.ErrDamaged)
	}
	err = e.writer.do(func(s logstore.Store) error {
		var err error
		log, err = s.Create(cfg.ID, initialSnapshot(cfg.Initial))
		return err
	})
	return log, err
}

// bootstrapIndex is the position, with an empty state, that the initial replicas of a group start from.
const bootstrapIndex = 1

func initialSnapshot(voters []uint64) *raftpb.SnapshotMetadata {
	meta := &raftpb.SnapshotMetadata{ConfState: &raftpb.ConfState{Voters: voters}, Index: new(uint64(0)), Term: new(uint64(0))}
	if len(voters) > 0 {
		meta.Index, meta.Term = new(uint64(bootstrapIndex)), new(uint64(1))
	}
	return meta
}

// repairLog closes the one gap that a crash can leave: a state was installed, but the log was not yet reset to
// start after it, or holds other entries at those positions. A log and a state that are not of one moment are refused: see
// LogFits.
func (e *Engine) repairLog(group uint64, log logstore.Log, rep *replica.Replica) error {
	fits, err := LogFits(log, rep.Standing())
	if err != nil || fits {
		return err
	}
	hard, err := core.HardStateFrom(log, rep.Applied())
	if err != nil {
		return err
	}
	return e.writer.do(func(s logstore.Store) error {
		return s.Write([]logstore.Write{{Group: group, Snapshot: rep.SnapshotMeta(), HardState: hard}})
	})
}

// SetNodes tells where the group's replicas live.
func (g *Group) SetNodes(nodes map[uint64]uint64) {
	g.nodesMu.Lock()
	defer g.nodesMu.Unlock()
	g.nodes = make(map[uint64]uint64, len(nodes))
	for r, n := range nodes {
		g.nodes[r] = n
	}
}

// NodeOf returns the node of a replica.
func (g *Group) NodeOf(replica uint64) (uint64, bool) {
	g.nodesMu.RLock()
	defer g.nodesMu.RUnlock()
	n, ok := g.nodes[replica]
	return n, ok
}

// learnSender fills in where a replica lives when its first message arrives before the control group's news.
func (g *Group) learnSender(node uint64, msgs []*raftpb.Message) {
	for _, m := range msgs {
		if _, ok := g.NodeOf(m.GetFrom()); !ok {
			g.nodesMu.Lock()
			g.nodes[m.GetFrom()] = node
			g.nodesMu.Unlock()
		}
	}
}

func (g *Group) peerDown(node uint64) {
	g.nodesMu.RLock()
	var gone []uint64
	for r, n := range g.nodes {
		if n == node {
			gone = append(gone, r)
		}
	}
	g.nodesMu.RUnlock()
	for _, r := range gone {
		g.box.call(func() { g.core.PeerDown(r) })
	}
}

// loop is the only goroutine that touches the core.
func (g *Group) loop() {
	defer close(g.ended)
	defer g.newsDue.Stop()
	defer g.catchFault()
	var m mail
	for range g.box.wake {
		m = g.box.take(m)
		g.feed(&m)
		g.carryOut()
		if m.closed {
			g.abandon()
			return
		}
	}
}

// catchFault ends this replica, not the process, when the core finds itself in a state that cannot be.
func (g *Group) catchFault() {
	switch f := recover().(type) {
	case nil:
	case *core.Fault:
		g.fail(f)
	default:
		panic(f)
	}
}

// feed turns mail into core events. Completions come first: they free what the rest may need.
func (g *Group) feed(m *mail) {
	for _, a := range m.appended {
		g.core.Appended(a)
	}
	for _, a := range m.applied {
		g.core.Applied(a.apply, a.results)
	}
	for range m.ticks {
		g.core.Tick()
		g.tick()
	}
	for _, msg := range m.messages {
		g.receive(msg)
	}
	g.held = append(g.held, m.proposals...)
	g.proposeHeld()
	for _, call := range m.calls {
		call()
	}
}

func (g *Group) receive(m *raftpb.Message) {
	if m.GetTo() != g.cfg.Replica {
		return // for a replica that was here before: what it had acknowledged is not in this log
	}
	g.heard(m)
	if m.GetType() == raftpb.MsgSnap {
		g.startInstall(m)
		return
	}
	if err := g.core.Receive(m); err != nil {
		g.lg.Debug("message refused", "from", m.GetFrom(), "type", m.GetType().String(), "err", err)
	}
}

// carryOut executes effects until the core has none.
func (g *Group) carryOut() {
	for {
		e, any := g.core.Effects()
		if !any {
			return
		}
		g.sendOrKeep(e.Send)
		if e.Append != nil {
			a := e.Append
			g.eng.writer.append(g.cfg.ID, a, func() { g.box.appended(a) })
		}
		if e.Apply != nil {
			g.jobs.push(e.Apply)
		}
		for _, a := range e.Answers {
			g.answer(a)
		}
		for _, m := range e.Snapshots {
			g.offerSnapshot(m)
		}
		if len(e.Lost) > 0 {
			g.noteLost(e.Lost)
		}
		g.publish()
	}
}

func (g *Group) send(msgs []*raftpb.Message) {
	for len(msgs) > 0 {
		to, n := msgs[0].GetTo(), 1
		for n < len(msgs) && msgs[n].GetTo() == to {
			n++
		}
		batch := msgs[:n:n]
		msgs = msgs[n:]
		node, ok := g.NodeOf(to)
		if room := g.eng.cfg.Room; room != nil && room.Scarce() && room.FullAt(node) {
			batch = slices.DeleteFunc(batch, wasted)
		}
		if ok && len(batch) > 0 {
			g.eng.cfg.Transport.Send(node, wireGroup(g.cfg.ID, g.Line().History), batch)
		}
	}
}

// publish makes the core's status visible to other goroutines: at once when somebody else leads, else with
// the ticks.
func (g *Group) publish() {
	role, leader, term := g.core.Lead()
	before := g.status.Load()
	if before != nil && before.Role == role && before.Leader == leader && before.Term == term {
		return
	}
	if before == nil || before.Leader != leader {
		g.decided, g.beats = false, 0
	}
	g.commits = commitNews{} // what is kept is of the term before, and its entries may come again as others
	g.refresh()
	switch since := g.leaderless.Load(); {
	case leader != 0:
		g.leaderless.Store(0)
	case since == 0:
		g.leaderless.Store(g.eng.cfg.Now().UnixNano())
	}
	g.box.setCalm(leader != 0)
	g.since.Store(g.eng.cfg.Now().UnixNano())
	g.lg.Info("role", "role", role.String(), "leader", leader, "term", term)
	g.reign.begins(leader)
	g.changed.broadcast()
}

func (g *Group) refresh() {
	now := g.core.Status()
	g.status.Store(&now)
}

// Fresh is the core's status as of now; Core may be a second old in what changes with every entry.
func (g *Group) Fresh() core.Status {
	reply := make(chan core.Status, 1)
	if !g.box.call(func() { reply <- g.core.Status() }) {
		return g.Core()
	}
	select {
	case s := <-reply:
		return s
	case <-g.ended:
		return g.Core()
	}
}

// Leaderless is since when this replica knows no leader; false: it knows one.
func (g *Group) Leaderless() (since time.Time, yes bool) {
	at := g.leaderless.Load()
	return time.Unix(0, at), at != 0
}

// Core returns the last published status of the core.
func (g *Group) Core() core.Status { return *g.status.Load() }

// Led is for how long role, leader and term have been what they are.
func (g *Group) Led() time.Duration {
	return max(0, g.eng.cfg.Now().Sub(time.Unix(0, g.since.Load())))
}

// Replica is this replica's id.
func (g *Group) Replica() uint64 { return g.cfg.Replica }

// Machine is the group's state machine.
func (g *Group) Machine() machine.Machine { return g.cfg.Machine }

// Applied is the position that the state covers.
func (g *Group) Applied() core.Position { return g.rep.Applied() }

// View returns the machine's state at one point in time; the caller closes it.
func (g *Group) View() kv.View { return g.rep.View() }

// Digest of the machine's state and the position that it is of; ErrClosed once nothing is applied any more.
func (g *Group) Digest() (d machine.Digest, at core.Position, err error) {
	err = g.jobs.run(func() error {
		var err error
		d, err = g.rep.Digest()
		at = g.rep.Applied()
		return err
	})
	return d, at, err
}

// close stops the replica without giving up leadership first (HandOver does that).
func (g *Group) close() {
	g.stop()
	g.src.cutAll()
	g.box.close()
	g.jobs.close()
	g.tasks.Wait()
	g.condemn()
	g.reign.over()
	g.changed.broadcast()
	g.moved.broadcast()
}

// abandon answers what can no longer be answered.
func (g *Group) abandon() {
	for id, w := range g.waiters {
		delete(g.waiters, id)
		w.done <- core.Answer{ID: id, Code: core.Unknown}
	}
	for _, w := range g.held {
		w.done <- core.Answer{ID: w.proposal.ID, Code: core.Unknown}
	}
	g.held = nil
}
