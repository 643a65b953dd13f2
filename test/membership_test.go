package test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	identity "github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// ends waits until a node's process has ended by itself, having said what it was refused for.
func ends(t *testing.T, ctx context.Context, n *farm.Node, why string) {
	t.Helper()
	patience, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := farm.Poll(patience, 20*time.Millisecond, func() error {
		if !n.Ended() {
			return fmt.Errorf("%s still runs", n.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(why).MatchString(n.Log()) {
		t.Errorf("%s ended without a word of %q:\n%s", n.Name, why, n.Log())
	}
}

// servesAgain is the command line that starts a node as the farm does.
func servesAgain(n *farm.Node) []string {
	return []string{"serve", "--data", n.Data, "--name", n.Name, "--listen", n.Listen, "--api", "off"}
}

// kept are the names and contents below a directory, but for what lockstep keeps there.
func kept(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && d.Name() == ".lockstep" {
				return fs.SkipDir
			}
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// unharmed checks that a group goes on among the nodes that run, with the leader and in the term in which it was.
func unharmed(t *testing.T, ctx context.Context, f *farm.Farm, before api.Group) {
	t.Helper()
	first := running(f)[0]
	for i, n := range running(f) {
		write(t, n, fmt.Sprintf("afterwards/%d-%s", before.Commit, n.Name), fmt.Sprint(i))
	}
	w, err := first.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitQuorum, Timeout: "20s"}, nil)
	if err != nil || !w.Done {
		t.Fatalf("the others' group does not go on: %+v, %v", w, err)
	}
	after := groupAt(t, ctx, first)
	if after.Term != before.Term || after.Leader != before.Leader {
		t.Errorf("led by %s in term %d, before by %s in term %d", after.Leader, after.Term, before.Leader, before.Term)
	}
}

func running(f *farm.Farm) (nodes []*farm.Node) {
	for _, n := range f.Nodes {
		if n.Running() {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func groupAt(t *testing.T, ctx context.Context, n *farm.Node) api.Group {
	t.Helper()
	g, err := n.Client.Group(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// voters waits until exactly these nodes vote in the group and one of them leads it.
func voters(t *testing.T, ctx context.Context, at *farm.Node, want ...*farm.Node) api.Group {
	t.Helper()
	var g api.Group
	if err := farm.Poll(ctx, 50*time.Millisecond, func() (err error) {
		if g, err = at.Client.Group(ctx, group); err != nil {
			return err
		}
		voting := map[string]bool{}
		for _, r := range g.Replicas {
			voting[r.Node] = r.Role == "leader" || r.Role == "follower"
		}
		for _, n := range want {
			if !voting[n.Name] {
				return fmt.Errorf("%s does not vote: %+v", n.Name, g.Replicas)
			}
		}
		if len(voting) != len(want) || g.Leader == "" {
			return fmt.Errorf("led by %q: %+v", g.Leader, g.Replicas)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestRemovedNodesAreToldAndDoNoHarm: one node is removed while it runs, one with --force while it is dead. Both are
// told, end, and do not start again; their files stay; the others' group does not notice them, and their certificates
// open nothing any more.
func TestRemovedNodesAreToldAndDoNoHarm(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 4)
	n1, n2, n3, n4 := f.Nodes[0], f.Nodes[1], f.Nodes[2], f.Nodes[3]
	write(t, n3, "one", "1")
	write(t, n4, "two", "2")
	settle(t, ctx, f)
	if err := n4.Kill(); err != nil {
		t.Fatal(err)
	}
	write(t, n4, "only here", "written while the node was dead")
	server := "unix://" + filepath.Join(n1.Data, "lockstep.sock")
	refused(t, api.CodeConflict, "n4", "down", "node", "remove", "n4", "--server", server)
	refused(t, api.CodeConflict, "n3", "up", "node", "remove", "n3", "--force", "--server", server)
	if out, err := n1.Client.NodeRemove(ctx, "n4", api.NodeRemove{Force: true}, nil); err != nil || out.State != "removed" {
		t.Fatalf("%+v, %v", out, err)
	}
	if out, err := n1.Client.NodeRemove(ctx, "n3", api.NodeRemove{}, nil); err != nil || out.State != "removed" {
		t.Fatalf("%+v, %v", out, err)
	}
	ends(t, ctx, n3, "removed from the cluster")
	before := voters(t, ctx, n1, n1, n2)
	trees := map[*farm.Node]map[string]string{n3: kept(t, n3.Tree), n4: kept(t, n4.Tree)}
	for range 2 {
		for _, n := range []*farm.Node{n4, n3} {
			refused(t, api.CodeDenied, n.Name, "removed from the cluster", servesAgain(n)...)
		}
	}
	unharmed(t, ctx, f, before)
	for n, tree := range trees {
		if got := kept(t, n.Tree); fmt.Sprint(got) != fmt.Sprint(tree) {
			t.Errorf("the files of %s: %v, before %v", n.Name, got, tree)
		}
		for _, peer := range []*farm.Node{n1, n2} {
			opensNothing(t, ctx, n, peer)
		}
	}
	nodes, err := n2.Client.Nodes(ctx)
	if err != nil || len(nodes) != 2 {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
}

// opensNothing speaks to a node with the certificate of a removed one, and no other part of that node.
func opensNothing(t *testing.T, ctx context.Context, of, at *farm.Node) {
	t.Helper()
	id, err := identity.Load(of.Data, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := identity.Load(at.Data, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	denials := make(chan *api.Error, 16)
	intruder, err := transport.New(transport.Config{
		Identity: id, Listener: l, Log: slog.New(slog.DiscardHandler), Rand: rand.NewPCG(*seed, 5),
		Resolve:    func(uint64) (string, bool) { return at.Listen, true },
		OnMessages: func(uint64, uint64, []*raftpb.Message) {},
		OnDenied:   func(_ uint64, why *api.Error) { denials <- why },
		Age:        func() uint64 { return 1 << 40 },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer intruder.Close()
	denied := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, transport.ErrUnreachable) {
			t.Errorf("%s opens %s at %s: %v", of.Name, what, at.Name, err)
		}
		select {
		case why := <-denials:
			if why.Code != api.CodeDenied {
				t.Errorf("%s of %s at %s: %+v", what, of.Name, at.Name, why)
			}
		case <-ctx.Done():
			t.Errorf("%s of %s at %s: not told why", what, of.Name, at.Name)
		}
	}
	for _, method := range []string{"server.state", "server.hello", engine.MethodPropose, engine.MethodRead} {
		_, err := intruder.Call(ctx, peer.Node(), method, nil)
		denied(method, err)
	}
	for _, service := range []string{"files.content", "server.backup", engine.ServiceSnapshot, engine.ServiceFeed, "raft"} {
		conn, err := intruder.Open(ctx, peer.Node(), service)
		if err == nil {
			conn.Close()
		}
		denied(service, err)
	}
}

// copyOf copies a data directory as a backup would; nobody may use it meanwhile.
func copyOf(t *testing.T, f *farm.Farm, n *farm.Node, name string) string {
	t.Helper()
	to := filepath.Join(f.Dir, name)
	if out, err := exec.Command("cp", "-a", n.Data, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	return to
}

// TestCopiedDataDirectory: a data directory is copied and both are started. The copy is refused, and stays refused
// however often it is started; the node and the others do not notice.
func TestCopiedDataDirectory(t *testing.T) {
	ctx, f := start(t, 3)
	write(t, f.Nodes[0], "one", "1")
	settle(t, ctx, f)
	n3 := f.Nodes[2]
	if err := n3.Stop(); err != nil {
		t.Fatal(err)
	}
	twin := copyOf(t, f, n3, "twin")
	restart(t, ctx, f, n3, "")
	settle(t, ctx, f)
	before := groupAt(t, ctx, f.Nodes[0])
	for range 3 {
		refused(t, api.CodeDamage, "n3", "copy", serve(twin, "--name", "n3")...)
	}
	unharmed(t, ctx, f, before)
	settle(t, ctx, f)
	if !n3.Running() || n3.Ended() {
		t.Error("the node ended because of its copy")
	}
}

// TestRestoredDataDirectory: a data directory is put back from an old copy, which has forgotten what the node promised
// since. Neither restarts of the others nor its own make it pass; joined anew the node has everything again.
func TestRestoredDataDirectory(t *testing.T) {
	ctx, f := start(t, 3)
	write(t, f.Nodes[0], "one", "1")
	settle(t, ctx, f)
	n3 := f.Nodes[2]
	if err := n3.Stop(); err != nil {
		t.Fatal(err)
	}
	old := copyOf(t, f, n3, "old")
	restart(t, ctx, f, n3, "")
	write(t, n3, "two", "2")
	settle(t, ctx, f)
	if err := n3.Kill(); err != nil {
		t.Fatal(err)
	}
	write(t, n3, "three", "written while the node was dead")
	if err := errors.Join(os.RemoveAll(n3.Data), os.Rename(old, n3.Data)); err != nil {
		t.Fatal(err)
	}
	for _, n := range others(f, n3) { // what they have heard of their peers outlives them
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		restart(t, ctx, f, n, "")
	}
	if _, err := f.Leader(ctx, group); err != nil {
		t.Fatal(err)
	}
	before := groupAt(t, ctx, f.Nodes[0])
	for range 3 {
		refused(t, api.CodeDamage, "n3", "old image", servesAgain(n3)...)
	}
	unharmed(t, ctx, f, before)
	if err := os.RemoveAll(n3.Data); err != nil {
		t.Fatal(err)
	}
	token, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n3, token, "--replace")
	settle(t, ctx, f)
	for name, want := range map[string]string{"one": "1", "two": "2", "three": "written while the node was dead"} {
		if got := read(t, f.Nodes[0], name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestUnbindKeepsTheMajority: a directory is not unbound if the voters that remain could not decide anything.
func TestUnbindKeepsTheMajority(t *testing.T) {
	ctx, f := start(t, 3)
	settle(t, ctx, f)
	n1, n3 := f.Nodes[0], f.Nodes[2]
	if err := n3.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Leader(ctx, group); err != nil {
		t.Fatal(err)
	}
	server := "unix://" + filepath.Join(n1.Data, "lockstep.sock")
	refused(t, api.CodeConflict, "n2", "group web would lose its majority", "dir", "unbind", group, "n2", "--server", server)
	if _, err := n1.Client.DirUnbind(ctx, group, "n3"); err != nil {
		t.Fatal(err)
	}
	write(t, n1, "goes on", "1")
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	if _, err := n1.Client.DirUnbind(ctx, group, "n2"); err != nil {
		t.Errorf("all that remain answer: %v", err)
	}
}

// elsewhere gives a node another address of this machine.
func elsewhere(t *testing.T, n *farm.Node) {
	t.Helper()
	address, err := farm.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	n.Listen = address
}

// TestNodesThatMove: nodes come back under other addresses, one of two and then two of three at once. The others find
// them though the control group has no majority that could record the address; then it is recorded, so that a node
// that was away meanwhile finds them, too.
func TestNodesThatMove(t *testing.T) {
	t.Parallel()
	ctx, f := start(t, 2)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	move := func(nodes ...*farm.Node) {
		t.Helper()
		for _, n := range nodes {
			if err := n.Stop(); err != nil {
				t.Fatal(err)
			}
			elsewhere(t, n)
		}
		for _, n := range nodes {
			if err := f.Run(n, ""); err != nil {
				t.Fatal(err)
			}
		}
		for i, n := range nodes {
			if err := f.WaitUp(ctx, n); err != nil {
				t.Fatal(err)
			}
			write(t, n, fmt.Sprintf("%s-at-%s", n.Name, n.Listen), fmt.Sprint(i))
		}
		settle(t, ctx, f)
		if err := farm.Poll(ctx, 50*time.Millisecond, func() error {
			list, err := n1.Client.Nodes(ctx)
			for i, n := range list {
				if n.Address != f.Nodes[i].Listen {
					return fmt.Errorf("%s is recorded at %s, it is at %s", n.Name, n.Address, f.Nodes[i].Listen)
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, n1, "one", "1")
	settle(t, ctx, f)
	move(n2)
	n3 := add(t, ctx, f)
	if _, err := n1.Client.DirBind(ctx, group, api.DirBind{Node: n3.Name, Path: n3.Tree}); err != nil {
		t.Fatal(err)
	}
	voters(t, ctx, n1, n1, n2, n3)
	settle(t, ctx, f)
	if err := n1.Stop(); err != nil { // who was away meanwhile finds the one that moved by the other's word
		t.Fatal(err)
	}
	if err := n2.Stop(); err != nil {
		t.Fatal(err)
	}
	elsewhere(t, n2)
	restart(t, ctx, f, n2, "")
	restart(t, ctx, f, n1, "")
	settle(t, ctx, f)
	move(n2, n3)
}

// TestExchangedParts: DATA/log, and then DATA/state, of two nodes of one cluster that hold the same groups are exchanged,
// as an operator might who restores them. Both nodes are refused, with a word that names both; so is a recovery, and an
// offline look at the log says what the start will say. Once they are put back, everything goes on.
func TestExchangedParts(t *testing.T) {
	ctx, f := start(t, 3)
	write(t, f.Nodes[0], "one", "1")
	settle(t, ctx, f)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	if err := errors.Join(n1.Stop(), n2.Stop()); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"log", "state"} {
		exchange := func() {
			t.Helper()
			a, b, aside := filepath.Join(n1.Data, part), filepath.Join(n2.Data, part), filepath.Join(f.Dir, "aside")
			if err := errors.Join(os.Rename(a, aside), os.Rename(b, a), os.Rename(aside, b)); err != nil {
				t.Fatal(err)
			}
		}
		exchange()
		for range 2 { // a refused start changes nothing
			refused(t, api.CodeDamage, "n1/data/"+part, `of node 2 of cluster .*, identity/ of node 1 \(n1\)`, servesAgain(n1)...)
			refused(t, api.CodeDamage, "n2/data/"+part, `of node 1 of cluster .*, identity/ of node 2 \(n2\)`, servesAgain(n2)...)
		}
		refused(t, api.CodeDamage, "n1/data/"+part, "of node 2", "offline", "recover", "--data", n1.Data, "--yes-lose-data", "n1")
		if part == "log" {
			out, err := exec.Command(binary, "offline", "log", "verify", "--data", n1.Data).CombinedOutput()
			if err == nil || !regexp.MustCompile(`the log is of node 2 of cluster .*, the data directory of node 1`).Match(out) {
				t.Errorf("offline log verify: %v\n%s", err, out)
			}
		}
		exchange()
	}
	restart(t, ctx, f, n1, "")
	restart(t, ctx, f, n2, "")
	write(t, n2, "two", "2")
	settle(t, ctx, f)
}
