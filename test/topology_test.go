package test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// fedBy is where an observer has its feed from; from "" stands for any voter.
type fedBy struct {
	from string
	hops int
}

// showsFeeds waits until `group show` says of exactly these observers by whom they are fed, at which depth, and that they
// are live.
func showsFeeds(t *testing.T, ctx context.Context, f *farm.Farm, at *farm.Node, want map[string]fedBy) (g api.Group) {
	t.Helper()
	patience, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := farm.Poll(patience, 50*time.Millisecond, func() error {
		g = shown(t, f, at)
		who, got := roles(g), map[string]fedBy{}
		for _, r := range g.Replicas {
			if who[r.Node] != observes || r.Mode != "live" {
				continue
			}
			by := fedBy{r.Upstream, r.Hops}
			if who[r.Upstream] == votes {
				by.from = ""
			}
			got[r.Node] = by
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("fed are %v, want %v: %+v", got, want, g.Replicas)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

// feedAfter is the first decision after a time by which a node was fed by another, as its log has it.
func feedAfter(t *testing.T, ctx context.Context, n *farm.Node, after time.Time, source string) (at time.Time, mode, rule string) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^time=(\S+) .*msg=fed .*source=` + source + ` mode=(\S+) rule=(\S+) `)
	patience, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := farm.Poll(patience, 20*time.Millisecond, func() error {
		for _, said := range line.FindAllStringSubmatch(n.Log(), -1) {
			when, err := time.Parse(time.RFC3339Nano, said[1])
			if err != nil {
				return farm.Final(err)
			}
			if !when.Before(after) {
				at, mode, rule = when, said[2], said[3]
				return nil
			}
		}
		return fmt.Errorf("%s says nowhere that node %s feeds it", n.Name, source)
	}); err != nil {
		t.Fatal(err)
	}
	return at, mode, rule
}

// reattach is what losing the middle of a chain may cost those below it; the promise is 2 s, and the rest is for a machine
// that others use.
const reattach = 5 * time.Second

// TestChainIsMendedAroundADeadMiddle: observers are fed as the topology says, whichever it is set to. The middle one of a
// chain is killed: the one below it attaches above it, by DIFF, in time, and has what is written then. When the middle one
// is back it takes its place again.
func TestChainIsMendedAroundADeadMiddle(t *testing.T) {
	ctx, f := cluster(t, 5)
	n1, n2, n3, n4, n5 := f.Nodes[0], f.Nodes[1], f.Nodes[2], f.Nodes[3], f.Nodes[4]
	if err := f.WaitVoting(ctx); err != nil {
		t.Fatal(err)
	}
	shareBy(t, f, []*farm.Node{n1, n2}, []*farm.Node{n3, n4, n5})
	write(t, n5, "from the end", "1")
	showsFeeds(t, ctx, f, n1, map[string]fedBy{"n3": {"", 1}, "n4": {"", 1}, "n5": {"", 1}})
	run(t, f, n1, "group", "set", group, "--topology", "tree:2")
	showsFeeds(t, ctx, f, n1, map[string]fedBy{"n3": {"", 1}, "n4": {"", 1}, "n5": {"n3", 2}})
	refused(t, api.CodeUsage, "web", "tree:1|tree:K", "group", "set", group, "--topology", "tree:1", "--server", socket(n1))
	run(t, f, n1, "group", "set", group, "--topology", "chain")
	chain := map[string]fedBy{"n3": {"", 1}, "n4": {"n3", 2}, "n5": {"n4", 3}}
	if g := showsFeeds(t, ctx, f, n5, chain); g.Topology != "chain" {
		t.Errorf("the topology is shown as %q", g.Topology)
	}
	settle(t, ctx, f)

	killed := time.Now().Truncate(time.Millisecond) // as the logs count
	if err := n4.Kill(); err != nil {
		t.Fatal(err)
	}
	write(t, n1, "next", "after the middle was killed")
	appears(t, ctx, n5, "next", "after the middle was killed")
	at, mode, rule := feedAfter(t, ctx, n5, killed, "3")
	t.Logf("n5 is fed by n3, by %s (%s), %s after n4 was killed; it has the next edit", mode, rule, at.Sub(killed).Round(time.Millisecond))
	if mode != "diff" || at.Sub(killed) > reattach {
		t.Errorf("by %s (%s) after %s, want diff within %s", mode, rule, at.Sub(killed), reattach)
	}
	mended := showsFeeds(t, ctx, f, n1, map[string]fedBy{"n3": {"", 1}, "n5": {"n3", 2}})
	for _, r := range mended.Replicas {
		if r.Node == "n4" && r.Mode != "down" || r.Node == "n5" && (r.Rule != rule || r.Why == "") {
			t.Errorf("shown: %+v", r)
		}
	}
	restart(t, ctx, f, n4, "")
	showsFeeds(t, ctx, f, n1, chain)
	write(t, n4, "again", "in its place")
	settle(t, ctx, f)
}
