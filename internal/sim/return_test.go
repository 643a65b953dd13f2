package sim

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// TestNotMissed: which replicas of a group may drop their logs, by the configurations of the last time and by who of the
// others has everything.
func TestNotMissed(t *testing.T) {
	conf := func(ids ...uint64) *raftpb.ConfState { return &raftpb.ConfState{Voters: ids} }
	joint := &raftpb.ConfState{Voters: []uint64{1, 3, 4}, VotersOutgoing: []uint64{1, 2, 3}}
	learns := &raftpb.ConfState{Voters: []uint64{1, 3, 4, 5}, Learners: []uint64{6}}
	for name, c := range map[string]struct {
		recent []*raftpb.ConfState
		id     uint64
		have   []uint64
		want   bool
	}{
		"most have all":                 {[]*raftpb.ConfState{conf(1, 2, 3)}, 2, []uint64{1, 3}, true},
		"one has":                       {[]*raftpb.ConfState{conf(1, 2, 3)}, 2, []uint64{1}, false},
		"two of five have":              {[]*raftpb.ConfState{conf(1, 2, 3, 4, 5)}, 2, []uint64{3, 5}, false},
		"left out, another damaged":     {[]*raftpb.ConfState{conf(1, 2, 3, 4, 5), learns}, 2, []uint64{3, 5}, true}, // seed 89753
		"votes, others left out":        {[]*raftpb.ConfState{conf(1, 2, 3, 4, 5), learns}, 4, []uint64{3, 5}, false},
		"learns, another damaged":       {[]*raftpb.ConfState{conf(1, 3, 4, 5), learns}, 6, []uint64{3, 5}, true},
		"is new, and votes":             {[]*raftpb.ConfState{conf(1, 3), conf(1, 2, 3)}, 2, []uint64{1}, false},
		"leaves, most of both have":     {[]*raftpb.ConfState{joint}, 2, []uint64{1, 3}, true},
		"leaves, those before lack":     {[]*raftpb.ConfState{joint}, 2, []uint64{1, 4}, false},
		"leaves, those to come lack":    {[]*raftpb.ConfState{joint}, 2, []uint64{1}, false},
		"has left, those before lack":   {[]*raftpb.ConfState{joint, conf(1, 3, 4)}, 2, []uint64{4}, true},
		"the last but one has a quorum": {[]*raftpb.ConfState{conf(1, 2, 3), conf(1, 2, 3, 4, 5)}, 2, []uint64{1, 3}, true},
		"none of the last has a quorum": {[]*raftpb.ConfState{conf(1, 2, 3, 4), conf(1, 2, 3, 4, 5)}, 2, []uint64{1, 3}, false},
		"left out, and those have it":   {[]*raftpb.ConfState{conf(1, 3, 4)}, 2, []uint64{1, 3, 4}, true},
	} {
		has := func(id uint64) bool { return slices.Contains(c.have, id) }
		if got := notMissed(c.id, c.recent, has); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
