package control_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
)

func TestPlanInSync(t *testing.T) {
	const bound = 5 * time.Second
	at := func(r uint64, change ...func(*control.InSyncMember)) control.InSyncMember {
		m := control.InSyncMember{Replica: r, Name: "n" + string(rune('0'+r)), Votes: true, Current: time.Minute}
		for _, c := range change {
			c(&m)
		}
		return m
	}
	behind := func(d time.Duration) func(*control.InSyncMember) {
		return func(m *control.InSyncMember) { m.Behind, m.Current = d, 0 }
	}
	down := func(m *control.InSyncMember) { m.Down = true }
	learner := func(m *control.InSyncMember) { m.Votes = false }
	fresh := func(m *control.InSyncMember) { m.Current = time.Millisecond }
	for name, c := range map[string]struct {
		set     []uint64
		members []control.InSyncMember
		next    []uint64
		why     string
	}{
		"all is well":               {[]uint64{1, 2, 3}, []control.InSyncMember{at(1), at(2), at(3)}, nil, ""},
		"within the bound":          {[]uint64{1, 2, 3}, []control.InSyncMember{at(1), at(2, behind(bound), down), at(3)}, nil, ""},
		"down":                      {[]uint64{1, 2, 3}, []control.InSyncMember{at(1), at(2, behind(bound+1), down), at(3)}, []uint64{1, 3}, "n2 is down for more than 5s"},
		"slow":                      {[]uint64{1, 2, 3}, []control.InSyncMember{at(1), at(2), at(3, behind(bound+1))}, []uint64{1, 2}, "n3 is behind for more than 5s"},
		"two at once":               {[]uint64{1, 2, 3}, []control.InSyncMember{at(1), at(2, behind(2*bound), down), at(3, behind(2*bound))}, []uint64{1}, "n2 is down for more than 5s; n3 is behind for more than 5s"},
		"the leader never leaves":   {[]uint64{1, 2}, []control.InSyncMember{at(1, behind(2*bound)), at(2)}, nil, ""},
		"no longer a member":        {[]uint64{1, 2, 3}, []control.InSyncMember{at(1), at(3)}, []uint64{1, 3}, "replica 2 is no longer a member"},
		"no longer a voter":         {[]uint64{1, 2}, []control.InSyncMember{at(1), at(2, learner)}, []uint64{1}, "n2 does not vote"},
		"it joins again":            {[]uint64{1}, []control.InSyncMember{at(1), at(2)}, []uint64{1, 2}, "n2 has everything"},
		"one at a time":             {[]uint64{1}, []control.InSyncMember{at(1), at(3), at(2)}, []uint64{1, 3}, "n3 has everything"},
		"not before it is steady":   {[]uint64{1}, []control.InSyncMember{at(1), at(2, fresh)}, nil, ""},
		"not a learner":             {[]uint64{1}, []control.InSyncMember{at(1), at(2, learner)}, nil, ""},
		"a new leader joins":        {[]uint64{2, 3}, []control.InSyncMember{at(1, fresh), at(2), at(3)}, []uint64{1, 2, 3}, "n1 has everything"},
		"somebody stays":            {[]uint64{2}, []control.InSyncMember{at(1), at(2, behind(2*bound))}, []uint64{1, 2}, "n1 has everything"},
		"leaving comes before that": {[]uint64{1, 2}, []control.InSyncMember{at(1), at(2, behind(2*bound)), at(3)}, []uint64{1}, "n2 is behind for more than 5s"},
	} {
		next, why := control.PlanInSync(c.set, 1, c.members, bound)
		if !slices.Equal(next, c.next) || why != c.why {
			t.Errorf("%s: %v (%s), want %v (%s)", name, next, why, c.next, c.why)
		}
	}
}

func TestInSyncSetIsChangedByItsLeaderOnly(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	id := f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", History: [16]byte{7},
		Paths: map[string]string{"n1": "/a", "n2": "/a", "n3": "/a"}}}).Group
	set := func(term, version uint64, replicas ...uint64) control.Command {
		return control.Command{By: "n1", SetInSync: &control.SetInSync{Group: id, History: [16]byte{7}, Term: term, Version: version,
			Replicas: replicas, Why: "n3 is down"}}
	}
	now := func() control.InSync {
		g, _ := f.state().Group(id)
		return g.InSync
	}
	if s := now(); s.Version != 1 || !slices.Equal(s.Replicas, []uint64{1, 2, 3}) {
		t.Fatalf("at first %+v", s)
	}
	f.must(set(4, 1, 1, 2, 3)) // a leader claims it
	if s := now(); s.Version != 1 || s.Term != 4 {
		t.Fatalf("claimed: %+v", s)
	}
	f.refused(set(3, 1, 1, 2), "conflict") // an earlier leader's comes late
	f.must(set(4, 1, 2, 1))
	if s := now(); s.Version != 2 || !slices.Equal(s.Replicas, []uint64{1, 2}) || s.Why != "n3 is down" {
		t.Fatalf("shrunk: %+v", s)
	}
	audit := f.state().Audit
	if last := audit[len(audit)-1]; last.By != "n1" || !strings.Contains(last.What, "in-sync set 2 of group g: n1, n2 (n3 is down)") {
		t.Errorf("audit: %+v", last)
	}
	f.refused(set(4, 1, 1, 2, 3), "conflict") // made for another version
	f.refused(set(4, 2), "usage")
	f.refused(set(4, 2, 1, 9), "conflict")
	other := set(9, 2, 1)
	other.SetInSync.History = [16]byte{8}
	f.refused(other, "conflict")
	other.SetInSync.Group = 99
	f.refused(other, "not_found")
}

func TestSettingsOfAGroup(t *testing.T) {
	f := newFixture(t)
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: map[string]string{"n1": "/a"}}})
	f.refused(control.Command{SetGroup: &control.SetGroup{Group: "none", Ack: "all"}}, "not_found")
	f.refused(control.Command{SetGroup: &control.SetGroup{Group: "g", Ack: "most"}}, "usage")
	f.refused(control.Command{SetGroup: &control.SetGroup{Group: "g", Ack: "all", InSyncAfter: time.Millisecond}}, "usage")
	f.refused(control.Command{SetGroup: &control.SetGroup{Group: "g", Ack: "all", Topology: "ring"}}, "usage")
	f.must(control.Command{SetGroup: &control.SetGroup{Group: "g", Ack: "all", InSyncAfter: 9 * time.Second}})
	g, _ := f.state().GroupNamed("g")
	if g.Ack != "all" || g.InSyncBound() != 9*time.Second {
		t.Errorf("group %+v", g)
	}
	before := len(f.state().Audit)
	f.must(control.Command{SetGroup: &control.SetGroup{Group: "g", Ack: "all"}})
	if len(f.state().Audit) != before {
		t.Error("a change of nothing is in the audit trail")
	}
}
