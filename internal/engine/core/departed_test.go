package core

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// TestRemovedLeaderLeavesALeader: a leader that was removed stands down when it has applied that, with a longer log than the
// others, who still go by the configuration in which they need its vote and do not know that the change is committed.
func TestRemovedLeaderLeavesALeader(t *testing.T) {
	c := newCluster(t, 1, 2)
	c.add(3, &raftpb.ConfState{Voters: []uint64{1, 2}})
	n := c.elect(1)
	n.Change(10, change(raftpb.ConfChangeAddLearnerNode, 3))
	c.run()
	c.want(10, Committed)

	left := uint64(0) // where the joint configuration is left
	c.cut = func(m *raftpb.Message) bool {
		if m.GetFrom() != 1 {
			return false
		}
		for _, e := range m.GetEntries() {
			if e.GetType() == raftpb.EntryConfChangeV2 && len(e.GetData()) == 0 && left == 0 {
				left = e.GetIndex()
				c.propose(n, AckQuorum, 12)
			}
			if left > 0 && e.GetIndex() > left {
				return true
			}
		}
		return left > 0 && m.GetCommit() >= left
	}
	n.Change(11, &raftpb.ConfChangeV2{Changes: append(
		change(raftpb.ConfChangeAddNode, 3).Changes, change(raftpb.ConfChangeRemoveNode, 1).Changes...)})
	c.run()
	if s := n.Status(); s.Role == Leader || s.Applied != left || s.Last != left+1 || c.nodes[2].Status().Commit >= left {
		t.Fatalf("the leader is %+v, %d is the change", s, left)
	}
	c.cut = nil
	for range 200 {
		c.tick(1)
		for _, id := range []uint64{2, 3} {
			if s := c.nodes[id].Status(); s.Role == Leader && s.TermBegun && slices.Equal(s.Voters, []uint64{2, 3}) && len(s.Outgoing) == 0 {
				return
			}
		}
	}
	t.Errorf("nobody leads: %+v, %+v", c.nodes[2].Status(), c.nodes[3].Status())
}

// TestTellCommitted: who is no member any more tells candidates that it refuses what it knows as committed, if they say
// that they have it.
func TestTellCommitted(t *testing.T) {
	for name, tt := range map[string]struct {
		conf          *raftpb.ConfState
		logTerm, last uint64
		told          bool
	}{
		"it has it, and less than this replica": {&raftpb.ConfState{Voters: []uint64{2, 3}}, 1, 1, true},
		"it gets the vote":                      {&raftpb.ConfState{Voters: []uint64{2, 3}}, 1, 2, false},
		"it has less":                           {&raftpb.ConfState{Voters: []uint64{2, 3}}, 0, 0, false},
		"this replica votes still":              {&raftpb.ConfState{Voters: []uint64{1, 2}}, 1, 1, false},
		"this replica does not vote yet":        {&raftpb.ConfState{Voters: []uint64{2, 3}, Learners: []uint64{1}}, 1, 1, false},
		"this replica is new":                   {&raftpb.ConfState{}, 1, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			n := c.add(1, tt.conf)
			if err := n.log.Append([]*raftpb.Entry{{Index: new(uint64(2)), Term: new(uint64(1))}}); err != nil {
				t.Fatal(err)
			}
			c.open(1, 1)
			if err := n.Receive(&raftpb.Message{Type: raftpb.MsgPreVote.Enum(), From: new(uint64(2)), To: new(uint64(1)),
				Term: new(uint64(6)), LogTerm: &tt.logTerm, Index: &tt.last}); err != nil {
				t.Fatal(err)
			}
			e, _ := n.Effects()
			told := slices.ContainsFunc(e.Send, func(m *raftpb.Message) bool {
				return m.GetType() == raftpb.MsgApp && m.GetTo() == 2 && m.GetTerm() == 5 && m.GetIndex() == 1 && m.GetLogTerm() == 1 && m.GetCommit() == 1
			})
			if told != tt.told {
				t.Errorf("told %v: %v", told, e.Send)
			}
		})
	}
}
