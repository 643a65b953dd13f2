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
		step := control.PlanMembership(c.want, lead(0, c.conf, func(r uint64) bool { return slices.Contains(c.caughtUp, r) }))
		if got := describe(step.Change); !slices.Equal(got, c.plan) || (step.Why == "") != (step.Change == nil) {
			t.Errorf("%s: %v (%s), want %v", name, got, step.Why, c.plan)
		}
	}
}

// A leader never takes itself out: it makes the other a voter first, hands over, and is taken out by that one. What is
// not there is taken out first, and nobody if no majority would be left.
func TestPlanMembershipOfTheLeaderAndTheAbsent(t *testing.T) {
	conf := func(voters []uint64, learners ...uint64) *raftpb.ConfState {
		return &raftpb.ConfState{Voters: voters, Learners: learners}
	}
	for name, c := range map[string]struct {
		want     *control.Group
		self     uint64
		conf     *raftpb.ConfState
		absent   []uint64
		plan     []string
		transfer uint64
	}{
		"the leader is replaced: first the other votes": {groupOf(2), 1, conf([]uint64{1}, 2), nil, []string{"AddNode2"}, 0},
		"then it hands over":                            {groupOf(2), 1, conf([]uint64{1, 2}), nil, nil, 2},
		"then it is taken out":                          {groupOf(2), 2, conf([]uint64{1, 2}), nil, []string{"RemoveNode1"}, 0},
		"others leave before the leader":                {groupOf(3, 4), 1, conf([]uint64{1, 2, 3, 4}), nil, []string{"RemoveNode2"}, 0},
		"the absent one leaves first":                   {groupOf(1, 2), 1, conf([]uint64{1, 2, 3, 4}), []uint64{4}, []string{"RemoveNode4"}, 0},
		"a majority must be left":                       {groupOf(1, 3), 1, conf([]uint64{1, 2, 3}), []uint64{3}, nil, 0},
		"the one that is gone may go":                   {groupOf(1, 2), 1, conf([]uint64{1, 2, 3}), []uint64{3}, []string{"RemoveNode3"}, 0},
		"no hand-over to who is not there":              {groupOf(2, 3), 1, conf([]uint64{1, 2, 3}), []uint64{2}, nil, 3},
		"nobody to hand over to":                        {groupOf(2), 1, conf([]uint64{1, 2}), []uint64{2}, nil, 0},
		"an absent replacement keeps its seat":          {groupOf(1, 2, 4), 1, conf([]uint64{1, 2, 3}, 4), []uint64{4}, nil, 0},
	} {
		l := lead(c.self, c.conf, func(uint64) bool { return true })
		there := l.Progress
		l.Progress = func(r uint64) control.Progress {
			if slices.Contains(c.absent, r) {
				return control.Absent
			}
			return there(r)
		}
		step := control.PlanMembership(c.want, l)
		if got := describe(step.Change); !slices.Equal(got, c.plan) || step.Transfer != c.transfer {
			t.Errorf("%s: %v, transfer to %d (%s), want %v, %d", name, got, step.Transfer, step.Why, c.plan, c.transfer)
		}
	}
}

// A node that is being drained gives leadership up, though it still votes; not to another that is being drained.
func TestPlanMembershipAvoidsDrainedLeaders(t *testing.T) {
	l := lead(1, &raftpb.ConfState{Voters: []uint64{1, 2, 3}}, func(uint64) bool { return true })
	l.Avoid = func(r uint64) bool { return r < 3 }
	if step := control.PlanMembership(groupOf(1, 2, 3), l); step.Transfer != 3 || step.Change != nil {
		t.Errorf("got %+v", step)
	}
	l.Avoid = func(uint64) bool { return true }
	if step := control.PlanMembership(groupOf(1, 2, 3), l); step.Why != "" {
		t.Errorf("got %+v", step)
	}
}

// From any configuration and any leader, with replicas that catch up at any time and some that are never there, the
// steps lead to the members that are wanted, as far as these are there; raft accepts every one of them, nobody votes
// who has not caught up, a majority of every new set of voters is there, and the leader is in it.
func TestPlanMembershipConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		conf := &raftpb.ConfState{Voters: pick(rng, 1, 9, 1+rng.IntN(5))}
		want := groupOf(pick(rng, 1, 9, 1+rng.IntN(5))...)
		run := &planRun{t: t, rng: rng, want: want, conf: conf, caught: map[uint64]bool{}, gone: map[uint64]bool{}}
		run.leader = conf.Voters[rng.IntN(len(conf.Voters))]
		for _, v := range conf.Voters { // a minority is away for ever
			run.caught[v] = true
			if v != run.leader && rng.IntN(4) == 0 && 2*(len(run.gone)+1) < len(conf.Voters) {
				run.gone[v] = true
			}
		}
		run.toTheEnd()
	}
}

type planRun struct {
	t      *testing.T
	rng    *rand.Rand
	want   *control.Group
	conf   *raftpb.ConfState
	leader uint64
	caught map[uint64]bool
	gone   map[uint64]bool
}

func (p *planRun) progress(r uint64) control.Progress {
	switch {
	case p.gone[r]:
		return control.Absent
	case p.caught[r]:
		return control.CaughtUp
	}
	return control.Learning
}

func (p *planRun) toTheEnd() {
	for steps := 0; ; steps++ {
		if steps > 100 {
			p.t.Fatalf("no end: %v, wanted %v, gone %v", p.conf, p.want.Members, p.gone)
		}
		step := control.PlanMembership(p.want, control.Lead{Self: p.leader, Conf: p.conf, Progress: p.progress})
		switch {
		case step.Transfer != 0:
			if !slices.Contains(p.conf.GetVoters(), step.Transfer) || p.gone[step.Transfer] {
				p.t.Fatalf("leadership to %d of %v, gone %v", step.Transfer, p.conf, p.gone)
			}
			p.leader = step.Transfer
		case step.Change != nil:
			p.carryOut(step.Change)
		default:
			if !p.learn() {
				p.ended()
				return
			}
		}
	}
}

// learn lets a learner catch up; false if none is left that could.
func (p *planRun) learn() bool {
	for _, l := range p.conf.GetLearners() {
		if !p.caught[l] && !p.gone[l] {
			p.caught[l] = true
			return true
		}
	}
	return false
}

func (p *planRun) carryOut(cc *raftpb.ConfChangeV2) {
	next := carryOut(p.t, p.conf, cc)
	there := 0
	for _, v := range next.GetVoters() {
		if !slices.Contains(p.conf.GetVoters(), v) && !p.caught[v] {
			p.t.Fatalf("replica %d votes before it has caught up: %v after %v", v, next, p.conf)
		}
		if !p.gone[v] {
			there++
		}
	}
	if !slices.Contains(next.GetVoters(), p.leader) || 2*there <= len(next.GetVoters()) {
		p.t.Fatalf("led by %d, gone %v: %v after %v", p.leader, p.gone, next, p.conf)
	}
	if len(next.GetVoters()) < min(len(p.conf.GetVoters()), len(p.want.Members)) {
		p.t.Fatalf("fewer can vote than before and than are wanted: %v after %v, wanted %v", next, p.conf, p.want.Members)
	}
	p.conf = next
}

// ended checks that only those keep it from the goal that are away.
func (p *planRun) ended() {
	var wanted []uint64
	for _, m := range p.want.Members {
		if p.gone[m.Replica] {
			return
		}
		wanted = append(wanted, m.Replica)
	}
	if slices.Sort(wanted); !slices.Equal(slices.Sorted(slices.Values(p.conf.GetVoters())), wanted) {
		p.t.Fatalf("ended with %v led by %d, wanted %v, gone %v", p.conf, p.leader, wanted, p.gone)
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

// lead has every replica run; those in the configuration have caught up.
func lead(self uint64, conf *raftpb.ConfState, caughtUp func(uint64) bool) control.Lead {
	return control.Lead{Self: self, Conf: conf, Progress: func(r uint64) control.Progress {
		if caughtUp(r) || slices.Contains(conf.GetVoters(), r) {
			return control.CaughtUp
		}
		return control.Learning
	}}
}

// The replacement on the same node cannot start before the old replica has ended, so it does not keep that in.
func TestReplacementOnTheSameNodeKeepsNobodyIn(t *testing.T) {
	g := groupOf(1, 2)
	g.Members = append(g.Members, control.Member{Replica: 4, Node: 3, Role: control.RoleVoter})
	g.Former = []control.Former{{Replica: 3, Node: 3}}
	l := control.Lead{Self: 1, Conf: &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}}, Progress: func(r uint64) control.Progress {
		if r == 4 {
			return control.Absent
		}
		return control.CaughtUp
	}}
	step := control.PlanMembership(g, l)
	if got := describe(step.Change); !slices.Equal(got, []string{"RemoveNode3"}) {
		t.Errorf("got %v (%s), want replica 3 removed: its node cannot start replica 4 before", got, step.Why)
	}
	g.Former[0].Node = 9
	if step := control.PlanMembership(g, l); step.Why != "" {
		t.Errorf("got %v (%s), want replica 3 kept until its replacement is there", describe(step.Change), step.Why)
	}
}

// TestDeadNewcomerKeepsNobodyOut: a member that never ran is waited for, but not by who comes back to a node that has to
// end its old replica first.
func TestDeadNewcomerKeepsNobodyOut(t *testing.T) {
	g := groupOf(1, 2, 5)
	g.Members = append(g.Members, control.Member{Replica: 4, Node: 3, Role: control.RoleVoter})
	g.Former = []control.Former{{Replica: 3, Node: 3}}
	absent := []uint64{4, 5}
	l := control.Lead{Self: 1, Conf: &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4, 5}}, Progress: func(r uint64) control.Progress {
		if slices.Contains(absent, r) {
			return control.Absent
		}
		return control.CaughtUp
	}}
	step := control.PlanMembership(g, l)
	if got := describe(step.Change); !slices.Equal(got, []string{"RemoveNode3"}) {
		t.Errorf("got %v (%s), want replica 3 removed: replica 4 cannot start before, whoever 5 is", got, step.Why)
	}
	absent = append(absent, 2)
	if step := control.PlanMembership(g, l); step.Change != nil {
		t.Errorf("got %v (%s), want nothing: 1 alone is no majority of 1 and 2", describe(step.Change), step.Why)
	}
}

// TestReplacementTakesThePlaceOnItsNode: of two that leave, whose nodes both have new replicas, the one goes whose
// successor is ready; the other's may never be.
func TestReplacementTakesThePlaceOnItsNode(t *testing.T) {
	g := &control.Group{
		Members: []control.Member{
			{Replica: 1, Node: 1, Role: control.RoleVoter}, {Replica: 2, Node: 2, Role: control.RoleVoter}, {Replica: 3, Node: 3, Role: control.RoleVoter},
			{Replica: 7, Node: 4, Role: control.RoleVoter}, {Replica: 6, Node: 5, Role: control.RoleVoter},
		},
		Former: []control.Former{{Replica: 4, Node: 4}, {Replica: 5, Node: 5}},
	}
	conf := &raftpb.ConfState{Voters: []uint64{1, 2, 3, 4, 5}, Learners: []uint64{6, 7}}
	progress := func(r uint64) control.Progress {
		switch r {
		case 4, 5, 7:
			return control.Absent
		}
		return control.CaughtUp
	}
	step := control.PlanMembership(g, control.Lead{Self: 1, Conf: conf, Progress: progress})
	if got := describe(step.Change); !slices.Equal(got, []string{"AddNode6", "RemoveNode5"}) {
		t.Errorf("%v (%s)", got, step.Why)
	}
	// The other node has nothing that could vote: its old replica, which will not either, goes.
	conf = &raftpb.ConfState{Voters: []uint64{1, 2, 3, 4, 6}, Learners: []uint64{7}}
	step = control.PlanMembership(g, control.Lead{Self: 1, Conf: conf, Progress: progress})
	if got := describe(step.Change); !slices.Equal(got, []string{"RemoveNode4"}) {
		t.Errorf("%v (%s)", got, step.Why)
	}
}

// TestHolders: the leader is asked for where it may be, be it without a seat.
func TestHolders(t *testing.T) {
	g := control.Group{
		Members: []control.Member{{Node: 2, Replica: 7}, {Node: 5, Replica: 3}, {Node: 9, Replica: 8}},
		Former:  []control.Former{{Node: 4, Replica: 1}, {Node: 2, Replica: 2}},
	}
	if got, want := g.Holders(), []uint64{2, 4, 5, 9}; !slices.Equal(got, want) {
		t.Errorf("holders are %v, want %v", got, want)
	}
}
