package sim

import (
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// network carries messages between hosts and clients. A link is a pair of hosts in one direction; clients
// reach every host that is up.
type network struct {
	w       *world
	blocked map[[2]uint64]bool
	latest  map[[2]uint64]int64 // when the last message of a link arrives, if links keep the order
	loss    float64             // on top of the shape's
}

func (n *network) init(w *world) {
	*n = network{w: w, blocked: map[[2]uint64]bool{}, latest: map[[2]uint64]int64{}}
}

func (n *network) delay() int64 { return 20*micro + spread(n.w.dice.net, n.w.shape.latency) }

// carry delivers by running arrive, perhaps twice, perhaps never.
func (n *network) carry(from, to uint64, extra int64, arrive func(again bool)) {
	w := n.w
	r := w.dice.net
	if r.Float64() < w.shape.drop+n.loss || n.blocked[[2]uint64{from, to}] {
		return
	}
	at := w.now + extra + n.delay()
	if !w.shape.fifo && r.IntN(100) == 0 {
		at += spread(r, 500*milli) // as from a connection that broke and was opened again
	}
	if w.shape.fifo {
		link := [2]uint64{from, to}
		at = max(at, n.latest[link])
		n.latest[link] = at
	}
	deliver := func(again bool) {
		if !n.blocked[[2]uint64{from, to}] {
			arrive(again)
		}
	}
	w.after(at-w.now, func() { deliver(false) })
	if r.Float64() < w.shape.duplicate {
		w.after(at-w.now+10*n.delay(), func() { deliver(true) })
	}
}

// send carries one of raft's messages.
func (n *network) send(m *raftpb.Message) {
	from, to := m.GetFrom(), m.GetTo()
	if int(to) > len(n.w.hosts) {
		return
	}
	extra := int64(0)
	if m.GetType() == raftpb.MsgVote && n.w.dice.net.IntN(4) == 0 {
		extra = spread(n.w.dice.net, 10*milli) // votes are few; have them meet
	}
	n.carry(from, to, extra, func(again bool) {
		msg := m
		if again {
			msg = proto.CloneOf(m)
		}
		h := n.w.hosts[to-1]
		h.do(func() {
			n.w.trace(traceMessage, from, to, uint64(m.GetType()), m.GetTerm(), m.GetIndex(), uint64(len(m.GetEntries())))
			_ = h.g.Receive(msg) // refused: from a member that is none any more
		})
	})
}

// client carries a request to a host or an answer back; it may be lost.
func (n *network) client(arrive func()) {
	if n.w.dice.net.Float64() >= n.w.shape.drop+n.loss {
		n.w.after(n.delay(), arrive)
	}
}

// cut blocks the links from every host of a to every host of b.
func (n *network) cut(a, b []uint64) {
	for _, x := range a {
		for _, y := range b {
			if x != y {
				n.blocked[[2]uint64{x, y}] = true
			}
		}
	}
}

func (n *network) heal() {
	clear(n.blocked)
	n.loss = 0
}
