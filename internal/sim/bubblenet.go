package sim

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine"
)

// bubbleNet carries messages, calls and streams between the engines of a bubble.
type bubbleNet struct {
	b *bubble

	mu       sync.Mutex
	blocked  map[[2]uint64]bool
	arrivals map[[2]uint64]time.Time // when the latest message of a link arrives: links keep the order
	conns    []*bubbleConn
}

// bubbleConn is one end of a stream.
type bubbleConn struct {
	net.Conn
	from, to uint64
}

var errUnreachable = errors.New("unreachable")

func (n *bubbleNet) isCut(from, to uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.blocked[[2]uint64{from, to}]
}

func (n *bubbleNet) cut(from, to uint64) {
	n.mu.Lock()
	n.blocked[[2]uint64{from, to}] = true
	n.mu.Unlock()
	n.closeIf(func(c *bubbleConn) bool { return c.from == from && c.to == to || c.from == to && c.to == from })
}

func (n *bubbleNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.blocked)
}

// cutOff breaks every connection of a node; new ones can be made.
func (n *bubbleNet) cutOff(node uint64) {
	n.closeIf(func(c *bubbleConn) bool { return c.from == node || c.to == node })
}

func (n *bubbleNet) closeIf(which func(*bubbleConn) bool) {
	n.mu.Lock()
	var gone []*bubbleConn
	kept := n.conns[:0]
	for _, c := range n.conns {
		if which(c) {
			gone = append(gone, c)
		} else {
			kept = append(kept, c)
		}
	}
	n.conns = kept
	n.mu.Unlock()
	for _, c := range gone {
		c.Conn.Close()
	}
}

func (n *bubbleNet) add(c *bubbleConn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, c)
}

// bubblePort is the network as one life of a node has it.
type bubblePort struct{ l *life }

func (p bubblePort) Send(to, group uint64, msgs []*raftpb.Message) {
	b, from := p.l.node.b, p.l.node.id
	if p.l.dead.Err() != nil || to == 0 || to > uint64(len(b.nodes)) || b.roll(200) == 0 {
		return
	}
	copies := make([]*raftpb.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = proto.CloneOf(m)
	}
	delay := b.spread(b.shape.latency)
	b.net.mu.Lock()
	link := [2]uint64{from, to}
	at := time.Now().Add(delay)
	if at.Before(b.net.arrivals[link]) {
		at = b.net.arrivals[link].Add(time.Nanosecond)
	}
	b.net.arrivals[link] = at
	b.net.mu.Unlock()
	time.AfterFunc(time.Until(at), func() { b.deliver(from, to, group, copies) })
}

// peer is the process at the other end; an error if it is down or cannot be reached, in either direction.
func (p bubblePort) peer(ctx context.Context, to uint64) (*life, error) {
	b, from := p.l.node.b, p.l.node.id
	pause(ctx, b.spread(b.shape.latency))
	if to == 0 || to > uint64(len(b.nodes)) || p.l.dead.Err() != nil || ctx.Err() != nil {
		return nil, errUnreachable
	}
	if b.net.isCut(from, to) || b.net.isCut(to, from) {
		pause(ctx, 3*time.Second)
		return nil, errUnreachable
	}
	if l := b.nodes[to-1].running(); l != nil {
		return l, nil
	}
	b.nodes[from-1].refused(to)
	return nil, errUnreachable
}

// refused: a closed port tells the engine that the process is gone, as the transport does.
func (n *bubbleNode) refused(peer uint64) {
	if l := n.running(); l != nil {
		l.engine.PeerDown(peer)
	}
}

func (p bubblePort) Open(ctx context.Context, to uint64, service string) (net.Conn, error) {
	other, err := p.peer(ctx, to)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	from := p.l.node.id
	c := &bubbleConn{Conn: near, from: from, to: to}
	other.node.b.net.add(c)
	serve := other.engine.ServeFeed
	if service == engine.ServiceSnapshot {
		serve = other.engine.ServeSnapshot
	}
	other.tasks.Go(func() {
		defer far.Close()
		serve(other.dead, from, far)
	})
	return c, nil
}

func (p bubblePort) Call(ctx context.Context, to uint64, method string, req []byte) ([]byte, error) {
	other, err := p.peer(ctx, to)
	if err != nil {
		return nil, err
	}
	serve := other.engine.ServePropose
	switch method {
	case engine.MethodRead:
		serve = other.engine.ServeRead
	case engine.MethodLine:
		serve = other.engine.ServeLine
	case engine.MethodDigest:
		serve = other.engine.ServeDigest
	}
	served, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(other.dead, cancel)()
	reply, err := serve(served, p.l.node.id, req)
	if err != nil {
		return nil, err
	}
	if _, err := p.peer(ctx, to); err != nil || other.dead.Err() != nil {
		return nil, errUnreachable // the answer is lost
	}
	return reply, nil
}
