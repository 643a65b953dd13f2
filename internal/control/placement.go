package control

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// Progress of a learner.
type Progress uint8

const (
	Absent   Progress = iota // not heard of
	Learning                 // it runs and gets what it lacks
	CaughtUp
)

// PlanMembership is the next step from the configuration in force towards the members that the group should
// have; nil if there is nothing to do, or nothing yet. One change at a time: new voters enter as learners and
// are promoted when they have caught up; a voter that is being replaced leaves in the same joint change in
// which its replacement is promoted, so that the group never has fewer that can vote.
//
// A replacement that does not run yet keeps nobody in: its node may have to end the old replica first.
func PlanMembership(g *Group, conf *raftpb.ConfState, progress func(replica uint64) Progress) (*raftpb.ConfChangeV2, string) {
	if len(conf.GetVotersOutgoing()) > 0 {
		return nil, ""
	}
	want := map[uint64]bool{}
	for _, m := range g.Voters() {
		want[m.Replica] = true
	}
	var waiting, ready []uint64
	for _, m := range g.Voters() {
		switch {
		case slices.Contains(conf.GetVoters(), m.Replica):
		case !slices.Contains(conf.GetLearners(), m.Replica):
			return change(raftpb.ConfChangeAddLearnerNode, m.Replica), fmt.Sprintf("replica %d is new: it learns before it votes", m.Replica)
		case progress(m.Replica) == CaughtUp:
			ready = append(ready, m.Replica)
		case progress(m.Replica) == Learning:
			waiting = append(waiting, m.Replica)
		}
	}
	var stale []uint64
	for _, r := range conf.GetVoters() {
		if !want[r] {
			stale = append(stale, r)
		}
	}
	for _, r := range conf.GetLearners() {
		if !want[r] {
			return change(raftpb.ConfChangeRemoveNode, r), fmt.Sprintf("replica %d is no longer a member", r)
		}
	}
	switch {
	case len(ready) > 0 && len(stale) > 0:
		cc := change(raftpb.ConfChangeAddNode, ready[0])
		cc.Changes = append(cc.Changes, change(raftpb.ConfChangeRemoveNode, stale[0]).Changes...)
		return cc, fmt.Sprintf("replica %d has caught up and takes the place of %d", ready[0], stale[0])
	case len(ready) > 0:
		return change(raftpb.ConfChangeAddNode, ready[0]), fmt.Sprintf("replica %d has caught up: it votes", ready[0])
	case len(stale) > len(waiting) && len(stale) < len(conf.GetVoters()): // somebody has to go on voting
		return change(raftpb.ConfChangeRemoveNode, stale[0]), fmt.Sprintf("replica %d is no longer a member", stale[0])
	}
	return nil, ""
}

func change(kind raftpb.ConfChangeType, replica uint64) *raftpb.ConfChangeV2 {
	return &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &replica}}}
}
