package control_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// On any farm that does not change, the decisions come to an end; none leaves a group without a majority that is up, none
// gives a seat to a node that is down or drained, and in the end nothing is left that would be safe and of use.
func TestPlanSeatsConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		f := newFixture(t)
		paths, spares := map[string]string{"n1": "/a"}, []string(nil)
		for i := 2; i <= 2+rng.IntN(7); i++ {
			name := fmt.Sprintf("n%d", i)
			f.must(control.Command{Join: &control.Join{Token: "t1", Name: name, Zone: []string{"", "a", "b", "c"}[rng.IntN(4)]}})
			if len(paths) == 1 || rng.IntN(4) > 0 {
				paths[name] = "/a"
			} else {
				spares = append(spares, name)
			}
		}
		f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: paths}})
		for _, name := range spares {
			f.must(control.Command{Members: &control.Members{Group: "g", Op: control.OpAdd, Node: name, Path: "/a", Role: control.RoleSpare}})
		}
		after := time.Minute
		f.must(control.Command{SetGroup: &control.SetGroup{Group: "g", RepairAfter: &after}})
		f.apply(control.Command{Drain: &control.Drain{Node: fmt.Sprintf("n%d", 1+rng.IntN(len(f.state().Nodes)))}})
		down, full := map[uint64]bool{}, map[uint64]bool{}
		for id := range uint64(len(f.state().Nodes)) {
			down[id+1], full[id+1] = rng.IntN(5) == 0, rng.IntN(5) == 0
		}
		toRest(t, f, down, full)
		for _, n := range f.state().Nodes { // all is well again: whoever left has room for others, and may come back
			f.must(control.Command{Drain: &control.Drain{Node: n.Name, Off: true}})
		}
		toRest(t, f, nil, nil)
	}
}

// While the configuration in force is not that of the members, who learns yet may lose its seat, and nobody else: one that
// died before it had learned would keep it for ever.
func TestPlanSeatsWhileOneLearns(t *testing.T) {
	spare := func(s *control.State, node uint64) {
		s.Groups[0].Members = append(s.Groups[0].Members, control.Member{Node: node, Role: control.RoleObserver, Spare: true, Pinned: true})
	}
	for name, c := range map[string]struct {
		voters, voting []uint64
		down           []uint64
		more           func(s *control.State)
		in, out        uint64
	}{
		"a dead learner that is to go":         {voters: []uint64{1, 2}, voting: []uint64{1}, down: []uint64{2}, more: func(s *control.State) { s.Nodes[1].Drain = true }, out: 2},
		"one of four":                          {voters: []uint64{1, 2, 3, 4}, voting: []uint64{1, 2, 3}, down: []uint64{4}, more: func(s *control.State) { s.Nodes[3].Drain = true }, out: 4},
		"a living learner that is to go":       {voters: []uint64{1, 2}, voting: []uint64{1}, more: func(s *control.State) { s.Nodes[1].Drain = true }, out: 2},
		"one that votes waits":                 {voters: []uint64{1, 2, 3}, voting: []uint64{1, 2}, more: func(s *control.State) { s.Nodes[1].Drain = true }},
		"no majority to agree":                 {voters: []uint64{1, 2, 3}, voting: []uint64{1, 2}, down: []uint64{2, 3}, more: func(s *control.State) { s.Nodes[2].Drain = true }},
		"a spare takes a dead learner's place": {voters: []uint64{1, 2}, voting: []uint64{1}, down: []uint64{2}, more: func(s *control.State) { spare(s, 3) }, in: 3, out: 2},
		"not that of a dead voter":             {voters: []uint64{1, 2, 3, 4}, voting: []uint64{1, 2, 3}, down: []uint64{3}, more: func(s *control.State) { spare(s, 5) }},
		"no free seat is given away":           {voters: []uint64{1, 2}, voting: []uint64{1}, more: func(s *control.State) { spare(s, 3); s.Groups[0].Members[2].Pinned = false }},
	} {
		s := farmOf(5, c.voters)
		after := time.Minute
		s.Groups[0].RepairAfter = &after
		c.more(s)
		got := control.PlanSeats(s, &s.Groups[0], c.voting, func(id uint64) control.Health {
			if slices.Contains(c.down, id) {
				return control.Health{Down: time.Hour}
			}
			return control.Health{Up: true}
		})
		if got == nil {
			got = &control.Seats{}
		}
		if got.In != c.in || got.Out != c.out {
			t.Errorf("%s: %+v, want %d instead of %d", name, got, c.in, c.out)
		}
	}
}

// toRest carries decisions out until there are none.
func toRest(t *testing.T, f *fixture, down, full map[uint64]bool) {
	t.Helper()
	health := func(id uint64) control.Health {
		if down[id] {
			return control.Health{Down: time.Hour}
		}
		return control.Health{Up: true, Full: full[id]}
	}
	for step := 0; ; step++ {
		s := f.state()
		g, _ := s.GroupNamed("g")
		c := control.PlanSeats(s, g, nil, health)
		if c == nil {
			atRest(t, s, g, down, full)
			return
		}
		if in, ok := s.Node(c.In); step > 40 || c.In != 0 && (!ok || in.Drain || down[c.In] || full[c.In]) {
			t.Fatalf("step %d: %+v on %+v, down %v", step, c, g.Members, down)
		}
		f.must(control.Command{Seats: c})
		g, _ = f.state().GroupNamed("g")
		up := 0
		for _, m := range g.Voters() {
			if !down[m.Node] {
				up++
			}
		}
		if 2*up <= len(g.Voters()) {
			t.Fatalf("after %+v no majority is up: %+v, down %v", c, g.Members, down)
		}
		checkState(t, f.state())
	}
}

// atRest checks that no decision is left that would be safe and of use.
func atRest(t *testing.T, s *control.State, g *control.Group, down, full map[uint64]bool) {
	t.Helper()
	var free, spare, standing int // who could take a seat, who only in need, voters that are up
	voters := g.Voters()
	for _, m := range g.Members {
		n, _ := s.Node(m.Node)
		switch {
		case m.Role == control.RoleVoter && !down[m.Node]:
			standing++
		case m.Role == control.RoleVoter || down[m.Node] || full[m.Node] || n.Drain:
		case m.Spare:
			spare++
		case !m.Pinned:
			free++
		}
	}
	if 2*standing <= len(voters) {
		return // nobody can agree to anything
	}
	if len(voters) < control.MaxVoters && free > 0 {
		t.Fatalf("a seat stays free: %+v, down %v", g.Members, down)
	}
	for _, m := range voters {
		rest := standing
		if !down[m.Node] {
			rest--
		}
		n, _ := s.Node(m.Node)
		if n.Drain && (free+spare > 0 || 2*rest > len(voters)-1) {
			t.Fatalf("node %d keeps its seat while it is being drained: %+v, down %v", m.Node, g.Members, down)
		}
		if down[m.Node] && spare > 0 {
			t.Fatalf("node %d is down and keeps its seat, a spare has none: %+v, down %v", m.Node, g.Members, down)
		}
	}
}

// A group has the cluster's repair-after until it gets one of its own, off being one, and again when it gives that up.
func TestRepairAfter(t *testing.T) {
	f := newFixture(t)
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: map[string]string{"n1": "/a"}}})
	after := func() time.Duration {
		s := f.state()
		g, _ := s.GroupNamed("g")
		return s.RepairAfter(g)
	}
	off, own, short := time.Duration(0), time.Hour, time.Second
	for i, step := range []struct {
		c    control.Command
		want time.Duration
	}{
		{control.Command{SetCluster: &control.SetCluster{RepairAfter: time.Minute}}, time.Minute},
		{control.Command{SetGroup: &control.SetGroup{Group: "g", RepairAfter: &off}}, 0},
		{control.Command{SetCluster: &control.SetCluster{RepairAfter: 2 * time.Minute}}, 0},
		{control.Command{SetGroup: &control.SetGroup{Group: "g", RepairAfter: &own}}, own},
		{control.Command{SetGroup: &control.SetGroup{Group: "g", InheritRepair: true}}, 2 * time.Minute},
		{control.Command{SetCluster: &control.SetCluster{}}, 0},
	} {
		if f.must(step.c); after() != step.want {
			t.Errorf("step %d: %v, want %v", i, after(), step.want)
		}
	}
	for _, c := range []control.Command{
		{SetCluster: &control.SetCluster{RepairAfter: short}}, {SetCluster: &control.SetCluster{RepairAfter: -time.Hour}},
		{SetGroup: &control.SetGroup{Group: "g", RepairAfter: &short}},
	} {
		if r := f.apply(c); r.Error == nil || after() != 0 {
			t.Errorf("%+v was taken: %v", c, after())
		}
	}
}

func TestLifeAdmits(t *testing.T) {
	known := control.Life{Boot: 1, Age: 10}
	for next, want := range map[control.Life]bool{
		{}: true, {Boot: 1, Age: 10}: true, {Boot: 1, Age: 9}: true, {Boot: 2, Age: 11}: true, {Boot: 2, Age: 10}: false, {Boot: 2, Age: 3}: false,
	} {
		if known.Admits(next) != want {
			t.Errorf("%+v after %+v: want %v", next, known, want)
		}
	}
}
