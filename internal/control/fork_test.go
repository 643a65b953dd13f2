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
	c := control.ForkGroup{Group: "web", Was: [16]byte{5}, To: [16]byte{6}, Fork: fork, Node: "n2", InSync: 1}

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
	f.refused(control.Command{ForkGroup: &late}, "conflict")
	late.InSync = g.InSync.Version
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
	f.must(control.Command{ForkGroup: &control.ForkGroup{Group: "web", Was: [16]byte{5}, To: [16]byte{6}, Node: "n7", InSync: 1, Fork: control.Fork{
		Before: [16]byte{5}, Index: 9, Term: 3, Start: 10, Cause: control.ForkRecover,
	}}})
	g := group(t, f, "web")
	m, _ := g.Member(7)
	if m.Role != control.RoleVoter || len(g.Voters()) != control.MaxVoters || g.Fork.Seed != m.Replica {
		t.Errorf("%+v of %+v", m, g.Members)
	}
}

// TestForkThatComesLate: a recovery takes effect only on the version of the in-sync set that its seed saw while it was
// stopped. Every way in which the group may have gone on since raises that first.
func TestForkThatComesLate(t *testing.T) {
	first := control.ForkGroup{Group: "web", Was: [16]byte{5}, To: [16]byte{6}, Node: "n2", InSync: 1, Fork: control.Fork{
		Before: [16]byte{5}, Index: 90, Term: 3, Start: 95, Cause: control.ForkRecover,
	}}
	for name, meanwhile := range map[string]func(f *fixture, g *control.Group){
		"the seed gave up": func(f *fixture, g *control.Group) {
			f.must(control.Command{RefuseFork: &control.RefuseFork{Group: g.ID, InSync: g.InSync.Version}})
		},
		"its set was bound": func(f *fixture, g *control.Group) { bindSet(f, g) },
		"it was forked": func(f *fixture, g *control.Group) {
			c := first
			c.To = [16]byte{7}
			f.must(control.Command{ForkGroup: &c})
		},
		"twice, and is back": func(f *fixture, g *control.Group) { bindSet(f, g); bindSet(f, group(f.t, f, "web")) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.join("n2", "n3")
			f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "web", Paths: map[string]string{"n1": "/a", "n2": "/a", "n3": "/a"}, History: [16]byte{5}}})
			g := group(t, f, "web")
			meanwhile(f, g)
			if now := group(t, f, "web").InSync.Version; now <= g.InSync.Version {
				t.Errorf("the in-sync set is at version %d, as before: who waits for the fork's fate does not see it", now)
			}
			f.refused(control.Command{ForkGroup: &first}, "conflict")
		})
	}
}

func bindSet(f *fixture, g *control.Group) {
	f.must(control.Command{SetInSync: &control.SetInSync{Group: g.ID, History: g.History, Term: g.InSync.Term + 1, Version: g.InSync.Version,
		Replicas: []uint64{1, 2, 3}[:1+g.InSync.Version%3], Why: "test"}})
}

// TestRefusedForks: raising the version keeps the set, comes once, and never lowers anything.
func TestRefusedForks(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "web", Paths: map[string]string{"n1": "/a", "n2": "/a", "n3": "/a"}, History: [16]byte{5}}})
	bindSet(f, group(t, f, "web"))
	was := *group(t, f, "web")
	c := control.Command{RefuseFork: &control.RefuseFork{Group: was.ID, InSync: was.InSync.Version}}
	f.must(c)
	g := group(t, f, "web")
	want := was.InSync
	want.Version++
	if g.History != was.History || g.InSync.Version != want.Version || !slices.Equal(g.InSync.Replicas, want.Replicas) || g.InSync.Term != want.Term || g.InSync.History != want.History {
		t.Errorf("%+v, want %+v", g.InSync, want)
	}
	audit := len(f.state().Audit)
	f.must(c)
	f.must(control.Command{RefuseFork: &control.RefuseFork{Group: was.ID}})
	if g := group(t, f, "web"); g.InSync.Version != want.Version || len(f.state().Audit) != audit {
		t.Errorf("asked for again: %+v, %d audit records more", g.InSync, len(f.state().Audit)-audit)
	}
	// A control group that went back knows less than who was told by it.
	f.must(control.Command{RefuseFork: &control.RefuseFork{Group: was.ID, InSync: 40}})
	if g := group(t, f, "web"); g.InSync.Version != 41 {
		t.Errorf("%+v", g.InSync)
	}
	f.refused(control.Command{RefuseFork: &control.RefuseFork{Group: 99}}, "not_found")
}

// TestPastHistories: what forks left behind is known for good, also what a recovery went on from that was no history of
// the group's as the control group had it.
func TestPastHistories(t *testing.T) {
	f := newFixture(t)
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "web", Paths: map[string]string{"n1": "/a"}, History: [16]byte{5}}})
	fork := func(was, before, to byte) {
		f.must(control.Command{ForkGroup: &control.ForkGroup{Group: "web", Was: [16]byte{was}, To: [16]byte{to}, Node: "n1", InSync: group(t, f, "web").InSync.Version,
			Fork: control.Fork{Before: [16]byte{before}, Index: 9, Term: 3, Start: 10, Cause: control.ForkRecover}}})
	}
	fork(5, 5, 6)
	fork(6, 77, 7)
	g := group(t, f, "web")
	for h, want := range map[byte]bool{5: true, 6: true, 7: true, 77: true, 8: false, 0: false} {
		if g.Knows([16]byte{h}) != want {
			t.Errorf("history %d: known %v, of %v", h, !want, g.Past)
		}
	}
	for to := byte(8); to < 108; to++ {
		if to != 77 {
			fork(group(t, f, "web").History[0], group(t, f, "web").History[0], to)
		}
	}
	if g := group(t, f, "web"); len(g.Past) != 64 || !g.Knows([16]byte{106}) || g.Knows([16]byte{5}) {
		t.Errorf("after a hundred forks: %d", len(g.Past))
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
