package core

import (
	"fmt"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// cluster is a set of groups whose effects are carried out at once, in the order of the replica ids, with
// switches for what a test wants to hold back.
type cluster struct {
	t        *testing.T
	nodes    map[uint64]*node
	ids      []uint64
	wire     []*raftpb.Message
	cut      func(m *raftpb.Message) bool // true: the network drops it
	answers  map[uint64]Answer
	answered func(n *node, a Answer) // hears of each answer, if set
	proposed uint64
	inSync   bool
	executes func(p *Proposal, ahead Ahead) bool // of all replicas
}

type node struct {
	*Group
	log        *raft.MemoryStorage
	data       [][]byte // payloads applied, in order
	times      []int64
	heldAppend []*Append
	heldApply  []*Apply
	holdAppend bool
	holdApply  bool
	down       bool
	terms      Terms
	lost       []Loss
	room       *fakeRoom
}

func newCluster(t *testing.T, voters ...uint64) *cluster {
	c := &cluster{t: t, nodes: map[uint64]*node{}, answers: map[uint64]Answer{}}
	for _, id := range voters {
		c.add(id, &raftpb.ConfState{Voters: voters})
	}
	return c
}

func (c *cluster) add(id uint64, cs *raftpb.ConfState) *node {
	c.t.Helper()
	n := &node{log: emptyLog(c.t, cs), room: &fakeRoom{c: c, self: id}}
	n.terms = n.terms.Note(Position{Term: 1, Index: 1})
	c.nodes[id] = n
	c.ids = append(c.ids, id)
	c.open(id, 1)
	return n
}

func emptyLog(t *testing.T, cs *raftpb.ConfState) *raft.MemoryStorage {
	t.Helper()
	log := raft.NewMemoryStorage()
	if err := log.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: cs,
	}}); err != nil {
		t.Fatal(err)
	}
	return log
}

func (c *cluster) open(id, applied uint64) {
	c.t.Helper()
	n := c.nodes[id]
	g, err := New(Config{
		Group: 7, Replica: id, Nonce: 100 + id, Storage: n.log, Applied: applied, InSync: c.inSync, Terms: func() Terms { return n.terms },
		Executes: func(p *Proposal, ahead Ahead) bool { return c.executes != nil && c.executes(p, ahead) }, Room: n.room,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	n.Group = g
}

// run carries out effects until there are none.
func (c *cluster) run() {
	c.t.Helper()
	for range 10000 {
		busy := false
		for _, id := range c.ids {
			if n := c.nodes[id]; !n.down {
				if e, any := n.Effects(); any {
					busy = true
					c.carryOut(n, e)
				}
			}
		}
		wire := c.wire
		c.wire = nil
		for _, m := range wire {
			n := c.nodes[m.GetTo()]
			if n == nil || n.down || c.nodes[m.GetFrom()].down || c.cut != nil && c.cut(m) {
				continue
			}
			busy = true
			_ = n.Receive(proto.CloneOf(m)) // a refusal is the network's loss
		}
		if !busy {
			return
		}
	}
	c.t.Fatal("the cluster never comes to rest")
}

func (c *cluster) carryOut(n *node, e Effects) {
	c.wire = append(c.wire, e.Send...)
	for _, a := range e.Answers {
		if old, ok := c.answers[a.ID]; ok {
			c.t.Fatalf("id %d answered twice: %v, then %v", a.ID, old, a)
		}
		c.answers[a.ID] = a
		if c.answered != nil {
			c.answered(n, a)
		}
	}
	n.lost = append(n.lost, e.Lost...)
	if e.Append != nil {
		n.heldAppend = append(n.heldAppend, e.Append)
	}
	if e.Apply != nil {
		n.heldApply = append(n.heldApply, e.Apply)
	}
	n.release(c.t)
}

func (n *node) release(t *testing.T) {
	for len(n.heldAppend) > 0 && !n.holdAppend {
		n.write(t)
	}
	for len(n.heldApply) > 0 && !n.holdApply {
		a := n.heldApply[0]
		n.heldApply = n.heldApply[1:]
		n.apply(t, a)
	}
}

// write carries out the oldest append.
func (n *node) write(t *testing.T) {
	t.Helper()
	a := n.heldAppend[0]
	n.heldAppend = n.heldAppend[1:]
	if a.HardState != nil {
		if err := n.log.SetHardState(a.HardState); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.log.Append(a.Entries); err != nil {
		t.Fatal(err)
	}
	n.Appended(a)
}

func (n *node) apply(t *testing.T, a *Apply) {
	results := make([][][]byte, len(a.Entries))
	for i, e := range a.Entries {
		n.terms = n.terms.Note(Position{Term: e.GetTerm(), Index: e.GetIndex()})
		if e.GetType() != raftpb.EntryNormal {
			if _, err := n.ApplyConf(e); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if len(e.GetData()) == 0 {
			continue
		}
		b, err := DecodeBatch(e.GetData())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Proposals {
			n.data = append(n.data, p.Payload)
			n.times = append(n.times, b.Time)
			results[i] = append(results[i], append([]byte("did "), p.Payload...))
		}
	}
	n.Applied(a, results)
}

func (c *cluster) tick(n int) {
	c.t.Helper()
	for range n {
		for _, id := range c.ids {
			if !c.nodes[id].down {
				c.nodes[id].Tick()
			}
		}
		c.run()
	}
}

// elect makes id the leader.
func (c *cluster) elect(id uint64) *node {
	c.t.Helper()
	n := c.nodes[id]
	if err := n.rn.Campaign(); err != nil {
		c.t.Fatal(err)
	}
	c.run()
	if s := n.Status(); s.Role != Leader || !s.TermBegun {
		c.t.Fatalf("replica %d is %v after its campaign, term begun %v", id, s.Role, s.TermBegun)
	}
	return n
}

func (c *cluster) leader() *node {
	c.t.Helper()
	for _, id := range c.ids {
		if n := c.nodes[id]; !n.down && n.Status().Role == Leader {
			return n
		}
	}
	c.t.Fatal("no leader")
	return nil
}

func (c *cluster) propose(n *node, ack Ack, ids ...uint64) {
	ps := make([]Proposal, len(ids))
	for i, id := range ids {
		ps[i] = Proposal{ID: id, Ack: ack, Payload: fmt.Appendf(nil, "p%d", id)}
	}
	c.proposed++
	n.Propose(int64(c.proposed), c.proposed, ps)
}

func (c *cluster) want(id uint64, code Code) Answer {
	c.t.Helper()
	a, ok := c.answers[id]
	if !ok {
		c.t.Fatalf("id %d has no answer, want %v", id, code)
	}
	if a.Code != code {
		c.t.Fatalf("id %d: answer %v, want %v", id, a.Code, code)
	}
	return a
}

func (c *cluster) wantNone(id uint64) {
	c.t.Helper()
	if a, ok := c.answers[id]; ok {
		c.t.Fatalf("id %d: answer %v, want none yet", id, a.Code)
	}
}
