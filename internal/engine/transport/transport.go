// Package transport carries everything between nodes, over TLS on one port: raft messages, calls (a request and
// its answer), and services that own a connection for themselves (bulk streams, catch-up, joining).
//
// Each connection serves one purpose, which its first frame, the hello, names. Raft messages travel on a
// connection of their own in each direction, so neither bulk nor a slow call ever delays a heartbeat; and theirs and the
// calls' packets go before bulk where the network is the bottleneck (urgent.go). Raft
// tolerates loss, so Send never waits: what does not fit the peer's bounded queue is dropped and counted.
// Everything queued while the previous write ran leaves in the next one.
//
// The package knows who is reachable, too. The end of a raft connection, a refused connection and a goodbye are
// reported at once (OnPeer): fail-over starts from there. Beats in both directions find the peer that vanished
// without a word. A peer that is only slow keeps its connection: beats are sent by a goroutine of their own,
// however long its receiver takes.
//
// It is not about replicas, groups or what a message means, and it stores nothing. Frames carry no checksum of
// their own: TLS authenticates every byte.
//
// Goroutines: one delivers OnPeer. Each peer that was sent to has one that dials and writes; each connection
// has one that reads (two where beats or answers are written). Each call that is being served has one. Close
// ends and joins them all.
package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
)

var (
	// ErrUnreachable: no connection could be made; nothing was sent, so trying again is safe.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrLost: the connection broke after a request may have left; its fate is unknown.
	ErrLost = errors.New("connection lost")
	// ErrClosed: this transport was closed.
	ErrClosed = errors.New("transport closed")
)

// Why says how the state of a peer came about.
type Why uint8

const (
	Connected Why = iota + 1 // up: it answered or called
	Refused                  // down: nobody listens at its address, the process is gone
	Reset                    // down: a raft connection ended without a word, the process most likely died
	Goodbye                  // down: it said that it stops
	Timeout                  // down: silence; dead, paused or cut off
	Closed                   // down: it lives, but ended or refused the connection for a stated reason (logged)
)

var whyNames = [...]string{"unknown", "connected", "refused", "reset", "goodbye", "timeout", "closed"}

func (w Why) String() string {
	if int(w) >= len(whyNames) {
		return whyNames[0]
	}
	return whyNames[w]
}

// DialFunc opens a stream to host:port.
type DialFunc func(ctx context.Context, addr string) (net.Conn, error)

// Config of a Transport. Fields without a default are required.
type Config struct {
	Identity *access.Identity
	Listener net.Listener // owned by the transport from New on
	// Resolve knows the addresses of nodes; ok is false for a node that does not exist (any more).
	Resolve func(node uint64) (addr string, ok bool)
	// OnMessages takes what a peer sent for one group, in the order of sending. It is called from that
	// peer's reading goroutine; while it runs, the peer's further messages wait. It owns msgs.
	OnMessages func(from, group uint64, msgs []*raftpb.Message)
	// OnPeer hears of each change of a peer's state, in order, from one goroutine. After a down it may
	// hear of another down with Refused, which is certainty. Default: nobody.
	OnPeer func(node uint64, up bool, why Why)
	// Admit is asked about every peer that has proved who it is, when it connects, answers, and grows older.
	// An error refuses it for good, on every service: it is told, and what there is of connections ends.
	// It may block for a moment (a sync). Default: everybody.
	Admit func(Peer) *api.Error
	// OnDenied hears that a peer refused this node for good. Default: nobody.
	OnDenied func(by uint64, why *api.Error)
	// Boot is the id of this incarnation of the process; default random. Age counts up over all incarnations
	// of this node, by what is on its disk (default: unknown, 0). Address is where peers find this node.
	Boot    uint64
	Age     func() uint64
	Address string
	// Full says whether this node's disk is; peers hear of it with the next beat. Default: never.
	Full func() bool
	// OnFull hears what a peer says of its disk, with every beat; it must not block. Default: nobody.
	OnFull func(node uint64, full bool)
	Log    *slog.Logger
	Rand   rand.Source      // jitter and the id of this incarnation; used under a lock
	Now    func() time.Time // default time.Now; what Peers shows. Deadlines of sockets are always real time
	Dial   DialFunc         // default TCP

	QueueMessages int           // bound of each peer's queue, what is being written included; default 16384
	QueueBytes    int           // same, in bytes, approximately; default 64 MiB
	Beat          time.Duration // interval of beats on raft connections; default 500 ms
	BeatMisses    int           // silent intervals until a peer is down; default 6
	DialTimeout   time.Duration // default 1 s
	ShakeTimeout  time.Duration // TLS and hello together; default 5 s
	CallIdle      time.Duration // an unused call connection is closed after this; default 1 min
}

// Peer is what a peer says of itself, proved by its certificate.
type Peer struct {
	Node, Boot, Age uint64
	Address         string // empty: it did not say
}

func (c *Config) defaults() error {
	if c.Identity == nil || c.Listener == nil || c.Resolve == nil || c.OnMessages == nil || c.Log == nil || c.Rand == nil {
		return errors.New("transport: Identity, Listener, Resolve, OnMessages, Log and Rand are required")
	}
	if c.OnPeer == nil {
		c.OnPeer = func(uint64, bool, Why) {}
	}
	if c.Admit == nil {
		c.Admit = func(Peer) *api.Error { return nil }
	}
	if c.OnDenied == nil {
		c.OnDenied = func(uint64, *api.Error) {}
	}
	if c.Age == nil {
		c.Age = func() uint64 { return 0 }
	}
	if c.Full == nil {
		c.Full = func() bool { return false }
	}
	if c.OnFull == nil {
		c.OnFull = func(uint64, bool) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	c.QueueMessages = cmp.Or(c.QueueMessages, 16384)
	c.QueueBytes = cmp.Or(c.QueueBytes, 64<<20)
	c.Beat = cmp.Or(c.Beat, 500*time.Millisecond)
	c.BeatMisses = cmp.Or(c.BeatMisses, 6)
	c.DialTimeout = cmp.Or(c.DialTimeout, time.Second)
	c.ShakeTimeout = cmp.Or(c.ShakeTimeout, 5*time.Second)
	c.CallIdle = cmp.Or(c.CallIdle, time.Minute)
	return nil
}

// Transport is one node's end of all connections. Its methods may be called concurrently.
type Transport struct {
	cfg   Config
	self  uint64
	boot  uint64 // this incarnation of the process: tells a restarted peer from one that lives on
	start time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	services map[string]serviceHandler // fixed once Serve runs
	calls    map[string]callHandler
	join     func(context.Context, net.Conn)

	shakes, joins chan struct{} // bound what strangers can occupy

	stopping atomic.Bool // Goodbye was said: new raft connections are refused

	mu     sync.Mutex
	closed bool
	peers  map[uint64]*peer
	socks  map[*sock]struct{} // every open connection, so that Close can end it
	wg     sync.WaitGroup

	complain *complaints
	counters counters

	rand   sync.Mutex
	rng    *rand.Rand
	events *notifier
}

type (
	serviceHandler func(ctx context.Context, from uint64, conn net.Conn)
	callHandler    func(ctx context.Context, from uint64, req []byte) ([]byte, error)
)

const (
	maxShakes = 256 // connections that have not said who they are yet
	maxJoins  = 16
	// joinTime bounds a join connection from hello to end.
	joinTime = 30 * time.Second
)

// Names of the services that the transport itself provides.
const (
	serviceRaft = "raft"
	serviceCall = "call"
	serviceJoin = "join"
)

// New makes a transport that can send at once, and receives once Serve runs. The caller must Close it.
func New(cfg Config) (*Transport, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	rng := rand.New(cfg.Rand)
	t := &Transport{
		cfg:      cfg,
		self:     cfg.Identity.Node(),
		boot:     cmp.Or(cfg.Boot, rng.Uint64()),
		start:    time.Now(),
		services: map[string]serviceHandler{},
		calls:    map[string]callHandler{},
		shakes:   make(chan struct{}, maxShakes),
		joins:    make(chan struct{}, maxJoins),
		peers:    map[uint64]*peer{},
		socks:    map[*sock]struct{}{},
		rng:      rng,
		complain: newComplaints(cfg.Now),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.events = newNotifier(cfg.OnPeer)
	t.wg.Go(t.events.run)
	return t, nil
}

// Handle registers a service before Serve. h owns conn until it returns; conn is closed then. ctx ends with
// the transport. Names are 1 to 64 bytes; a name that is taken is a mistake of the program and panics.
func (t *Transport) Handle(service string, h func(ctx context.Context, from uint64, conn net.Conn)) {
	_, taken := t.services[service]
	if taken || service == serviceRaft || service == serviceCall || service == serviceJoin || service == "" || len(service) > maxService {
		panic(fmt.Sprintf("transport: service name %q cannot be registered", service))
	}
	t.services[service] = h
}

// HandleJoin registers the one service that takes connections without a certificate, and only those, before
// Serve. conn ends after half a minute at the latest.
func (t *Transport) HandleJoin(h func(ctx context.Context, conn net.Conn)) { t.join = h }

// HandleCalls registers a method before Serve. Each request has a goroutine of its own; ctx ends when the caller
// gave up, its deadline passed, or the connection was lost. An error that is (or wraps) an *api.Error reaches
// the caller as it is, any other as an api.Error of code failed.
func (t *Transport) HandleCalls(method string, h func(ctx context.Context, from uint64, req []byte) ([]byte, error)) {
	if _, taken := t.calls[method]; taken || method == "" || len(method) > maxMethod {
		panic(fmt.Sprintf("transport: method name %q cannot be registered", method))
	}
	t.calls[method] = h
}

// Send queues messages of a group for a node. It never waits; order within a peer is kept. The messages must
// not be changed afterwards.
func (t *Transport) Send(to, group uint64, msgs []*raftpb.Message) {
	if p := t.peer(to); p != nil {
		p.send(group, msgs)
	}
}

// Open makes a connection to a service of a node. The caller closes it; ctx bounds only the opening.
func (t *Transport) Open(ctx context.Context, to uint64, service string) (net.Conn, error) {
	p := t.peer(to)
	if p == nil {
		return nil, fmt.Errorf("open %s at node %016x: %w", service, to, ErrClosed)
	}
	c, _, err := p.dial(ctx, service)
	if err != nil {
		return nil, fmt.Errorf("open %s at node %016x: %w", service, to, err)
	}
	return c, nil
}

// Drop ends every connection with a node. Whether it may come back is Config.Admit's affair.
func (t *Transport) Drop(node uint64) {
	t.mu.Lock()
	p := t.peers[node]
	var socks []*sock
	for s := range t.socks {
		if p != nil && s.count.Load() == &p.traffic {
			socks = append(socks, s)
		}
	}
	t.mu.Unlock()
	for _, s := range socks {
		s.abort()
	}
}

// PeerStatus is what is known of a peer.
type PeerStatus struct {
	Node        uint64
	Address     string // empty: unknown to Resolve
	Up          bool
	Why         Why           // 0: nothing known yet
	Since       time.Time     // of the state
	RTT         time.Duration // of the last ping, 0: none yet
	Queued      int           // messages
	QueuedBytes int
	Dropped     uint64 // messages, ever
	BytesIn     uint64 // on all connections with the peer, as encrypted
	BytesOut    uint64
	Garbage     uint64 // frames of the peer that made no sense, ever
	// ClockOffset is how far the peer's clock is ahead of this node's, give or take half a round trip; 0: not known.
	ClockOffset time.Duration
}

// ClockBound is how far two nodes' clocks may differ before it is worth a warning.
const ClockBound = 2 * time.Second

// counters of what came in from outside and was not wanted.
type counters struct {
	refused, crowded, garbage atomic.Uint64
}

// Unwanted is how much came in from outside that was not wanted, since the start.
type Unwanted struct {
	Refused uint64 // connections: no handshake, another cluster, a wrong certificate or hello
	Crowded uint64 // connections turned away because too many had not said yet who they are
	Garbage uint64 // frames that made no sense
}

// Unwanted returns the counts.
func (t *Transport) Unwanted() Unwanted {
	return Unwanted{t.counters.refused.Load(), t.counters.crowded.Load(), t.counters.garbage.Load()}
}

// Peers lists all nodes that there was something to do with, by id.
func (t *Transport) Peers() []PeerStatus {
	t.mu.Lock()
	peers := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		peers = append(peers, p)
	}
	t.mu.Unlock()
	all := make([]PeerStatus, 0, len(peers))
	for _, p := range peers {
		all = append(all, p.status())
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// Goodbye tells every connected peer that this process stops, and returns when all have taken note or ctx
// ends. From then on no new raft connection is accepted; those that exist work until Close.
func (t *Transport) Goodbye(ctx context.Context) {
	t.stopping.Store(true)
	t.mu.Lock()
	var links []*link
	for _, p := range t.peers {
		links = append(links, p.liveLinks()...)
	}
	t.mu.Unlock()
	told := make(chan struct{}, len(links))
	waiting := 0
	for _, l := range links {
		// The write may hang on a stuck peer, so it is Close that joins this goroutine.
		ok := t.spawn(func() {
			if l.control(kindGoodbye, nil) == nil {
				select {
				case <-l.acked:
				case <-l.done:
				case <-ctx.Done():
				}
			}
			told <- struct{}{}
		})
		if ok {
			waiting++
		}
	}
	for range waiting {
		select {
		case <-told:
		case <-ctx.Done():
			return
		}
	}
}

// Close ends all connections and goroutines and waits for them; handlers see their connections end. OnPeer and
// OnMessages are not called after it returned.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	socks := make([]*sock, 0, len(t.socks))
	for s := range t.socks {
		socks = append(socks, s)
	}
	t.mu.Unlock()
	t.cancel()
	err := t.cfg.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // Serve was there first
	}
	for _, s := range socks {
		s.abort()
	}
	t.events.close()
	t.wg.Wait()
	if err != nil {
		return fmt.Errorf("close transport: %w", err)
	}
	return nil
}

// spawn starts f unless the transport is closed; Close waits for it.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

// track makes Close end s; false: it is too late, and s is closed.
func (t *Transport) track(s *sock) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		s.abort()
		return false
	}
	t.socks[s] = struct{}{}
	return true
}

func (t *Transport) untrack(s *sock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.socks, s)
}

// peer is nil when the transport is closed.
func (t *Transport) peer(node uint64) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	p := t.peers[node]
	if p == nil {
		p = newPeer(t, node)
		t.peers[node] = p
	}
	return p
}

// jitter is between half of d and d.
func (t *Transport) jitter(d time.Duration) time.Duration {
	t.rand.Lock()
	defer t.rand.Unlock()
	return d/2 + time.Duration(t.rng.Int64N(int64(d/2)+1))
}
