package test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// zoned runs one node for each zone.
func zoned(t *testing.T, zones ...string) (context.Context, *farm.Farm) {
	t.Helper()
	ctx, f := cluster(t, 0)
	for _, zone := range zones {
		if _, err := f.Add(ctx, "--zone", zone); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WaitVoting(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, f
}

// TestSpareTakesTheSeatOfALostVoter: five of six vote, so that no zone has more of them than it must. In a group of three
// voters and two spares one voter dies while others write. Once it is down for repair_after the spare of its zone takes its
// seat, though another was there first. When it comes back it is told so, and is a spare itself.
func TestSpareTakesTheSeatOfALostVoter(t *testing.T) {
	t.Parallel()
	ctx, f := zoned(t, "a", "a", "a", "b", "c", "c")
	n1, n2, n4, n5, n6 := f.Nodes[0], f.Nodes[1], f.Nodes[3], f.Nodes[4], f.Nodes[5]
	var wide []string
	for _, n := range f.Nodes {
		wide = append(wide, n.Name+":"+n.Tree+"-wide")
	}
	run(t, f, n1, "dir", "create", "wide", "--on", strings.Join(wide, ","))
	if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		want := map[string]string{"n1": votes, "n2": votes, "n3": observes, "n4": votes, "n5": votes, "n6": votes}
		if got := roles(shown(t, f, n1, "wide")); !maps.Equal(got, want) {
			return fmt.Errorf("of the zones a, a, a, b, c, c five vote: %v, want %v", got, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	shareBy(t, f, []*farm.Node{n1, n4, n5}, nil)
	run(t, f, n1, "group", "members", group, "add", n2.Name+":"+n2.Tree, n6.Name+":"+n6.Tree, "--role", "spare")
	refused(t, api.CodeUsage, "web", "too short", "group", "set", group, "--repair-after", "1s", "--server", socket(n1))
	run(t, f, n1, "group", "set", group, "--repair-after", "10s")
	m := &membership{t: t, ctx: ctx, f: f, kept: map[string]int{}}
	m.while("before", []*farm.Node{n1}, map[string]string{"n1": votes, "n4": votes, "n5": votes, "n2": observes, "n6": observes}, func() {})

	killed := time.Now()
	m.while("a spare takes over", []*farm.Node{n1, n2}, map[string]string{"n1": votes, "n4": votes, "n6": votes, "n2": observes, "n5": "unknown"},
		func() {
			if err := n5.Kill(); err != nil {
				t.Fatal(err)
			}
		})
	after := time.Since(killed)
	if t.Logf("the spare votes %s after the voter died", after.Round(100*time.Millisecond)); after < 8*time.Second { // it was last heard of a second before
		t.Errorf("a spare took over after %s, repair_after is 10s", after)
	}
	if !slices.ContainsFunc(f.Nodes, func(n *farm.Node) bool {
		return regexp.MustCompile(`msg=seats .*group=web in=n6 out=n5 why="it is down for`).MatchString(n.Log())
	}) {
		t.Error("no log says why")
	}
	m.while("the lost comes back", []*farm.Node{n1, n6}, map[string]string{"n1": votes, "n4": votes, "n6": votes, "n2": observes, "n5": observes},
		func() { restart(t, ctx, f, n5, "") })
	if !regexp.MustCompile(`(?m)msg=role .*group=web from=voter to=observer`).MatchString(n5.Log()) {
		t.Error("the log of the one that came back does not say that it only observes")
	}
	m.refusedUnchanged(n5, api.CodeConflict, "n5", "a member already, as spare", "add", n5.Name+":"+n5.Tree)
	write(t, n5, "again", "written by the one that came back")
	settle(t, ctx, among(f, n1, n2, n4, n5, n6))
}
