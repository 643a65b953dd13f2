package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

const (
	votes    = "voter" // leader or follower
	observes = "observer"
)

// shown is what `group show` prints of the group, or of another one.
func shown(t *testing.T, f *farm.Farm, at *farm.Node, other ...string) (g api.Group) {
	t.Helper()
	name := append(other, group)[0]
	if err := json.Unmarshal([]byte(run(t, f, at, "group", "show", name, "-o", "json")), &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// roles of a group's members, by node.
func roles(g api.Group) map[string]string {
	out := map[string]string{}
	for _, r := range g.Replicas {
		out[r.Node] = r.Role
		if r.Role == "leader" || r.Role == "follower" {
			out[r.Node] = votes
		}
	}
	return out
}

// showsRoles waits until `group show` says at each of the nodes who votes, who observes and that one of the voters leads.
func showsRoles(t *testing.T, ctx context.Context, f *farm.Farm, at []*farm.Node, want map[string]string) (g api.Group) {
	t.Helper()
	patience, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	for _, n := range at {
		if err := farm.Poll(patience, 50*time.Millisecond, func() error {
			g = shown(t, f, n)
			if got := roles(g); !maps.Equal(got, want) || want[g.Leader] != votes {
				return fmt.Errorf("%s shows %v, led by %q; want %v", n.Name, got, g.Leader, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// shareBy makes the group by the public commands: voters first, then observers.
func shareBy(t *testing.T, f *farm.Farm, voting, observing []*farm.Node) {
	t.Helper()
	run(t, f, voting[0], "dir", "create", group, "--on", places(voting))
	if len(observing) > 0 {
		args := []string{"group", "members", group, "add", "--role", observes}
		run(t, f, voting[0], append(args, strings.Split(places(observing), ",")...)...)
	}
}

// places are nodes with their directories, as the commands take them.
func places(nodes []*farm.Node) string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name+":"+n.Tree)
	}
	return strings.Join(list, ",")
}

// among is the part of a farm that has a share in the group.
func among(f *farm.Farm, nodes ...*farm.Node) *farm.Farm {
	return &farm.Farm{Binary: f.Binary, Dir: f.Dir, Nodes: nodes}
}

// acknowledged writes files below a directory on a node, some at a time, each time until `dir wait --quorum` has
// acknowledged them, until it is told to stop; the result is how many are.
func acknowledged(ctx context.Context, n *farm.Node, dir string, stop <-chan struct{}) (count int, err error) {
	if err := os.MkdirAll(filepath.Join(n.Tree, dir), 0o755); err != nil {
		return 0, err
	}
	for {
		for k := range 5 {
			name := filepath.Join(n.Tree, dir, fmt.Sprint(count+k))
			if err := os.WriteFile(name, acknowledgedContent(dir, count+k), 0o644); err != nil {
				return count, err
			}
		}
		w, err := n.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitQuorum, Timeout: "60s"}, nil)
		if err != nil || !w.Done {
			return count, fmt.Errorf("%s acknowledges nothing: %+v, %w", n.Name, w, err)
		}
		count += 5
		select {
		case <-stop:
			return count, nil
		default:
		}
	}
}

func acknowledgedContent(dir string, k int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%s %d\n", dir, k), 1+k%7*500)
}

// membership drives a group's members by the public commands while nodes write.
type membership struct {
	t    *testing.T
	ctx  context.Context
	f    *farm.Farm
	kept map[string]int // acknowledged files by directory

	roles map[string]string // that the members should have
}

// while has nodes write during a change of the members, waits until `group show` says the roles that are wanted, and
// judges: all that was ever acknowledged is on every member, and the members' trees are equal. As long as a member is down
// the next change judges that.
func (m *membership) while(what string, writers []*farm.Node, want map[string]string, change func()) {
	m.t.Helper()
	began := time.Now()
	m.roles = want
	stop := make(chan struct{})
	counts, errs := make([]int, len(writers)), make([]error, len(writers))
	var writing sync.WaitGroup
	dir := func(n *farm.Node) string { return strings.ReplaceAll(what, " ", "-") + "-by-" + n.Name }
	for i, n := range writers {
		writing.Go(func() { counts[i], errs[i] = acknowledged(m.ctx, n, dir(n), stop) })
	}
	var members []*farm.Node
	for _, n := range m.f.Nodes {
		if want[n.Name] != "" {
			members = append(members, n)
		}
	}
	func() {
		defer writing.Wait() // also if the test ends here
		defer close(stop)
		change()
		showsRoles(m.t, m.ctx, m.f, running(among(m.f, members...)), want)
	}()
	for i, n := range writers {
		if m.kept[dir(n)] = counts[i]; errs[i] != nil || counts[i] == 0 {
			m.t.Errorf("%s: %d files of %s are acknowledged, then: %v", what, counts[i], n.Name, errs[i])
		}
	}
	m.t.Logf("%s: %v acknowledged meanwhile, %s", what, counts, time.Since(began).Round(time.Millisecond))
	if !slices.ContainsFunc(members, func(n *farm.Node) bool { return !n.Running() }) {
		m.judge(what, members)
	}
}

func (m *membership) judge(what string, members []*farm.Node) {
	m.t.Helper()
	settle(m.t, m.ctx, among(m.f, members...))
	for dir, count := range m.kept {
		for k := range count {
			for _, n := range members {
				if got := read(m.t, n, filepath.Join(dir, fmt.Sprint(k))); got != string(acknowledgedContent(dir, k)) {
					m.t.Fatalf("%s: acknowledged %s/%d has %d bytes on %s", what, dir, k, len(got), n.Name)
				}
			}
		}
	}
}

// refusedUnchanged has a command about the members refused, and sees that it changed none of them.
func (m *membership) refusedUnchanged(at *farm.Node, code api.Code, subject, why string, args ...string) {
	m.t.Helper()
	refused(m.t, code, subject, why, append([]string{"group", "members", group, "--server", socket(at)}, args...)...)
	want := maps.Clone(m.roles)
	for _, n := range m.f.Nodes {
		if want[n.Name] != "" && !n.Running() {
			want[n.Name] = "unknown"
		}
	}
	showsRoles(m.t, m.ctx, m.f, []*farm.Node{at}, want)
}

// TestMembersChangeWhileNodesWrite: a node is added as an observer, promoted, the leader is demoted, a voter removed,
// another replaced by a node that was no member, by the commands, while nodes write. Wrong uses change nothing.
func TestMembersChangeWhileNodesWrite(t *testing.T) {
	ctx, f := cluster(t, 5)
	n1, n2, n3, n4, n5 := f.Nodes[0], f.Nodes[1], f.Nodes[2], f.Nodes[3], f.Nodes[4]
	if err := f.WaitVoting(ctx); err != nil {
		t.Fatal(err)
	}
	shareBy(t, f, []*farm.Node{n1, n2, n3}, nil)
	write(t, n2, "from the beginning", "1")
	m := &membership{t: t, ctx: ctx, f: f, kept: map[string]int{}}
	members := func(args ...string) func() {
		return func() { run(t, f, n2, append([]string{"group", "members", group}, args...)...) }
	}
	writers := []*farm.Node{n1, n2}
	m.while("add", writers, map[string]string{"n1": votes, "n2": votes, "n3": votes, "n4": observes},
		members("add", places([]*farm.Node{n4}), "--role", observes))
	m.refusedUnchanged(n2, api.CodeConflict, "n4", "a member already, as observer", "add", places([]*farm.Node{n4}), "--role", votes)
	m.refusedUnchanged(n2, api.CodeConflict, "n1", "a member already, as voter", "add", places([]*farm.Node{n1}))
	m.refusedUnchanged(n2, api.CodeNotFound, "n5", "no member of group web", "promote", "n5")
	m.refusedUnchanged(n2, api.CodeNotFound, "n5", "no member of group web", "remove", "n5")
	m.refusedUnchanged(n2, api.CodeNotFound, "n9", "no such node", "promote", "n9")
	m.refusedUnchanged(n2, api.CodeConflict, "n1", "voter of group web already", "promote", "n1")
	m.refusedUnchanged(n2, api.CodeConflict, "n4", "observer of group web already", "demote", "n4")
	m.refusedUnchanged(n2, api.CodeConflict, "n3", "voter of group web already", "replace", "n1", "n3")
	m.refusedUnchanged(n2, api.CodeUsage, "king", "no such role", "add", places([]*farm.Node{n5}), "--role", "king")
	m.while("promote", []*farm.Node{n1, n4}, map[string]string{"n1": votes, "n2": votes, "n3": votes, "n4": votes}, members("promote", "n4"))
	run(t, f, n2, "group", "transfer", group, "n1")
	m.while("demote the leader", writers, map[string]string{"n1": observes, "n2": votes, "n3": votes, "n4": votes}, members("demote", "n1"))
	m.while("replace", writers, map[string]string{"n1": observes, "n2": votes, "n5": votes, "n4": votes},
		members("replace", "n3", places([]*farm.Node{n5})))
	if err := n4.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"remove", "demote"} {
		m.refusedUnchanged(n2, api.CodeConflict, "n5", "would lose its majority: of the voters that remain only 1 of 2", op, "n5")
	}
	three := map[string]string{"n1": observes, "n2": votes, "n5": votes}
	m.while("remove a voter that is dead", []*farm.Node{n1, n5}, three, members("remove", "n4"))
	restart(t, ctx, f, n4, "")
	showsRoles(t, ctx, f, []*farm.Node{n2, n4}, three)
	m.while("two become one", writers, map[string]string{"n1": observes, "n2": votes}, members("remove", "n5"))
	for _, op := range []string{"remove", "demote"} {
		m.refusedUnchanged(n1, api.CodeConflict, "n2", "it is the last voter of group web", op, "n2")
	}
	m.while("remove the observer", []*farm.Node{n2}, map[string]string{"n2": votes}, members("remove", "n1"))
	m.refusedUnchanged(n2, api.CodeConflict, "n2", "the last copy of group web", "remove", "n2")
	for _, n := range []*farm.Node{n1, n3, n4, n5} { // what they had when they left stays
		if got := read(t, n, "from the beginning"); got != "1" {
			t.Errorf("the file of %s: %q", n.Name, got)
		}
	}
}
