package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/lockstep-sync/lockstep/internal/access"
)

// Serve accepts connections until ctx ends or the transport is closed, and then returns nil. Connections that
// exist live on until Close.
func (t *Transport) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = t.cfg.Listener.Close() }) // Accept returns the error that counts
	defer stop()
	cfg := t.cfg.Identity.Server()
	if t.join != nil {
		cfg = t.cfg.Identity.JoinServer()
	}
	wait := time.Duration(0)
	for {
		raw, err := t.cfg.Listener.Accept()
		switch {
		case err == nil:
			wait = 0
			t.accept(raw, cfg)
		case errors.Is(err, net.ErrClosed):
			return nil
		default: // too many open files, and the like: it passes
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			t.cfg.Log.Error("cannot accept a connection", "error", err, "wait", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			case <-t.ctx.Done():
			}
		}
	}
}

// accept gives a new connection a goroutine, or turns it away when too many have not yet said who they are.
func (t *Transport) accept(raw net.Conn, cfg *tls.Config) {
	s := &sock{Conn: raw}
	select {
	case t.shakes <- struct{}{}:
	default:
		t.counters.crowded.Add(1)
		if unsaid, ok := t.complain.say("crowd"); ok {
			t.cfg.Log.Warn("connection turned away: too many unfinished handshakes", "remote", raw.RemoteAddr(), "unsaid", unsaid)
		}
		s.abort()
		return
	}
	if !t.track(s) || !t.spawn(func() { t.welcome(s, cfg) }) {
		s.abort()
		<-t.shakes
	}
}

// welcome runs a connection from handshake to end.
func (t *Transport) welcome(s *sock, cfg *tls.Config) {
	c := &conn{tls.Server(s, cfg), s, t}
	defer c.abort()
	serve, err := t.greet(c)
	<-t.shakes
	if err != nil {
		if t.ctx.Err() == nil {
			t.refused(c, err)
		}
		return
	}
	serve()
}

// refused tells of a connection that was not accepted: whose it was, as far as that is certain.
func (t *Transport) refused(c *conn, err error) {
	if errors.Is(err, errWordless) { // somebody looks whether the port is open: a server that is let in, a monitor
		t.cfg.Log.Debug("connection closed without a word", "remote", c.sock.RemoteAddr())
		return
	}
	t.counters.refused.Add(1)
	who := c.sock.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(who); err == nil {
		who = host
	}
	about := []any{"remote", c.sock.RemoteAddr(), "error", err}
	if node, certified := access.PeerNode(c.ConnectionState()); certified {
		who = fmt.Sprintf("node %016x", node)
		about = append(about, "peer", fmt.Sprintf("%016x", node))
	}
	if unsaid, ok := t.complain.say("refused " + who + " " + kindOf(err)); ok {
		t.cfg.Log.Warn("connection refused", append(about, "unsaid", unsaid)...)
	}
}

// errWordless: the other side closed the connection in good order, without having said who it is. Who dials tells of what
// it does not like about the answers.
var errWordless = errors.New("closed without a word")

// kindOf tells the reasons apart for which connections of one stranger are refused. What a stranger can choose freely
// is no part of it.
func kindOf(err error) string {
	var ref *refusal
	var op *net.OpError
	switch {
	case errors.As(err, &ref) && ref.verdict == wrongNode:
		return ref.text // it has a certificate
	case errors.As(err, &ref):
		return fmt.Sprintf("verdict %d", ref.verdict)
	case errors.As(err, &op):
		return op.Err.Error() // without the port
	}
	return err.Error()
}

// greet does handshake and hello, answers, and returns what is to be done with the connection.
func (t *Transport) greet(c *conn) (serve func(), err error) {
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.ShakeTimeout)
	defer cancel()
	if err := c.SetDeadline(time.Now().Add(t.cfg.ShakeTimeout)); err != nil {
		return nil, err
	}
	if err := c.HandshakeContext(ctx); err != nil {
		if errors.Is(err, io.EOF) {
			err = errWordless
		}
		return nil, fmt.Errorf("handshake: %w", err)
	}
	b, err := readShort(c)
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	h, err := parseHello(b)
	if err != nil {
		return nil, err
	}
	serve, ref := t.judge(c, h)
	a := answer{boot: t.boot, age: t.cfg.Age()}
	if ref != nil {
		a.verdict, a.text = ref.verdict, ref.text
	}
	if _, err := c.Write(a.append(nil)); err != nil {
		return nil, fmt.Errorf("answer hello: %w", err)
	}
	if ref != nil {
		_ = c.CloseWrite() // the refusal has been sent; nothing more can be done for the peer
		return nil, ref
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return serve, nil
}

// judge decides about a hello: a refusal, or what will serve the connection.
func (t *Transport) judge(c *conn, h hello) (serve func(), _ *refusal) {
	from, certified := access.PeerNode(c.ConnectionState())
	own := t.cfg.Identity.Cluster()
	switch {
	case h.version != helloVersion:
		return nil, &refusal{verdict: wrongVersion, text: fmt.Sprintf("protocol version %d, this node speaks %d", h.version, helloVersion)}
	case h.cluster != own:
		return nil, &refusal{verdict: wrongCluster, text: fmt.Sprintf("hello for cluster %s, this is cluster %s", h.cluster, own)}
	case !certified && h.service == serviceJoin:
		return t.judgeJoin(c)
	case !certified:
		return nil, &refusal{verdict: noCertificate, text: fmt.Sprintf("service %q needs a node certificate", h.service)}
	case h.from != from:
		return nil, &refusal{verdict: wrongNode, text: fmt.Sprintf("hello from node %016x with the certificate of node %016x", h.from, from)}
	case h.to != t.self:
		return nil, &refusal{verdict: wrongNode, text: fmt.Sprintf("hello for node %016x, this is node %016x", h.to, t.self)}
	}
	if e := t.cfg.Admit(Peer{from, h.boot, h.age, h.address}); e != nil {
		return nil, denial(e)
	}
	p := t.peer(from)
	if p == nil || h.service == serviceRaft && t.stopping.Load() {
		return nil, &refusal{verdict: stopping, text: "this process stops"}
	}
	c.sock.count.Store(&p.traffic)
	t.prepare(c.sock, h.service)
	switch {
	case h.service == serviceRaft && from == t.self:
		return nil, &refusal{verdict: wrongNode, text: "a node sends itself no messages"}
	case h.service == serviceRaft:
		return func() { p.serveLink(newLink(c, h.boot, true)) }, nil
	case h.service == serviceCall:
		return func() { t.serveCalls(p, c) }, nil
	case t.services[h.service] == nil:
		return nil, &refusal{verdict: unknownService, text: fmt.Sprintf("no service %q here", h.service)}
	}
	return func() {
		t.services[h.service](t.ctx, from, c)
		// Politely: the handler may have returned right after its last write.
		_ = c.Close()
	}, nil
}

func (t *Transport) judgeJoin(c *conn) (func(), *refusal) {
	if t.join == nil {
		return nil, &refusal{verdict: unknownService, text: "nobody can join here"}
	}
	select {
	case t.joins <- struct{}{}:
	default:
		return nil, &refusal{verdict: busy, text: "too many servers are joining; try again"}
	}
	return func() {
		defer func() { <-t.joins }()
		ctx, cancel := context.WithTimeout(t.ctx, joinTime)
		defer cancel()
		if c.SetDeadline(time.Now().Add(joinTime)) == nil {
			t.join(ctx, c)
		}
		_ = c.Close()
	}, nil
}
