package server

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
)

func TestTrustWarnings(t *testing.T) {
	members := []control.Member{{Replica: 1, Node: 1, Role: control.RoleVoter}, {Replica: 2, Node: 2, Role: control.RoleVoter},
		{Replica: 3, Node: 3, Role: control.RoleVoter}, {Replica: 4, Node: 4, Role: control.RoleObserver}}
	replicas := []api.Replica{{Node: "n1"}, {Node: "n2"}, {Node: "n3"}, {Node: "n4"}}
	const up, gone = "live", "down"
	for name, c := range map[string]struct {
		ack    string
		inSync []uint64
		leader string
		modes  []string
		alarm  string
		want   []string
	}{
		"all is well":         {"quorum", []uint64{1, 2, 3}, "n1", []string{up, up, up, up}, "", nil},
		"two that do not run": {"quorum", []uint64{1, 2, 3}, "n1", []string{up, "stopped", "damaged", up}, "", []string{"no_quorum"}},
		"one is down":         {"quorum", []uint64{1, 2}, "n1", []string{up, up, gone, up}, "", nil},
		"no quorum":           {"quorum", []uint64{1, 2, 3}, "n1", []string{up, gone, gone, up}, "", []string{"no_quorum"}},
		"logs are damaged":    {"quorum", []uint64{1, 2, 3}, "", []string{up, modeDamaged, modeDamaged, up}, "", []string{"no_quorum"}},
		"no leader":           {"quorum", []uint64{1, 2, 3}, "", []string{up, up, gone, up}, "", []string{"no_leader"}},
		"all counts fewer":    {"all", []uint64{1, 2}, "n1", []string{up, up, gone, up}, "", []string{"in_sync_set"}},
		"nobody knows who":    {"quorum", []uint64{1, 2, 3}, "n1", []string{up, up, up, up}, "they differ", []string{"replicas_differ"}},
		"observers do not do": {"quorum", []uint64{1, 2, 3}, "", []string{gone, gone, up, up}, "", []string{"no_quorum"}},
	} {
		g := &control.Group{Name: "web", Ack: c.ack, Members: members, InSync: control.InSync{Version: 2, Replicas: c.inSync, Why: "n3 is down"}}
		reports := make([]report, len(members))
		for i, mode := range c.modes {
			reports[i].Mode = mode
		}
		reports[1].Alarm = c.alarm
		var got []string
		for _, w := range trustWarnings(&control.State{}, g, api.Group{Name: "web", Leader: c.leader, Replicas: replicas}, reports) {
			got = append(got, w.Name)
			if w.Subject == "" || w.Text == "" || w.Hint == "" {
				t.Errorf("%s: %+v", name, w)
			}
		}
		if strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestMajorityLostWithItsNodes: who decides without a leader is told by what the members have in force, not by what the
// control group has wanted since: a voter that was removed, or has joined again without its data, is missed there for good.
func TestMajorityLostWithItsNodes(t *testing.T) {
	st := &control.State{Nodes: []control.Node{{ID: 1}, {ID: 2, Removed: true}, {ID: 3}, {ID: 4}}}
	voter := func(replica, node uint64) control.Member {
		return control.Member{Replica: replica, Node: node, Role: control.RoleVoter}
	}
	here := func(voting ...uint64) report {
		return report{Mode: "detached", Role: "follower", Commit: 80, Voting: voting}
	}
	for name, c := range map[string]struct {
		members []control.Member
		former  []control.Former
		reports []report
		want    string
		text    string
		hint    string
	}{
		"one of two joined anew": {[]control.Member{voter(1, 1), voter(5, 3)}, []control.Former{{Replica: 2, Node: 2}}, []report{here(1, 2), here()},
			"no_quorum", "decides by 2 voters", "lockstep group recover"},
		"and was taken out": {[]control.Member{voter(1, 1)}, []control.Former{{Replica: 2, Node: 2}}, []report{here(1, 2)},
			"no_quorum", "of which 1 cannot answer", "lockstep group recover"},
		"nobody remembers it": {[]control.Member{voter(1, 1)}, nil, []report{here(1, 9)}, "no_quorum", "majority is lost", "lockstep group recover"},
		"one of three is enough": {[]control.Member{voter(1, 1), voter(3, 3)}, []control.Former{{Replica: 2, Node: 2}}, []report{here(1, 2, 3), here(1, 2, 3)},
			"no_leader", "2 of 3 voters answer", "two seconds"},
		"another is down": {[]control.Member{voter(1, 1), voter(3, 3)}, []control.Former{{Replica: 2, Node: 2}}, []report{here(1, 2, 3), {Mode: "down"}},
			"no_quorum", "only 1 of 3 voters answer", "start the nodes"},
		"it may still vote": {[]control.Member{voter(1, 1)}, []control.Former{{Replica: 4, Node: 4}}, []report{here(1, 4)}, "no_leader", "2 of 2", "two seconds"},
		"who knows more counts": {[]control.Member{voter(1, 1), voter(3, 3)}, []control.Former{{Replica: 2, Node: 2}},
			[]report{here(1, 2), {Mode: "detached", Commit: 90, Voting: []uint64{1, 3}}}, "no_leader", "2 of 2", "two seconds"},
	} {
		g := &control.Group{Name: "web", Members: c.members, Former: c.former}
		shown := api.Group{Name: "web", Replicas: make([]api.Replica, len(c.members))}
		w := trustWarnings(st, g, shown, c.reports)
		if len(w) != 1 || w[0].Name != c.want || !strings.Contains(w[0].Text, c.text) || !strings.Contains(w[0].Hint, c.hint) {
			t.Errorf("%s: %+v", name, w)
		}
	}
}

// TestVotersAfterRecovery: who was recovered alone needs nobody else, whoever the control group still names; if two claim
// to lead, the later term counts.
func TestVotersAfterRecovery(t *testing.T) {
	g := &control.Group{Name: "web", Members: []control.Member{{Replica: 1, Node: 1, Role: control.RoleVoter}, {Replica: 2, Node: 2, Role: control.RoleVoter},
		{Replica: 3, Node: 3, Role: control.RoleVoter}}}
	shown := api.Group{Name: "web", Leader: "n1", Replicas: []api.Replica{{Node: "n1"}, {Node: "n2"}, {Node: "n3"}}}
	alone := []report{{Mode: "live", Role: "leader", Term: 9, Voting: []uint64{1}}, {Mode: "down"}, {Mode: "down"}}
	if w := trustWarnings(&control.State{}, g, shown, alone); len(w) != 0 {
		t.Errorf("recovered alone: %+v", w)
	}
	learning := []report{{Mode: "live", Role: "leader", Term: 9, Configured: []uint64{1, 2, 3}, Voting: []uint64{1}}, {Mode: "down"}, {Mode: "down"}}
	if w := trustWarnings(&control.State{}, g, shown, learning); len(w) != 0 {
		t.Errorf("the others have not learned yet: %+v", w)
	}
	late := []report{alone[0], {Mode: "live", Role: "leader", Term: 8, Voting: []uint64{1, 2, 3}}, {Mode: "down"}}
	if w := trustWarnings(&control.State{}, g, shown, late); len(w) != 0 {
		t.Errorf("a leader of before: %+v", w)
	}
	alone[0].Voting = []uint64{1, 2, 3}
	if w := trustWarnings(&control.State{}, g, shown, alone); len(w) != 1 || w[0].Name != "no_quorum" {
		t.Errorf("a leader that has just lost the others: %+v", w)
	} else if !strings.Contains(w[0].Hint, "lockstep group recover web --unsafe --dry-run") {
		t.Errorf("the way on of a files group: %s", w[0].Hint)
	}
	g.Kind = control.KindControl // which group recover refuses
	if w := trustWarnings(&control.State{}, g, shown, alone); len(w) != 1 || !strings.Contains(w[0].Hint, "lockstep offline recover -h") {
		t.Errorf("the way on of the control group: %+v", w)
	}
}

func TestHintsOfStoppedBindings(t *testing.T) {
	held := api.DirNode{Node: "n1", Path: "/srv/web", Mode: "stopped", Watcher: "inotify"}
	if hint := stoppedHint("web", &held); !strings.Contains(hint, "lockstep dir resume web n1") {
		t.Errorf("held by a guard: %s", hint)
	}
	held.Watcher = ""
	if hint := stoppedHint("web", &held); strings.Contains(hint, "resume") || !strings.Contains(hint, "/srv/web") {
		t.Errorf("cannot be opened: %s", hint)
	}
}

// TestStoppedIsSaidOnce: the problem that is the reason gives the hint, and is no second warning.
func TestStoppedIsSaidOnce(t *testing.T) {
	gone := api.Problem{What: "the directory vanished", Hint: "mount it"}
	kept := api.Problem{What: "kept aside as /x", Hint: "look at it"}
	m := api.DirNode{Node: "n1", Path: "/srv/web", Mode: "stopped", Why: gone.What, Watcher: "inotify", Problems: []api.Problem{gone, kept}}
	got := warnings(api.DirStatus{Group: "web", Nodes: []api.DirNode{m}})
	if len(got) != 2 || got[0].Name != "dir_stopped" || got[0].Hint != gone.Hint || got[1].Name != "dir_problems" || got[1].Text != kept.What {
		t.Errorf("%+v", got)
	}
	m.Problems = m.Problems[:1]
	if got := warnings(api.DirStatus{Group: "web", Nodes: []api.DirNode{m}}); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// TestFaultsKeepTheirWayOut: why there is no agent comes with the way out of the fault, or else of the directory.
func TestFaultsKeepTheirWayOut(t *testing.T) {
	var waits error = &api.Error{Code: api.CodeUnavailable, Op: "dir", Why: "it waits", Hint: "wait"}
	var plain error = errors.New("mkdir: refused")
	n := &node{id: &access.Identity{}}
	for _, c := range []struct {
		fault     *error
		why, hint string
	}{{nil, "it is being opened", "see to /srv/web"}, {&plain, "mkdir: refused", "see to /srv/web"}, {&waits, "it waits", "wait"}} {
		h := &holding{n: n, path: "/srv/web"}
		h.fault.Store(c.fault)
		_, err := h.theAgent()
		if e := (*api.Error)(nil); !errors.As(err, &e) || e.Why != c.why || !strings.HasPrefix(hintOf(err), c.hint) {
			t.Errorf("%v: %v (%s)", c, err, hintOf(err))
		}
		var r report
		if err := h.describe(&r); err != nil || r.Dir.Mode != "stopped" || r.Dir.Problems[0].What != r.Dir.Why || r.Dir.Problems[0].Hint == "" {
			t.Errorf("%+v, %v", r.Dir, err)
		}
	}
}

func TestProblemsInOneLine(t *testing.T) {
	one, two := api.Problem{Path: "a/b", What: "not kept: a FIFO"}, api.Problem{Path: "c", What: "permission denied"}
	whole := api.Problem{What: "kept aside as /srv/web/.lockstep/work/kept/1"}
	for want, list := range map[string][]api.Problem{
		"1 path is not in step, the first: a/b: not kept: a FIFO":   {one},
		"2 paths are not in step, the first: c: permission denied":  {two, one},
		"kept aside as /srv/web/.lockstep/work/kept/1":              {whole},
		"kept aside as /srv/web/.lockstep/work/kept/1 (and 2 more)": {one, whole, two},
	} {
		if got := problemText(list); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestAbsentReports: a node that does not answer is down; one that answers but has nothing to report is starting.
func TestAbsentReports(t *testing.T) {
	said := &api.Error{Code: api.CodeUnavailable, Op: "group", Subject: "web", Why: "node n2 does not run it (yet)"}
	silent := &unanswered{said: &api.Error{Code: api.CodeUnavailable, Op: "ask node", Subject: "n2", Why: "it does not answer: refused"}, cause: context.DeadlineExceeded}
	for _, c := range []struct {
		want report
		err  error
	}{
		{report{Role: "unknown", Mode: "starting", Why: "node n2 does not run it (yet)"}, said},
		{report{Role: "unknown", Mode: "down", Why: "it does not answer: refused"}, silent},
		{report{Role: "unknown", Mode: "starting", Why: "the disk"}, errors.New("the disk")},
	} {
		if got := absent(c.err); !reflect.DeepEqual(got, c.want) || got.reports() {
			t.Errorf("%v: %+v", c.err, got)
		}
	}
	if !errors.Is(silent, context.DeadlineExceeded) || !errors.Is(silent, &api.Error{Code: api.CodeUnavailable}) {
		t.Error("the cause is lost")
	}
	idle := idleDown(api.Status{Dirs: []api.DirStatus{{Nodes: []api.DirNode{{Node: "n1"}}}},
		Nodes: []api.Node{{Name: "n1", State: "down"}, {Name: "n2", State: "down", Address: "h:1"}, {Name: "n3", State: "up"}}})
	if len(idle) != 1 || idle[0].Name != "node_down" || idle[0].Subject != "n2" || !strings.Contains(idle[0].Text, "h:1") {
		t.Errorf("down without a directory: %+v", idle)
	}
	for _, w := range warnings(api.DirStatus{Group: "web", Nodes: []api.DirNode{{Node: "n1", Mode: "down"}, {Node: "n2", Mode: "starting"}}}) {
		if want := map[string]string{"web on n1": "node_down", "web on n2": "node_starting"}[w.Subject]; w.Name != want || w.Hint == "" {
			t.Errorf("%+v, want %s", w, want)
		}
	}
}
