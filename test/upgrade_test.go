package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// nextVersion builds the program that knows one cluster level more. It uses it for nothing: what it has to show is that
// levels are told, raised, marked and refused.
func nextVersion(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file, err := filepath.Abs("../api/api.go")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	now, next := fmt.Sprintf("	Level    = %d\n", api.Level), fmt.Sprintf("	Level    = %d\n", api.Level+1)
	if strings.Count(string(source), now) != 1 {
		t.Fatalf("%s does not say once: %s", file, now)
	}
	changed, spec, out := filepath.Join(dir, "api.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "lockstep")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: changed}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(changed, []byte(strings.Replace(string(source), now, next, 1)), 0o600), os.WriteFile(spec, overlay, 0o600)); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", spec, "-o", out, "github.com/lockstep-sync/lockstep/cmd/lockstep")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build of the next version: %v\n%s", err, text)
	}
	return out
}

// upgrade exchanges the program of a node.
func upgrade(t *testing.T, ctx context.Context, f *farm.Farm, n *farm.Node, program string) {
	t.Helper()
	if n.Running() {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	f.Binary = program
	if err := errors.Join(f.Run(n, ""), f.WaitUp(ctx, n)); err != nil {
		t.Fatal(err)
	}
}

// levelIs waits until the node sees the cluster at a level, with a warning of that name; "": with none of the level.
func levelIs(t *testing.T, ctx context.Context, n *farm.Node, level uint64, warning string) {
	t.Helper()
	if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		st, err := n.Client.Status(ctx)
		if err != nil {
			return err
		}
		var found []string
		for _, w := range st.Warnings {
			if w.Name == "upgrade_under_way" || w.Name == "level_not_raised" {
				found = append(found, w.Name)
			}
		}
		var want []string
		if warning != "" {
			want = []string{warning}
		}
		if st.Level != level || !slices.Equal(found, want) {
			return fmt.Errorf("%s sees level %d, warnings %q; want %d, %q", n.Name, st.Level, found, level, want)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// raise asks a node to raise the level; it must be refused for why, unless that is empty.
func raise(t *testing.T, ctx context.Context, n *farm.Node, to uint64, why string) {
	t.Helper()
	r, err := n.Client.LevelRaise(ctx, api.LevelRaise{To: to})
	var e *api.Error
	switch {
	case why == "" && err != nil:
		t.Fatal(err)
	case why == "":
		if r.From != api.Level || r.To != api.Level+1 {
			t.Fatalf("raised %+v", r)
		}
	case !errors.As(err, &e) || e.Code != api.CodeConflict || !strings.Contains(e.Why, why) || e.Hint == "":
		t.Fatalf("raise to %d: %+v, %v; want a refusal for %q", to, r, err, why)
	}
}

// TestUpgradeNodeByNode goes from one version to the next and, as long as the level is not raised, back. Afterwards an
// older program is refused wherever it turns up, and does no harm.
func TestUpgradeNodeByNode(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 3)
	old, next := binary, nextVersion(t)
	n1, n2, n3 := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	levelIs(t, ctx, n1, api.Level, "")

	whileWriting(t, ctx, f, f.Nodes[:1], func() {
		upgrade(t, ctx, f, n2, next)
		levelIs(t, ctx, n3, api.Level, "upgrade_under_way")
		upgrade(t, ctx, f, n2, old) // it does not please
		levelIs(t, ctx, n1, api.Level, "")
		upgrade(t, ctx, f, n2, next)
		upgrade(t, ctx, f, n3, next)
	})
	raise(t, ctx, n2, api.Level+1, "n1")
	upgrade(t, ctx, f, n1, next)
	levelIs(t, ctx, n1, api.Level, "level_not_raised")
	raise(t, ctx, n3, api.Level+2, "knows level")

	if err := n3.Stop(); err != nil { // it is away when the level is raised
		t.Fatal(err)
	}
	raise(t, ctx, n1, 0, "")
	levelIs(t, ctx, n2, api.Level+1, "")
	raise(t, ctx, n2, api.Level, "never lowered")
	write(t, n1, "after.txt", "written at the next level")
	f.Binary = old
	if err := f.Run(n3, ""); err != nil {
		t.Fatal(err)
	}
	both := fmt.Sprintf("level %d.*levels? .*%d", api.Level+1, api.Level)
	ends(t, ctx, n3, both)
	refused(t, api.CodeConflict, "n3|"+regexp.QuoteMeta(n3.Data), both, serve(n3.Data)...) // at once, by its mark
	upgrade(t, ctx, f, n3, next)
	appears(t, ctx, n3, "after.txt", "written at the next level")

	refused(t, api.CodeConflict, "n9", both, serve(filepath.Join(t.TempDir(), "new"), "--name", "n9", "--join", newToken(t, ctx, n1, "1h").Token)...)
	file := filepath.Join(t.TempDir(), "backup")
	create := exec.CommandContext(ctx, next, "backup", "create", file, "--server", socket(n1))
	if text, err := create.CombinedOutput(); err != nil {
		t.Fatalf("backup: %v\n%s", err, text)
	}
	refusedAny(t, old, fmt.Sprintf("cluster level %d", api.Level+1), "backup", "verify", file)
	other, g := cluster(t, 1)
	upgrade(t, other, g, g.Nodes[0], next) // it could, but its cluster is not there yet
	refusedAny(t, next, fmt.Sprintf("this cluster is at %d", api.Level), "restore", file, "--group", group, "--as", "copy",
		"--path", filepath.Join(t.TempDir(), "copy"), "--on", "n1", "--server", socket(g.Nodes[0]))
	if err := n1.Stop(); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeConflict, regexp.QuoteMeta(n1.Data), both, serve(n1.Data)...)
	upgrade(t, ctx, f, n1, next)
	settle(t, ctx, f)
}

// refusedAny runs a command that has to fail and say why.
func refusedAny(t *testing.T, program, why string, args ...string) {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err == nil || !strings.Contains(string(text), why) {
		t.Errorf("%q: %v\n%s", args, err, text)
	}
}
