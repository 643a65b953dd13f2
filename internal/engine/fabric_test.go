package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// fabric is a network in memory whose nodes can be killed (connections break, new ones are refused) or silenced
// (nothing arrives and nothing is refused), whose messages and calls can be lost in one direction, and whose feeds can be
// made to break after some bytes.
type fabric struct {
	mu      sync.Mutex
	engines map[uint64]*Engine
	silent  map[uint64]bool
	lost    map[[2]uint64]bool // from → to; connections that are open work on
	conns   map[*fabricConn]bool
	breakAt map[uint64]int // learner → bytes after which its next feeds break; taken off when it happens
	opened  map[[2]uint64]int
	tried   map[[2]uint64]int // connections that were asked for
	sent    map[uint64]int    // node → bytes that it has written to connections
	serving sync.WaitGroup
}

func newFabric() *fabric {
	return &fabric{
		engines: map[uint64]*Engine{}, silent: map[uint64]bool{}, lost: map[[2]uint64]bool{}, conns: map[*fabricConn]bool{},
		breakAt: map[uint64]int{}, opened: map[[2]uint64]int{}, tried: map[[2]uint64]int{}, sent: map[uint64]int{},
	}
}

func (f *fabric) engine(node uint64) *Engine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.engines[node]
}

func (f *fabric) mute(nodes ...uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range nodes {
		if f.silent[n] {
			return true
		}
	}
	return false
}

// lose has nothing arrive that is sent from one node to another.
func (f *fabric) lose(from, to uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost[[2]uint64{from, to}] = true
}

// loses says whether a message gets lost.
func (f *fabric) loses(from, to uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.silent[from] || f.silent[to] || f.lost[[2]uint64{from, to}]
}

// sentBy is how many bytes nodes have written to connections, ever.
func (f *fabric) sentBy(nodes ...uint64) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, node := range nodes {
		n += f.sent[node]
	}
	return n
}

// connections is how many were opened, ever.
func (f *fabric) connections() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, count := range f.opened {
		n += count
	}
	return n
}

// attempts is how often a node has asked for a connection to another one.
func (f *fabric) attempts(from, to uint64) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tried[[2]uint64{from, to}]
}

func (f *fabric) setSilent(node uint64, silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent[node] = silent
}

// cable is one node's end of the fabric.
type cable struct {
	f    *fabric
	self uint64
}

func (c cable) Send(to, group uint64, msgs []*raftpb.Message) {
	e := c.f.engine(to)
	if e == nil || c.f.engine(c.self) == nil || c.f.loses(c.self, to) {
		return
	}
	copies := make([]*raftpb.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = proto.CloneOf(m)
	}
	e.Deliver(c.self, group, copies)
}

func (c cable) Open(ctx context.Context, to uint64, service string) (net.Conn, error) {
	c.f.mu.Lock()
	c.f.tried[[2]uint64{c.self, to}]++
	c.f.mu.Unlock()
	if c.f.loses(c.self, to) || c.f.loses(to, c.self) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	e := c.f.engine(to)
	if e == nil {
		return nil, errors.New("refused")
	}
	a, b := net.Pipe()
	c.f.mu.Lock()
	here := &fabricConn{Conn: a, f: c.f, at: c.self, ends: [2]uint64{c.self, to}, limit: c.f.breakAt[c.self]}
	there := &fabricConn{Conn: b, f: c.f, at: to, ends: here.ends}
	c.f.conns[here], c.f.conns[there] = true, true
	c.f.opened[here.ends]++
	c.f.serving.Add(1)
	c.f.mu.Unlock()
	serve := map[string]func(context.Context, uint64, net.Conn){ServiceSnapshot: e.ServeSnapshot, ServiceFeed: e.ServeFeed}[service]
	go func() {
		defer c.f.serving.Done()
		defer there.Close()
		serve(e.stopping, c.self, there)
	}()
	return here, nil
}

func (c cable) Call(ctx context.Context, to uint64, method string, req []byte) ([]byte, error) {
	if c.f.loses(c.self, to) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	e := c.f.engine(to)
	if e == nil {
		return nil, errors.New("refused")
	}
	serve := e.ServePropose
	if method == MethodRead {
		serve = e.ServeRead
	}
	reply, err := serve(ctx, c.self, req)
	if c.f.loses(to, c.self) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return reply, err
}

type fabricConn struct {
	net.Conn
	f     *fabric
	at    uint64 // whose end this is
	ends  [2]uint64
	limit int // bytes that may still be read; 0: any
	read  int
}

func (c *fabricConn) Write(p []byte) (int, error) {
	if c.f.mute(c.ends[:]...) {
		return len(p), nil // on its way for ever
	}
	n, err := c.Conn.Write(p)
	c.f.mu.Lock()
	c.f.sent[c.at] += n
	c.f.mu.Unlock()
	return n, err
}

func (c *fabricConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read += n
	if c.limit > 0 && c.read >= c.limit {
		c.f.mu.Lock()
		delete(c.f.breakAt, c.ends[0])
		c.f.mu.Unlock()
		c.Conn.Close()
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *fabricConn) Close() error {
	c.f.mu.Lock()
	delete(c.f.conns, c)
	c.f.mu.Unlock()
	return c.Conn.Close()
}

// farm is a group on a fabric: some voters, nodes 1 to n, and observers above.
type farm struct {
	t         testing.TB
	fabric    *fabric
	voters    voters
	groups    map[uint64]*Group
	observers map[uint64]*Observer
	logs      map[uint64]logstore.Store
	states    map[uint64]*kv.Memory
	config    GroupConfig
	rate      uint64
	tail      int
	machine   func(node uint64) machine.Machine
	adjust    func(node uint64, cfg *Config) // nil: nothing is
	index     uint64                         // of the last write
	count     uint64                         // writes
	session   *Session
}

func newFarm(t testing.TB, size int, change func(*farm)) *farm {
	f := &farm{
		t: t, fabric: newFabric(), groups: map[uint64]*Group{}, observers: map[uint64]*Observer{},
		logs: map[uint64]logstore.Store{}, states: map[uint64]*kv.Memory{}, config: GroupConfig{ID: testGroup, History: [16]byte{7}, Nodes: map[uint64]uint64{}},
		machine: func(uint64) machine.Machine { return counter{} },
	}
	for i := range uint64(size) {
		f.voters = append(f.voters, i+1)
		f.config.Nodes[i+1] = i + 1
	}
	if change != nil {
		change(f)
	}
	for _, n := range f.voters {
		f.startVoter(n)
	}
	f.session = f.fabric.engine(1).NewSession(testGroup, f.voters, [16]byte{1})
	return f
}

// open starts a node's engine; what was on its disks is there again.
func (f *farm) open(node uint64) *Engine {
	if f.logs[node] == nil {
		f.logs[node], f.states[node] = logstore.NewMemory(), kv.NewMemory()
	}
	cfg := Config{
		Node: node, Cluster: [16]byte{1}, Logs: f.logs[node], State: f.states[node], Transport: cable{f.fabric, node}, Now: time.Now,
		Tick: 50 * time.Millisecond, Seed: node << 40, Log: testLog(node), SnapshotRate: f.rate,
		Fault: func(err error) { f.t.Errorf("node %d: storage: %v", node, err) },
	}
	if f.adjust != nil {
		f.adjust(node, &cfg)
	}
	e := Open(cfg)
	f.fabric.mu.Lock()
	f.fabric.engines[node] = e
	f.fabric.mu.Unlock()
	return e
}

// testLog shows what nodes say if FEED_LOG is set.
func testLog(node uint64) *slog.Logger {
	if os.Getenv("FEED_LOG") == "" {
		return slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", node)
}

func (f *farm) startVoter(node uint64) {
	f.t.Helper()
	cfg := f.config
	cfg.Replica, cfg.Machine, cfg.Initial = node, f.machine(node), f.voters
	g, err := f.open(node).StartGroup(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.groups[node] = g
}

// observe starts an observer that is to be fed by sources, in that order.
func (f *farm) observe(node uint64, sources ...uint64) *Observer {
	f.t.Helper()
	o, err := f.open(node).Observe(ObserverConfig{
		ID: testGroup, Machine: f.machine(node), Members: f.voters, Sources: func() []uint64 { return sources }, TailBytes: f.tail,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.observers[node] = o
	return o
}

// kill ends a node's process: its connections break, and new ones are refused.
func (f *farm) kill(node uint64) {
	f.fabric.mu.Lock()
	e := f.fabric.engines[node]
	delete(f.fabric.engines, node)
	var conns []*fabricConn
	for c := range f.fabric.conns {
		if c.ends[0] == node || c.ends[1] == node {
			conns = append(conns, c)
		}
	}
	rest := make([]*Engine, 0, len(f.fabric.engines))
	for _, other := range f.fabric.engines {
		rest = append(rest, other)
	}
	f.fabric.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	for _, other := range rest {
		other.PeerDown(node)
	}
	if o := f.observers[node]; o != nil {
		o.Close()
		delete(f.observers, node)
	}
	e.Close()
	delete(f.groups, node)
}

// close stops everything and waits.
func (f *farm) close() {
	for node, o := range f.observers {
		o.Close()
		delete(f.observers, node)
	}
	f.fabric.mu.Lock()
	engines := f.fabric.engines
	f.fabric.engines = map[uint64]*Engine{}
	f.fabric.mu.Unlock()
	for _, e := range engines {
		e.Close()
	}
	f.fabric.serving.Wait()
}

func (f *farm) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

// write commits n writes of some bytes.
func (f *farm) write(n, size int) {
	f.t.Helper()
	ctx, cancel := f.ctx()
	defer cancel()
	for range n {
		f.count++
		payload := binary.BigEndian.AppendUint64(make([]byte, 0, size), f.count)
		a, err := f.session.Propose(ctx, core.AckQuorum, append(payload, make([]byte, max(0, size-8))...))
		if err != nil {
			f.t.Fatalf("write %d: %v", f.count, err)
		}
		f.index = a.Position.Index
	}
}

// reaches waits until a member has applied everything that was written, and checks that nothing was applied twice.
func (f *farm) reaches(node uint64) {
	f.t.Helper()
	ctx, cancel := f.ctx()
	defer cancel()
	var m interface {
		digester
		WaitApplied(context.Context, uint64) error
	} = f.observers[node]
	if g := f.groups[node]; g != nil {
		m = g
	}
	if err := m.WaitApplied(ctx, f.index); err != nil {
		f.t.Fatalf("node %d does not reach %d: %v", node, f.index, err)
	}
	d, at, err := m.Digest()
	if err != nil {
		f.t.Fatal(err)
	}
	if n := binary.BigEndian.Uint64(d[:]); n != f.count {
		f.t.Fatalf("node %d at %v has applied %d writes of %d", node, at, n, f.count)
	}
}

// copies is how many observers are fed, by anybody.
func (f *farm) copies() (n int) {
	for _, g := range f.groups {
		n += g.src.count()
	}
	for _, o := range f.observers {
		n += o.src.count()
	}
	return n
}

// until waits for a condition, in fake time.
func (f *farm) until(what string, ok func() bool) {
	f.t.Helper()
	for range 100_000 {
		if ok() {
			return
		}
		wait(10 * time.Millisecond)
	}
	f.t.Fatalf("never: %s", what)
}

// wait lets time pass; inside a bubble it is not real time.
func wait(d time.Duration) { <-time.After(d) }

// fedBy says by whom an observer is to be fed, and how many hops from the voters.
func (f *farm) fedBy(node, upstream uint64, hops int) {
	f.t.Helper()
	o := f.observers[node]
	f.until(fmt.Sprintf("node %d is live, fed by %d in %d hops", node, upstream, hops), func() bool {
		c := o.Catchup()
		return c.Mode == ModeLive && c.Upstream == upstream && c.Hops == hops
	})
}

// bubble runs a test in fake time.
func bubble(t *testing.T, test func(t *testing.T)) { synctest.Test(t, test) }
