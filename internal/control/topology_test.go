package control

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// crowd is a group of some voters and observers; replica i lives on node i.
func crowd(topology string, voters, observers int) *Group {
	g := &Group{ID: 9, Topology: topology, NextReplica: 1}
	for i := range voters + observers {
		m := Member{Replica: g.NextReplica, Node: g.NextReplica, Role: RoleVoter}
		if i >= voters {
			m.Role = RoleObserver
		}
		g.Members = append(g.Members, m)
		g.NextReplica++
	}
	return g
}

func noZone(uint64) string { return "" }

func TestFeeds(t *testing.T) {
	for _, c := range []struct {
		topology  string
		observers int
		want      []uint64 // upstream of each observer; 0: a voter
	}{
		{"star", 4, []uint64{0, 0, 0, 0}},
		{"", 2, []uint64{0, 0}},
		{"chain", 4, []uint64{0, 4, 5, 6}},
		{"chain", 10, []uint64{0, 4, 5, 6, 7, 8, 9, 10, 0, 12}},
		{"tree:2", 8, []uint64{0, 0, 4, 4, 5, 5, 6, 6}},
		{"tree:3", 7, []uint64{0, 0, 0, 4, 4, 4, 5}},
		{"auto", 10, []uint64{0, 0, 0, 0, 0, 0, 0, 0, 4, 4}},
	} {
		g := crowd(c.topology, 3, c.observers)
		f := feeds(g, noZone)
		for i, want := range c.want {
			got := f[uint64(4+i)].Upstream
			if want == 0 && got <= 3 && got > 0 {
				continue
			}
			if got != want {
				t.Errorf("%s of %d: observer %d is fed by %d, want %d", c.topology, c.observers, i, got, want)
			}
		}
	}
	chain := feeds(crowd("chain", 3, 3), noZone)
	if f := chain[6].Fallbacks; len(f) != 2 || f[0] != 4 || f[1] > 3 {
		t.Errorf("the third of a chain falls back on %v, want the first, then a voter", f)
	}
	if f := chain[5].Fallbacks; len(f) != 2 || f[0] > 3 || f[1] > 3 || f[0] == f[1] {
		t.Errorf("the second of a chain falls back on %v, want two voters", f)
	}
	if got := feeds(&Group{Members: []Member{{Replica: 1, Node: 1, Role: RoleObserver}}}, noZone); len(got) != 0 {
		t.Errorf("without voters: %v", got)
	}
}

func TestParseTopology(t *testing.T) {
	for s, want := range map[string]int{"": 0, "star": 0, "chain": 1, "tree:2": 2, "tree:64": 64, "auto": autoFan,
		"tree:1": -1, "tree:0": -1, "tree:65": -1, "tree:": -1, "tree:x": -1, "tree": -1, "Star": -1, "ring": -1, "8": -1} {
		if fan, ok := parseTopology(s); ok != (want >= 0) || ok && fan != want {
			t.Errorf("%q: %d, %v", s, fan, ok)
		}
	}
}

// depths walks every way that the members could be attached, upstream or any fallback, and returns how deep each is
// by its upstreams alone and at worst.
func depths(t *testing.T, g *Group, f map[uint64]Feed) (assigned, worst map[uint64]int) {
	assigned, worst = map[uint64]int{}, map[uint64]int{}
	for _, v := range g.Voters() {
		assigned[v.Node], worst[v.Node] = 0, 0
	}
	var walk func(node uint64, depth map[uint64]int, next func(Feed) []uint64, open map[uint64]bool) int
	walk = func(node uint64, depth map[uint64]int, next func(Feed) []uint64, open map[uint64]bool) int {
		if d, ok := depth[node]; ok {
			return d
		}
		if open[node] {
			t.Fatalf("node %d is in a loop", node)
		}
		open[node] = true
		deepest := 0
		for _, n := range next(f[node]) {
			deepest = max(deepest, walk(n, depth, next, open))
		}
		delete(open, node)
		depth[node] = deepest + 1
		return depth[node]
	}
	for node := range f {
		walk(node, assigned, func(f Feed) []uint64 { return []uint64{f.Upstream} }, map[uint64]bool{})
		walk(node, worst, func(f Feed) []uint64 { return append([]uint64{f.Upstream}, f.Fallbacks...) }, map[uint64]bool{})
	}
	return assigned, worst
}

// TestFeedsHoldTheirPromises: for groups of any size, with and without zones, after any history of members coming and
// going.
func TestFeedsHoldTheirPromises(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	for round := range 300 {
		topology := []string{"star", "chain", "auto", "tree:2", "tree:3", fmt.Sprintf("tree:%d", 2+rng.IntN(20))}[rng.IntN(6)]
		fan, _ := parseTopology(topology)
		zones := rng.IntN(4)
		zone := func(node uint64) string {
			if zones == 0 {
				return ""
			}
			return fmt.Sprint("z", node%uint64(zones))
		}
		g := crowd(topology, 1+rng.IntN(5), rng.IntN(400))
		for range rng.IntN(30) { // churn
			g.Members = seated(g.Members, zone)
			if i := rng.IntN(len(g.Members)); g.Members[i].Role == RoleObserver {
				g.Members = slices.Delete(g.Members, i, i+1)
			}
			if rng.IntN(2) == 0 {
				g.Members = append(g.Members, Member{Replica: g.NextReplica, Node: g.NextReplica, Role: RoleObserver})
				g.NextReplica++
			}
		}
		f := feeds(g, zone)
		observers := len(g.Members) - len(g.Voters())
		if len(f) != observers {
			t.Fatalf("round %d: %d feeds for %d observers", round, len(f), observers)
		}
		fed, perZone := map[uint64]int{}, map[string]int{}
		voter := map[uint64]bool{}
		for _, v := range g.Voters() {
			voter[v.Node] = true
		}
		for node, feed := range f {
			fed[feed.Upstream]++
			if voter[feed.Upstream] {
				perZone[zone(node)]++
			} else if zone(node) != zone(feed.Upstream) {
				t.Errorf("round %d: observer %d is fed by an observer of another zone", round, node)
			}
			all := append([]uint64{node, feed.Upstream}, feed.Fallbacks...)
			slices.Sort(all)
			if len(slices.Compact(all)) != 2+len(feed.Fallbacks) {
				t.Errorf("round %d: %d has the same source twice: %+v", round, node, feed)
			}
			if want := min(2, len(g.Voters())-1); len(feed.Fallbacks) < want {
				t.Errorf("round %d: %d has %d fallbacks, want %d", round, node, len(feed.Fallbacks), want)
			}
		}
		assigned, worst := depths(t, g, f)
		if fan == 0 {
			continue
		}
		rows := rowsOf(g.Members, zone)
		for node, n := range fed {
			if !voter[node] && n > fan {
				t.Errorf("round %d: %s: observer %d feeds %d", round, topology, node, n)
			}
		}
		for node := range f {
			if worst[node] > MaxHops {
				t.Errorf("round %d: %s: %d may be %d hops away", round, topology, node, worst[node])
			}
			n := len(rows[zone(node)])
			if fan > 1 && assigned[node] > int(math.Ceil(math.Log(float64(n))/math.Log(float64(fan)))+1) {
				t.Errorf("round %d: %s of %d: %d is %d hops away", round, topology, n, node, assigned[node])
			}
		}
		for z, n := range perZone {
			blocks := 1 + len(rows[z])/(tree{seats: rows[z], width: 1, fan: fan}).block()
			if n > fan*blocks {
				t.Errorf("round %d: %s: the voters send %d copies into zone %q of %d", round, topology, n, z, len(rows[z]))
			}
		}
	}
}

// TestSmallChangesMoveFew: one observer that comes or goes moves itself, those that it fed, and who takes its seat.
func TestSmallChangesMoveFew(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for _, topology := range []string{"star", "chain", "tree:2", "tree:8", "auto"} {
		fan, _ := parseTopology(topology)
		g := crowd(topology, 3, 200)
		g.Members = seated(g.Members, noZone)
		before := feeds(g, noZone)
		for step := range 200 {
			if rng.IntN(2) == 0 {
				g.Members = append(g.Members, Member{Replica: g.NextReplica, Node: g.NextReplica, Role: RoleObserver})
				g.NextReplica++
			} else {
				i := 3 + rng.IntN(len(g.Members)-3)
				g.Members = slices.Delete(g.Members, i, i+1)
			}
			g.Members = seated(g.Members, noZone)
			after := feeds(g, noZone)
			moved := 0
			for node, f := range after {
				if was, ok := before[node]; ok && was.Upstream != f.Upstream {
					moved++
				}
			}
			if moved > fan+1 {
				t.Errorf("%s, step %d: %d of %d moved", topology, step, moved, len(after))
			}
			before = after
		}
	}
}

// TestAThousandInATree: the bar of the issue, as far as assignment goes.
func TestAThousandInATree(t *testing.T) {
	g := crowd("tree:8", 3, 1000)
	f := feeds(g, noZone)
	root := 0
	for _, feed := range f {
		if feed.Upstream <= 3 {
			root++
		}
	}
	assigned, _ := depths(t, g, f)
	deepest := 0
	for _, d := range assigned {
		deepest = max(deepest, d)
	}
	if root > 8 || deepest > 4 {
		t.Errorf("the voters send %d copies, the last observer is %d hops away", root, deepest)
	}
}

// TestFeedsPreferTheZone: an observer is fed from its own zone, as far as the state says which that is; a zone without
// a voter gets one copy.
func TestFeedsPreferTheZone(t *testing.T) {
	g := crowd("tree:8", 2, 6)
	s := &State{}
	for _, m := range g.Members {
		s.Nodes = append(s.Nodes, Node{ID: m.Node, Zone: []string{"east", "west", "north"}[m.Node%3]})
	}
	far := 0
	for node, f := range s.Feeds(g) { // voters: 1 in west, 2 in north
		if s.zoneOf(node) != s.zoneOf(f.Upstream) {
			if s.zoneOf(node) != "east" {
				t.Errorf("%d of %s is fed by %d of %s", node, s.zoneOf(node), f.Upstream, s.zoneOf(f.Upstream))
			}
			far++
		}
	}
	if far != 1 {
		t.Errorf("%d copies cross zones, want 1", far)
	}
}
