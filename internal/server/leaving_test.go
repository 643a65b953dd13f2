package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

func TestMotion(t *testing.T) {
	var m motion
	at := time.Unix(1000, 0)
	for i, step := range []struct {
		after time.Duration
		seen  string
		want  time.Duration
	}{
		{0, "", 0}, {time.Second, "", time.Second}, {time.Second, "a", 0}, {3 * time.Second, "a", 3 * time.Second},
		{time.Second, "b", 0}, {time.Minute, "a", 0}, {time.Minute, "a", time.Minute},
	} {
		at = at.Add(step.after)
		if got := m.stands(at, step.seen); got != step.want {
			t.Errorf("step %d: it stands still for %v, want %v", i, got, step.want)
		}
	}
}

// farm has the nodes n1 to n3 as voters of many groups.
func farm(groups int) *control.State {
	st := &control.State{}
	for id := range uint64(3) {
		st.Nodes = append(st.Nodes, control.Node{ID: id + 1, Name: fmt.Sprintf("n%d", id+1)})
	}
	for i := range uint64(groups) {
		g := control.Group{ID: i + 1, Name: fmt.Sprintf("g%d", i+1)}
		for id := range uint64(3) {
			g.Members = append(g.Members, control.Member{Replica: id + 1, Node: id + 1, Role: control.RoleVoter})
		}
		st.Groups = append(st.Groups, g)
	}
	return st
}

// A node that drops what it is sent costs nothing for each group: who did not answer is not asked again, and the others
// are asked about many groups at once, though not about all.
func TestSeatsLeftOfManyGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groups = 100
		st := farm(groups)
		st.Groups[0].Members[2].Role, st.Groups[1].Members[2].Role = control.RoleObserver, control.RoleObserver
		var mu sync.Mutex
		asked, now, most := 0, 0, 0
		ask := func(g *control.Group, node uint64) report {
			mu.Lock()
			asked++
			now++
			most = max(most, now)
			mu.Unlock()
			if node == 3 {
				t.Errorf("node 3 is asked about %s", g.Name)
			}
			<-time.After(100 * time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
			switch {
			case node == 2:
				return report{Role: "learner", Received: 7}
			case g.ID == 2:
				return report{Role: "leader", Configured: []uint64{1, 2, 3}} // has not let it go yet
			}
			return report{Role: "leader", Configured: []uint64{1, 2}}
		}
		began := time.Now()
		left, seen := seatsLeft(st, 3, func(node uint64) bool { return node != 3 }, ask)
		if took := time.Since(began); took > time.Second || most > 2*askedAtOnce || asked != 2*groups {
			t.Errorf("it took %v, %d questions, %d at once", took, asked, most)
		}
		if len(left) != groups-1 || left[0] != "g2" || left[1] != "g3" {
			t.Errorf("left: %v", left)
		}
		if !strings.Contains(seen, "2 observer 1:0+7") {
			t.Errorf("seen: %s", seen)
		}
	})
}

func TestTroubleThatHinders(t *testing.T) {
	began := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		v       view
		what    string
		hinders bool
	}{
		"all is well":            {view{is: word{up: true}, r: report{Dir: &api.DirNode{Mode: "live"}}}, "", false},
		"down":                   {view{}, "does not answer", true},
		"full":                   {view{is: word{up: true, full: &api.FullDisk{Path: "/data"}}}, "/data", true},
		"no account":             {view{is: word{up: true}, err: errors.New("it is starting")}, "it is starting", true},
		"stopped":                {view{is: word{up: true}, r: report{Dir: &api.DirNode{Mode: "stopped", Why: "a guard"}}}, "a guard", true},
		"a path is not kept":     {troubled(api.Problem{Path: "a/fifo", What: "a FIFO", Since: began}), "a/fifo: a FIFO", false},
		"one is kept aside":      {troubled(api.Problem{Path: "x", What: "kept aside as y"}), "kept aside", false},
		"owners are not set":     {troubled(api.Problem{What: "owners are not set"}), "", false},
		"its own disk is full":   {troubled(api.Problem{Path: "x", What: "y"}, api.Problem{What: "no space left", Since: began}), "no space left", true},
		"nothing is known of it": {view{is: word{up: true}}, "", false},
	} {
		c.v.name = "n7"
		what, hinders := c.v.trouble()
		if hinders != c.hinders || (what == "") != (c.what == "") || !strings.Contains(what, c.what) || what != "" && !strings.Contains(what, "n7") {
			t.Errorf("%s: %q, %v", name, what, hinders)
		}
	}
}

func troubled(p ...api.Problem) view {
	return view{is: word{up: true}, r: report{Dir: &api.DirNode{Mode: "live", Problems: p}}}
}

// A wait is in vain after half a minute if too many are hindered, and not while those that get on suffice, or while the
// bytes of one large file come in.
func TestVigil(t *testing.T) {
	live := func(id uint64, moved uint64) view {
		return view{node: id, is: word{up: true}, r: report{Moved: moved, Dir: &api.DirNode{Mode: "live"}}}
	}
	dead := func(id uint64) view { return view{node: id} }
	none, everybody := func(*view) bool { return false }, func(*view) bool { return true }
	first := func(v *view) bool { return v.node == 1 }
	for name, c := range map[string]struct {
		views func(second uint64) []view
		waits func(*view) bool
		spare int
		after uint64 // seconds; 0: it goes on for half an hour
	}{
		"who is waited for is down":           {func(uint64) []view { return []view{dead(1), live(2, 0)} }, first, 0, 30},
		"it is, and others get something":     {func(s uint64) []view { return []view{dead(1), live(2, s)} }, first, 0, 30},
		"one of three is down":                {func(uint64) []view { return []view{dead(1), live(2, 0), live(3, 0)} }, everybody, spareVoters(3), 600},
		"one of three is, another gets on":    {func(s uint64) []view { return []view{dead(1), live(2, s), live(3, 0)} }, everybody, spareVoters(3), 0},
		"two of three are":                    {func(uint64) []view { return []view{dead(1), dead(2), live(3, 0)} }, everybody, spareVoters(3), 30},
		"two are, the third gets on":          {func(s uint64) []view { return []view{dead(1), dead(2), live(3, s)} }, everybody, spareVoters(3), 0},
		"one of two is":                       {func(uint64) []view { return []view{dead(1), live(2, 0)} }, everybody, spareVoters(2), 30},
		"it pushes a large file to another":   {func(s uint64) []view { return []view{live(1, 0), live(2, s)} }, first, 0, 0},
		"nothing moves and nobody knows why":  {func(uint64) []view { return []view{live(1, 0), live(2, 0)} }, first, 0, 600},
		"a large file comes in and then ends": {func(s uint64) []view { return []view{live(1, min(s, 100))} }, first, 0, 700},
		"nobody is waited for":                {func(uint64) []view { return []view{live(1, 0)} }, none, spareVoters(0), 600},
	} {
		var v vigil
		at, ended := time.Unix(1000, 0), uint64(0)
		for second := range uint64(1800) {
			if _, over := v.over(at.Add(time.Duration(second)*time.Second), prospectOf(c.views(second), c.waits), c.spare); over {
				ended = second
				break
			}
		}
		if ended != c.after {
			t.Errorf("%s: it ends after %d s, want %d", name, ended, c.after)
		}
	}
}

// What a leader says of a group tells who votes by its configuration, not who should.
func TestLeadOfWhoLearns(t *testing.T) {
	g := &farm(1).Groups[0]
	a := leadOf(g, core.Status{Term: 4, Voters: []uint64{1, 2}, Learners: []uint64{3}}, 0, func(uint64) bool { return false })
	if a.Settled || a.Term != 4 || !slices.Equal(a.Voting, []uint64{1, 2}) {
		t.Errorf("%+v", a)
	}
	a = leadOf(g, core.Status{Voters: []uint64{1, 9}, Outgoing: []uint64{1, 2}}, 0, func(uint64) bool { return false })
	if !slices.Equal(a.Voting, []uint64{1, 0, 2}) {
		t.Errorf("with one that nobody knows: %+v", a)
	}
	now := heard{1: {Leads: []leadAnswer{{Group: 1, Term: 3, Voting: []uint64{1, 2, 3}}}}, 2: {Leads: []leadAnswer{{Group: 1, Term: 4, Voting: []uint64{1, 2}}}}, 3: {}}
	if got := now.voting(1); !slices.Equal(got, []uint64{1, 2}) || now.voting(2) != nil || now.up(4) || !now.up(3) {
		t.Errorf("voting: %v", got)
	}
	for role, want := range map[string][2]string{control.RoleVoter: {"true false", "false true"}, control.RoleObserver: {"true false", "false false"}} {
		for i, node := range []uint64{1, 3} {
			m := control.Member{Node: node, Role: role}
			votes, learning := voteOf(&m, now.voting(1))
			if got := fmt.Sprint(votes, learning); got != want[i] {
				t.Errorf("%s on node %d: %s, want %s", role, node, got, want[i])
			}
			votes, learning = voteOf(&m, nil)
			if votes != (role == control.RoleVoter) || learning {
				t.Errorf("%s without a leader: %v, %v", role, votes, learning)
			}
		}
	}
}

// The seat of one that died as a learner is given up though the configuration is not that of the members; one that votes
// waits until it is. Without a leader nothing is decided.
func TestSeatsOfLearnersAreDecidedUpon(t *testing.T) {
	st := farm(4)
	st.Groups[0].ID = control.ControlGroup
	st.Nodes[2].Drain = true
	now := heard{1: {Watches: true, Missed: map[uint64]time.Duration{3: time.Hour}}, 2: {Watches: true, Missed: map[uint64]time.Duration{3: time.Hour}}}
	a := now[1]
	a.Leads = []leadAnswer{
		{Group: 1, Voting: []uint64{1, 2}},                   // 3 learns
		{Group: 2, Voting: []uint64{1, 3}},                   // 2 learns
		{Group: 3, Voting: []uint64{1, 2, 3}, Settled: true}, // as it should be
	}
	now[1] = a
	var groups []uint64
	for _, c := range planSeats(st, now) {
		groups = append(groups, c.Group)
		if c.Out != 3 || c.In != 0 {
			t.Errorf("%+v", c)
		}
	}
	if !slices.Equal(groups, []uint64{1, 3}) {
		t.Errorf("decided for %v", groups)
	}
}

// Nodes are listed by their names, in whatever order they became members.
func TestNodesInOrder(t *testing.T) {
	st := farm(1)
	slices.Reverse(st.Groups[0].Members)
	n := &node{ctl: newControlPlane()}
	n.ctl.current.Store(st)
	g := &st.Groups[0]
	var names []string
	for _, d := range n.describeDir(g, make([]report, 3)).Nodes {
		names = append(names, d.Node)
	}
	if want := []string{"n1", "n2", "n3"}; !slices.Equal(names, want) || !slices.Equal(n.names(g.Members), want) {
		t.Errorf("%v, %v", names, n.names(g.Members))
	}
	if reached, missing := n.parted(g.Members, []bool{true, false, true}); !slices.Equal(reached, []string{"n1", "n3"}) || !slices.Equal(missing, []string{"n2"}) {
		t.Errorf("reached %v, missing %v", reached, missing)
	}
}
