package transport

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
)

var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func day0Clock() time.Time { return day0 }

// patience bounds every wait of the tests; it is never waited out by one that passes.
const patience = 20 * time.Second

// farm makes nodes of one cluster, on loopback.
type farm struct {
	t    testing.TB
	ca   *access.CA
	rand *rand.ChaCha8

	mu    sync.Mutex
	addrs map[uint64]string
}

func newFarm(t testing.TB, seed byte) *farm {
	t.Helper()
	r := rand.NewChaCha8([32]byte{seed})
	ca, err := access.NewCA(access.ClusterID{seed}, day0, r)
	if err != nil {
		t.Fatal(err)
	}
	return &farm{t: t, ca: ca, rand: r, addrs: map[uint64]string{}}
}

func (f *farm) identity(id uint64, now func() time.Time) *access.Identity {
	f.t.Helper()
	key, err := access.NewKey(f.rand)
	if err != nil {
		f.t.Fatal(err)
	}
	csr, err := access.NewCSR(key)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := f.ca.Sign(csr, id, fmt.Sprintf("n%d", id), day0)
	if err != nil {
		f.t.Fatal(err)
	}
	ident, err := access.NewIdentity(key, cert, f.ca.CertPEM(), now)
	if err != nil {
		f.t.Fatal(err)
	}
	return ident
}

func (f *farm) resolve(id uint64) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.addrs[id]
	return a, ok
}

func (f *farm) setAddr(id uint64, addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs[id] = addr
}

type delivery struct {
	from, group uint64
	msgs        []*raftpb.Message
}

// testNode is a transport whose events can be waited for.
type testNode struct {
	*Transport
	f      *farm
	addr   string
	got    chan delivery
	events chan event
	log    *lockedLog
	served chan error
	once   sync.Once
}

// lockedLog collects what was logged.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// node starts one; change adjusts its configuration and registers its handlers before it serves.
func (f *farm) node(id uint64, change func(*Config), register func(*Transport)) *testNode {
	f.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	return f.nodeOn(id, listener, change, register)
}

func (f *farm) nodeOn(id uint64, listener net.Listener, change func(*Config), register func(*Transport)) *testNode {
	f.t.Helper()
	n := &testNode{f: f, addr: listener.Addr().String(), got: make(chan delivery, 1<<16), events: make(chan event, 1<<10), log: &lockedLog{}, served: make(chan error, 1)}
	cfg := Config{
		Identity: f.identity(id, day0Clock),
		Listener: listener,
		Resolve:  f.resolve,
		OnMessages: func(from, group uint64, msgs []*raftpb.Message) {
			n.got <- delivery{from, group, msgs}
		},
		OnPeer: func(node uint64, up bool, why Why) { n.events <- event{node, up, why} },
		Log:    slog.New(slog.NewTextHandler(n.log, nil)),
		Rand:   rand.NewPCG(rand.Uint64(), id),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if n.Transport, err = New(cfg); err != nil {
		f.t.Fatal(err)
	}
	if register != nil {
		register(n.Transport)
	}
	f.setAddr(id, n.addr)
	go func() { n.served <- n.Serve(context.Background()) }()
	f.t.Cleanup(n.stop)
	return n
}

func (n *testNode) stop() {
	n.once.Do(func() {
		if err := n.Close(); err != nil {
			n.f.t.Error(err)
		}
		if err := <-n.served; err != nil {
			n.f.t.Error(err)
		}
	})
}

// expect waits for a message with the context.
func (n *testNode) expect(text string) delivery {
	n.f.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case d := <-n.got:
			for _, m := range d.msgs {
				if string(m.Context) == text {
					return d
				}
			}
		case <-timeout:
			n.f.t.Fatalf("%q did not arrive\n%s", text, n.log)
		}
	}
}

// event waits for the next change of a peer's state.
func (n *testNode) event() event {
	n.f.t.Helper()
	select {
	case e := <-n.events:
		return e
	case <-time.After(patience):
		n.f.t.Fatalf("nothing was reported\n%s", n.log)
		return event{}
	}
}

func (n *testNode) wantEvent(want event) {
	n.f.t.Helper()
	if got := n.event(); got != want {
		n.f.t.Fatalf("reported %v, want %v\n%s", got, want, n.log)
	}
}

func (n *testNode) status(peer uint64) PeerStatus {
	for _, p := range n.Peers() {
		if p.Node == peer {
			return p
		}
	}
	return PeerStatus{}
}

// until polls for a condition that no channel tells.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

func message(text string) []*raftpb.Message {
	typ := raftpb.MessageType_MsgHeartbeat
	return []*raftpb.Message{{Type: &typ, Context: []byte(text)}}
}
