package core

import (
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func of(client byte, id, seq, floor uint64, ack Ack) Proposal {
	return Proposal{ID: id, Ack: ack, Client: [16]byte{client}, Seq: seq, Floor: floor, Payload: fmt.Appendf(nil, "p%d", id)}
}

// logged returns the acks, as the log has them, of the last entry with a batch.
func (n *node) logged(t *testing.T) (acks []Ack) {
	t.Helper()
	last, err := n.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for ; last > 1; last-- {
		es, err := n.log.Entries(last, last+1, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if es[0].GetType() != raftpb.EntryNormal || len(es[0].GetData()) == 0 {
			continue
		}
		b, err := DecodeBatch(es[0].GetData())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Proposals {
			acks = append(acks, p.Ack)
		}
		return acks
	}
	return nil
}

// What is not certain to be executed waits for the quorum, and the log says so to every replica.
func TestLocalOfAnUncertainSessionIsQuorum(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.executes = func(p *Proposal, _ Ahead) bool { return p.Client[0] == 1 }
	n := c.elect(1)
	engine := of(2, 12, 1, 1, AckLocal)
	engine.Engine = true
	c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == 1 && len(m.GetEntries()) > 0 }
	n.Propose(1, 1, []Proposal{
		of(1, 10, 5, 5, AckLocal), of(2, 11, 5, 5, AckLocal), engine, {ID: 13, Ack: AckLocal, Payload: []byte("of no session")},
	})
	c.run()
	for _, id := range []uint64{10, 12, 13} {
		c.want(id, Accepted)
	}
	c.wantNone(11)
	if got, want := fmt.Sprint(n.logged(t)), fmt.Sprint([]Ack{AckLocal, AckQuorum, AckLocal, AckLocal}); got != want {
		t.Errorf("the log has acks %v, want %v", got, want)
	}
	c.cut = nil
	c.tick(3)
	c.want(11, Committed)
	if n.InFlight() != 0 || len(n.aloft) != 0 {
		t.Errorf("%d entries, %d sessions are said to be on their way", n.InFlight(), len(n.aloft))
	}
}

// Before its state covers its own term a leader does not know what of earlier leaders' is in front of a proposal.
func TestNothingIsCertainBeforeTheTermIsApplied(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.executes = func(*Proposal, Ahead) bool { return true }
	n := c.nodes[1]
	n.holdApply = true
	c.elect(1)
	n.Propose(1, 1, []Proposal{of(1, 10, 2, 2, AckLocal), of(0, 11, 0, 0, AckLocal)})
	c.run()
	c.want(11, Accepted)
	c.wantNone(10)
	n.holdApply = false
	n.release(t)
	c.run()
	c.want(10, Committed)
	c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == 1 && len(m.GetEntries()) > 0 }
	n.Propose(2, 2, []Proposal{of(1, 12, 3, 3, AckLocal)})
	c.run()
	c.want(12, Accepted)
}

// What is ahead of a proposal is everything that this leader took and its state may not have, and nothing else.
func TestAhead(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	var asked []Ahead
	c.executes = func(_ *Proposal, ahead Ahead) bool {
		asked = append(asked, ahead)
		return false
	}
	ask := func(n *node, id uint64, client byte) Ahead {
		t.Helper()
		asked = nil
		n.Propose(int64(id), id, []Proposal{of(client, id, 9, 9, AckLocal)})
		if len(asked) != 1 {
			t.Fatalf("asked %d times", len(asked))
		}
		return asked[0]
	}
	want := func(got, want Ahead) {
		t.Helper()
		if got != want {
			t.Errorf("ahead: %+v, want %+v", got, want)
		}
	}
	n := c.elect(1)
	want(ask(n, 10, 1), Ahead{})
	c.run()
	n.holdApply = true
	n.Propose(11, 11, []Proposal{
		of(1, 11, 7, 4, AckQuorum), of(1, 12, 6, 5, AckAll), of(2, 13, 1, 1, AckQuorum), of(0, 14, 0, 0, AckQuorum),
	})
	c.run()
	want(ask(n, 20, 1), Ahead{Sessions: 1, Floor: 5, Top: 7})
	want(ask(n, 21, 3), Ahead{Sessions: 2})
	n.holdApply = false
	n.release(t)
	c.run()
	want(ask(n, 22, 2), Ahead{})
	c.run()

	// What raft refuses is not on its way.
	n.Transfer(2)
	n.Propose(30, 30, []Proposal{of(4, 30, 1, 1, AckQuorum)})
	if len(n.aloft) != 0 {
		t.Errorf("%d sessions are said to be on their way", len(n.aloft))
	}
	c.run()
	c.want(30, Busy)

	// Neither is what a leader that lost its term had.
	lead := c.leader()
	c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == lead.cfg.Replica || m.GetTo() == lead.cfg.Replica }
	lead.Propose(31, 31, []Proposal{of(5, 31, 1, 1, AckQuorum), of(6, 32, 1, 1, AckQuorum)})
	c.run()
	if len(lead.aloft) != 2 {
		t.Errorf("%d sessions are on their way, want 2", len(lead.aloft))
	}
	c.tick(40)
	c.cut = nil
	c.tick(40)
	if c.want(31, Unknown); len(lead.aloft) != 0 {
		t.Errorf("%d sessions are said to be on their way", len(lead.aloft))
	}
}
