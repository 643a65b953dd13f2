package core

import (
	"bytes"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func TestFateOf(t *testing.T) {
	var terms Terms
	for _, at := range []Position{{2, 10}, {2, 11}, {5, 12}, {5, 13}, {7, 20}} {
		terms = terms.Note(at)
	}
	covered := Position{Term: 7, Index: 25}
	for _, c := range []struct {
		entry Position
		want  Fate
	}{
		{Position{2, 10}, FateCommitted},
		{Position{2, 11}, FateCommitted},
		{Position{2, 12}, FateLost},
		{Position{5, 19}, FateCommitted},
		{Position{5, 20}, FateLost},
		{Position{7, 25}, FateCommitted},
		{Position{6, 24}, FateLost},
		{Position{5, 30}, FateLost}, // an entry of term 7 is committed below it
		{Position{7, 26}, FateOpen},
		{Position{8, 26}, FateOpen},
		{Position{2, 9}, FateForgotten},
		{Position{1, 1}, FateForgotten},
	} {
		if got := FateOf(c.entry, covered, terms); got != c.want {
			t.Errorf("%+v: %v, want %v", c.entry, got, c.want)
		}
	}
	if got := FateOf(Position{1, 1}, Position{}, Terms{}); got != FateOpen {
		t.Errorf("an empty state knows: %v", got)
	}
}

func TestTermsAreBounded(t *testing.T) {
	var terms Terms
	for i := range uint64(3 * maxTerms) {
		before := terms
		terms = terms.Note(Position{Term: i + 1, Index: 2*i + 1})
		if before.Equal(terms) {
			t.Fatal("a new term was not noted")
		}
	}
	if len(terms.starts) != maxTerms {
		t.Errorf("%d terms are remembered", len(terms.starts))
	}
	if _, ok := terms.At(4 * maxTerms); ok {
		t.Error("a forgotten index has a term")
	}
	if term, ok := terms.At(6*maxTerms - 4); !ok || term != 3*maxTerms-2 {
		t.Errorf("term %d, %v", term, ok)
	}
	again, err := DecodeTerms(terms.Append(nil))
	if err != nil || !again.Equal(terms) {
		t.Errorf("decoded as %d terms, %v", len(again.starts), err)
	}
}

func FuzzDecodeTerms(f *testing.F) {
	f.Add(Terms{}.Note(Position{1, 2}).Note(Position{3, 9}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		terms, err := DecodeTerms(b)
		if err != nil {
			return
		}
		again, err := DecodeTerms(terms.Append(nil))
		if err != nil || !bytes.Equal(again.Append(nil), terms.Append(nil)) {
			t.Errorf("%x: %+v became %+v, %v", b, terms, again, err)
		}
		terms.At(5)
	})
}

// isolated has replica 1 lead, accept writes that nobody else gets, and lose its leadership to 2.
func isolated(t *testing.T) (*cluster, *node) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.propose(n, AckLocal, 9)
	c.run()
	c.want(9, Accepted)
	c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == 1 || m.GetTo() == 1 }
	c.propose(n, AckLocal, 10, 11)
	c.propose(n, AckQuorum, 12)
	c.propose(n, AckLocal, 13)
	c.run()
	if a := c.want(11, Accepted); a.Place != 1 {
		t.Errorf("place %d in the entry, want 1", a.Place)
	}
	c.want(13, Accepted)
	return c, n
}

func (c *cluster) wantLost(n *node, writes int) {
	c.t.Helper()
	got := 0
	for _, l := range n.lost {
		if !l.Known {
			c.t.Errorf("%+v: fate not known", l)
		}
		got += l.Writes
	}
	if got != writes {
		c.t.Errorf("%d writes are reported as lost (%+v), want %d", got, n.lost, writes)
	}
}

func TestAcceptedWritesThatAreOverwrittenAreLost(t *testing.T) {
	c, n := isolated(t)
	at := c.answers[13].Position
	c.tick(40)
	c.want(12, Unknown)
	c.wantLost(n, 0) // nobody has overwritten anything
	c.cut = nil
	c.tick(40)
	c.propose(c.leader(), AckQuorum, 20, 21, 22)
	c.propose(c.leader(), AckQuorum, 23)
	c.run()
	c.tick(40)
	c.wantLost(n, 3)
	for id, other := range c.nodes {
		covered := Position{Term: other.term, Index: other.applied}
		if got := FateOf(at, covered, other.terms); got != FateLost {
			t.Errorf("replica %d says %v", id, got)
		}
		if got := FateOf(c.answers[9].Position, covered, other.terms); got != FateCommitted {
			t.Errorf("replica %d says %v of a committed write", id, got)
		}
		if id != 1 {
			c.wantLost(other, 0)
		}
	}
}

// The deposed leader's process dies before it learns of its losses: it finds them in its log.
func TestLossesAreFoundAfterARestart(t *testing.T) {
	c, n := isolated(t)
	n.down = true
	applied := n.applied
	c.tick(40)
	c.propose(c.leader(), AckQuorum, 20)
	c.run()
	n.down = false
	c.open(1, applied)
	c.cut = nil
	c.tick(40)
	c.wantLost(n, 3)
	c.tick(40)
	c.wantLost(n, 3)
}

// Overwritten is not lost: another replica may bring an entry back.
func TestAcceptedWritesThatSurviveAreNotLost(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.cut = func(m *raftpb.Message) bool { return m.GetTo() == 3 || m.GetFrom() != 1 }
	c.propose(n, AckLocal, 10) // 2 gets it, its answer is lost
	c.run()
	c.want(10, Accepted)
	n.down = true
	applied := n.applied
	c.cut = nil
	c.tick(40)
	if c.leader().cfg.Replica != 2 {
		t.Fatal("a replica with a shorter log leads")
	}
	n.down = false
	c.open(1, applied)
	c.tick(40)
	c.wantLost(n, 0)
	other := c.nodes[3]
	if got := FateOf(c.answers[10].Position, Position{Term: other.term, Index: other.applied}, other.terms); got != FateCommitted {
		t.Errorf("fate %v", got)
	}
}
