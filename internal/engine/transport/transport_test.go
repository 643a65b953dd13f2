package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
)

func TestSendOrderAndGroups(t *testing.T) {
	f := newFarm(t, 1)
	a, b := f.node(1, nil, nil), f.node(2, nil, nil)
	const n = 3000
	for i := range n {
		a.Send(2, uint64(i/10), message(fmt.Sprint(i)))
	}
	for next := 0; next < n; {
		select {
		case d := <-b.got:
			if d.from != 1 {
				t.Fatalf("from %d", d.from)
			}
			for _, m := range d.msgs {
				if string(m.Context) != fmt.Sprint(next) || d.group != uint64(next/10) {
					t.Fatalf("message %q of group %d, want %d", m.Context, d.group, next)
				}
				next++
			}
		case <-time.After(patience):
			t.Fatalf("only %d arrived", next)
		}
	}
	a.wantEvent(event{2, true, Connected})
	b.wantEvent(event{1, true, Connected})
	until(t, "a round trip was measured and the queue accounted for", func() bool {
		s := a.status(2)
		return s.RTT > 0 && s.Queued == 0 && s.QueuedBytes == 0 && s.Up && s.Address == b.addr && s.BytesOut > n && s.BytesIn > 0
	})
}

func TestLargeMessage(t *testing.T) {
	f := newFarm(t, 1)
	a, b := f.node(1, nil, nil), f.node(2, nil, nil)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	m := message("large")
	m[0].Entries = []*raftpb.Entry{{Data: data}}
	a.Send(2, 1, m)
	a.Send(2, 1, message("after"))
	if d := b.expect("large"); !bytes.Equal(d.msgs[0].Entries[0].Data, data) {
		t.Error("altered")
	}
	b.expect("after")
	// One that fits no frame is dropped alone.
	m = message("too large")
	m[0].Entries = []*raftpb.Entry{{Data: make([]byte, MaxFrame)}}
	a.Send(2, 1, m)
	until(t, "the message is dropped", func() bool { return a.status(2).Dropped == 1 })
	a.Send(2, 1, message("goes on"))
	b.expect("goes on")
	if !strings.Contains(a.log.String(), "message dropped") {
		t.Error("the loss was not logged")
	}
}

// TestTurnedDown: whoever dials with a certificate that the other side does not accept is told what to look at.
func TestTurnedDown(t *testing.T) {
	f, g := newFarm(t, 1), newFarm(t, 2)
	one := f.node(1, nil, nil)
	cfg := g.identity(3, day0Clock).Client(0)
	cfg.VerifyConnection = nil // else it would turn down the server first
	raw, err := net.Dial("tcp", one.addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &sock{Conn: raw}
	defer s.Close()
	_, _, err = shake(t.Context(), s, cfg, hello{version: helloVersion, cluster: f.ca.Cluster(), from: 3, to: 1, boot: 99, service: serviceRaft}, patience)
	for _, want := range []string{"bad certificate", "turned down", "its log", "lockstep status"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("told %q, without %q", err, want)
		}
	}
}

// stranger makes TLS connections with any configuration and says any hello.
func stranger(t *testing.T, addr string, cfg *tls.Config, send []byte) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var rw io.ReadWriter = raw
	if cfg != nil {
		c := tls.Client(raw, cfg)
		if err := c.Handshake(); err != nil {
			return nil, err
		}
		rw = c
	}
	_, _ = rw.Write(send)
	return readShort(rw)
}

func TestRefusals(t *testing.T) {
	f, g := newFarm(t, 1), newFarm(t, 2)
	cluster := f.ca.Cluster()
	now := day0Clock
	one := f.node(1, nil, func(tr *Transport) {
		tr.Handle("echo", func(_ context.Context, _ uint64, c net.Conn) { _, _ = io.Copy(c, c) })
		tr.HandleJoin(func(context.Context, net.Conn) {})
	})
	two := f.node(2, nil, nil)
	member := f.identity(3, now)
	trusting := func(id *access.Identity) *tls.Config {
		c := id.Client(0)
		c.VerifyConnection = nil
		return c
	}
	anonymous := trusting(member)
	anonymous.Certificates = nil
	early := f.nodeEarly(4)
	say := func(h hello) []byte { return h.append(nil) }
	good := hello{version: helloVersion, cluster: cluster, from: 3, to: 1, boot: 99, age: 7, service: "echo", address: "h:1"}
	for _, tt := range []struct {
		what   string
		addr   string
		cfg    *tls.Config
		send   []byte
		answer verdict // if there is one
		says   string  // in the answer or the handshake's error
		logs   string
	}{
		{what: "accepted", addr: one.addr, cfg: member.Client(1), send: say(good), answer: accepted},
		{what: "version", addr: one.addr, cfg: member.Client(1), send: say(hello{version: 9, cluster: cluster, from: 3, to: 1, boot: 99, age: 7, service: "echo", address: "h:1"}), answer: wrongVersion, says: "version 9", logs: "version 9"},
		{what: "cluster in hello", addr: one.addr, cfg: member.Client(1), send: say(hello{version: helloVersion, cluster: g.ca.Cluster(), from: 3, to: 1, boot: 99, age: 7, service: "echo", address: "h:1"}), answer: wrongCluster, says: g.ca.Cluster().String(), logs: "cluster"},
		{what: "not its own id", addr: one.addr, cfg: member.Client(1), send: say(hello{version: helloVersion, cluster: cluster, from: 2, to: 1, boot: 99, age: 7, service: "echo", address: "h:1"}), answer: wrongNode, says: "0000000000000003", logs: "certificate of node"},
		{what: "for another node", addr: one.addr, cfg: member.Client(1), send: say(hello{version: helloVersion, cluster: cluster, from: 3, to: 2, boot: 99, age: 7, service: "echo", address: "h:1"}), answer: wrongNode, says: "this is node 0000000000000001", logs: "0000000000000002"},
		{what: "unknown service", addr: one.addr, cfg: member.Client(1), send: say(hello{version: helloVersion, cluster: cluster, from: 3, to: 1, boot: 99, age: 7, service: "nope", address: "h:1"}), answer: unknownService, says: `"nope"`, logs: "nope"},
		{what: "join with a certificate", addr: one.addr, cfg: member.Client(1), send: say(hello{version: helloVersion, cluster: cluster, from: 3, to: 1, boot: 99, age: 7, service: "join", address: "h:1"}), answer: unknownService},
		{what: "no certificate", addr: one.addr, cfg: anonymous, send: say(good), answer: noCertificate, says: "needs a node certificate", logs: "needs a node certificate"},
		{what: "no certificate, raft", addr: one.addr, cfg: anonymous, send: say(hello{version: helloVersion, cluster: cluster, from: 3, to: 1, boot: 99, age: 7, service: "raft", address: "h:1"}), answer: noCertificate},
		{what: "no certificate, call", addr: one.addr, cfg: anonymous, send: say(hello{version: helloVersion, cluster: cluster, from: 3, to: 1, boot: 99, age: 7, service: "call", address: "h:1"}), answer: noCertificate},
		{what: "no certificate where nobody joins", addr: two.addr, cfg: anonymous, send: say(hello{version: helloVersion, cluster: cluster, from: 0, to: 0, boot: 0, age: 7, service: "join", address: "h:1"}), says: "certificate required", logs: "certificate"},
		{what: "client of another cluster", addr: one.addr, cfg: trusting(g.identity(3, now)), send: say(good), says: "bad certificate", logs: g.ca.Cluster().String()},
		{what: "server of another cluster", addr: one.addr, cfg: g.identity(3, now).Client(1), send: say(good), says: cluster.String()},
		{what: "another server", addr: one.addr, cfg: member.Client(2), send: say(good), says: "0000000000000002"},
		{what: "not yet valid", addr: early.addr, cfg: trusting(member), send: say(good), says: "bad certificate", logs: "not yet valid"},
		{what: "plaintext", addr: one.addr, send: []byte("GET / HTTP/1.1\r\n\r\n"), logs: "does not look like a TLS handshake"},
		{what: "plaintext hello", addr: one.addr, send: say(good), logs: "does not look like a TLS handshake"},
		{what: "oversized hello", addr: one.addr, cfg: member.Client(1), send: []byte{0xff, 0xff, 0xff, 0xff}, logs: "at most 1024"},
		{what: "no hello", addr: one.addr, cfg: member.Client(1), send: []byte{0, 0, 0, 4, 'H', 'T', 'T', 'P'}, logs: "malformed hello"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			b, err := stranger(t, tt.addr, tt.cfg, tt.send)
			text := fmt.Sprint(err)
			if a, perr := parseAnswer(b); err == nil && perr == nil {
				text = a.text
				if a.verdict != tt.answer {
					t.Errorf("answer %v %q, want %v", a.verdict, a.text, tt.answer)
				}
			} else if tt.answer != accepted || tt.what == "accepted" {
				t.Errorf("no answer: %v", err)
			}
			if !strings.Contains(text, tt.says) {
				t.Errorf("told %q, want %q", text, tt.says)
			}
			logs := []*testNode{one, two, early}
			until(t, "logged: "+tt.logs, func() bool {
				for _, n := range logs {
					if strings.Contains(n.log.String(), tt.logs) {
						return true
					}
				}
				return false
			})
		})
	}
	// All that did the nodes no harm.
	two.Send(1, 1, message("still here"))
	one.expect("still here")
	c, err := two.Open(t.Context(), 1, "echo")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	_, err = two.Open(t.Context(), 1, "nope")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), `no service "nope" here`) {
		t.Errorf("unknown service: %v", err)
	}
	if _, err = two.Open(t.Context(), 77, "echo"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("unknown node: %v", err)
	}
}

// nodeEarly has a clock on which no certificate of the farm is valid yet.
func (f *farm) nodeEarly(id uint64) *testNode {
	return f.node(id, func(c *Config) {
		c.Identity = f.identity(id, func() time.Time { return day0.AddDate(0, 0, -3) })
	}, nil)
}

func TestGarbageOnRaftConnection(t *testing.T) {
	f := newFarm(t, 1)
	one, two := f.node(1, nil, nil), f.node(2, nil, nil)
	two.Send(1, 1, message("before"))
	one.expect("before")
	member := f.identity(3, day0Clock)
	oversized := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	lying := append(appendControl(nil, kindMessages, []byte{1, 0, 0, 0, 200, 0}), 0)
	for what, frame := range map[string][]byte{
		"oversized":   append(oversized, byte(kindMessages)),
		"big control": {0, 1, 0, 0, byte(kindPing)},
		"kind 0":      {0, 0, 0, 0, 0},
		"kind 99":     {0, 0, 0, 0, 99},
		"lying batch": lying,
		"no protobuf": appendControl(nil, kindMessages, []byte{1, 0, 0, 0, 1, 0xff}),
	} {
		t.Run(what, func(t *testing.T) {
			raw, err := net.Dial("tcp", one.addr)
			if err != nil {
				t.Fatal(err)
			}
			s := &sock{Conn: raw}
			defer s.abort()
			c, _, err := shake(t.Context(), s, member.Client(1), hello{version: helloVersion, cluster: f.ca.Cluster(), from: 3, to: 1, boot: 99, service: serviceRaft}, patience)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(frame); err != nil {
				t.Fatal(err)
			}
			var head [frameHead]byte
			for { // beats may come first
				k, n, err := readHead(c, &head)
				if err != nil {
					t.Fatalf("no reason given: %v", err)
				}
				body, err := readBody(c, nil, n)
				if err != nil {
					t.Fatal(err)
				}
				if k == kindClose {
					if !strings.Contains(string(body), "malformed frame") {
						t.Errorf("reason %q", body)
					}
					break
				}
			}
			if _, err := io.ReadAll(c); err != nil && !isReset(err) {
				t.Errorf("not closed: %v", err)
			}
			one.wantEventOf(3)
		})
	}
	if n := strings.Count(one.log.String(), "the peer sent garbage"); n != 1 {
		t.Errorf("%d lines about one peer's garbage within a minute", n)
	}
	if u := one.Unwanted(); u.Garbage != 6 || one.status(3).Garbage != 6 {
		t.Errorf("counted %+v, of the peer %d", u, one.status(3).Garbage)
	}
	two.Send(1, 1, message("unharmed"))
	one.expect("unharmed")
	if s := one.status(2); !s.Up {
		t.Errorf("%+v", s)
	}
}

// wantEventOf waits until the peer's last reported state is down, closed.
func (n *testNode) wantEventOf(peer uint64) {
	n.f.t.Helper()
	for {
		if e := n.event(); e == (event{peer, false, Closed}) {
			return
		}
	}
}

func TestReconnectToRestartedPeer(t *testing.T) {
	f := newFarm(t, 1)
	a, b := f.node(1, nil, nil), f.node(2, nil, nil)
	a.Send(2, 1, message("x"))
	b.expect("x")
	a.wantEvent(event{2, true, Connected})
	b.stop()
	a.wantEvent(event{2, false, Reset})
	a.wantEvent(event{2, false, Refused})
	again := f.node(2, nil, nil)
	// The new one speaks first: that alone must bring both directions up, whatever the back-off says.
	again.Send(1, 1, message("back"))
	a.expect("back")
	a.wantEvent(event{2, true, Connected})
	a.Send(2, 1, message("hello again"))
	again.expect("hello again")
}

func TestGoodbye(t *testing.T) {
	f := newFarm(t, 1)
	a, b, c := f.node(1, nil, nil), f.node(2, nil, nil), f.node(3, nil, nil)
	a.Send(2, 1, message("x")) // b has only an inbound link
	b.expect("x")
	c.Send(2, 1, message("y"))
	b.expect("y")
	b.Send(3, 1, message("z")) // c has both
	c.expect("z")
	a.wantEvent(event{2, true, Connected})
	c.wantEvent(event{2, true, Connected})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b.Goodbye(ctx)
	if ctx.Err() != nil {
		t.Fatal("nobody took note")
	}
	a.wantEvent(event{2, false, Goodbye})
	c.wantEvent(event{2, false, Goodbye})
	// What exists still works: a leader that stops has things to say.
	a.Send(2, 1, message("late"))
	b.expect("late")
	// But nobody new gets in.
	d := f.node(4, nil, nil)
	d.Send(2, 1, message("w"))
	d.wantEvent(event{2, false, Goodbye})
	b.stop()
	a.wantEvent(event{2, false, Refused}) // and no reset in between
	c.wantEvent(event{2, false, Refused})
}

// icy swallows what is written and withholds what is read, once frozen: a peer that vanished without a word.
type icy struct {
	net.Conn
	frozen *atomic.Bool
}

func (c icy) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.frozen.Load() {
			return n, err
		}
	}
}

func (c icy) Write(p []byte) (int, error) {
	if c.frozen.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func TestSilentPeer(t *testing.T) {
	f := newFarm(t, 1)
	var frozen atomic.Bool
	a := f.node(1, func(c *Config) {
		c.Beat, c.BeatMisses = 10*time.Millisecond, 20
		c.ShakeTimeout = 100 * time.Millisecond
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return icy{raw, &frozen}, err
		}
	}, nil)
	b := f.node(2, func(c *Config) {
		c.Beat = 10 * time.Millisecond
		c.BeatMisses = 1 << 20 // it must not be the one that loses patience
	}, func(tr *Transport) {
		tr.HandleCalls("hang", func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
	})
	a.Send(2, 1, message("x"))
	b.expect("x")
	a.wantEvent(event{2, true, Connected})
	call := make(chan error, 1)
	go func() {
		_, err := a.Call(context.Background(), 2, "hang", nil)
		call <- err
	}()
	until(t, "the call is under way", func() bool {
		p := a.peer(2)
		p.callMu.Lock()
		defer p.callMu.Unlock()
		return p.call != nil
	})
	frozen.Store(true)
	a.wantEvent(event{2, false, Timeout})
	if err := <-call; !errors.Is(err, ErrLost) {
		t.Errorf("the call ended with %v", err)
	}
	frozen.Store(false)
	until(t, "messages get through again", func() bool {
		a.Send(2, 1, message("y"))
		select {
		case d := <-b.got:
			return string(d.msgs[0].Context) == "y"
		default:
			return false
		}
	})
}

func TestStuckPeer(t *testing.T) {
	f := newFarm(t, 1)
	const beat, misses = 5 * time.Millisecond, 60
	release := make(chan struct{})
	var stuck sync.Once
	isStuck := make(chan struct{})
	a := f.node(1, func(c *Config) {
		c.Beat, c.BeatMisses = beat, misses
		c.QueueMessages = 100
	}, nil)
	b := f.node(2, func(c *Config) {
		c.Beat, c.BeatMisses = beat, misses
		deliver := c.OnMessages
		c.OnMessages = func(from, group uint64, msgs []*raftpb.Message) {
			stuck.Do(func() {
				close(isStuck)
				<-release
			})
			deliver(from, group, msgs)
		}
	}, nil)
	c := f.node(3, func(c *Config) { c.Beat, c.BeatMisses = beat, misses }, nil)
	a.Send(2, 1, message("first"))
	<-isStuck
	a.wantEvent(event{2, true, Connected})
	big := func() []*raftpb.Message {
		m := message("bulk")
		m[0].Entries = []*raftpb.Entry{{Data: make([]byte, 64<<10)}}
		return m
	}
	sent := 1
	until(t, "the queue overflows", func() bool {
		a.Send(2, 1, big())
		sent++
		return a.status(2).Dropped > 0
	})
	if s := a.status(2); s.Queued > 100 {
		t.Errorf("%d queued, bound 100", s.Queued)
	}
	// Others do not notice, and the stuck peer is not taken for dead, for more than twice the limit of silence.
	const beatBytes = 5 + 5 + 1 + 16 // our frame, and what TLS adds to it
	for i := range 10 {
		before := a.status(2).BytesIn
		text := fmt.Sprint("fine", i)
		a.Send(3, 1, message(text))
		c.expect(text)
		until(t, "more beats came", func() bool { return a.status(2).BytesIn >= before+beatBytes*misses/4 })
	}
	if s := a.status(2); !s.Up {
		t.Fatalf("taken for dead: %+v", s)
	}
	a.wantEvent(event{3, true, Connected})
	close(release)
	until(t, "everything was written", func() bool { return a.status(2).Queued == 0 })
	a.Send(2, 1, message("last"))
	arrived := 0
	for last := false; !last; {
		d := <-b.got
		arrived += len(d.msgs)
		last = string(d.msgs[len(d.msgs)-1].Context) == "last"
	}
	if dropped := int(a.status(2).Dropped); arrived+dropped != sent+1 {
		t.Errorf("%d sent, %d arrived, %d counted as dropped", sent+1, arrived, dropped)
	}
	select {
	case e := <-a.events:
		t.Errorf("reported %v", e)
	default:
	}
}

func TestQueueBytes(t *testing.T) {
	f := newFarm(t, 1)
	f.setAddr(2, "127.0.0.1:1")
	blocked := make(chan struct{})
	a := f.node(1, func(c *Config) {
		c.QueueBytes = 1000
		c.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			close(blocked)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c.DialTimeout = time.Hour
	}, nil)
	m := message("x")
	m[0].Entries = []*raftpb.Entry{{Data: make([]byte, 2000)}}
	a.Send(2, 1, m) // larger than the bound, but alone
	a.Send(2, 1, append(message("y"), message("z")...))
	<-blocked
	if s := a.status(2); s.Queued != 1 || s.Dropped != 2 {
		t.Errorf("%+v", s)
	}
}

func TestServeEndsWithContext(t *testing.T) {
	f := newFarm(t, 1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := f.nodeOn(1, listener, nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Serve(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestStoppingTakesNoLinks covers the link whose hello was accepted just before Goodbye.
func TestStoppingTakesNoLinks(t *testing.T) {
	a := newFarm(t, 1).node(1, nil, nil)
	a.Goodbye(t.Context())
	if a.peer(2).joined(newLink(nil, 1, true)) || len(a.peer(2).liveLinks()) != 0 {
		t.Error("a raft connection was taken after the goodbye")
	}
}

func TestPeerThatConnectsEndsBackoff(t *testing.T) {
	p := newFarm(t, 1).node(1, nil, nil).peer(2)
	p.joined(newLink(nil, 1, true))
	wait := 24 * time.Hour
	if !p.pause(&wait) || wait != 0 {
		t.Errorf("back-off goes on at %v", wait)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration was taken")
	}
}

// TestClocksAreCompared: a peer whose clock is off is told of once, and again when it is right.
func TestClocksAreCompared(t *testing.T) {
	f := newFarm(t, 1)
	var ahead atomic.Int64
	ahead.Store(int64(time.Hour))
	one := f.node(1, nil, nil)
	two := f.node(2, func(c *Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.Beat = 5 * time.Millisecond
	}, nil)
	one.Send(2, 1, message("a"))
	two.expect("a")
	two.Send(1, 1, message("b"))
	one.expect("b")
	off := func(n *testNode, peer uint64) time.Duration { return n.status(peer).ClockOffset.Round(time.Minute) }
	until(t, "both see it", func() bool { return off(one, 2) == time.Hour && off(two, 1) == -time.Hour })
	until(t, "a warning", func() bool { return strings.Contains(two.log.String(), "the peer's clock differs") })
	ahead.Store(0)
	until(t, "an end of it", func() bool { return strings.Contains(two.log.String(), "agrees with this node's again") })
	if n := strings.Count(two.log.String(), "the peer's clock differs"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
}
