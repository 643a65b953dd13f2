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
	resets  map[[2]uint64]int   // connections of a link that broke; what was on its way is gone
	loss    float64             // on top of the shape's
	kept    []keptMessage       // some of what was sent, to be sent again much later
}

type keptMessage struct {
	gr  *group
	msg *raftpb.Message
}

const maxKept = 64

func (n *network) init(w *world) {
	*n = network{w: w, blocked: map[[2]uint64]bool{}, latest: map[[2]uint64]int64{}, resets: map[[2]uint64]int{}}
}

func (n *network) delay() int64 { return 20*micro + spread(n.w.dice.net, n.w.shape.latency) }

// carry delivers by running arrive, perhaps twice, perhaps never.
func (n *network) carry(from, to uint64, extra int64, arrive func(again bool)) {
	w := n.w
	r := w.dice.net
	link := [2]uint64{from, to}
	if r.Float64() < w.shape.drop+n.loss || len(n.blocked) > 0 && n.blocked[link] {
		return
	}
	at := w.now + extra + n.delay()
	if !w.shape.fifo && r.IntN(100) == 0 {
		at += spread(r, 500*milli) // as from a connection that broke and was opened again
	}
	if w.shape.fifo {
		at = max(at, n.latest[link])
		n.latest[link] = at
	}
	resets := n.resets[link]
	deliver := func(again bool) {
		if !n.blocked[link] && n.resets[link] == resets {
			arrive(again)
		}
	}
	w.after(at-w.now, func() { deliver(false) })
	if r.Float64() < w.shape.duplicate {
		w.report.Duplicated++
		w.after(at-w.now+10*n.delay(), func() { deliver(true) })
	}
}

// send carries one of raft's messages.
func (n *network) send(gr *group, m *raftpb.Message) {
	from, to := gr.member(m.GetFrom()), gr.member(m.GetTo())
	if to == nil {
		return
	}
	r := n.w.dice.net
	extra := int64(0)
	if m.GetType() == raftpb.MsgVote && r.IntN(4) == 0 {
		extra = spread(r, 10*milli) // votes are few; have them meet
	}
	if n.w.shape.has(replayOld) && r.IntN(64) == 0 {
		n.keep(keptMessage{gr, proto.CloneOf(m)})
	}
	n.carry(from.h.id, to.h.id, extra, func(again bool) {
		msg := m
		if again {
			msg = proto.CloneOf(m)
		}
		n.deliver(gr, msg)
	})
}

func (n *network) deliver(gr *group, msg *raftpb.Message) {
	m := gr.member(msg.GetTo())
	if gr.recovered && msg.GetFrom() != m.id { // of the history before: see the engine's wireGroup
		return
	}
	m.do(func() {
		n.w.trace(traceMessage, gr.id, msg.GetFrom(), msg.GetTo(), uint64(msg.GetType()), msg.GetTerm(), msg.GetIndex(), uint64(len(msg.GetEntries())))
		_ = m.g.Receive(msg) // refused: from a member that is none any more
	})
}

func (n *network) keep(k keptMessage) {
	if len(n.kept) < maxKept {
		n.kept = append(n.kept, k)
		return
	}
	n.kept[n.w.dice.net.IntN(maxKept)] = k
}

// replay sends again, to whom they were sent, some of the messages that were sent at any time before.
func (n *network) replay() {
	r := n.w.dice.net
	for range min(len(n.kept), 1+r.IntN(16)) {
		k := n.kept[r.IntN(len(n.kept))]
		msg := proto.CloneOf(k.msg)
		n.w.after(n.delay(), func() { n.deliver(k.gr, msg) })
	}
}

// reset breaks the connection of a link, as a frame does that fails its check: what is on its way is lost, and the
// sender is told.
func (n *network) reset(from, to *host) {
	n.resets[[2]uint64{from.id, to.id}]++
	for i := range from.members {
		if m, peer := from.members[i], to.members[i]; m.alive() && peer != nil {
			m.do(func() { m.g.Unreachable(peer.id) })
		}
	}
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
