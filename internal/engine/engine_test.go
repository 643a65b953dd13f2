package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// counter is a machine that counts commands and remembers the last payload.
type counter struct{}

func (counter) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	n, _, err := tx.Get([]byte("n"))
	if err != nil {
		return nil, err
	}
	var count uint64
	if len(n) == 8 {
		count = binary.BigEndian.Uint64(n)
	}
	n = binary.BigEndian.AppendUint64(nil, count+1)
	if err := tx.Set([]byte("n"), n); err != nil {
		return nil, err
	}
	return n, tx.Set(append([]byte("p/"), cmd.Payload...), n)
}
func (counter) Committed(uint64)                 {}
func (counter) Restored(kv.Reader, uint64) error { return nil }
func (counter) Digest(tx kv.Tx) (machine.Digest, error) {
	var d machine.Digest
	n, _, err := tx.Get([]byte("n"))
	copy(d[:], n)
	return d, err
}

// mesh is a network in memory between engines.
type mesh struct {
	mu    sync.Mutex
	nodes map[uint64]*Engine
	shut  map[string]bool // services that nobody can open
	bound uint64          // a node that can open none
}

func (m *mesh) bind(node uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bound = node
}

func (m *mesh) refuse(service string, shut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut = map[string]bool{service: shut}
}

type port struct {
	m    *mesh
	self uint64
}

func (m *mesh) engine(node uint64) *Engine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[node]
}

func (p port) Send(to, group uint64, msgs []*raftpb.Message) {
	e := p.m.engine(to)
	if e == nil || p.m.engine(p.self) == nil {
		return
	}
	copies := make([]*raftpb.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = proto.CloneOf(m)
	}
	e.Deliver(p.self, group, copies)
}

func (p port) Open(_ context.Context, to uint64, service string) (net.Conn, error) {
	e := p.m.engine(to)
	p.m.mu.Lock()
	shut := p.m.shut[service] || p.m.bound == p.self
	p.m.mu.Unlock()
	if e == nil || shut {
		return nil, errors.New("refused")
	}
	a, b := net.Pipe()
	serve := map[string]func(context.Context, uint64, net.Conn){ServiceSnapshot: e.ServeSnapshot, ServiceFeed: e.ServeFeed}[service]
	go func() {
		defer b.Close()
		serve(context.Background(), p.self, b)
	}()
	return a, nil
}

func (p port) Call(ctx context.Context, to uint64, method string, req []byte) ([]byte, error) {
	e := p.m.engine(to)
	if e == nil {
		return nil, errors.New("refused")
	}
	switch method {
	case MethodRead:
		return e.ServeRead(ctx, p.self, req)
	case MethodDigest:
		return e.ServeDigest(ctx, p.self, req)
	case MethodLine:
		return e.ServeLine(ctx, p.self, req)
	}
	return e.ServePropose(ctx, p.self, req)
}

type voters []uint64

func (v voters) Voters() []uint64 { return v }

const testGroup = 7

type member struct {
	engine *Engine
	group  *Group
	logs   logstore.Store
	state  kv.Store
	forked chan Forked // what it was told of other histories; buffered, the rest is dropped
}

func boot(t *testing.T, m *mesh, node uint64, initial []uint64, logs logstore.Store, state kv.Store) *member {
	t.Helper()
	forked := make(chan Forked, 16)
	e := Open(Config{
		Forked: func(f Forked) {
			select {
			case forked <- f:
			default:
			}
		},
		Node: node, Logs: logs, State: state, Transport: port{m, node}, Now: time.Now, Tick: 20 * time.Millisecond,
		Seed: node << 40, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Fault: func(err error) { t.Errorf("node %d: storage: %v", node, err) },
	})
	nodes := map[uint64]uint64{}
	for i := uint64(1); i <= 5; i++ {
		nodes[i] = i
	}
	g, err := e.StartGroup(GroupConfig{ID: testGroup, Replica: node, Machine: counter{}, Nodes: nodes, Initial: initial, History: [16]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.nodes[node] = e
	m.mu.Unlock()
	return &member{e, g, logs, state, forked}
}

func (m *mesh) kill(node uint64) {
	m.mu.Lock()
	e := m.nodes[node]
	delete(m.nodes, node)
	rest := m.nodes
	m.mu.Unlock()
	for _, o := range rest {
		o.PeerDown(node)
	}
	e.Close()
}

func cluster(t *testing.T, size uint64) (*mesh, map[uint64]*member) {
	m := &mesh{nodes: map[uint64]*Engine{}}
	var initial []uint64
	for i := uint64(1); i <= size; i++ {
		initial = append(initial, i)
	}
	members := map[uint64]*member{}
	for _, i := range initial {
		members[i] = boot(t, m, i, initial, logstore.NewMemory(), kv.NewMemory())
	}
	t.Cleanup(func() {
		m.mu.Lock()
		nodes := m.nodes
		m.nodes = map[uint64]*Engine{}
		m.mu.Unlock()
		for _, e := range nodes {
			e.Close()
		}
	})
	return m, members
}

func TestWritesSurviveTheLeader(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	s := members[2].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	write := func(i int) {
		t.Helper()
		a, err := s.Propose(ctx, core.AckQuorum, fmt.Appendf(nil, "%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint64(a.Result); got != uint64(i) {
			t.Fatalf("write %d was executed as number %d", i, got)
		}
	}
	for i := 1; i <= 50; i++ {
		write(i)
	}
	leader := members[2].group.Core().Leader
	if leader == 2 { // the session's own node stays
		if err := members[2].group.Transfer(ctx, 1); err != nil {
			t.Fatal(err)
		}
		leader = 1
	}
	m.kill(leader)
	for i := 51; i <= 100; i++ {
		write(i)
	}
	back := boot(t, m, leader, []uint64{1, 2, 3}, members[leader].logs, members[leader].state)
	index, err := back.group.Barrier(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := back.group.WaitApplied(ctx, index); err != nil {
		t.Fatal(err)
	}
	same(t, back.group, members[2].group)
}

type digester interface {
	Digest() (machine.Digest, core.Position, error)
}

func same(t *testing.T, a, b digester) {
	t.Helper()
	da, pa, err := a.Digest()
	if err != nil {
		t.Fatal(err)
	}
	db, pb, err := b.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if da != db {
		t.Errorf("digests differ: %s at %v, %s at %v", da, pa, db, pb)
	}
}

func TestNewMemberGetsASnapshotAndObserverAFeed(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	s := members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	for i := range 20 {
		if _, err := s.Propose(ctx, core.AckQuorum, fmt.Appendf(nil, "%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	leader := members[members[1].group.Core().Leader]
	four := boot(t, m, 4, nil, logstore.NewMemory(), kv.NewMemory())
	id := uint64(4)
	cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: &id}}}
	if a := leader.group.Change(ctx, leader.group.Fresh().Term, cc); a.Code != core.Committed {
		t.Fatalf("add learner: %v", a.Code)
	}
	at := leader.group.Applied().Index
	if err := four.group.WaitApplied(ctx, at); err != nil {
		t.Fatal(err)
	}
	if c := four.group.Catchup(); c.By != ModeSnap {
		t.Errorf("caught up by %s: %s", c.Mode, c.Why)
	}
	same(t, four.group, leader.group)

	e := Open(Config{
		Node: 5, Logs: logstore.NewMemory(), State: kv.NewMemory(), Transport: port{m, 5}, Now: time.Now,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fault: func(err error) { t.Error(err) },
	})
	m.mu.Lock()
	m.nodes[5] = e
	m.mu.Unlock()
	o, err := e.Observe(ObserverConfig{ID: testGroup, Machine: counter{}, Members: voters{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for i := range 20 {
		a, err := s.Propose(ctx, core.AckQuorum, fmt.Appendf(nil, "later %d", i))
		if err != nil {
			t.Fatal(err)
		}
		at = a.Position.Index
	}
	if err := o.WaitApplied(ctx, at); err != nil {
		t.Fatal(err)
	}
	if index, err := o.Barrier(ctx); err != nil || index < at {
		t.Fatalf("barrier %d, want at least %d: %v", index, at, err)
	}
	same(t, o, leader.group)
}

func TestHandOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, members := cluster(t, 3)
	s := members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	if _, err := s.Propose(ctx, core.AckAll, []byte("x")); err != nil {
		t.Fatal(err)
	}
	leader := members[1].group.Core().Leader
	members[leader].engine.HandOver(ctx)
	if st := members[leader].group.Core(); st.Role == core.Leader {
		t.Errorf("replica %d still leads", leader)
	}
}
