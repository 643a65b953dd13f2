package control_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

func knows(low, high uint64) control.Levels { return control.Levels{Min: low, Max: high} }

// A cluster that is upgraded node by node: the level follows when every node can, and then nobody goes back.
func TestLevelIsRaisedWhenEveryNodeCanFollow(t *testing.T) {
	f := newFixture(t)
	f.join("n2", "n3")
	tell := func(node uint64, l control.Levels) control.Command {
		return control.Command{By: "serve", SetAddress: &control.SetAddress{Node: node, Address: "h:1", Version: "v", Levels: l}}
	}
	raise := func(to uint64) control.Command { return control.Command{By: "n1", Raise: &control.Raise{To: to}} }
	if level := f.state().Level(); level != 1 {
		t.Fatalf("a cluster that says nothing is at level %d", level)
	}
	f.must(raise(1)) // is there already
	f.must(tell(1, knows(1, 2)))
	f.must(tell(2, knows(1, 3)))
	r := f.refused(raise(2), "conflict")
	if e := r.Error; !strings.Contains(e.Why, "n3") || !strings.Contains(e.Why, "level 1") || !strings.Contains(e.Hint, "node remove n3") {
		t.Errorf("refusal %+v", e)
	}
	if level, behind := f.state().Reach(); level != 1 || !slices.Equal(behind, []string{"n3"}) {
		t.Errorf("all reach %d, behind %v", level, behind)
	}
	f.must(tell(3, knows(1, 2)))
	f.must(tell(2, knows(1, 1))) // n2 goes back: before the level is raised it may
	f.refused(raise(2), "conflict")
	f.must(tell(2, knows(1, 2)))
	f.must(raise(2))
	s := f.state()
	if s.Level() != 2 || s.Audit[len(s.Audit)-1].What != "cluster level raised from 1 to 2" {
		t.Fatalf("level %d, audit %+v", s.Level(), s.Audit[len(s.Audit)-1])
	}
	for what, c := range map[string]control.Command{
		"lowered":              raise(1),
		"raised out of reach":  raise(3),
		"an older program":     tell(2, control.Levels{}),
		"a too new program":    tell(2, knows(3, 4)),
		"an older one joins":   {Join: &control.Join{Token: "t1", Name: "n4", Levels: knows(1, 1)}},
		"one that says naught": {Join: &control.Join{Token: "t1", Name: "n4"}},
		"an older takes over":  {Join: &control.Join{Token: "t1", Name: "n3", Replace: true, Levels: knows(1, 1)}},
	} {
		if r := f.apply(c); r.Error == nil || r.Error.Code != api.CodeConflict || !strings.Contains(r.Error.Why, "level") || r.Error.Hint == "" {
			t.Errorf("%s: %+v", what, r.Error)
		}
	}
	if n, _ := f.state().Node(2); n.Levels != knows(1, 2) {
		t.Errorf("a refused introduction was recorded: %+v", n)
	}
	f.must(control.Command{Join: &control.Join{Token: "t1", Name: "n4", Levels: knows(2, 2)}})
}

// Who was removed holds nobody up.
func TestLevelPassesRemovedNodes(t *testing.T) {
	f := newFixture(t)
	f.join("n2")
	f.must(control.Command{By: "serve", SetAddress: &control.SetAddress{Node: 1, Address: "h:1", Levels: knows(1, 2)}})
	f.refused(control.Command{Raise: &control.Raise{To: 2}}, "conflict")
	f.must(control.Command{Drain: &control.Drain{Node: "n2"}})
	f.must(control.Command{Members: &control.Members{Group: "control", Op: control.OpDemote, Node: "n2"}})
	f.must(control.Command{RemoveNode: &control.RemoveNode{Node: "n2"}})
	f.must(control.Command{Raise: &control.Raise{To: 2}})
}

// A cluster begins at the level that its founder says, which must know it.
func TestLevelOfANewCluster(t *testing.T) {
	f := bareFixture(t)
	init := &control.Init{Cluster: control.Cluster{ID: "c", Level: 4}, Node: control.Node{Name: "n", Levels: knows(1, 3)}}
	f.refused(control.Command{Init: init}, "conflict")
	init.Node.Levels = knows(1, 4)
	f.must(control.Command{Init: init})
	if level := f.state().Level(); level != 4 {
		t.Errorf("level %d", level)
	}
}

func TestAct(t *testing.T) {
	for _, c := range []struct {
		knows             control.Levels
		recorded, cluster uint64
		want              uint64
		hint              string // "": it may go on
	}{
		{control.Levels{}, 0, 0, 1, ""},
		{knows(1, 2), 0, 0, 1, ""},
		{knows(1, 2), 1, 1, 1, ""}, // what the program knows beyond that does not count
		{knows(1, 2), 1, 2, 2, ""},
		{knows(1, 2), 2, 1, 2, ""}, // a copy of the state that lags
		{knows(1, 1), 1, 2, 2, "knows level 2"},
		{knows(1, 1), 2, 0, 2, "knows level 2"},
		{knows(2, 3), 1, 1, 1, "raise the cluster to level 2"},
		{knows(2, 3), 0, 2, 2, ""},
	} {
		got, e := c.knows.Act("n1", c.recorded, c.cluster)
		if got != c.want || (e == nil) != (c.hint == "") {
			t.Errorf("%+v: level %d, %+v", c, got, e)
		} else if e != nil && (e.Code != api.CodeConflict || e.Subject != "n1" || !strings.Contains(e.Hint, c.hint)) {
			t.Errorf("%+v: %+v", c, e)
		}
	}
}

// A level that is raised is known to whoever opens the state later, and to a copy of it.
func TestLevelIsKept(t *testing.T) {
	f := newFixture(t)
	f.must(control.Command{SetAddress: &control.SetAddress{Node: 1, Address: "h:1", Levels: knows(1, 7)}})
	f.must(control.Command{Raise: &control.Raise{To: 7}})
	f.now = f.now.Add(time.Minute)
	f.must(control.Command{RevokeToken: &control.RevokeToken{ID: "t1"}})
	if level := f.state().Level(); level != 7 {
		t.Errorf("level %d", level)
	}
}
