package control_test

import (
	"slices"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
)

func TestForkGroup(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	paths := map[string]string{"n1": "/a", "n2": "/a", "n3": "/a"}
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "web", Paths: paths, History: [16]byte{5}}})
	fork := control.Fork{Before: [16]byte{5}, Index: 90, Term: 3, Start: 95, Cause: control.ForkRecover}
	c := control.ForkGroup{Group: "web", Was: [16]byte{5}, To: [16]byte{6}, Fork: fork, Node: "n2"}

	for name, change := range map[string]func(c *control.ForkGroup){
		"not_found": func(c *control.ForkGroup) { c.Group = "nope" },
		"conflict":  func(c *control.ForkGroup) { c.Was = [16]byte{4} },
		"usage":     func(c *control.ForkGroup) { c.Fork.Start = 90 },
	} {
		bad := c
		change(&bad)
		f.refused(control.Command{ForkGroup: &bad}, name)
	}
	stranger := c
	stranger.Node = "n9"
	f.refused(control.Command{ForkGroup: &stranger}, "not_found")

	marker := group(t, f, "web").Marker()
	f.must(control.Command{By: "n1", ForkGroup: &c})
	g := group(t, f, "web")
	if g.History != [16]byte{6} || g.Fork == nil || g.Fork.Seed != 2 || g.Fork.Start != 95 || len(g.Initial) != 0 || !slices.Equal(g.Fork.Members, []uint64{1, 2, 3}) {
		t.Errorf("%+v, fork %+v", g, g.Fork)
	}
	if g.Marker() != marker {
		t.Errorf("the marker of its bindings changed from %s to %s", marker, g.Marker())
	}
	audit := f.state().Audit
	if last := audit[len(audit)-1]; last.By != "n1" || last.What == "" {
		t.Errorf("audit %+v", last)
	}
	// The same again is no change; a second recovery that knows nothing of the first is refused.
	f.must(control.Command{ForkGroup: &c})
	late := c
	late.To, late.Node = [16]byte{7}, "n3"
	f.refused(control.Command{ForkGroup: &late}, "conflict")
	if n := len(f.state().Audit); n != len(audit) {
		t.Errorf("%d audit records more", n-len(audit))
	}
	late.Was, late.Fork.Before = [16]byte{6}, [16]byte{6}
	f.must(control.Command{ForkGroup: &late})
	if g := group(t, f, "web"); g.Marker() != marker || g.Fork.Seed != 3 {
		t.Errorf("after a second fork: marker %s, %+v", g.Marker(), g.Fork)
	}
}

func TestRestoredGroup(t *testing.T) {
	f := newFixture(t)
	f.join("n2")
	r := &control.ForkGroup{Group: "web", To: [16]byte{9}, Node: "n2", Fork: control.Fork{
		Before: [16]byte{1}, Index: 50, Term: 2, Start: 51, Cause: control.ForkRestore, Upload: "00aa",
	}}
	c := &control.CreateGroup{Name: "web", Paths: map[string]string{"n1": "/a", "n2": "/b"}, History: [16]byte{1}, Restore: r}
	f.must(control.Command{CreateGroup: c})
	g := group(t, f, "web")
	if g.History != [16]byte{9} || len(g.Initial) != 0 || g.Fork.Upload != "00aa" || g.Fork.Seed != g.Members[1].Replica {
		t.Errorf("%+v, fork %+v: nobody but the seed may begin it, and with nothing but the upload", g, g.Fork)
	}
	bad := *r
	bad.Node, bad.Group = "n9", "other"
	f.refused(control.Command{CreateGroup: &control.CreateGroup{Name: "other", Paths: map[string]string{"n1": "/c"}, Restore: &bad}}, "not_found")
}

// TestObserverBeginsAHistory: then it votes, and there are not too many.
func TestObserverBeginsAHistory(t *testing.T) {
	f := newFixture(t)
	names := []string{"n2", "n3", "n4", "n5", "n6", "n7"}
	f.join(names...)
	paths := map[string]string{"n1": "/a"}
	for _, n := range names {
		paths[n] = "/a"
	}
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "web", Paths: paths, History: [16]byte{5}}})
	f.must(control.Command{ForkGroup: &control.ForkGroup{Group: "web", Was: [16]byte{5}, To: [16]byte{6}, Node: "n7", Fork: control.Fork{
		Before: [16]byte{5}, Index: 9, Term: 3, Start: 10, Cause: control.ForkRecover,
	}}})
	g := group(t, f, "web")
	m, _ := g.Member(7)
	if m.Role != control.RoleVoter || len(g.Voters()) != control.MaxVoters || g.Fork.Seed != m.Replica {
		t.Errorf("%+v of %+v", m, g.Members)
	}
}

func group(t *testing.T, f *fixture, name string) *control.Group {
	t.Helper()
	g, ok := f.state().GroupNamed(name)
	if !ok {
		t.Fatalf("no group %s", name)
	}
	return g
}
