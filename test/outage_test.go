package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

func TestUnbindAndBindAgain(t *testing.T) {
	ctx, f := start(t, 3)
	n1, n3 := f.Nodes[0], f.Nodes[2]
	for i := range 50 {
		write(t, f.Nodes[i%3], fmt.Sprintf("d/f%d", i), strings.Repeat("z", 1000*i))
	}
	settle(t, ctx, f)
	if _, err := n1.Client.DirUnbind(ctx, group, n3.Name); err != nil {
		t.Fatal(err)
	}
	holds := func(n *farm.Node) error {
		st, err := n1.Client.Group(ctx, group)
		if err != nil {
			return err
		}
		for _, r := range st.Replicas {
			if r.Node == n.Name {
				return nil
			}
		}
		return fmt.Errorf("%s is not a member", n.Name)
	}
	if holds(n3) == nil {
		t.Error("n3 is listed after it was unbound")
	}
	write(t, n1, "d/after", "unbound")
	if err := os.Remove(filepath.Join(n1.Tree, "d/f3")); err != nil {
		t.Fatal(err)
	}
	pair := &farm.Farm{Binary: f.Binary, Dir: f.Dir, Nodes: f.Nodes[:2]}
	settle(t, ctx, pair)
	if _, err := os.Lstat(filepath.Join(n3.Tree, "d/after")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unbound directory is written to: %v", err)
	}
	if got := read(t, n3, "d/f3"); len(got) != 3000 {
		t.Errorf("the files of an unbound directory stay: %d bytes", len(got))
	}
	write(t, n3, "d/f4", "edited while unbound")
	write(t, n3, "d/own", "new while unbound")
	write(t, n3, "d/f5", "put back from a copy") // whose last author was n3 itself
	if _, err := n1.Client.DirBind(ctx, group, api.DirBind{Node: n3.Name, Path: n3.Tree}); err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	// Nothing is known any more of what was deleted meanwhile: what is there is merged.
	for name, want := range map[string]string{"d/after": "unbound", "d/own": "new while unbound", "d/f3": strings.Repeat("z", 3000)} {
		if got := read(t, n1, name); got != want {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
	either := map[string]bool{read(t, n1, "d/f4"): true}
	copies, err := filepath.Glob(filepath.Join(n1.Tree, "d/f4.conflict-*"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("conflict copies: %v %v", copies, err)
	}
	b, err := os.ReadFile(copies[0])
	if either[string(b)] = true; err != nil || !either["edited while unbound"] || !either[strings.Repeat("z", 4000)] {
		t.Errorf("one of two contents is lost (%v)", err)
	}
	copies, err = filepath.Glob(filepath.Join(n1.Tree, "d/f5.conflict-*"))
	if err != nil || len(copies) != 1 || read(t, n1, "d/f5") != strings.Repeat("z", 5000) {
		t.Fatalf("d/f5 has %d bytes, conflict copies: %v %v", len(read(t, n1, "d/f5")), copies, err)
	}
	if b, err := os.ReadFile(copies[0]); err != nil || string(b) != "put back from a copy" {
		t.Errorf("the copy of d/f5 holds %q (%v)", b, err)
	}
	write(t, n3, "d/again", "a member")
	settle(t, ctx, f)
}

// confirmed writes numbered files on one node and has `dir wait` confirm them, until it is told to stop or its node
// is gone; it returns how many were confirmed.
func confirmed(ctx context.Context, n *farm.Node, stop <-chan struct{}) (count int) {
	for {
		for k := range 10 {
			name := filepath.Join(n.Tree, fmt.Sprintf("%s-%05d", n.Name, count+k))
			if os.WriteFile(name, bytes.Repeat([]byte(n.Name), 1+k*5000), 0o644) != nil {
				return count
			}
		}
		w, err := n.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitQuorum, Timeout: "30s"}, nil)
		if err != nil || !w.Done {
			return count
		}
		count += 10
		select {
		case <-stop:
			return count
		default:
		}
	}
}

func TestAllNodesAreKilledAtOnce(t *testing.T) {
	ctx, f := start(t, 3)
	settle(t, ctx, f)
	stop := make(chan struct{})
	counts := make([]int, len(f.Nodes))
	var wait sync.WaitGroup
	for i, n := range f.Nodes {
		wait.Go(func() { counts[i] = confirmed(ctx, n, stop) })
	}
	if err := farm.Poll(ctx, 5*time.Millisecond, func() error {
		for _, n := range f.Nodes {
			if _, err := os.Lstat(filepath.Join(f.Nodes[0].Tree, n.Name+"-00030")); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes {
		if err := n.Signal(syscall.SIGKILL, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wait.Wait()
	for _, n := range f.Nodes {
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
	t.Logf("confirmed: %v", counts)
	for i, n := range f.Nodes {
		if counts[i] == 0 {
			t.Errorf("nothing of %s was confirmed", n.Name)
		}
		for k := range counts[i] {
			name := fmt.Sprintf("%s-%05d", n.Name, k)
			for _, m := range f.Nodes {
				if got, want := read(t, m, name), strings.Repeat(n.Name, 1+k%10*5000); got != want {
					t.Errorf("%s on %s has %d bytes, want %d", name, m.Name, len(got), len(want))
				}
			}
		}
	}
}

func TestPausedNode(t *testing.T) {
	ctx, f := start(t, 3)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	rest := others(f, leader)
	for i, paused := range []*farm.Node{rest[0], leader} {
		write(t, paused, fmt.Sprintf("last-%d", i), "before the pause")
		whileWriting(t, ctx, f, others(f, paused), func() {
			if err := paused.Signal(syscall.SIGSTOP, false); err != nil {
				t.Fatal(err)
			}
			mark := fmt.Sprintf("mark-%d", i)
			on := others(f, paused)
			write(t, on[0], mark, "while one is paused")
			perr := farm.Poll(ctx, 5*time.Millisecond, func() error {
				b, err := os.ReadFile(filepath.Join(on[1].Tree, mark))
				if err == nil && string(b) != "while one is paused" {
					err = fmt.Errorf("%q", b)
				}
				return err
			})
			_, away := os.Lstat(filepath.Join(paused.Tree, mark))
			if err := errors.Join(perr, paused.Signal(syscall.SIGCONT, false)); err != nil {
				t.Fatal(err)
			}
			if !errors.Is(away, fs.ErrNotExist) {
				t.Errorf("a paused node placed a file: %v", away)
			}
		})
		for _, n := range f.Nodes {
			if got := read(t, n, fmt.Sprintf("last-%d", i)); got != "before the pause" {
				t.Errorf("last-%d on %s: %q", i, n.Name, got)
			}
		}
	}
}

// TestLongAbsence: so much is written while a node is away that its leader's log does not reach back to it.
func TestLongAbsence(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("writes 100 MB; skipped by -short")
	}
	ctx, f := start(t, 3)
	n1, n3 := f.Nodes[0], f.Nodes[2]
	write(t, n1, "edited", "1")
	write(t, n1, "deleted", "1")
	settle(t, ctx, f)
	if err := n3.Stop(); err != nil {
		t.Fatal(err)
	}
	const dirs, files = 100, 200
	content := bytes.Repeat([]byte("5 KB of it\n"), 5000/11)
	for d := range dirs {
		dir := filepath.Join(n1.Tree, fmt.Sprintf("d%d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for k := range files {
			b := fmt.Appendf(content[:len(content):len(content)], "%d %d", d, k)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", k)), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(t, n1, "edited", "2")
	if err := os.Remove(filepath.Join(n1.Tree, "deleted")); err != nil {
		t.Fatal(err)
	}
	w, err := n1.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitQuorum, Timeout: "60s"}, nil)
	if err != nil || !w.Done {
		t.Fatalf("wait: %+v %v", w, err)
	}
	restart(t, ctx, f, n3, "")
	settle(t, ctx, f)
	g, err := n1.Client.Group(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range g.Replicas {
		if r.Node != n3.Name {
			continue
		}
		if t.Logf("%s: %s, %s", r.Node, r.Mode, r.Why); !strings.Contains(r.Mode+" "+r.Why, "diff") && !strings.Contains(r.Mode+" "+r.Why, "snap") {
			t.Errorf("how %s caught up: %+v", n3.Name, r)
		}
	}
	if got := read(t, n3, "edited"); got != "2" {
		t.Errorf("edited: %q", got)
	}
}

func TestTwoNodesNeedEachOther(t *testing.T) {
	ctx, f := start(t, 2)
	settle(t, ctx, f)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	for i, gone := range []*farm.Node{others(f, leader)[0], leader} {
		left := others(f, gone)[0]
		if err := gone.Kill(); err != nil {
			t.Fatal(err)
		}
		for k := range 30 {
			write(t, left, fmt.Sprintf("round%d/f%d", i, k), strings.Repeat("w", 1000*k))
		}
		write(t, gone, fmt.Sprintf("down-%d", i), "written where nothing runs")
		w, err := left.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitQuorum, Timeout: "1s"}, nil)
		if err == nil && w.Done {
			t.Errorf("one of two nodes has confirmed: %+v", w)
		}
		restart(t, ctx, f, gone, "")
		settle(t, ctx, f)
		for _, n := range f.Nodes {
			for k := range 30 {
				if got := read(t, n, fmt.Sprintf("round%d/f%d", i, k)); len(got) != 1000*k {
					t.Errorf("round%d/f%d on %s has %d bytes", i, k, n.Name, len(got))
				}
			}
			read(t, n, fmt.Sprintf("down-%d", i))
		}
	}
}
