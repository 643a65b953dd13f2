package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// volumes are file systems of their own, one a node, on which everything of it lies.
func volumes(t *testing.T, ctx context.Context, size int) (*farm.Farm, []*farm.Volume) {
	t.Helper()
	dir := t.TempDir()
	var vs []*farm.Volume
	t.Cleanup(func() { // after the farm is closed
		for _, v := range vs {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	f := &farm.Farm{Binary: binary, Dir: dir}
	closing(t, f)
	for i := range size {
		at := filepath.Join(dir, fmt.Sprintf("v%d", i+1))
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		v, err := farm.NewVolume(at, 256<<20)
		if err != nil {
			t.Skipf("needs root and a loop device: %v", err)
		}
		vs = append(vs, v)
		if _, err := f.AddAt(ctx, farm.Place{Dir: v.Dir}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.WaitVoting(ctx), f.Share(ctx, group, f.Nodes...)); err != nil {
		t.Fatal(err)
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	return f, vs
}

// full waits until a node says of another, or of itself, that its disk is, or is not, full.
func full(t *testing.T, ctx context.Context, asked, node *farm.Node, want bool) {
	t.Helper()
	if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		nodes, err := asked.Client.Nodes(ctx)
		for _, n := range nodes {
			if n.Name == node.Name && (n.Full != nil) == want && n.State == "up" {
				return nil
			}
		}
		return fmt.Errorf("%s, according to %s, full=%v: %+v %w", node.Name, asked.Name, !want, nodes, err)
	}); err != nil {
		t.Fatal(err)
	}
}

// TestLeaderDiskFull fills the disk of the leader while another node writes: writes go on, nothing is lost, the process
// lives, and with room it is one of the others again, by itself.
func TestLeaderDiskFull(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 3)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	at, other := 0, f.Nodes[0]
	for i, n := range f.Nodes {
		if n == leader {
			at = i
		} else {
			other = n
		}
	}
	write(t, other, "before", "it was full")
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	stop := make(chan struct{})
	type written struct {
		n   int
		err error
	}
	done := make(chan written, 1)
	go func() {
		n, err := writer(other, "w", stop)
		done <- written{n, err}
	}()
	if err := vs[at].Fill(); err != nil {
		t.Fatal(err)
	}
	filled := time.Now()
	full(t, ctx, other, leader, true)
	// A write after the disk is full is on a quorum within a second or two. What was measured has the asking of two APIs in
	// it, on a machine that may be busy: so only what waited for something is an error.
	took := probe(t, ctx, other, api.AnswerCommitted).Sub(filled)
	t.Logf("writes go on at most %v after the disk was full", took.Round(time.Millisecond))
	if took > 20*time.Second {
		t.Errorf("writes went on only %v after the disk was full", took)
	}
	if l, err := f.Leader(ctx, group); err != nil || l == leader {
		t.Errorf("the full node leads on: %v", err)
	}
	if _, err := leader.Client.GroupTransfer(ctx, group, api.GroupTransfer{Node: leader.Name}); err == nil {
		t.Error("leadership was transferred to the full node")
	}
	st, err := other.Client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var warned *api.Warning
	for i := range st.Warnings {
		if w := &st.Warnings[i]; w.Name == "disk_full" && w.Subject == leader.Name {
			warned = w
		}
	}
	if warned == nil || warned.Since.IsZero() || !strings.Contains(warned.Text, leader.Data) || !strings.Contains(warned.Text, "free") {
		t.Errorf("status does not warn of %s: %+v", leader.Name, st.Warnings)
	}
	// A file that must be staged and not only logged, and time for the full node to be written to as much as there is.
	write(t, other, "large", strings.Repeat("0123456789abcdef", 8<<20/16))
	for _, n := range f.Nodes {
		if n != leader && n != other {
			appears(t, ctx, n, "large", strings.Repeat("0123456789abcdef", 8<<20/16))
		}
	}
	if leader.Ended() {
		t.Fatal("the full node's process ended")
	}
	close(stop)
	w := <-done
	if w.err != nil || w.n < 100 {
		t.Errorf("%d files were written: %v", w.n, w.err)
	}
	if err := vs[at].Free(); err != nil {
		t.Fatal(err)
	}
	full(t, ctx, other, leader, false)
	settle(t, ctx, f)
	if leader.Ended() {
		t.Fatal("the process of the node that was full ended")
	}
	log, err := os.ReadFile(filepath.Join(f.Dir, leader.Name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{"the disk is full", "the disk has room again"} {
		if !strings.Contains(string(log), said) {
			t.Errorf("%s does not say: %s", leader.Name, said)
		}
	}
	if _, err := other.Client.GroupTransfer(ctx, group, api.GroupTransfer{Node: leader.Name}); err != nil {
		t.Errorf("with room it does not lead again: %v", err)
	}
}

// probe writes until the answer is as wanted, and says when that was.
func probe(t *testing.T, ctx context.Context, n *farm.Node, want string) time.Time {
	t.Helper()
	if err := farm.Poll(ctx, 5*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		p, err := n.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "quorum"})
		if err == nil && p.Answer != want {
			err = fmt.Errorf("answer %s, want %s", p.Answer, want)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// TestAllDisksFull: writes are refused with a word that names directory, room and need; reads and status are answered;
// with room everything goes on by itself, and what waited meanwhile is written.
func TestAllDisksFull(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 3)
	n1 := f.Nodes[0]
	for i := range 200 {
		write(t, f.Nodes[i%3], fmt.Sprintf("before/%03d", i), strings.Repeat("b", 3000))
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	small := filepath.Join(n1.Tree, "before", "000")
	for _, v := range vs {
		if err := v.Fill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		full(t, ctx, n1, n, true)
	}
	if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		_, err := n1.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "quorum"})
		if !errors.Is(err, &api.Error{Code: api.CodeFull}) {
			return fmt.Errorf("the probe says: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	refused(t, api.CodeFull, group, "full", "--server", socket(n1), "group", "probe", group)
	refused(t, api.CodeFull, "control group", "full", "--server", socket(n1), "group", "set", group, "--ack", "all")
	took := time.Since(began)
	t.Logf("two refusals, with the processes that asked: %v", took.Round(time.Millisecond))
	if took > 10*time.Second { // less than what waits for a quorum takes
		t.Errorf("two refusals took %v", took)
	}
	_, err := n1.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "quorum"})
	var e *api.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, f.Nodes[2].Data) || !strings.Contains(e.Hint, "free") || !strings.Contains(e.Hint, "needs") {
		t.Errorf("the refusal does not say where, how much is free and how much is needed: %+v", e)
	}
	// A local edit that needs no room: it waits, and says why.
	if err := os.Chmod(small, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
		st, err := n1.Client.DirStatus(ctx, group)
		if err != nil {
			return err
		}
		for _, row := range st.Nodes {
			for _, p := range row.Problems {
				if row.Node == n1.Name && strings.Contains(p.What, "full") && strings.Contains(p.Hint, "free") {
					return nil
				}
			}
		}
		return fmt.Errorf("no problem tells of it: %+v", st.Nodes)
	}); err != nil {
		t.Fatal(err)
	}
	for i, n := range f.Nodes {
		if n.Ended() {
			t.Fatalf("the process of %s ended", n.Name)
		}
		if err := vs[i].Free(); err != nil {
			t.Fatal(err)
		}
	}
	probe(t, ctx, n1, api.AnswerCommitted)
	settle(t, ctx, f)
	for _, n := range f.Nodes {
		if st, err := os.Stat(filepath.Join(n.Tree, "before", "000")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the edit that waited is not on %s: %v %v", n.Name, st, err)
		}
	}
}

// TestFullDiskStartAndStop: on a full disk a node stops, and is refused its start with a word that says what to do, as is
// whoever recovers it there or reads a backup with the directory for temporary files there; with room it starts and has
// everything.
func TestFullDiskStartAndStop(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 1)
	n1 := f.Nodes[0]
	write(t, n1, "a", "before")
	for i := range 3000 {
		write(t, n1, fmt.Sprintf("saved/%04d", i), fmt.Sprint("content ", i))
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	saved := filepath.Join(t.TempDir(), "saved.lockstep")
	if out, err := exec.CommandContext(ctx, binary, "--server", socket(n1), "backup", "create", saved).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := vs[0].Fill(); err != nil {
		t.Fatal(err)
	}
	full(t, ctx, n1, n1, true)
	refused(t, api.CodeFull, group, "full", "--server", socket(n1), "group", "probe", group)
	if err := n1.Stop(); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeFull, n1.Data, "no space left", "serve", "--data", n1.Data, "--listen", n1.Listen, "--api", "off")
	refused(t, api.CodeFull, n1.Data, "no space left", "offline", "recover", "--data", n1.Data, "--yes-lose-data", n1.Name)
	filler := filepath.Join(vs[0].Dir, "filler")
	st, err := os.Stat(filler)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", vs[0].Dir)
	for room := int64(0); room <= 256<<10; room += 32 << 10 { // for nothing, for an empty store, for a part of it
		if err := os.Truncate(filler, st.Size()-room); err != nil {
			t.Fatal(err)
		}
		refused(t, api.CodeFull, vs[0].Dir, "no space left", "backup", "verify", saved)
	}
	t.Setenv("TMPDIR", "")
	if left, err := filepath.Glob(filepath.Join(vs[0].Dir, "lockstep-backup-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := vs[0].Free(); err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n1, "")
	write(t, n1, "b", "after")
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	if p := probe(t, ctx, n1, api.AnswerCommitted); p.IsZero() {
		t.Error("no write after there is room")
	}
}

// TestDiskReadOnly: the file system under a node becomes read-only, as the kernel makes it after an error. The node ends
// with a word that names the directory and what to do; the others go on; started on a file system that is whole again
// it has everything.
func TestDiskReadOnly(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 3)
	n3, n1 := f.Nodes[2], f.Nodes[0]
	if out, err := exec.CommandContext(ctx, "mount", "-o", "remount,abort", vs[2].Dir).CombinedOutput(); err != nil {
		t.Skipf("this kernel does not abort a file system: %v: %s", err, out)
	}
	if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		if !n3.Ended() {
			return errors.New("it lives on")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	log := n3.Log()
	line := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]
	if !strings.Contains(log, n3.Data) || !strings.Contains(log, "storage failed") || !strings.Contains(log, "fsck") && !strings.Contains(log, "dmesg") {
		t.Errorf("the last words do not name the directory, the reason and the way out: %s", line)
	}
	probe(t, ctx, n1, api.AnswerCommitted)
	write(t, n1, "while", "n3 is down")
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitQuorum})
	refused(t, api.CodeFailed, n3.Data, "read-only", "serve", "--data", n3.Data, "--listen", n3.Listen, "--api", "off")
	if err := vs[2].Repair(); err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n3, "")
	settle(t, ctx, f)
}

// TestFullNodeRemoved: a node whose disk is full, with more written to its groups than it could take, was removed while
// nobody heard of it: its process ends when it learns of that, and says why.
func TestFullNodeRemoved(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 3)
	n1, n3 := f.Nodes[0], f.Nodes[2]
	if err := vs[2].Fill(); err != nil {
		t.Fatal(err)
	}
	full(t, ctx, n1, n3, true)
	for i := range 500 {
		write(t, n1, fmt.Sprintf("on/%03d", i), strings.Repeat("x", 3000))
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitQuorum})
	if err := n3.Signal(syscall.SIGSTOP, false); err != nil {
		t.Fatal(err)
	}
	if err := farm.Poll(ctx, 100*time.Millisecond, func() error {
		out, err := n1.Client.NodeRemove(ctx, n3.Name, api.NodeRemove{Force: true}, nil)
		if err == nil && out.State != "removed" {
			err = fmt.Errorf("it is %s", out.State)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := n3.Signal(syscall.SIGCONT, false); err != nil {
		t.Fatal(err)
	}
	if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		if !n3.Ended() {
			return errors.New("it lives on")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if log := n3.Log(); !strings.Contains(log, "may not take part") || !strings.Contains(log, "ends as if it had been killed") {
		t.Errorf("it does not say why it ended, and how: %s", log)
	}
}

// TestFullNodeLeaves: a node whose disk is full, with more written to its groups than it could take, is drained and
// removed by what the others can do. While it has an edit that nobody else knows, the removal ends in bounded time with
// what is in the way and the next step, having shown that it goes on.
func TestFullNodeLeaves(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 4)
	n1, n3, n4 := f.Nodes[0], f.Nodes[2], f.Nodes[3]
	const edits = 200
	edited := func(n *farm.Node, i int) string { return filepath.Join(n.Tree, fmt.Sprintf("edited-%d", i)) }
	for i := range edits {
		write(t, n3, filepath.Base(edited(n3, i)), "before")
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	fill := func(i int, name string) {
		t.Helper()
		if err := vs[i].Fill(); err != nil {
			t.Fatal(err)
		}
		full(t, ctx, n1, f.Nodes[i], true)
		for range 1000 { // each takes a block of what a full node still takes
			if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
				_, err := n1.Client.GroupProbe(ctx, group, api.GroupProbeRequest{Ack: "quorum"})
				if err != nil { // of three, with one full, none may be silent for a second
					t.Logf("a probe was refused: %+v", err)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		write(t, n1, name, name)
		reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitNode, Node: n1.Name})
		if g := groupAt(t, ctx, n1); g.Replicas[i].LagEntries < 100 {
			t.Fatalf("the full node follows on: %+v", g.Replicas[i])
		}
	}
	fill(3, "four")
	out, err := n1.Client.NodeDrain(ctx, n4.Name, api.NodeDrain{}, nil)
	if err != nil || out.State != "drained" || len(out.Moved) != 2 {
		t.Errorf("the full node is not drained: %+v, %v", out, err)
	}
	if out, err = n1.Client.NodeRemove(ctx, n4.Name, api.NodeRemove{}, nil); err != nil || out.State != "removed" {
		t.Errorf("the full node is not removed: %+v, %v", out, err)
	}
	fill(2, "three")
	// An edit goes out as long as the records of those before it find room: the last block that they began takes some twenty.
	for i := range edits {
		if err := os.Chmod(edited(n3, i), 0o600); err != nil { // needs no room
			t.Fatal(err)
		}
	}
	began := time.Now()
	var shown []api.Progress
	_, err = n1.Client.NodeRemove(ctx, n3.Name, api.NodeRemove{}, func(p api.Progress) { shown = append(shown, p) })
	took := time.Since(began)
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeUnavailable || !strings.Contains(e.Why, "the disk of n3 is full") || !strings.Contains(e.Why, n3.Data) ||
		!strings.Contains(e.Hint, "try again") || !strings.Contains(e.Hint, "--force") {
		t.Errorf("the removal of a node that has what nobody else has: %v (%+v)", err, e)
	}
	if took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if i := len(shown) - 1; i < 10 || shown[i].What != "saving what it has" || shown[i].Node != n3.Name {
		t.Errorf("it showed %+v", shown)
	}
	if err := vs[2].Free(); err != nil {
		t.Fatal(err)
	}
	full(t, ctx, n1, n3, false)
	if out, err = n1.Client.NodeRemove(ctx, n3.Name, api.NodeRemove{}, nil); err != nil || out.State != "removed" {
		t.Errorf("with room it is not removed: %+v, %v", out, err)
	}
	for _, n := range f.Nodes[:2] {
		appears(t, ctx, n, "four", "four")
		appears(t, ctx, n, "three", "three")
		for i := range edits {
			if st, err := os.Stat(edited(n, i)); err != nil || st.Mode().Perm() != 0o600 {
				t.Fatalf("what only n3 had is not on %s: %v, %v", n.Name, st, err)
			}
		}
	}
}
