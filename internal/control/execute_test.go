package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

func TestInit(t *testing.T) {
	f := bareFixture(t)
	for _, c := range []control.Command{
		{AddToken: &control.Token{ID: "t", Expires: f.now.Add(time.Hour)}},
		{Join: &control.Join{Token: "t", Name: "n"}},
		{CreateGroup: &control.CreateGroup{Name: "g", Paths: map[string]string{"n": "/a"}}},
		{SetAddress: &control.SetAddress{Node: 1}},
	} {
		f.refused(c, "unavailable")
	}
	f.refused(control.Command{Init: &control.Init{Node: control.Node{Name: "n"}}}, "usage")
	f.refused(control.Command{Init: &control.Init{Cluster: control.Cluster{ID: "c"}, Node: control.Node{Name: "no name"}}}, "usage")
	f.refused(control.Command{}, "unavailable")
	init := control.Command{Init: &control.Init{Cluster: control.Cluster{ID: "c", CACert: []byte("cert"), CAKey: []byte("key")},
		Node: control.Node{ID: 77, Name: "n", Address: "h:1"}, History: [16]byte{5}}}
	if r := f.must(init); r.Node != 1 {
		t.Fatalf("first node has id %d", r.Node)
	}
	init.Init.Cluster.ID = "other"
	if r := f.must(init); r.Node != 1 || f.state().Cluster.ID != "c" {
		t.Fatal("a second Init changed the cluster")
	}
	s := f.state()
	g, ok := s.Group(control.ControlGroup)
	if !ok || g.Kind != control.KindControl || g.History != [16]byte{5} || len(g.Members) != 1 || g.Members[0].Replica != 1 ||
		!slices.Equal(g.Initial, []uint64{1}) || string(s.Cluster.CAKey) != "key" || !s.Cluster.Created.Equal(f.now) {
		t.Fatalf("state %+v", s)
	}
	f.refused(control.Command{}, "usage")
}

func TestTokens(t *testing.T) {
	f := newFixture(t)
	f.refused(control.Command{AddToken: &control.Token{ID: "t1", Expires: f.now.Add(time.Hour)}}, "conflict")
	f.refused(control.Command{AddToken: &control.Token{Expires: f.now.Add(time.Hour)}}, "conflict")
	f.refused(control.Command{AddToken: &control.Token{ID: "t2", Expires: f.now}}, "usage")
	f.refused(control.Command{RevokeToken: &control.RevokeToken{ID: "t9"}}, "not_found")
	join := func(name string) control.Command {
		return control.Command{Join: &control.Join{Token: "t1", Name: name}}
	}
	f.must(join("n2"))
	if tok, _ := f.state().Token("t1"); tok.Used != 1 {
		t.Fatalf("used %d times", tok.Used)
	}
	f.refused(control.Command{Join: &control.Join{Token: "t9", Name: "n3"}}, "denied")
	f.now = f.now.Add(time.Hour - 1)
	f.must(join("n3"))
	f.now = f.now.Add(1)
	if r := f.refused(join("n4"), "denied"); !strings.Contains(r.Error.Why, "expired") {
		t.Fatal(r.Error.Why)
	}
	f.must(control.Command{AddToken: &control.Token{ID: "t2", Expires: f.now.Add(time.Hour)}})
	f.must(control.Command{RevokeToken: &control.RevokeToken{ID: "t2"}})
	if r := f.refused(control.Command{Join: &control.Join{Token: "t2", Name: "n4"}}, "denied"); !strings.Contains(r.Error.Why, "revoked") {
		t.Fatal(r.Error.Why)
	}
	f.now = f.now.Add(48 * time.Hour)
	f.must(control.Command{AddToken: &control.Token{ID: "t3", Expires: f.now.Add(time.Hour)}})
	if n := len(f.state().Tokens); n != 1 {
		t.Fatalf("%d tokens; those that expired long ago should be gone", n)
	}
}

func TestJoin(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"", ".n", "-n", "n m", "n/m", "n\x00", "é", strings.Repeat("n", 64)} {
		f.refused(control.Command{Join: &control.Join{Token: "t1", Name: name}}, "usage")
	}
	f.join("n2", "N.2_x-y", strings.Repeat("n", 63), "n5", "n6", "n7")
	f.refused(control.Command{Join: &control.Join{Token: "t1", Name: "n2"}}, "conflict")
	g, _ := f.state().Group(control.ControlGroup)
	for i, m := range g.Members {
		want := control.RoleVoter
		if i >= 5 {
			want = control.RoleObserver
		}
		if m.Node != uint64(i+1) || m.Replica != m.Node || m.Role != want {
			t.Fatalf("member %d is %+v", i, m)
		}
	}
}

// Who is to take the place of a node that the cluster does not have, or no longer, does not join in silence as a new one.
func TestReplaceOfNobody(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	f.must(control.Command{Drain: &control.Drain{Node: "n3"}})
	f.must(control.Command{Members: &control.Members{Group: "control", Op: control.OpDemote, Node: "n3"}})
	f.must(control.Command{RemoveNode: &control.RemoveNode{Node: "n3"}})
	for name, hint := range map[string]string{"n22": "did you mean n2?", "n3": "leave --replace out"} {
		r := f.apply(control.Command{Join: &control.Join{Token: "t1", Name: name, Address: "h:9", Replace: true}})
		if e := r.Error; e == nil || e.Code != api.CodeNotFound || e.Subject != name || !strings.Contains(e.Hint, hint) || !strings.Contains(e.Hint, "--name") {
			t.Errorf("%s: %+v", name, e)
		}
		if _, ok := f.state().NodeNamed(name); ok {
			t.Errorf("%s has joined", name)
		}
	}
}

// A node that takes another's place gets its memberships under new replica ids.
func TestReplace(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: map[string]string{"n1": "/a", "n2": "/b"}}})
	r := f.must(control.Command{Join: &control.Join{Token: "t1", Name: "n2", Address: "h:9", Replace: true}})
	if r.Node != 4 {
		t.Fatalf("node id %d", r.Node)
	}
	s := f.state()
	old, _ := s.Node(2)
	if !old.Removed || old.ReplacedBy != 4 {
		t.Fatalf("old node %+v", old)
	}
	if n, _ := s.NodeNamed("n2"); n.ID != 4 {
		t.Fatalf("n2 is node %d", n.ID)
	}
	g, _ := s.GroupNamed("g")
	if want := (control.Member{Replica: 3, Node: 4, Role: control.RoleVoter, Path: "/b", Binding: 3}); g.Members[1] != want || g.NextReplica != 4 {
		t.Fatalf("group %+v", g)
	}
	c, _ := s.Group(control.ControlGroup)
	if m, ok := c.Member(4); !ok || m.Replica != 4 || m.Role != control.RoleVoter {
		t.Fatalf("control group %+v", c)
	}
	if _, ok := c.Member(2); ok {
		t.Fatal("the old node is still a member")
	}
	f.refused(control.Command{SetAddress: &control.SetAddress{Node: 2, Address: "h:1"}}, "denied")
	f.refused(control.Command{SetAddress: &control.SetAddress{Node: 99, Address: "h:1"}}, "denied")
	f.must(control.Command{SetAddress: &control.SetAddress{Node: 4, Address: "h:10", Version: "v2"}})
	checkState(t, f.state())
}

func TestCreateGroup(t *testing.T) {
	f := newFixture(t)
	f.join("n2")
	ok := control.CreateGroup{Name: "www", Paths: map[string]string{"n1": "/srv/www/", "n2": "/srv/./www"}, History: [16]byte{9}}
	r := f.must(control.Command{CreateGroup: &ok})
	g, _ := f.state().Group(r.Group)
	if r.Group != 2 || g.Ack != "quorum" || g.Conflict != "keep-both" || g.Mode != "readwrite" || g.Topology != "star" ||
		g.History != [16]byte{9} || !slices.Equal(g.Initial, []uint64{1, 2}) || g.Members[0].Path != "/srv/www" || g.Members[1].Path != "/srv/www" {
		t.Fatalf("group %+v", g)
	}
	for _, c := range []struct {
		change func(*control.CreateGroup)
		code   string
		says   string
	}{
		{func(g *control.CreateGroup) { g.Name = "www" }, "conflict", "exists"},
		{func(g *control.CreateGroup) { g.Name = "control" }, "conflict", "exists"},
		{func(g *control.CreateGroup) { g.Name = "a b" }, "usage", "letters"},
		{func(g *control.CreateGroup) { g.Ack = "qorum" }, "usage", "quorum"},
		{func(g *control.CreateGroup) { g.Mode = "ro" }, "usage", "readwrite"},
		{func(g *control.CreateGroup) { g.Topology = "ring" }, "usage", "star"},
		{func(g *control.CreateGroup) { g.Conflict = "newer" }, "usage", "newest"},
		{func(g *control.CreateGroup) { g.Conflict = "prefer:n9" }, "not_found", "no such node"},
		{func(g *control.CreateGroup) { g.Paths = nil }, "usage", "no node"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n9": "/x"} }, "not_found", "no such node"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "x"} }, "usage", "absolute"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": ""} }, "usage", "absolute"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "/x/.."} }, "usage", "root"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "/\xff"} }, "usage", "UTF-8"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "/srv/www"} }, "conflict", "overlaps"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "/srv/www/sub"} }, "conflict", "overlaps"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "/srv/"} }, "conflict", "overlaps"},
		{func(g *control.CreateGroup) { g.Paths = map[string]string{"n1": "/x/../srv"} }, "conflict", "overlaps"},
	} {
		bad := control.CreateGroup{Name: "other", Paths: map[string]string{"n1": "/other"}}
		c.change(&bad)
		r := f.refused(control.Command{CreateGroup: &bad}, c.code)
		if all := r.Error.Why + " " + r.Error.Hint; !strings.Contains(all, c.says) {
			t.Errorf("%+v: %q does not say %q", bad, all, c.says)
		}
	}
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "www2", Paths: map[string]string{"n1": "/srv/www2"},
		Ack: "all", Mode: "readwrite", Conflict: "prefer:n2"}})
	checkState(t, f.state())
}

// TestRenew: a voter with a damaged log gets another replica id and keeps its binding; asking twice changes nothing, and
// the only voter has nobody to heal from.
func TestRenew(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: map[string]string{"n1": "/a", "n2": "/b"}}})
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "one", Paths: map[string]string{"n1": "/c"}}})
	g, _ := f.state().GroupNamed("g")
	renew := control.Command{Renew: &control.Renew{Group: g.ID, Node: 2, Replica: 2}}
	for range 2 {
		f.must(renew)
		g, _ = f.state().GroupNamed("g")
		if want := (control.Member{Replica: 3, Node: 2, Role: control.RoleVoter, Path: "/b", Binding: 2}); g.Members[1] != want || g.NextReplica != 4 {
			t.Fatalf("group %+v", g)
		}
	}
	one, _ := f.state().GroupNamed("one")
	f.refused(control.Command{Renew: &control.Renew{Group: one.ID, Node: 1, Replica: 1}}, "conflict")
	f.refused(control.Command{Renew: &control.Renew{Group: one.ID, Node: 3, Replica: 1}}, "not_found")
	f.refused(control.Command{Renew: &control.Renew{Group: 99, Node: 1, Replica: 1}}, "not_found")
	checkState(t, f.state())
}

func TestBindAndUnbind(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3", "n4", "n5", "n6")
	f.must(control.Command{CreateGroup: &control.CreateGroup{Name: "g", Paths: map[string]string{"n1": "/a"}}})
	bind := func(n, dir string) control.Command {
		return control.Command{Bind: &control.Bind{Group: "g", Node: n, Path: dir}}
	}
	unbind := func(n string) control.Command { return control.Command{Unbind: &control.Unbind{Group: "g", Node: n}} }
	f.refused(unbind("n1"), "conflict") // the last
	f.refused(bind("n1", "/b"), "conflict")
	f.refused(bind("n1", "/a"), "conflict")
	f.refused(bind("n9", "/a"), "not_found")
	f.refused(bind("n2", "a"), "usage")
	f.refused(control.Command{Bind: &control.Bind{Group: "none", Node: "n2", Path: "/a"}}, "not_found")
	f.refused(control.Command{Bind: &control.Bind{Group: "control", Node: "n2", Path: "/a"}}, "not_found")
	for i := 2; i <= 6; i++ {
		f.must(bind(fmt.Sprintf("n%d", i), "/a"))
	}
	g, _ := f.state().GroupNamed("g")
	if len(g.Voters()) != 5 || g.Members[5].Role != control.RoleObserver || !slices.Equal(g.Initial, []uint64{1}) {
		t.Fatalf("group %+v", g)
	}
	f.refused(unbind("n9"), "not_found")
	f.refused(control.Command{Unbind: &control.Unbind{Group: "none", Node: "n1"}}, "not_found")
	f.must(unbind("n2"))
	f.refused(unbind("n2"), "not_found")
	f.must(bind("n2", "/b"))
	g, _ = f.state().GroupNamed("g")
	if m, _ := g.Member(2); m.Replica != 7 || m.Path != "/b" || m.Role != control.RoleVoter {
		t.Fatalf("bound again as %+v", m)
	}
	checkState(t, f.state())
}
