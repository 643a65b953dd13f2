package control_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstep-sync/lockstep/internal/control"
)

func groupOf(replicas ...uint64) *control.Group {
	g := &control.Group{Name: "g"}
	for _, r := range replicas {
		g.Members = append(g.Members, control.Member{Replica: r, Node: r, Role: control.RoleVoter})
	}
	return g
}

func describe(cc *raftpb.ConfChangeV2) (out []string) {
	for _, c := range cc.GetChanges() {
		out = append(out, c.GetType().String()[len("ConfChange"):]+string(rune('0'+c.GetNodeId())))
	}
	return out
}

func TestPlanMembership(t *testing.T) {
	voters := func(v ...uint64) *raftpb.ConfState { return &raftpb.ConfState{Voters: v} }
	for name, c := range map[string]struct {
		want     *control.Group
		conf     *raftpb.ConfState
		caughtUp []uint64
		plan     []string
	}{
		"nothing to do":        {groupOf(1, 2, 3), voters(1, 2, 3), nil, nil},
		"new ones learn first": {groupOf(1, 2), voters(1), []uint64{2}, []string{"AddLearnerNode2"}},
		"a slow learner waits": {groupOf(1, 2), &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}, nil, nil},
		"promotion":            {groupOf(1, 2), &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}, []uint64{2}, []string{"AddNode2"}},
		"removal":              {groupOf(1, 2), voters(1, 2, 3), nil, []string{"RemoveNode3"}},
		"replacement waits":    {groupOf(1, 2, 4), &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}}, nil, nil},
		"replacement": {groupOf(1, 2, 4), &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}}, []uint64{4},
			[]string{"AddNode4", "RemoveNode3"}},
		"unwanted learner":         {groupOf(1), &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{9}}, nil, []string{"RemoveNode9"}},
		"joint: wait":              {groupOf(1, 2), &raftpb.ConfState{Voters: []uint64{1}, VotersOutgoing: []uint64{1, 3}}, nil, nil},
		"nobody is left":           {groupOf(), voters(1), nil, nil},
		"all are to be replaced":   {groupOf(2), &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}, nil, nil},
		"the only one is replaced": {groupOf(2), &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}, []uint64{2}, []string{"AddNode2", "RemoveNode1"}},
	} {
		cc, why := control.PlanMembership(c.want, c.conf, progress(func(r uint64) bool { return slices.Contains(c.caughtUp, r) }))
		if got := describe(cc); !slices.Equal(got, c.plan) || (why == "") != (cc == nil) {
			t.Errorf("%s: %v (%s), want %v", name, got, why, c.plan)
		}
	}
}

// From any configuration, with replicas that catch up at any time, the steps lead to the members that are
// wanted; raft accepts every one of them, nobody votes who has not caught up, and somebody who voted before is
// in every new set of voters unless it was replaced.
func TestPlanMembershipConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 500 {
		conf := &raftpb.ConfState{Voters: pick(rng, 1, 9, 1+rng.IntN(5))}
		want := groupOf(pick(rng, 1, 9, 1+rng.IntN(5))...)
		caught := map[uint64]bool{}
		for steps := 0; ; steps++ {
			if steps > 100 {
				t.Fatalf("no end: %v, wanted %v", conf, want.Members)
			}
			cc, _ := control.PlanMembership(want, conf, progress(func(r uint64) bool { return caught[r] }))
			if cc == nil {
				if len(conf.GetLearners()) == 0 {
					break
				}
				caught[conf.GetLearners()[rng.IntN(len(conf.GetLearners()))]] = true
				continue
			}
			next := carryOut(t, conf, cc)
			for _, v := range next.GetVoters() {
				if !slices.Contains(conf.GetVoters(), v) && !caught[v] {
					t.Fatalf("replica %d votes before it has caught up: %v after %v", v, next, conf)
				}
			}
			if len(next.GetVoters()) < min(len(conf.GetVoters()), len(want.Members)) {
				t.Fatalf("fewer can vote than before and than are wanted: %v after %v, wanted %v", next, conf, want.Members)
			}
			conf = next
		}
		got := slices.Sorted(slices.Values(conf.GetVoters()))
		var wanted []uint64
		for _, m := range want.Members {
			wanted = append(wanted, m.Replica)
		}
		if slices.Sort(wanted); !slices.Equal(got, wanted) {
			t.Fatalf("ended with %v, wanted %v", got, wanted)
		}
	}
}

func pick(rng *rand.Rand, lo, hi, n int) (out []uint64) {
	for _, i := range rng.Perm(hi - lo + 1)[:n] {
		out = append(out, uint64(lo+i))
	}
	return out
}

// carryOut changes the configuration as raft does, through the joint one if there is more than one change.
func carryOut(t *testing.T, conf *raftpb.ConfState, cc *raftpb.ConfChangeV2) *raftpb.ConfState {
	t.Helper()
	chg := confchange.Changer{Tracker: tracker.MakeProgressTracker(10, 0), LastIndex: 10}
	cfg, progress, err := confchange.Restore(chg, conf)
	if err != nil {
		t.Fatal(err)
	}
	chg.Tracker.Config, chg.Tracker.Progress = cfg, progress
	if autoLeave, joint := cc.EnterJoint(); joint {
		if cfg, progress, err = chg.EnterJoint(autoLeave, cc.GetChanges()...); err == nil {
			chg.Tracker.Config, chg.Tracker.Progress = cfg, progress
			cfg, _, err = chg.LeaveJoint()
		}
	} else {
		cfg, _, err = chg.Simple(cc.GetChanges()...)
	}
	if err != nil {
		t.Fatalf("raft refuses %v on %v: %v", cc, conf, err)
	}
	chg.Tracker.Config = cfg
	return chg.Tracker.ConfState()
}

// progress has every learner run.
func progress(caughtUp func(uint64) bool) func(uint64) control.Progress {
	return func(r uint64) control.Progress {
		if caughtUp(r) {
			return control.CaughtUp
		}
		return control.Learning
	}
}

func TestReplacementThatDoesNotRunKeepsNobodyIn(t *testing.T) {
	g := &control.Group{Members: []control.Member{
		{Replica: 1, Node: 1, Role: control.RoleVoter}, {Replica: 2, Node: 2, Role: control.RoleVoter}, {Replica: 4, Node: 3, Role: control.RoleVoter},
	}}
	conf := &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}}
	cc, why := control.PlanMembership(g, conf, func(uint64) control.Progress { return control.Absent })
	if cc == nil || cc.GetChanges()[0].GetType() != raftpb.ConfChangeRemoveNode || cc.GetChanges()[0].GetNodeId() != 3 {
		t.Errorf("got %v (%s), want replica 3 removed: its node cannot start replica 4 before", cc, why)
	}
}
