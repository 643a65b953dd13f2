package engine

import (
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// tlsFarm is nodes of one process that speak over TLS on loopback.
type tlsFarm struct {
	t         *testing.T
	ca        *access.CA
	listeners []net.Listener // by node, from 1
	engines   map[uint64]*Engine
	stops     map[uint64]func()
}

func newTLSFarm(t *testing.T, nodes int) *tlsFarm {
	t.Helper()
	var cluster access.ClusterID
	ca, err := access.NewCA(cluster, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &tlsFarm{t: t, ca: ca, engines: map[uint64]*Engine{}, stops: map[uint64]func(){}}
	for range nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f.listeners = append(f.listeners, l)
	}
	t.Cleanup(func() {
		for node := range f.stops {
			f.stop(node)
		}
	})
	return f
}

func (f *tlsFarm) start(node uint64) *Engine {
	f.t.Helper()
	key, err := access.NewKey(rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	csr, err := access.NewCSR(key)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := f.ca.Sign(csr, node, fmt.Sprint("n", node), time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	ident, err := access.NewIdentity(key, cert, f.ca.CertPEM(), time.Now)
	if err != nil {
		f.t.Fatal(err)
	}
	var e *Engine
	tr, err := transport.New(transport.Config{
		Identity: ident, Listener: f.listeners[node-1], Log: testLog(node), Rand: mrand.NewPCG(node, 1),
		Resolve:    func(id uint64) (string, bool) { return f.listeners[id-1].Addr().String(), true },
		OnMessages: func(from, group uint64, msgs []*raftpb.Message) { e.Deliver(from, group, msgs) },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	e = Open(Config{
		Node: node, Logs: logstore.NewMemory(), State: kv.NewMemory(), Transport: tr, Now: time.Now, Seed: node << 40,
		Log: testLog(node), Fault: func(err error) { f.t.Errorf("node %d: %v", node, err) },
	})
	tr.Handle(ServiceFeed, e.ServeFeed)
	tr.Handle(ServiceSnapshot, e.ServeSnapshot)
	tr.HandleCalls(MethodPropose, e.ServePropose)
	tr.HandleCalls(MethodRead, e.ServeRead)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- tr.Serve(ctx) }()
	f.engines[node] = e
	f.stops[node] = func() {
		cancel()
		tr.Close()
		e.Close()
		<-served
	}
	return e
}

// stop ends a node as a killed process does, as far as others can tell: its connections break.
func (f *tlsFarm) stop(node uint64) {
	f.stops[node]()
	delete(f.stops, node)
}

// TestFiftyObserversOverTLS: real connections, the topology as the control group assigns it.
func TestFiftyObserversOverTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("53 nodes over TLS")
	}
	const voting, observing = 3, 50
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	f := newTLSFarm(t, voting+observing)
	g := control.Group{ID: testGroup, Topology: "tree:8"}
	nodes := map[uint64]uint64{}
	for i := range uint64(voting + observing) {
		m := control.Member{Replica: i + 1, Node: i + 1, Role: control.RoleVoter}
		if i >= voting {
			m.Role = control.RoleObserver
		}
		g.Members = append(g.Members, m)
		nodes[i+1] = i + 1
	}
	groups := map[uint64]*Group{}
	for i := range uint64(voting) {
		var err error
		groups[i+1], err = f.start(i + 1).StartGroup(GroupConfig{
			ID: testGroup, Replica: i + 1, Machine: counter{}, Nodes: nodes, Initial: []uint64{1, 2, 3}, History: [16]byte{1},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s := f.engines[1].NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	write := func(what string) (at uint64) {
		t.Helper()
		for i := range 20 {
			a, err := s.Propose(ctx, core.AckQuorum, fmt.Append(nil, what, i))
			if err != nil {
				t.Fatal(err)
			}
			at = a.Position.Index
		}
		return at
	}
	write("first")
	feeds := (&control.State{}).Feeds(&g)
	observers := map[uint64]*Observer{}
	for i := range uint64(observing) {
		node := voting + 1 + i
		sources := append([]uint64{feeds[node].Upstream}, feeds[node].Fallbacks...)
		o, err := f.start(node).Observe(ObserverConfig{
			ID: testGroup, Machine: counter{}, Members: voters{1, 2, 3}, Sources: func() []uint64 { return sources },
		})
		if err != nil {
			t.Fatal(err)
		}
		observers[node] = o
		t.Cleanup(o.Close)
	}
	at := write("second")
	for node, o := range observers {
		for c := o.Catchup(); c.Upstream != feeds[node].Upstream || c.Mode != ModeLive; c = o.Catchup() {
			select {
			case <-o.moved.wait():
			case <-time.After(50 * time.Millisecond):
				o.Reconsider()
			case <-ctx.Done():
				t.Fatalf("observer %d is not at home: %+v, want upstream %d", node, c, feeds[node].Upstream)
			}
		}
		if err := o.WaitApplied(ctx, at); err != nil {
			t.Fatal(err)
		}
		same(t, o, groups[1])
		if h := o.Catchup().Hops; h < 1 || h > 2 {
			t.Errorf("observer %d is %d hops away", node, h)
		}
	}
	root := 0
	for _, g := range groups {
		root += g.src.count()
	}
	if root > 8 {
		t.Errorf("the voters send %d copies", root)
	}
	// The relay with most children dies.
	relay := feeds[voting+observing].Upstream
	observers[relay].Close()
	began := time.Now()
	f.stop(relay)
	delete(observers, relay)
	at = write("third")
	for node, o := range observers {
		if err := o.WaitApplied(ctx, at); err != nil {
			t.Fatal(err)
		}
		if c := o.Catchup(); c.By == ModeSnap && c.From > 1 && c.Rule != "R7" {
			t.Errorf("observer %d came back by %s: %s", node, c.Rule, c.Why)
		}
		same(t, o, groups[1])
	}
	if gap := time.Since(began); gap > 2*time.Second {
		t.Errorf("it took %v until everybody was fed again", gap)
	}
}
