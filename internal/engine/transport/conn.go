package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/internal/access"
)

// traffic counts the encrypted bytes exchanged with a peer.
type traffic struct{ in, out atomic.Uint64 }

// sock is the stream below TLS. It counts, and can be ended from outside without waiting for anything.
type sock struct {
	net.Conn
	count atomic.Pointer[traffic] // nil until the peer is known
	once  sync.Once
	err   error
}

func (s *sock) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if c := s.count.Load(); c != nil {
		c.in.Add(uint64(n))
	}
	return n, err
}

func (s *sock) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	if c := s.count.Load(); c != nil {
		c.out.Add(uint64(n))
	}
	return n, err
}

func (s *sock) Close() error {
	s.once.Do(func() { s.err = s.Conn.Close() })
	return s.err
}

// abort ends the stream at once; readers and writers return with an error, which is where it is handled.
func (s *sock) abort() { _ = s.Close() }

// conn is an established TLS connection; the first frame has been exchanged.
type conn struct {
	*tls.Conn
	sock *sock
	t    *Transport // nil: not tracked
}

// Close says so to the peer, waits for nothing else, and forgets the connection.
func (c *conn) Close() error {
	err := c.Conn.Close()
	if c.t != nil {
		c.t.untrack(c.sock)
	}
	return err
}

// abort is Close without a word.
func (c *conn) abort() {
	c.sock.abort()
	if c.t != nil {
		c.t.untrack(c.sock)
	}
}

// dial connects to the peer's service. The errors: ErrClosed, or ErrUnreachable with the cause.
func (p *peer) dial(ctx context.Context, service string) (*conn, answer, error) {
	t := p.t
	addr, ok := t.cfg.Resolve(p.node)
	if !ok {
		return nil, answer{}, fmt.Errorf("%w: no such node", ErrUnreachable)
	}
	if len(service) > maxService {
		return nil, answer{}, fmt.Errorf("%w: service name of %d bytes", ErrUnreachable, len(service))
	}
	raw, err := dialTimeout(ctx, t.cfg.Dial, addr, t.cfg.DialTimeout)
	if err == nil {
		s := &sock{Conn: raw}
		s.count.Store(&p.traffic)
		if !t.track(s) {
			return nil, answer{}, ErrClosed
		}
		t.prepare(s, service)
		h := hello{version: helloVersion, cluster: t.cfg.Identity.Cluster(), from: t.self, to: p.node, boot: t.boot,
			age: t.cfg.Age(), service: service, address: t.cfg.Address}
		var tc *tls.Conn
		var a answer
		tc, a, err = shake(ctx, s, t.cfg.Identity.Client(p.node), h, t.cfg.ShakeTimeout)
		if err == nil {
			err = p.admitted(a)
		}
		if err == nil {
			return &conn{tc, s, t}, a, nil
		}
		s.abort()
		t.untrack(s)
	}
	p.wasDenied(err)
	if ctx.Err() == nil { // what the caller broke off says nothing about the peer
		p.dialFailed(classifyDial(err))
	}
	return nil, answer{}, fmt.Errorf("%w: %s: %w", ErrUnreachable, addr, err)
}

// prepare sets what a connection of a service wants of its socket. A socket without it works, only later.
func (t *Transport) prepare(s *sock, service string) {
	if !urgent(service) {
		return
	}
	if err := hasten(s.Conn); err != nil {
		if unsaid, ok := t.complain.say("hasten"); ok {
			t.cfg.Log.Warn("heartbeats and writes may wait behind states and contents", "error", err, "unsaid", unsaid)
		}
	}
}

// admitted asks whether who answered may take part.
func (p *peer) admitted(a answer) error {
	if e := p.t.cfg.Admit(Peer{Node: p.node, Boot: a.boot, Age: a.age}); e != nil {
		return denial(e)
	}
	return nil
}

// wasDenied passes on that the peer refused this node for good; what this node refused is no news to it.
func (p *peer) wasDenied(err error) {
	var ref *refusal
	if errors.As(err, &ref) && ref.by == p.node {
		if e := ref.said(); e != nil {
			p.t.cfg.OnDenied(p.node, e)
		}
	}
}

func dialTimeout(ctx context.Context, dial DialFunc, addr string, d time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return dial(ctx, addr)
}

// shake makes a fresh stream an accepted connection: TLS, hello, answer. The caller ends s on error.
func shake(ctx context.Context, s *sock, cfg *tls.Config, h hello, d time.Duration) (*tls.Conn, answer, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	stop := context.AfterFunc(ctx, s.abort)
	tc := tls.Client(s, cfg)
	a, err := exchange(ctx, tc, h)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if ctx.Err() != nil && err != nil {
		err = ctx.Err() // and not that the socket was closed, which is how it was done
	}
	return tc, a, turnedDown(err)
}

// turnedDown adds to an alert of TLS, with which the other side ends a handshake, what it may mean and who knows more:
// the other side says no more than that to somebody it does not trust.
func turnedDown(err error) error {
	var alert *net.OpError
	if !errors.As(err, &alert) || alert.Op != "remote error" {
		return err
	}
	return fmt.Errorf("the other side turned down this node's certificate or TLS (%w): its log says why; compare the clocks, "+
		"and the cluster that lockstep status names on both", err)
}

func exchange(ctx context.Context, tc *tls.Conn, h hello) (answer, error) {
	if err := tc.HandshakeContext(ctx); err != nil {
		return answer{}, err
	}
	// If the write fails, the read knows more: in TLS 1.3 that is where a certificate turns out not to have
	// been accepted.
	_, _ = tc.Write(h.append(nil))
	b, err := readShort(tc)
	if err != nil {
		return answer{}, err
	}
	a, err := parseAnswer(b)
	if err != nil {
		return answer{}, err
	}
	if a.verdict != accepted {
		return answer{}, &refusal{verdict: a.verdict, text: a.text, by: h.to}
	}
	return a, nil
}

// DialJoin opens a connection to the join service of the node at addr, on behalf of a server that has a token
// and nothing else. The CA that the token pins is checked. A nil dial means TCP.
func DialJoin(ctx context.Context, dial DialFunc, addr string, tok *access.Token, now func() time.Time) (net.Conn, error) {
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	raw, err := dialTimeout(ctx, dial, addr, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("join: %w: %w", ErrUnreachable, err)
	}
	s := &sock{Conn: raw}
	h := hello{version: helloVersion, cluster: tok.Cluster, service: serviceJoin}
	tc, _, err := shake(ctx, s, access.JoinTLS(tok, now), h, 5*time.Second)
	if err != nil {
		s.abort()
		return nil, fmt.Errorf("join: %w: %s: %w", ErrUnreachable, addr, err)
	}
	return &conn{Conn: tc, sock: s}, nil
}

// classifyDial tells what a failed attempt says about the peer.
func classifyDial(err error) Why {
	var ref *refusal
	switch {
	case errors.As(err, &ref) && ref.verdict == stopping:
		return Goodbye
	case errors.As(err, &ref):
		return Closed
	case isRefused(err):
		return Refused
	case isReset(err):
		return Reset
	case isSilence(err):
		return Timeout
	}
	return Closed // TLS found something wrong: the peer lives
}
