package control_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// farmOf has nodes 1 to n, called n1 and so on, and groups with the given voters, called g1 and so on.
func farmOf(n int, voters ...[]uint64) *control.State {
	s := &control.State{}
	for id := range uint64(n) {
		s.Nodes = append(s.Nodes, control.Node{ID: id + 1, Name: fmt.Sprintf("n%d", id+1)})
	}
	for i, nodes := range voters {
		g := groupOf(nodes...)
		g.ID, g.Name = uint64(i+1), fmt.Sprintf("g%d", i+1)
		s.Groups = append(s.Groups, *g)
	}
	return s
}

func TestPlanLeader(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	three := []uint64{1, 2, 3}
	steady := func(change func(s *control.State, leds []control.Led)) *control.Move {
		s := farmOf(3, three, three)
		leds := []control.Led{
			{Group: 1, Node: 1, Voters: three, Steady: time.Hour},
			{Group: 2, Node: 1, Voters: three, Steady: time.Hour},
		}
		change(s, leds)
		return control.PlanLeader(s, leds, now)
	}
	both := func(leds []control.Led, change func(*control.Led)) {
		for i := range leds {
			change(&leds[i])
		}
	}
	for name, c := range map[string]struct {
		change func(s *control.State, leds []control.Led)
		group  uint64 // 0: no move
		to     uint64
	}{
		"two on one of three": {func(*control.State, []control.Led) {}, 1, 2},
		"one each":            {func(_ *control.State, l []control.Led) { l[1].Node = 2 }, 0, 0},
		"no other could":      {func(_ *control.State, l []control.Led) { both(l, func(x *control.Led) { x.Voters = []uint64{1} }) }, 0, 0},
		"the second could":    {func(_ *control.State, l []control.Led) { l[0].Voters = []uint64{1} }, 2, 2},
		"fixed":               {func(_ *control.State, l []control.Led) { l[0].Fixed = true }, 2, 2},
		"all fixed":           {func(_ *control.State, l []control.Led) { both(l, func(x *control.Led) { x.Fixed = true }) }, 0, 0},
		"leads for less than that": {func(_ *control.State, l []control.Led) {
			both(l, func(x *control.Led) { x.Steady = control.SteadyAfter - 1 })
		}, 0, 0},
		"leads for just long": {func(_ *control.State, l []control.Led) {
			both(l, func(x *control.Led) { x.Steady = control.SteadyAfter })
		}, 1, 2},
		"chosen lately":            {func(s *control.State, _ []control.Led) { s.Groups[0].LeaderChosen = now.Add(1 - control.ChosenFor) }, 2, 2},
		"chosen long ago":          {func(s *control.State, _ []control.Led) { s.Groups[0].LeaderChosen = now.Add(-control.ChosenFor) }, 1, 2},
		"not to one being drained": {func(s *control.State, _ []control.Led) { s.Nodes[1].Drain = true }, 1, 3},
		"not to one that is gone":  {func(s *control.State, _ []control.Led) { s.Nodes[1].Removed = true }, 1, 3},
		"a group that is no more":  {func(s *control.State, _ []control.Led) { s.Groups[0].Deleted = true }, 2, 2},
		"a group nobody heard of":  {func(_ *control.State, l []control.Led) { l[0].Group = 9 }, 2, 2},
		"a node nobody heard of":   {func(_ *control.State, l []control.Led) { l[0].Voters = []uint64{1, 9}; l[1].Voters = nil }, 0, 0},
		"both others drained":      {func(s *control.State, _ []control.Led) { s.Nodes[1].Drain, s.Nodes[2].Drain = true, true }, 0, 0},
		"one away from even counts": {func(_ *control.State, l []control.Led) {
			l[1].Node, l[1].Voters = 2, []uint64{1, 2}
			l[0].Voters = []uint64{1, 2}
		}, 0, 0},
	} {
		m := steady(c.change)
		switch {
		case m == nil && c.group == 0:
		case m == nil || m.Group != c.group || m.To != c.to || m.From != 1 || m.Why == "":
			t.Errorf("%s: %+v, want group %d to %d", name, m, c.group, c.to)
		}
	}
}

// Whoever leads what and may lead what: each move makes the load strictly more even, so they come to an end, though every
// leader counts as steady at once; and in the end nothing could be moved to a node with two less.
func TestPlanLeaderComesToAnEnd(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		nodes := 1 + rng.IntN(7)
		var sets [][]uint64
		for range rng.IntN(20) {
			sets = append(sets, pick(rng, 1, nodes, 1+rng.IntN(nodes)))
		}
		s := farmOf(nodes, sets...)
		for i := range s.Nodes {
			s.Nodes[i].Drain = rng.IntN(6) == 0
		}
		var leds []control.Led
		for i, set := range sets {
			leds = append(leds, control.Led{Group: uint64(i + 1), Node: set[rng.IntN(len(set))], Voters: set, Fixed: rng.IntN(8) == 0, Steady: time.Hour})
		}
		for before := load(leds); ; before = load(leds) {
			m := control.PlanLeader(s, leds, time.Now())
			if m == nil {
				break
			}
			led := &leds[m.Group-1]
			if led.Node != m.From || led.Fixed || !slices.Contains(led.Voters, m.To) || s.Nodes[m.To-1].Drain {
				t.Fatalf("%+v of %+v", m, led)
			}
			led.Node = m.To
			if load(leds) >= before {
				t.Fatalf("%+v does not make it more even: %+v", m, leds)
			}
		}
		count := map[uint64]int{}
		for _, l := range leds {
			count[l.Node]++
		}
		for _, l := range leds {
			for _, v := range l.Voters {
				if !l.Fixed && !s.Nodes[v-1].Drain && count[l.Node] >= count[v]+2 {
					t.Fatalf("group %d stays at node %d, which leads %d, while node %d leads %d", l.Group, l.Node, count[l.Node], v, count[v])
				}
			}
		}
	}
}

// load is least when leaderships are spread evenly.
func load(leds []control.Led) (squares int) {
	count := map[uint64]int{}
	for _, l := range leds {
		count[l.Node]++
	}
	for _, c := range count {
		squares += c * c
	}
	return squares
}

func TestCheckLeave(t *testing.T) {
	observer := func(s *control.State, node uint64, spare, pinned bool) {
		s.Groups[0].Members = append(s.Groups[0].Members, control.Member{Node: node, Role: control.RoleObserver, Spare: spare, Pinned: pinned})
	}
	for name, c := range map[string]struct {
		voters []uint64
		up     []uint64
		ended  []uint64 // of those, where the first group's replica does not run
		voting []uint64 // by the configuration in force; nil: nobody says
		more   func(s *control.State)
		code   api.Code // empty: it may leave
		why    string
	}{
		"one of three":                           {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 3}},
		"the dead one of three":                  {voters: []uint64{1, 2, 3}, up: []uint64{2, 3}},
		"one of three, another is down":          {voters: []uint64{1, 2, 3}, up: []uint64{1, 2}, code: api.CodeConflict, why: "only 1 of 2"},
		"one of five, two others are down":       {voters: []uint64{1, 2, 3, 4, 5}, up: []uint64{1, 2, 3}, code: api.CodeConflict, why: "only 2 of 4"},
		"one of five, one other is down":         {voters: []uint64{1, 2, 3, 4, 5}, up: []uint64{1, 2, 3, 4}},
		"the dead one of five, two are dead":     {voters: []uint64{1, 2, 3, 4, 5}, up: []uint64{2, 3, 4}},
		"one of two":                             {voters: []uint64{1, 2}, up: []uint64{1, 2}},
		"the dead one of two":                    {voters: []uint64{1, 2}, up: []uint64{2}, code: api.CodeUnavailable, why: "lost its majority: only 1 of 2"},
		"the last one is another check's":        {voters: []uint64{1}, up: []uint64{1}},
		"no majority to agree":                   {voters: []uint64{1, 2, 3}, up: []uint64{1}, code: api.CodeUnavailable, why: "only 1 of 3"},
		"one of three, another's replica ended":  {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 3}, ended: []uint64{3}, code: api.CodeConflict, why: "only 1 of 2"},
		"one of three whose own replica ended":   {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 3}, ended: []uint64{1}},
		"two of three have ended":                {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 3}, ended: []uint64{1, 2}, code: api.CodeUnavailable, why: "only 1 of 3"},
		"an observer's replica has ended":        {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 4}, ended: []uint64{4}, more: func(s *control.State) { observer(s, 4, false, false) }, code: api.CodeConflict},
		"who only observes":                      {voters: []uint64{2, 3}, up: []uint64{2}, more: func(s *control.State) { observer(s, 1, false, false) }},
		"an observer takes over":                 {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 4}, more: func(s *control.State) { observer(s, 4, false, false) }},
		"a spare takes over":                     {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 4}, more: func(s *control.State) { observer(s, 4, true, true) }},
		"one that is to observe does not":        {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 4}, more: func(s *control.State) { observer(s, 4, false, true) }, code: api.CodeConflict},
		"an observer that is down does not":      {voters: []uint64{1, 2, 3}, up: []uint64{1, 2}, more: func(s *control.State) { observer(s, 4, false, false) }, code: api.CodeConflict},
		"one that is being drained does not":     {voters: []uint64{1, 2, 3}, up: []uint64{1, 2, 4}, more: func(s *control.State) { observer(s, 4, false, false); s.Nodes[3].Drain = true }, code: api.CodeConflict},
		"a dead learner beside one voter":        {voters: []uint64{1, 2}, up: []uint64{2}, voting: []uint64{2}},
		"a dead learner beside two of three":     {voters: []uint64{1, 2, 3, 4}, up: []uint64{2, 3}, voting: []uint64{2, 3, 4}},
		"a learner, and no majority to agree":    {voters: []uint64{1, 2, 3}, up: []uint64{1, 2}, voting: []uint64{2, 3}, code: api.CodeUnavailable, why: "only 1 of 2"},
		"the only voter, others learn":           {voters: []uint64{1, 2}, up: []uint64{1, 2}, voting: []uint64{1}},
		"the only voter, the learner is dead":    {voters: []uint64{1, 2}, up: []uint64{1}, voting: []uint64{1}, code: api.CodeConflict, why: "only 0 of 1"},
		"a voter beside a dead learner":          {voters: []uint64{1, 2, 3}, up: []uint64{1, 2}, voting: []uint64{1, 2}},
		"a group that is no more counts nothing": {voters: []uint64{1, 2, 3}, up: []uint64{1}, more: func(s *control.State) { s.Groups[0].Deleted = true }},
	} {
		s := farmOf(5, c.voters, []uint64{4, 5}) // the second group is none of node 1's, and dead
		if c.more != nil {
			c.more(s)
		}
		up := func(group, id uint64) bool {
			return slices.Contains(c.up, id) && !(group == s.Groups[0].ID && slices.Contains(c.ended, id))
		}
		voting := func(group uint64) []uint64 {
			if group == s.Groups[0].ID {
				return c.voting
			}
			return nil
		}
		for _, g := range []*control.Group{nil, &s.Groups[0]} {
			e := control.CheckLeave(s, "op", &s.Nodes[0], g, up, voting)
			switch {
			case e == nil && c.code == "":
			case e == nil || e.Code != c.code || !strings.Contains(e.Why, c.why) || !strings.Contains(e.Why, "g1") || e.Hint == "" || e.Subject != "n1":
				t.Errorf("%s: %+v, want %q because of %q", name, e, c.code, c.why)
			}
		}
		if e := control.CheckLeave(s, "op", &s.Nodes[0], &s.Groups[1], up, voting); e != nil {
			t.Errorf("%s: %+v for a group of which the node is no member", name, e)
		}
	}
}
