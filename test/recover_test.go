package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// run runs a command against a node and returns its standard output; progress goes to the other one.
func run(t *testing.T, f *farm.Farm, n *farm.Node, args ...string) string {
	t.Helper()
	cmd := exec.Command(f.Binary, args...)
	if n != nil {
		cmd.Env = append(os.Environ(), "LOCKSTEP_DATA="+n.Data)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("lockstep %s: %v\n%s%s", strings.Join(args, " "), err, out, &said)
	}
	return string(out)
}

// contents are the contents that a node's tree holds under names that begin with name.
func contents(t *testing.T, n *farm.Node, name string) map[string]bool {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(n.Tree, name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, path := range found {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got[string(b)] = true
	}
	return got
}

// TestLostMajorityIsRecovered: one of three is away while the others go on, then those two are gone. The one is made
// to go on alone, without what it never saw. When the two come back, still a majority of the old configuration, they
// follow it, and nothing that only they had is lost: files that differ are kept beside what won.
func TestLostMajorityIsRecovered(t *testing.T) {
	ctx, f := start(t, 3)
	n1, n2, n3 := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	for i := range 30 {
		write(t, f.Nodes[i%3], fmt.Sprintf("d/f%d", i), strings.Repeat("y", 3000*i))
	}
	write(t, n1, "shared", "before")
	settle(t, ctx, f)
	refused(t, api.CodeConflict, group, "of its 3 voters answer", "--server", "unix://"+n1.Data+"/lockstep.sock",
		"group", "recover", group, "--unsafe", "--yes-lose-data", group)
	if err := n1.Kill(); err != nil {
		t.Fatal(err)
	}
	pair := &farm.Farm{Binary: f.Binary, Dir: f.Dir, Nodes: []*farm.Node{n2, n3}}
	write(t, n2, "shared", "what only the two had")
	write(t, n3, "late", "new at the two")
	settlePair(t, ctx, pair)
	refused(t, api.CodeConflict, n1.Name, "accept connections", "offline", "recover", "--data", n1.Data, "--yes-lose-data", n1.Name)
	for _, n := range pair.Nodes {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}

	refused(t, api.CodeUsage, n1.Name, "is lost", "offline", "recover", "--data", n1.Data)
	var off api.OfflineRecovered
	if err := json.Unmarshal([]byte(run(t, f, nil, "offline", "recover", "--data", n1.Data, "--yes-lose-data", n1.Name, "-o", "json")), &off); err != nil {
		t.Fatal(err)
	}
	if off.Node != n1.Name || len(off.Others) != 2 || off.History == off.Before {
		t.Errorf("%+v", off)
	}
	if err := f.Run(n1, ""); err != nil {
		t.Fatal(err)
	}
	var plan api.GroupRecovered
	if err := farm.Poll(ctx, 50*time.Millisecond, func() (err error) {
		plan, err = n1.Client.GroupRecover(ctx, group, api.GroupRecover{Confirm: group, DryRun: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if plan.Node != n1.Name || len(plan.Lost) != 2 || !plan.DryRun {
		t.Errorf("plan %+v", plan)
	}
	refused(t, api.CodeUsage, group, "may lose", "--server", "unix://"+n1.Data+"/lockstep.sock", "group", "recover", group)
	done, err := n1.Client.GroupRecover(ctx, group, api.GroupRecover{Confirm: group})
	if err != nil {
		t.Fatal(err)
	}
	if done.Last < done.Fork || done.Before != plan.Before {
		t.Errorf("%+v after the plan %+v", done, plan)
	}
	write(t, n1, "shared", "after the recovery")
	write(t, n1, "alone", "by one")
	reachedBy(t, ctx, n1, api.DirWaitFor{Mode: api.WaitNode, Node: n1.Name, Timeout: "20s"})

	for _, n := range pair.Nodes {
		if err := f.Run(n, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := f.WaitUp(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, ctx, f)
	for _, n := range f.Nodes {
		if got := contents(t, n, "shared"); !got["what only the two had"] || !got["after the recovery"] {
			t.Errorf("%s: a content of shared is lost: %v", n.Name, got)
		}
		if read(t, n, "alone") != "by one" || read(t, n, "late") != "new at the two" || len(read(t, n, "d/f7")) != 21000 {
			t.Errorf("%s lacks files", n.Name)
		}
	}
	// All vote again: the one that recovered is no longer needed.
	if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		for _, name := range []string{group, "control"} {
			g, err := n2.Client.Group(ctx, name)
			if err != nil {
				return err
			}
			for _, r := range g.Replicas {
				if r.Role != "leader" && r.Role != "follower" {
					return fmt.Errorf("%s: %s is %s", name, r.Node, r.Role)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n1.Kill(); err != nil {
		t.Fatal(err)
	}
	write(t, n2, "without", "the one")
	settlePair(t, ctx, pair)
}

// settlePair waits until the nodes of a part of a farm hold the same.
func settlePair(t *testing.T, ctx context.Context, f *farm.Farm) {
	t.Helper()
	for _, n := range f.Nodes {
		reachedBy(t, ctx, f.Nodes[0], api.DirWaitFor{Mode: api.WaitNode, Node: n.Name, Timeout: "30s"})
	}
	if out, err := farm.Same(f.Nodes[0].Tree, f.Nodes[1].Tree); err != nil || out != "" {
		t.Fatalf("trees differ: %v\n%s", err, out)
	}
}

func reachedBy(t *testing.T, ctx context.Context, n *farm.Node, what api.DirWaitFor) {
	t.Helper()
	if w, err := n.Client.DirWait(ctx, group, what, nil); err != nil || !w.Done {
		t.Fatalf("%s: %+v, %v\n%s", n.Name, w, err, n.Log())
	}
}
