package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// TestADirectoryHasOneKeeper: whatever is asked for, and of whatever cluster, a directory that a running node keeps is
// not taken up by another one on the same machine; one whose node is gone is, by explicit word, and then stays with who
// has it.
func TestADirectoryHasOneKeeper(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 2)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	write(t, n1, "f1", "in the backup")
	settle(t, ctx, f)
	file := filepath.Join(f.Dir, "b")
	run(t, f, n1, "backup", "create", file)
	write(t, n1, "f1", "edited since")
	write(t, n1, "newfile", "new since")
	settle(t, ctx, f)
	const kept = "another node keeps"
	data := filepath.Join(f.Dir, "r", "data")
	refused(t, api.CodeConflict, n1.Tree, kept, "restore", file, "--data", data, "--name", "n1", "--over-living")
	if _, err := os.Stat(data); err == nil {
		t.Error("a refused restore left a data directory")
	}
	refused(t, api.CodeConflict, n1.Tree, kept, "--server", socket(n2), "restore", file, "--group", group, "--as", "beside", "--over-living", "--on", "n2:"+n1.Tree)
	inside := filepath.Join(n1.Tree, "inside")
	refused(t, api.CodeConflict, inside, kept, "--server", socket(n1), "dir", "create", "within", "--on", "n2:"+inside)
	run(t, f, n1, "dir", "create", "own", "--on", "n1:"+filepath.Join(f.Dir, "own1"))
	if w, err := n1.Client.DirWait(ctx, "own", api.DirWaitFor{Mode: api.WaitAll, Timeout: "30s"}, nil); err != nil || !w.Done {
		t.Fatalf("%+v, %v", w, err)
	}
	refused(t, api.CodeConflict, "own1", kept, "--server", socket(n1), "dir", "bind", "own", "n2:"+filepath.Join(f.Dir, "own1"))
	if got := read(t, n2, "f1") + ", " + read(t, n2, "newfile"); got != "edited since, new since" {
		t.Fatalf("the living group holds %s", got)
	}

	// A node that is gone, without having said so, keeps nothing.
	if err := n1.Kill(); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeUnavailable, "control group", "", "--server", socket(n2), "restore", file, "--group", group, "--as", "beside",
		"--on", "n2:"+filepath.Join(f.Dir, "beside"), "--dry-run") // without a majority nobody can say yes
	refused(t, api.CodeConflict, n1.Tree, "holds files", "restore", file, "--data", data, "--name", "n1")
	run(t, f, nil, "restore", file, "--data", data, "--name", "n1", "--over-living")
	if got := read(t, n1, "f1"); got != "in the backup" {
		t.Errorf("restored f1 holds %q", got)
	}
	if err := f.Run(n1, ""); err != nil {
		t.Fatal(err)
	}
	if err := awaitStopped(ctx, n1, "another group"); err != nil {
		t.Error(err)
	}
	if got := read(t, n2, "f1") + ", " + read(t, n2, "newfile"); got != "edited since, new since" {
		t.Errorf("what n1 found in its directory reached n2: %s", got)
	}
}

// awaitStopped waits until the node says of its directory that it is stopped, and why.
func awaitStopped(ctx context.Context, n *farm.Node, why string) error {
	return farm.Poll(ctx, 50*time.Millisecond, func() error {
		st, err := n.Client.DirStatus(ctx, group)
		if err != nil {
			return err
		}
		for _, d := range st.Nodes {
			if d.Node == n.Name && d.Mode == "stopped" && strings.Contains(d.Why, why) {
				return nil
			}
		}
		return fmt.Errorf("%s says %+v", n.Name, st.Nodes)
	})
}
