package sim

import (
	"context"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// bubble is the second kind of simulation: whole engines, with their runners, feeds, relays, snapshots and sessions
// as they are in production, on a network and disks in memory, in the false time of a testing/synctest bubble.
//
// The engine has goroutines, and the order in which the scheduler runs them cannot be told, so a seed fixes what goes
// wrong, to whom and when, but not the history: a failure comes again with the same seed often, not always. That is
// why it stands beside the simulation of world and does not replace it. What it has over it is that nothing of the
// engine is played by the simulator.
type bubble struct {
	seed   uint64
	shape  bubbleShape
	net    bubbleNet
	nodes  []*bubbleNode // node i has id i+1; the first shape.voters of them vote
	groups []*bubbleGroup

	mu     sync.Mutex
	dice   *mathrand.Rand // of everything; guarded by mu, for goroutines draw as they come
	faults map[string]int
	plans  map[string]int // decisions of sources and of replicas that come to another history, by rule
	lives  []*life        // all that there ever were
	seen   error          // what must not happen and was seen by another goroutine than the one that runs the bubble
}

type bubbleShape struct {
	voters, observers, groups int
	length                    time.Duration
	sync                      time.Duration // mean of a log write
	latency                   time.Duration // mean of a message
	retain                    uint64        // bytes of log
	tail                      int           // bytes that an observer remembers
	topology                  string
	differ                    bool
	rate                      uint64        // bytes a second of states; 0: no bound
	checks                    time.Duration // between two comparisons of states
	rots                      int           // node whose states are altered on the disk, once; 0: none
	forks                     bool          // a majority is taken for lost, once, and a new history begun
	untold                    uint64        // node that does not hear of it but from others; 0: none
	fills                     bool          // disks fill up
}

// bubbleNode is a node: its disk, and a process if one runs.
type bubbleNode struct {
	b     *bubble
	id    uint64
	logs  *logstore.Memory
	state *kv.Memory
	disk  *bubbleDisk
	skew  atomic.Int64

	mu   sync.Mutex
	life *life // nil: the process is down
}

// life is one run of a node's process.
type life struct {
	node      *bubbleNode
	engine    *engine.Engine
	room      *bubbleRoom
	observing sync.Mutex
	observers map[uint64]*engine.Observer // guarded by observing
	dead      context.Context             // ends with the process
	die       context.CancelFunc
	failing   atomic.Bool   // the next write of the log returns an error
	aligning  chan struct{} // held by the one replica that comes to a new history; no mutex: it is waited for in false time
	tasks     sync.WaitGroup
}

func newBubble(seed uint64) *bubble {
	r := mathrand.New(mathrand.NewPCG(seed, 99))
	pick := func(xs ...int) int { return xs[r.IntN(len(xs))] }
	b := &bubble{seed: seed, dice: r, faults: map[string]int{}, plans: map[string]int{}}
	b.shape = bubbleShape{
		voters: pick(1, 2, 3, 3, 3, 5), observers: pick(0, 1, 2, 4, 6), groups: pick(1, 1, 2, 4),
		length: time.Duration(pick(20, 40, 60)) * time.Second,
		sync:   time.Duration(pick(50, 500, 5000)) * time.Microsecond, latency: time.Duration(pick(100, 1000, 10000)) * time.Microsecond,
		retain: uint64(pick(1, 2000, 64<<20)), tail: pick(1, 2000, 16<<20),
		topology: []string{"star", "chain", "tree", "any"}[r.IntN(4)], differ: r.IntN(2) == 0,
		rate: uint64(pick(0, 0, 100_000)),
	}
	b.shape.checks = time.Duration(pick(1, 5, 60)) * time.Second
	if b.shape.voters >= 3 && r.IntN(2) == 0 {
		b.shape.rots, b.shape.checks = 1+r.IntN(b.shape.voters+b.shape.observers), time.Second
	}
	if b.shape.voters >= 3 && b.shape.rots == 0 && r.IntN(2) == 0 {
		b.shape.forks, b.shape.untold = true, uint64(r.IntN(b.shape.voters+1))
	}
	b.shape.fills = b.shape.rots == 0 && r.IntN(3) > 0
	b.net.b, b.net.blocked, b.net.arrivals = b, map[[2]uint64]bool{}, map[[2]uint64]time.Time{}
	for i := range b.shape.voters + b.shape.observers {
		b.nodes = append(b.nodes, &bubbleNode{b: b, id: uint64(i + 1), logs: logstore.NewMemory(), state: kv.NewMemory(), disk: newBubbleDisk()})
	}
	for i := range b.shape.groups {
		b.groups = append(b.groups, newBubbleGroup(b, uint64(i+1)))
	}
	return b
}

// roll draws from 0 to n-1.
func (b *bubble) roll(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dice.IntN(n)
}

func (b *bubble) spread(mean time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Duration(spread(b.dice, int64(mean)))
}

// voters implements engine.Members.
type bubbleVoters int

func (v bubbleVoters) Voters() (nodes []uint64) {
	for i := range int(v) {
		nodes = append(nodes, uint64(i+1))
	}
	return nodes
}

// sources of an observer under the bubble's topology.
func (b *bubble) sources(id uint64) []uint64 {
	place := int(id) - b.shape.voters - 1 // among the observers
	voter := uint64(place%b.shape.voters + 1)
	at := func(i int) uint64 { return uint64(b.shape.voters + i + 1) }
	switch {
	case b.shape.topology == "star" || place == 0:
		return []uint64{voter}
	case b.shape.topology == "chain":
		return []uint64{at(place - 1), voter}
	case b.shape.topology == "tree":
		return []uint64{at((place - 1) / 2), voter}
	}
	var all []uint64 // anybody, in any order: loops are to be found and left
	for i := range b.shape.observers {
		if i != place {
			all = append(all, at(i))
		}
	}
	return append(all[place%len(all):], all[:place%len(all)]...)
}

// start runs the node's process on what its disk holds, if there is room for a start.
func (n *bubbleNode) start() error {
	if n.running() != nil || n.disk.full.Load() {
		return nil
	}
	l := n.open()
	for _, gr := range n.b.groups { // without the lock: it may take the disk's time
		if err := gr.start(l); err != nil && l.dead.Err() == nil && !l.failing.Load() {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
	}
	return nil
}

// open begins a life on what the disk holds, without any group.
func (n *bubbleNode) open() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &life{node: n, aligning: make(chan struct{}, 1), observers: map[uint64]*engine.Observer{}}
	l.room = &bubbleRoom{own: n.disk, heard: make([]atomic.Bool, len(n.b.nodes)+1)}
	l.dead, l.die = context.WithCancel(context.Background())
	l.engine = engine.Open(engine.Config{
		Node: n.id, Cluster: [16]byte{7}, Logs: slowLogs{n.logs, l}, State: waitingState{n.state, l}, Room: l.room, Transport: bubblePort{l},
		Now:  func() time.Time { return time.Now().Add(time.Duration(n.skew.Load())) },
		Seed: uint64(n.b.roll(1<<30))<<32 + n.id<<24, Log: slog.New(planCounter{n.b}),
		Fault:        func(error) { l.tasks.Go(func() { n.kill(l) }) },
		SnapshotRate: n.b.shape.rate, Forked: l.told,
	})
	n.life = l
	if n.b.shape.fills {
		l.tasks.Go(l.listen)
	}
	n.b.mu.Lock()
	n.b.lives = append(n.b.lives, l)
	n.b.mu.Unlock()
	return l
}

// kill ends the process as a crash does: what the disk holds from here on is what it has now, synced, and some of the
// rest. l is the life that is meant; nil: whichever it is.
func (n *bubbleNode) kill(l *life) {
	n.mu.Lock()
	if n.life == nil || l != nil && n.life != l {
		n.mu.Unlock()
		return
	}
	l, n.life = n.life, nil
	keep := func(unsynced int) int { return n.b.roll(unsynced + 1) }
	logs, err := n.logs.Crash(nil, keep)
	must(err, "crash log")
	n.logs, n.state = logs, n.state.Crash(keep)
	n.mu.Unlock()
	l.die()
	n.b.net.cutOff(n.id)
	for _, gr := range n.b.groups {
		if o := l.observer(gr.id); o != nil {
			o.Close()
		}
	}
	l.engine.Close()
	n.b.peersHear(n.id)
}

// observer is the node's observer of a group; nil: it has none.
func (l *life) observer(group uint64) *engine.Observer {
	l.observing.Lock()
	defer l.observing.Unlock()
	return l.observers[group]
}

// running is the node's process; nil: it is down.
func (n *bubbleNode) running() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

// slowLogs takes its time, and fails once it is told to.
type slowLogs struct {
	logstore.Store
	l *life
}

func (s slowLogs) Write(ws []logstore.Write) error {
	b := s.l.node.b
	pause(s.l.dead, b.spread(b.shape.sync)/2)
	if s.l.failing.Load() {
		return fmt.Errorf("write log: the disk of node %d fails", s.l.node.id)
	}
	if err := s.l.node.disk.charge(ws); err != nil {
		b.wrong(fmt.Errorf("node %d: %w", s.l.node.id, err))
	}
	err := s.Store.Write(ws)
	pause(s.l.dead, b.spread(b.shape.sync)/2)
	return err
}

// pause returns after d of the bubble's time, or when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// wait returns when everything that any process has begun has ended.
func (b *bubble) wait() {
	b.mu.Lock()
	lives := slices.Clone(b.lives)
	b.mu.Unlock()
	for _, l := range lives {
		l.tasks.Wait()
	}
}

// untold says whether nobody tells a node of a new history. The one that has begun it knows.
func (b *bubble) untold(n *bubbleNode) bool {
	line := b.groups[0].line.Load()
	return line != nil && n.id == b.shape.untold && line.Seed != n.id
}

// strike makes one kind of trouble.
func (b *bubble) strike(ctx context.Context) {
	n := b.nodes[b.roll(len(b.nodes))]
	switch kind := b.roll(12); kind {
	case 0, 1:
		b.count("process killed")
		n.kill(nil)
	case 2:
		b.count("several processes killed")
		for _, n := range b.nodes {
			if b.roll(2) == 0 {
				n.kill(nil)
			}
		}
	case 3, 4:
		b.count("partition")
		at := b.roll(len(b.nodes))
		for _, other := range b.nodes {
			if other.id <= uint64(at) {
				b.net.cut(n.id, other.id)
				if kind == 3 {
					b.net.cut(other.id, n.id)
				}
			}
		}
	case 5:
		b.count("connections broken")
		b.net.cutOff(n.id)
	case 6:
		b.count("clock jumped")
		n.skew.Store(int64(time.Duration(b.roll(7200)-3600) * time.Second))
	case 7:
		if l := n.running(); l != nil && n.id <= uint64(b.shape.voters) {
			b.count("disk error")
			l.failing.Store(true)
		}
	case 10, 11:
		if b.shape.fills {
			b.count(faultFull)
			n.disk.fill(b.roll(2) == 0)
		}
	case 9:
		if b.shape.rots != 0 {
			b.count("state altered on its disk")
			b.rot(b.nodes[b.shape.rots-1])
			b.shape.rots = 0
		}
	case 8:
		if n.id > uint64(b.shape.voters) {
			b.count("observer wiped")
			n.kill(nil)
			n.mu.Lock()
			n.logs, n.state = logstore.NewMemory(), kv.NewMemory()
			n.mu.Unlock()
		}
	}
	pause(ctx, b.spread(time.Second))
}

// rotten is a key that no client uses: an altered state shows in comparisons only.
const rotten = 1 << 60

// rot alters the states that a node has of every group, in both slots, whichever is in force.
func (b *bubble) rot(n *bubbleNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, gr := range b.groups {
		batch := n.state.Batch()
		for _, slot := range []string{"m/", "n/"} {
			must(batch.Set(append(fmt.Appendf(nil, "g/%016x/%s", gr.id, slot), valueKey(rotten)...), []byte("rot")), "alter state")
		}
		must(batch.Commit(), "alter state")
		gr.altered.Store(true)
	}
}

// wrong is for violations that any goroutine sees.
func (b *bubble) wrong(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen == nil {
		b.seen = err
	}
}

func (b *bubble) violation() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

func (b *bubble) count(fault string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults[fault]++
}

// mend starts what is down, and heals the network and makes room now and then.
func (b *bubble) mend(all bool) error {
	if all || b.roll(2) == 0 {
		b.net.heal()
	}
	for _, n := range b.nodes {
		if all || b.roll(4) == 0 {
			n.disk.free()
		}
		if all || b.roll(3) > 0 {
			if l := n.running(); all && l != nil && l.failing.Load() {
				n.kill(l)
			}
			if err := n.start(); err != nil {
				return err
			}
		}
	}
	return nil
}

// deliver hands messages to a node's engine if one runs.
func (b *bubble) deliver(from, to, group uint64, msgs []*raftpb.Message) {
	if l := b.nodes[to-1].running(); l != nil && !b.net.isCut(from, to) {
		l.engine.Deliver(from, group, msgs)
	}
}

// peersHear tells the others, most of them, that a node's process is gone.
func (b *bubble) peersHear(node uint64) {
	for _, n := range slices.Clone(b.nodes) {
		if l := n.running(); l != nil && n.id != node && b.roll(4) > 0 {
			l.engine.PeerDown(node)
		}
	}
}
