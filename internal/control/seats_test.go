package control_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// On any farm that does not change, the decisions come to an end; none leaves a group without a majority that is up, none
// gives a seat to a node that is down or drained, and in the end no node that could be spared a seat while drained has one.
func TestPlanSeatsConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		f := newFixture(t)
		paths := map[string]string{"n1": "/a"}
		for i := 2; i <= 2+rng.IntN(7); i++ {
			name := fmt.Sprintf("n%d", i)
			f.must(control.Command{Join: &control.Join{Token: "t1", Name: name, Zone: []string{"", "a", "b", "c"}[rng.IntN(4)]}})
			paths[name] = "/a"
		}
		f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: paths}})
		after := time.Minute
		f.must(control.Command{SetGroup: &control.SetGroup{Group: "g", RepairAfter: &after}})
		f.apply(control.Command{Drain: &control.Drain{Node: fmt.Sprintf("n%d", 1+rng.IntN(len(paths)))}})
		down := map[uint64]bool{}
		for id := range uint64(len(paths)) {
			down[id+1] = rng.IntN(5) == 0
		}
		health := func(id uint64) control.Health {
			if down[id] {
				return control.Health{Down: time.Hour}
			}
			return control.Health{Up: true}
		}
		for step := 0; ; step++ {
			s := f.state()
			g, _ := s.GroupNamed("g")
			c := control.PlanSeats(s, g, health)
			if c == nil {
				break
			}
			if in, ok := s.Node(c.In); step > 40 || c.In != 0 && (!ok || in.Drain || down[c.In]) {
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
