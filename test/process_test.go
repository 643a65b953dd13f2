package test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

var seed = flag.Uint64("test.workload.seed", 0, "seed of the random workloads; 0 draws one")

var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	if _, err := exec.LookPath("rsync"); err != nil {
		fmt.Fprintln(os.Stderr, "these tests use rsync as an independent judge: apt-get install rsync")
		os.Exit(1)
	}
	if err := checkRoom(os.TempDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	fmt.Printf("workload seed %d (replay with -test.workload.seed=%d)\n", *seed, *seed)
	dir, err := os.MkdirTemp("", "lockstep-test-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "lockstep")
	build := exec.Command("go", "build", "-o", binary, "github.com/lockstep-sync/lockstep/cmd/lockstep")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// room is more than any test here fills; with less, nodes refuse writes as they should, and tests fail for that.
const room = 2 << 30

func checkRoom(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look how much room there is below %s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < room {
		return fmt.Errorf("these tests need %d MiB of room below %s, and there are %d: delete something, or set TMPDIR to another place", room>>20, dir, free>>20)
	}
	return nil
}

const group = "web"

// start runs three nodes that share their trees.
func start(t *testing.T, size int) (context.Context, *farm.Farm) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	f, err := farm.Start(ctx, binary, t.TempDir(), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, n := range f.Nodes {
				t.Logf("--- log of %s\n%s", n.Name, n.Log())
			}
		}
	})
	if err := errors.Join(f.WaitVoting(ctx), f.Share(ctx, group, f.Nodes...)); err != nil {
		t.Fatal(err)
	}
	return ctx, f
}

// settle waits until every running node has everything, and has rsync judge.
func settle(t *testing.T, ctx context.Context, f *farm.Farm) {
	t.Helper()
	var first *farm.Node
	for _, n := range f.Nodes {
		if !n.Running() {
			continue
		}
		if first == nil {
			first = n
			w, err := n.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitAll, Timeout: "60s"}, nil)
			if err != nil || len(w.Missing) > 0 {
				t.Fatalf("wait: %+v %v", w, err)
			}
		}
	}
	for _, n := range f.Nodes {
		if n == first || !n.Running() {
			continue
		}
		diff, err := farm.Same(first.Tree, n.Tree)
		if err != nil || diff != "" {
			t.Errorf("%s and %s differ: %v\n%s", first.Name, n.Name, err, diff)
		}
	}
}

func write(t *testing.T, n *farm.Node, name, content string) {
	t.Helper()
	path := filepath.Join(n.Tree, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, n *farm.Node, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Tree, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnyNodeWritesAllHold(t *testing.T) {
	ctx, f := start(t, 3)
	for i, n := range f.Nodes {
		write(t, n, fmt.Sprintf("from-%s/a.txt", n.Name), strings.Repeat("x", i*70_000))
		if err := os.Symlink("a.txt", filepath.Join(n.Tree, "from-"+n.Name, "link")); err != nil {
			t.Fatal(err)
		}
		odd := filepath.Join(n.Tree, "from-"+n.Name, "odd \xff\n name")
		if err := os.WriteFile(odd, []byte("odd"), 0o4751); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(odd, time.Time{}, time.Unix(1_000_000_000, 123_456_789)); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, ctx, f)
	if err := os.RemoveAll(filepath.Join(f.Nodes[1].Tree, "from-n1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.Nodes[2].Tree, "from-n2", "a.txt")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(f.Nodes[2].Tree, "from-n2", "a.txt", "now-a-directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	if _, err := os.Lstat(filepath.Join(f.Nodes[0].Tree, "from-n1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from-n1 is still on n1: %v", err)
	}
	if st, err := os.Lstat(filepath.Join(f.Nodes[0].Tree, "from-n2", "a.txt", "now-a-directory")); err != nil || !st.IsDir() {
		t.Errorf("the file that became a directory: %v %v", st, err)
	}
}

// writer writes numbered files into one node's tree until it is told to stop, and reports how many there are.
func writer(n *farm.Node, prefix string, stop <-chan struct{}) (count int, err error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return count, nil
		case <-tick.C:
		}
		name := filepath.Join(n.Tree, fmt.Sprintf("%s-%05d", prefix, count))
		if err := os.WriteFile(name, bytes.Repeat([]byte(prefix), 1000), 0o644); err != nil {
			return count, err
		}
		count++
	}
}

// whileWriting keeps writers going on the given nodes during do, then checks that nothing is lost.
func whileWriting(t *testing.T, ctx context.Context, f *farm.Farm, on []*farm.Node, do func()) {
	t.Helper()
	stop := make(chan struct{})
	counts := make([]int, len(on))
	var wait sync.WaitGroup
	for i, n := range on {
		wait.Go(func() {
			var err error
			if counts[i], err = writer(n, n.Name, stop); err != nil {
				t.Error(err)
			}
		})
	}
	do()
	close(stop)
	wait.Wait()
	settle(t, ctx, f)
	for i, n := range on {
		for k := range counts[i] {
			name := fmt.Sprintf("%s-%05d", n.Name, k)
			for _, m := range f.Nodes {
				if got := read(t, m, name); got != strings.Repeat(n.Name, 1000) {
					t.Fatalf("%s on %s has %d bytes", name, m.Name, len(got))
				}
			}
		}
	}
}

func others(f *farm.Farm, n *farm.Node) (rest []*farm.Node) {
	for _, m := range f.Nodes {
		if m != n {
			rest = append(rest, m)
		}
	}
	return rest
}

func restart(t *testing.T, ctx context.Context, f *farm.Farm, n *farm.Node, join string, extra ...string) {
	t.Helper()
	if err := f.Run(n, join, extra...); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitUp(ctx, n); err != nil {
		t.Fatal(err)
	}
}

func TestKillLeaderDuringWrites(t *testing.T) {
	ctx, f := start(t, 3)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	whileWriting(t, ctx, f, f.Nodes, func() {
		if err := leader.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Leader(ctx, group); err != nil {
			t.Fatal(err)
		}
		restart(t, ctx, f, leader, "")
	})
}

func TestKillFollowerDuringWrites(t *testing.T) {
	ctx, f := start(t, 3)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	follower := others(f, leader)[0]
	whileWriting(t, ctx, f, f.Nodes, func() {
		if err := follower.Kill(); err != nil {
			t.Fatal(err)
		}
		write(t, leader, "while-away", "news")
		restart(t, ctx, f, follower, "")
	})
	g, err := leader.Client.Group(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range g.Replicas {
		if r.Node == follower.Name && (r.Mode != "diff" && r.Mode != "live" || r.Why == "") {
			t.Errorf("catch-up of %s: mode %q, why %q", r.Node, r.Mode, r.Why)
		}
	}
}

func TestFilesChangeWhileNodeIsDown(t *testing.T) {
	ctx, f := start(t, 3)
	n2 := f.Nodes[1]
	write(t, f.Nodes[0], "stays", "1")
	write(t, f.Nodes[0], "edited-down", "1")
	write(t, f.Nodes[0], "deleted-down", "1")
	write(t, f.Nodes[0], "edited-both", "1")
	settle(t, ctx, f)
	if err := n2.Stop(); err != nil {
		t.Fatal(err)
	}
	write(t, n2, "edited-down", "2 on n2")
	write(t, n2, "new-down", "3 on n2")
	if err := os.Remove(filepath.Join(n2.Tree, "deleted-down")); err != nil {
		t.Fatal(err)
	}
	write(t, n2, "edited-both", "on n2")
	write(t, f.Nodes[2], "edited-both", "on n3")
	write(t, f.Nodes[2], "new-up", "up")
	if err := farm.Poll(ctx, 5*time.Millisecond, func() error {
		if b, err := os.ReadFile(filepath.Join(f.Nodes[0].Tree, "edited-both")); err != nil || string(b) != "on n3" {
			return fmt.Errorf("not yet: %q %v", b, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n2, "")
	settle(t, ctx, f)
	for name, want := range map[string]string{"stays": "1", "edited-down": "2 on n2", "new-down": "3 on n2", "edited-both": "on n3", "new-up": "up"} {
		if got := read(t, f.Nodes[0], name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(f.Nodes[0].Tree, "deleted-down")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted-down: %v", err)
	}
	copies, err := filepath.Glob(filepath.Join(f.Nodes[0].Tree, "edited-both.conflict-n2-*"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("conflict copies: %v %v", copies, err)
	}
	if b, err := os.ReadFile(copies[0]); err != nil || string(b) != "on n2" {
		t.Errorf("the conflict copy holds %q %v", b, err)
	}
}

func TestWipedDataDirectory(t *testing.T) {
	ctx, f := start(t, 3)
	for i := range 200 {
		write(t, f.Nodes[i%3], fmt.Sprintf("d%d/f%d", i%7, i), strings.Repeat("y", 100*i))
	}
	settle(t, ctx, f)
	n3 := f.Nodes[2]
	if err := n3.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n3.Data); err != nil {
		t.Fatal(err)
	}
	write(t, f.Nodes[0], "d1/while-wiped", "news")
	token, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n3, token, "--replace")
	settle(t, ctx, f)
	if got := read(t, n3, "d1/while-wiped"); got != "news" {
		t.Errorf("got %q", got)
	}
	write(t, n3, "after", "again a member")
	settle(t, ctx, f)
}

// TestReaderNeverSeesABadFile loops over paths that are being replaced on another node: a reader must find each
// of them always there, whole, and of one version.
func TestReaderNeverSeesABadFile(t *testing.T) {
	ctx, f := start(t, 3)
	const files = 20
	sizes := []int{1, 300, 5_000, 40_000, 300_000}
	content := func(k, version int) []byte {
		line := fmt.Appendf(nil, "file %d version %d\n", k, version)
		return bytes.Repeat(line, 1+sizes[(k+version)%len(sizes)]/len(line))
	}
	replace := func(k, version int) {
		path := filepath.Join(f.Nodes[0].Tree, fmt.Sprintf("f%d", k))
		tmp := filepath.Join(f.Nodes[0].Data, fmt.Sprintf("tmp%d", k))
		if err := errors.Join(os.WriteFile(tmp, content(k, version), 0o644), os.Rename(tmp, path)); err != nil {
			t.Fatal(err)
		}
	}
	for k := range files {
		replace(k, 0)
	}
	settle(t, ctx, f)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for _, n := range f.Nodes[1:] {
		wait.Go(func() { readLoop(t, n, files, stop) })
	}
	for version := 1; version <= 40; version++ {
		for k := range files {
			replace(k, version)
		}
	}
	settle(t, ctx, f)
	close(stop)
	wait.Wait()
}

func readLoop(t *testing.T, n *farm.Node, files int, stop <-chan struct{}) {
	for reads := 0; ; reads++ {
		select {
		case <-stop:
			t.Logf("%s: %d reads", n.Name, reads)
			return
		default:
		}
		path := filepath.Join(n.Tree, fmt.Sprintf("f%d", reads%files))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%s: %v", n.Name, err)
			return
		}
		line, _, ok := bytes.Cut(b, []byte("\n"))
		if !ok || len(b)%(len(line)+1) != 0 || !bytes.Equal(b, bytes.Repeat(append(line, '\n'), len(b)/(len(line)+1))) {
			t.Errorf("%s: %s is short or mixed: %d bytes, first line %q", n.Name, path, len(b), line)
			return
		}
	}
}

func TestGracefulStopOfTheLeader(t *testing.T) {
	ctx, f := start(t, 3)
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	whileWriting(t, ctx, f, others(f, leader), func() {
		if err := leader.Signal(syscall.SIGTERM, true); err != nil {
			t.Fatal(err)
		}
		restart(t, ctx, f, leader, "")
	})
}

func TestObserversFollowFiveVoters(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 7)
	settle(t, ctx, f)
	g, err := f.Nodes[0].Client.Group(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]int{}
	for _, r := range g.Replicas {
		roles[r.Role]++
	}
	if roles["leader"] != 1 || roles["follower"] != 4 || roles["observer"] != 2 {
		t.Errorf("roles: %v", roles)
	}
	var observer *farm.Node
	for i, r := range g.Replicas {
		if r.Role == "observer" {
			observer = f.Nodes[i]
		}
	}
	if observer == nil {
		t.FailNow()
	}
	write(t, f.Nodes[0], "from-a-voter", "1")
	write(t, observer, "from-an-observer", strings.Repeat("2", 200_000))
	settle(t, ctx, f)
	if err := observer.Kill(); err != nil {
		t.Fatal(err)
	}
	leader, err := f.Leader(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	write(t, others(f, observer)[0], "while-it-was-away", "3")
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Leader(ctx, group); err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, observer, "")
	restart(t, ctx, f, leader, "")
	write(t, observer, "after", "4")
	settle(t, ctx, f)
}
