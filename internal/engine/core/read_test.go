package core

import (
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A single voter's raft would answer a read with the commit index that it found on disk, which may be older
// than what it has acknowledged.
func TestSingleVoterReadsAfterItsTermHasBegun(t *testing.T) {
	c := newCluster(t, 1)
	n := c.elect(1)
	c.propose(n, AckQuorum, 10)
	c.run()
	at := c.want(10, Committed).Position.Index
	hs, _, err := n.log.InitialState()
	if err != nil {
		t.Fatal(err)
	}
	hs.Commit = proto.Uint64(1)
	c.open(1, 1)
	n.holdAppend = true
	n.Read(11)
	for n.Status().Role != Leader {
		if s := n.Status(); s.Role != Follower && len(n.heldAppend) > 0 { // votes only
			n.holdAppend = false
			n.release(t)
			n.holdAppend = true
		}
		n.Tick()
		c.run()
	}
	c.wantNone(11)
	n.holdAppend = false
	n.release(t)
	c.run()
	if a := c.want(11, Ready); a.Position.Index < at {
		t.Fatalf("read at %d, acknowledged %d", a.Position.Index, at)
	}
}

// TestFreshLeaderLeavesOthersReadsUnanswered: the only voter lost its commit index in a crash. What a learner asks it for when
// it has just been elected, and before anybody looked at what that brings, it does not answer by that index.
func TestFreshLeaderLeavesOthersReadsUnanswered(t *testing.T) {
	c := newCluster(t)
	cs := &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}
	c.add(1, cs)
	c.add(2, cs)
	n := c.elect(1)
	c.tick(3)
	old := n.Status().Commit
	c.cut = func(m *raftpb.Message) bool { return m.GetTo() == 2 }
	c.propose(n, AckQuorum, 10)
	c.run()
	acked := c.want(10, Committed).Position.Index

	var asked *raftpb.Message
	c.cut = func(m *raftpb.Message) bool {
		if m.GetType() == raftpb.MsgReadIndex {
			asked = m
		}
		return true
	}
	c.nodes[2].Read(20)
	c.run()
	if asked == nil || old >= acked {
		t.Fatalf("the learner's question %v, its commit index %d, the voter's %d", asked, old, acked)
	}
	hs, _, err := n.log.InitialState()
	if err != nil {
		t.Fatal(err)
	}
	hs.Commit = proto.Uint64(old)
	if err := n.log.SetHardState(hs); err != nil {
		t.Fatal(err)
	}
	c.open(1, 1)
	n.holdAppend = true
	if err := n.rn.Campaign(); err != nil {
		t.Fatal(err)
	}
	c.run()
	for len(n.heldAppend) > 0 { // its own vote; the entry that begins its term is still to be written
		n.write(t)
		if n.rn.BasicStatus().RaftState == raft.StateLeader {
			break
		}
		c.run()
	}
	if s := n.Status(); s.Role != Leader || s.TermBegun || s.Commit >= acked {
		t.Fatalf("the voter: %+v", s)
	}
	if err := n.Receive(proto.CloneOf(asked)); err != nil {
		t.Fatal(err)
	}
	n.holdAppend, c.cut = false, func(m *raftpb.Message) bool {
		return m.GetType() != raftpb.MsgReadIndexResp // the answer alone comes through
	}
	n.release(t)
	c.run()
	if a, ok := c.answers[20]; ok && a.Position.Index < acked {
		t.Errorf("the learner reads at %d, and %d was acknowledged", a.Position.Index, acked)
	}
	c.cut = nil
	c.tick(readRetryTicks + 1)
	if a := c.want(20, Ready); a.Position.Index < acked {
		t.Errorf("the learner reads at %d, and %d was acknowledged", a.Position.Index, acked)
	}
}
