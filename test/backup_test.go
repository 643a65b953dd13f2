package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

func socket(n *farm.Node) string { return "unix://" + filepath.Join(n.Data, "lockstep.sock") }

// churn writes over a few files again and again until it is told to stop; every content says its own name and number.
func churn(n *farm.Node, stop <-chan struct{}) {
	for k := 0; ; k++ {
		for i := range 5 {
			name := filepath.Join(n.Tree, fmt.Sprintf("hot/%s-%d", n.Name, i))
			text := fmt.Sprintf("%s %d %d\n%s", n.Name, i, k, strings.Repeat("x", (k*7919)%60_000))
			if os.MkdirAll(filepath.Dir(name), 0o755) != nil || os.WriteFile(name, []byte(text), 0o644) != nil {
				return
			}
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// TestBackupUnderWritesAndRestore: a backup that is made while three nodes write is whole; what was settled before it
// began is in it; a cluster made of it holds exactly what it lists.
func TestBackupUnderWritesAndRestore(t *testing.T) {
	ctx, f := start(t, 3)
	for i := range 60 {
		write(t, f.Nodes[i%3], fmt.Sprintf("still/d%d/f%d", i%7, i), strings.Repeat(fmt.Sprint(i), 2000*i))
	}
	write(t, f.Nodes[0], "still/empty", "")
	settle(t, ctx, f)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for _, n := range f.Nodes {
		wait.Go(func() { churn(n, stop) })
	}
	file := filepath.Join(f.Dir, "whole.backup")
	out := run(t, f, nil, "--server", socket(f.Nodes[1]), "backup", "create", file)
	close(stop)
	wait.Wait()
	if !strings.Contains(out, group) {
		t.Errorf("printed %q", out)
	}
	var info api.BackupInfo
	if err := json.Unmarshal([]byte(run(t, f, nil, "backup", "verify", file, "-o", "json")), &info); err != nil || len(info.Groups) != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	ls := run(t, f, nil, "backup", "ls", file, group, "still/d3")
	if !strings.Contains(ls, "f3") || !strings.Contains(ls, "f59") {
		t.Errorf("ls: %s", ls)
	}
	refused(t, api.CodeConflict, "whole.backup", "exists", "--server", socket(f.Nodes[1]), "backup", "create", file)
	refused(t, api.CodeNotFound, "nosuch", "no such", "--server", socket(f.Nodes[1]), "backup", "create", file+"2", "--group", "nosuch")

	// A new cluster, on the same machine.
	data, tree := filepath.Join(f.Dir, "new", "data"), filepath.Join(f.Dir, "new", "tree")
	plan := run(t, f, nil, "restore", file, "--data", data, "--name", "fresh", "--dir", group+"="+tree, "--dry-run")
	if _, err := os.Stat(data); err == nil || !strings.Contains(plan, "would be") {
		t.Errorf("a dry run made %s: %s", data, plan)
	}
	refused(t, api.CodeConflict, "tree", "another node keeps", "restore", file, "--data", data, "--name", "n1") // where n1 has it
	if _, err := os.Stat(data); err == nil {
		t.Error("a refused restore left a data directory")
	}
	var done struct {
		Cluster string
		Groups  []api.Restored
	}
	text := run(t, f, nil, "restore", file, "--data", data, "--name", "fresh", "--dir", group+"="+tree, "-o", "json")
	if err := json.Unmarshal([]byte(text), &done); err != nil || len(done.Groups) != 1 || done.Cluster == "" || done.Cluster == info.Cluster {
		t.Fatalf("%s, %v", text, err)
	}
	refused(t, api.CodeConflict, "data", "not empty", "restore", file, "--data", data, "--name", "fresh")
	stillSame(t, f.Nodes[0].Tree, tree)
	hot, err := filepath.Glob(filepath.Join(tree, "hot/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range hot {
		b, err := os.ReadFile(name)
		if want := strings.ReplaceAll(filepath.Base(name), "-", " ") + " "; err != nil || !bytes.HasPrefix(b, []byte(want)) && len(b) > 0 {
			t.Errorf("%s begins with %.20q", name, b)
		}
	}

	// It lives: it starts, others join, and they get everything.
	g := &farm.Farm{Binary: f.Binary, Dir: filepath.Join(f.Dir, "other")}
	fresh := adopt(t, g, "fresh", data, tree)
	if err := g.WaitUp(ctx, fresh); err != nil {
		t.Fatal(err)
	}
	defer closing(t, g)
	st, err := fresh.Client.DirStatus(ctx, group)
	if err != nil || st.Digest != info.Groups[0].Digest || st.Files != info.Groups[0].Files {
		t.Errorf("digest %s of %d files, the backup has %s of %d (%v)", st.Digest, st.Files, info.Groups[0].Digest, info.Groups[0].Files, err)
	}
	second, err := g.Add(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Client.DirBind(ctx, group, api.DirBind{Node: second.Name, Path: second.Tree}); err != nil {
		t.Fatal(err)
	}
	write(t, second, "from the second", "2")
	if w, err := fresh.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitAll, Timeout: "60s"}, nil); err != nil || !w.Done {
		t.Fatalf("%+v, %v", w, err)
	}
	if diff, err := farm.Same(fresh.Tree, second.Tree); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// stillSame compares what nobody wrote to.
func stillSame(t *testing.T, a, b string) {
	t.Helper()
	if diff, err := farm.Same(filepath.Join(a, "still"), filepath.Join(b, "still")); err != nil || diff != "" {
		t.Errorf("restored files differ: %v\n%s", err, diff)
	}
}

// adopt starts a node on a data directory that was made otherwise.
func adopt(t *testing.T, f *farm.Farm, name, data, tree string) *farm.Node {
	t.Helper()
	n, err := f.Adopt(name, data, tree)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRestoreIntoARunningCluster: beside the living group, and over it.
func TestRestoreIntoARunningCluster(t *testing.T) {
	ctx, f := start(t, 3)
	n1, n2, n3 := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	for i := range 40 {
		write(t, f.Nodes[i%3], fmt.Sprintf("still/f%d", i), strings.Repeat(fmt.Sprint(i), 1500*i))
	}
	write(t, n1, "edited", "in the backup")
	settle(t, ctx, f)
	file := filepath.Join(f.Dir, "b")
	run(t, f, n1, "backup", "create", file, "--group", group)
	want := filepath.Join(f.Dir, "as-it-was")
	if out, err := exec.Command("cp", "-a", n1.Tree, want).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	write(t, n2, "edited", "after the backup")
	write(t, n3, "new/one", "after the backup")
	if err := os.Remove(filepath.Join(n1.Tree, "still/f9")); err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)

	// Beside: through a node that is not to hold it.
	other := filepath.Join(f.Dir, "beside")
	refused(t, api.CodeConflict, group, "lives here", "--server", socket(n1), "restore", file, "--group", group, "--path", other, "--on", "n2,n3")
	refused(t, api.CodeUsage, "copy", "where its files go", "--server", socket(n1), "restore", file, "--group", group, "--as", "copy")
	refused(t, api.CodeNotFound, "nosuch", "no such group", "--server", socket(n1), "restore", file, "--group", "nosuch")
	run(t, f, n1, "restore", file, "--group", group, "--as", "copy", "--on", "n2:"+other+"2,n3:"+other+"3")
	if w, err := n1.Client.DirWait(ctx, "copy", api.DirWaitFor{Mode: api.WaitAll, Timeout: "60s"}, nil); err != nil || !w.Done {
		t.Fatalf("%+v, %v\n%s\n%s", w, err, n2.Log(), n3.Log())
	}
	for _, dir := range []string{other + "2", other + "3"} {
		if b, err := os.ReadFile(filepath.Join(dir, "edited")); err != nil || string(b) != "in the backup" {
			t.Errorf("%s: %q, %v", dir, b, err)
		}
		if diff, err := farm.Same(filepath.Join(want, "still"), filepath.Join(dir, "still")); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}

	// Over the living one, with one member away.
	if err := n3.Kill(); err != nil {
		t.Fatal(err)
	}
	dry := run(t, f, n1, "restore", file, "--group", group, "--over-living", "--dry-run")
	if !strings.Contains(dry, "would be restored") || read(t, n1, "edited") != "after the backup" {
		t.Errorf("dry run: %s", dry)
	}
	run(t, f, n1, "restore", file, "--group", group, "--over-living")
	if err := f.Run(n3, ""); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitUp(ctx, n3); err != nil {
		t.Fatal(err)
	}
	if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		for _, n := range f.Nodes {
			if b, err := os.ReadFile(filepath.Join(n.Tree, "edited")); err != nil || string(b) != "in the backup" {
				return fmt.Errorf("%s: edited holds %q, %v", n.Name, b, err)
			}
			if _, err := os.Stat(filepath.Join(n.Tree, "still/f9")); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	for _, n := range f.Nodes {
		if diff, err := farm.Same(filepath.Join(want, "still"), filepath.Join(n.Tree, "still")); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", n.Name, err, diff)
		}
		if _, err := os.Stat(filepath.Join(n.Tree, "new")); err == nil {
			t.Errorf("%s: what came after the backup is still in the group", n.Name)
		}
		kept := map[string]string{}
		for _, name := range []string{"edited", "new/one"} {
			found, err := filepath.Glob(filepath.Join(n.Data, "work/*/kept/restore-*", name))
			if err != nil || len(found) != 1 {
				t.Errorf("%s: %s is not set aside: %v %v", n.Name, name, found, err)
				continue
			}
			b, err := os.ReadFile(found[0])
			if kept[name] = string(b); err != nil || kept[name] != "after the backup" {
				t.Errorf("%s: set aside %s holds %q, %v", n.Name, name, b, err)
			}
		}
	}
	write(t, n3, "and on", "it goes")
	settle(t, ctx, f)
}

// TestBadBackups: whatever is wrong with a file is said, with the status for damage unless it is merely newer, and nothing is done.
func TestBadBackups(t *testing.T) {
	ctx, f := start(t, 1)
	n := f.Nodes[0]
	write(t, n, "a", strings.Repeat("a", 50_000))
	settle(t, ctx, f)
	good := filepath.Join(f.Dir, "good")
	run(t, f, n, "backup", "create", good)
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(f.Dir, "fresh")
	for name, c := range map[string]struct {
		bytes []byte
		why   string
	}{
		"cut":     {b[:len(b)-100], "cut short"},
		"altered": {altered(b, len(b)/2), "damaged"},
		"newer":   {bytes.Replace(b, fmt.Appendf(nil, `{"level":%d,`, backup.Level), []byte(`{"level":7,`), 1), "newer version"},
		"foreign": {[]byte("something else altogether"), "no backup"},
		"longer":  {append(bytes.Clone(b), "more"...), "follows the end"},
	} {
		file := filepath.Join(f.Dir, name)
		if err := os.WriteFile(file, c.bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		code := api.CodeDamage
		if name == "newer" {
			code = api.CodeConflict
		}
		refused(t, code, name, c.why, "backup", "verify", file)
		refused(t, code, name, c.why, "backup", "ls", file)
		refused(t, code, name, c.why, "restore", file, "--data", data, "--name", "x")
		refused(t, code, name, c.why, "--server", socket(n), "restore", file, "--group", group, "--over-living")
	}
	refused(t, api.CodeNotFound, "nowhere", "no such file", "backup", "verify", filepath.Join(f.Dir, "nowhere"))
	if _, err := os.Stat(data); err == nil {
		t.Error("a bad backup left a data directory")
	}
	if got := read(t, n, "a"); len(got) != 50_000 {
		t.Errorf("the living group was touched: %d bytes", len(got))
	}
}

func altered(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x40
	return b
}
