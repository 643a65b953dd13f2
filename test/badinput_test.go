package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// cluster runs nodes that share nothing yet.
func cluster(t *testing.T, size int) (context.Context, *farm.Farm) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	f := &farm.Farm{Binary: binary, Dir: t.TempDir()}
	closing(t, f)
	for range size {
		add(t, ctx, f)
	}
	return ctx, f
}

func closing(t *testing.T, f *farm.Farm) {
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
}

func add(t *testing.T, ctx context.Context, f *farm.Farm) *farm.Node {
	t.Helper()
	n, err := f.Add(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// refused runs the program, which has to end with the code's exit status and an error that names subject (a regular
// expression), says why, and offers a way out.
func refused(t *testing.T, code api.Code, subject, why string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "-o", "json")...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + os.Getenv("TMPDIR")}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.ExitCode() != code.Info().Exit {
		t.Errorf("%q: %v, want exit status %d\n%s", args, err, code.Info().Exit, &stderr)
		return
	}
	text := stderr.Bytes()
	var e api.Error
	if err := json.Unmarshal(text[max(0, bytes.Index(text, []byte("{\n"))):], &e); err != nil {
		t.Errorf("%q: %v\n%s", args, err, text)
		return
	}
	for what, pair := range map[string][2]string{"subject": {e.Subject, subject}, "why": {e.Why, why}} {
		if ok, err := regexp.MatchString(pair[1], pair[0]); err != nil || !ok {
			t.Errorf("%q: %s %q, want %q (%v)", args, what, pair[0], pair[1], err)
		}
	}
	wayOut := e.Hint != "" || strings.Contains(e.Why, "; use ") || strings.Contains(e.Why, "must be ")
	if e.Code != code || e.Op == "" || !wayOut {
		t.Errorf("%q: code, operation or way out are missing: %+v", args, e)
	}
}

// serve is a command line that would start a node in data.
func serve(data string, more ...string) []string {
	return append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--api", "off"}, more...)
}

func newToken(t *testing.T, ctx context.Context, n *farm.Node, ttl string) api.Token {
	t.Helper()
	token, err := n.Client.TokenCreate(ctx, api.TokenCreate{TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestBadTokens(t *testing.T) {
	ctx, f := cluster(t, 1)
	n1 := f.Nodes[0]
	good := newToken(t, ctx, n1, "1h")
	fresh := func() string { return filepath.Join(t.TempDir(), "data") }
	for name, token := range map[string]string{
		"garbage":    "hello",
		"truncated":  good.Token[:len(good.Token)-7],
		"beginning":  good.Token[7:],
		"other byte": good.Token[:20] + flip(good.Token[20]) + good.Token[21:],
		"doubled":    good.Token + good.Token,
		"long":       good.Token + strings.Repeat("A", 1<<16),
	} {
		t.Run(name, func(t *testing.T) {
			data := fresh()
			refused(t, api.CodeDenied, "token", ".", serve(data, "--name", "x", "--join", token)...)
			if _, err := os.Stat(filepath.Join(data, "identity")); err == nil {
				t.Error("a refused server has an identity")
			}
		})
	}
	short := newToken(t, ctx, n1, "1s")
	if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		if time.Now().Before(short.Expires) {
			return errors.New("not expired yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeDenied, "token", "expired", serve(fresh(), "--name", "x", "--join", short.Token)...)
	if _, err := n1.Client.TokenRevoke(ctx, good.ID); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeDenied, "token "+good.ID, "revoked", serve(fresh(), "--name", "x", "--join", good.Token)...)
	nodes, err := n1.Client.Nodes(ctx)
	if err != nil || len(nodes) != 1 {
		t.Errorf("nodes after what was refused: %+v %v", nodes, err)
	}
}

func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func TestNamesPortsAndDataDirectories(t *testing.T) {
	ctx, f := cluster(t, 2)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	token := newToken(t, ctx, n1, "1h").Token
	fresh := func() string { return filepath.Join(t.TempDir(), "data") }

	refused(t, api.CodeConflict, "n2", "name", serve(fresh(), "--name", "n2", "--join", token)...)
	refused(t, api.CodeConflict, "n2", "up", serve(fresh(), "--name", "n2", "--join", token, "--replace")...)
	refused(t, api.CodeUsage, "name", "not a name", serve(fresh(), "--name", "no/name", "--join", token)...)
	refused(t, api.CodeUnavailable, n1.Listen, "in use", "serve", "--data", fresh(), "--name", "x", "--listen", n1.Listen, "--api", "off")
	refused(t, api.CodeUnavailable, n1.API, "in use", "serve", "--data", fresh(), "--name", "x", "--listen", "127.0.0.1:0", "--api", n1.API)
	refused(t, api.CodeUnavailable, regexp.QuoteMeta(n1.Data), "another lockstep process", serve(n1.Data)...)
	for _, public := range []string{"0.0.0.0:0", ":7421", "192.0.2.1:7421", "[::]:7421"} {
		refused(t, api.CodeDenied, regexp.QuoteMeta(public), "loopback", "serve", "--data", fresh(), "--name", "x", "--listen", "127.0.0.1:0", "--api", public)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeFailed, regexp.QuoteMeta(file), "not a directory", serve(file, "--name", "x")...)
	config := filepath.Join(t.TempDir(), "lockstep.toml")
	if err := os.WriteFile(config, []byte("data = \"/tmp/x\"\nlisten_on = \":1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeUsage, regexp.QuoteMeta(config), "unknown key \"listen_on\"", serve(fresh(), "--config", config)...)

	if err := n2.Stop(); err != nil {
		t.Fatal(err)
	}
	refused(t, api.CodeConflict, regexp.QuoteMeta(n2.Data), "n2", serve(n2.Data, "--name", "other")...)
	other, g := cluster(t, 1)
	foreign := newToken(t, other, g.Nodes[0], "1h").Token
	refused(t, api.CodeConflict, regexp.QuoteMeta(n2.Data), "cluster", serve(n2.Data, "--join", foreign)...)
	changeFacts(t, n2.Data, func(facts map[string]any) { facts["level"] = 99 })
	refused(t, api.CodeConflict, regexp.QuoteMeta(n2.Data), "99", serve(n2.Data)...)
	changeFacts(t, n2.Data, func(facts map[string]any) { facts["level"], facts["name"] = 1, "n7" })
	refused(t, api.CodeFailed, regexp.QuoteMeta(n2.Data), "n7", serve(n2.Data)...)
	changeFacts(t, n2.Data, func(facts map[string]any) { facts["name"] = "n2" })
	restart(t, ctx, f, n2, "") // nothing of this has harmed it
}

// changeFacts edits what a data directory says about its node.
func changeFacts(t *testing.T, data string, change func(map[string]any)) {
	t.Helper()
	path := filepath.Join(data, "identity", "node.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string]any{}
	if err := json.Unmarshal(b, &facts); err != nil {
		t.Fatal(err)
	}
	change(facts)
	if b, err = json.Marshal(facts); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBadBindings(t *testing.T) {
	ctx, f := cluster(t, 2)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	server := "unix://" + filepath.Join(n1.Data, "lockstep.sock")
	run := func(code api.Code, subject, why string, args ...string) {
		t.Helper()
		refused(t, code, subject, why, append(args, "--server", server)...)
	}
	file := filepath.Join(f.Dir, "file")
	link := filepath.Join(f.Dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Symlink(n2.Tree, link)); err != nil {
		t.Fatal(err)
	}
	run(api.CodeUsage, "n1:"+file, "not a directory", "dir", "create", "web", "--path", file, "--on", "n1")
	run(api.CodeUsage, "n1:"+file, ".", "dir", "create", "web", "--path", file+"/below", "--on", "n1")
	run(api.CodeUsage, "n2:"+link, "symbolic link", "dir", "create", "web", "--on", "n1:"+n1.Tree+",n2:"+link)
	run(api.CodeUsage, "srv/web", "absolute", "dir", "create", "web", "--path", "srv/web", "--on", "n1")
	run(api.CodeUsage, "n1:/", ".", "dir", "create", "web", "--path", "/", "--on", "n1")
	run(api.CodeUsage, "n2:"+n2.Data, "data directory", "dir", "create", "web", "--on", "n1:"+n1.Tree+",n2:"+n2.Data+"/tree")
	run(api.CodeUsage, "n1:"+f.Dir, "data directory", "dir", "create", "web", "--path", f.Dir, "--on", "n1")
	run(api.CodeNotFound, "n9", "no such node", "dir", "create", "web", "--path", n1.Tree, "--on", "n9")
	run(api.CodeUsage, "web", "ack", "dir", "create", "web", "--path", n1.Tree, "--on", "n1", "--ack", "most")
	run(api.CodeUsage, "no/name", "name", "dir", "create", "no/name", "--path", n1.Tree, "--on", "n1")

	if err := f.Share(ctx, group, n1); err != nil {
		t.Fatal(err)
	}
	run(api.CodeConflict, "web", "exists", "dir", "create", "web", "--path", filepath.Join(f.Dir, "else"), "--on", "n1")
	write(t, n1, "sub/file", "1")
	run(api.CodeConflict, "n1:"+n1.Tree+"/sub", "overlaps", "dir", "create", "web2", "--path", n1.Tree+"/sub", "--on", "n1")
	run(api.CodeUsage, "tree", "absolute", "dir", "bind", "web", "n2:tree")
	run(api.CodeUsage, "n2:"+file, "not a directory", "dir", "bind", "web", "n2:"+file)
	run(api.CodeConflict, "n1", "holds|overlaps", "dir", "bind", "web", "n1:"+filepath.Join(f.Dir, "else"))
	run(api.CodeNotFound, "n2", "no member", "dir", "unbind", "web", "n2")
	run(api.CodeConflict, "n1", "last", "dir", "unbind", "web", "n1")
	run(api.CodeNotFound, "nope", ".", "dir", "bind", "nope", "n2:"+n2.Tree)
	run(api.CodeNotFound, "n2", ".", "dir", "wait", "web", "--node", "n2")
	if _, err := os.Lstat(filepath.Join(n2.Data, "tree")); err == nil {
		t.Error("a refused binding was made")
	}
	g, err := n1.Client.Groups(ctx)
	if err != nil || len(g) != 2 {
		t.Errorf("groups after what was refused: %+v %v", g, err)
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
}

// asNobody starts one more node, of a user that is not root and has only its own directories.
func asNobody(t *testing.T, ctx context.Context, f *farm.Farm) *farm.Node {
	t.Helper()
	if os.Geteuid() != 0 {
		return add(t, ctx, f)
	}
	const nobody = 65534
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("needs setpriv of util-linux to start a node as another user")
	}
	home := filepath.Join(f.Dir, fmt.Sprintf("n%d", len(f.Nodes)+1))
	for dir := home; len(dir) >= len(os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if dir == home {
			if err := os.MkdirAll(filepath.Join(home, "tree"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chown(home, nobody, nobody), os.Chown(filepath.Join(home, "tree"), nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s --reuid %d --regid %d --clear-groups --pdeathsig KILL %s \"$@\"\n", setpriv, nobody, nobody, binary)
	root := f.Binary
	f.Binary = filepath.Join(f.Dir, "as-nobody")
	defer func() { f.Binary = root }()
	if err := os.WriteFile(f.Binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return add(t, ctx, f)
}

// problem polls the status of the directory until node has a problem with path.
func problem(t *testing.T, ctx context.Context, f *farm.Farm, node *farm.Node, path, what string) api.DirNode {
	t.Helper()
	var row api.DirNode
	pattern := regexp.MustCompile(what)
	patience, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := farm.Poll(patience, 20*time.Millisecond, func() error {
		st, err := f.Nodes[0].Client.DirStatus(ctx, group)
		if err != nil {
			return err
		}
		for _, row = range st.Nodes {
			for _, p := range row.Problems {
				if row.Node == node.Name && p.Path == path && pattern.MatchString(p.What) {
					return nil
				}
			}
		}
		return fmt.Errorf("no problem %q of %q on %s: %+v", what, path, node.Name, st.Nodes)
	}); err != nil {
		t.Fatal(err)
	}
	return row
}

func TestWhatCannotBeReadIsSaidAndTheRestGoesOn(t *testing.T) {
	ctx, f := cluster(t, 1)
	n1, n2 := f.Nodes[0], asNobody(t, ctx, f)
	if err := f.Share(ctx, group, n1, n2); err != nil {
		t.Fatal(err)
	}
	everywhere := api.DirWaitFor{Mode: api.WaitAll}
	reached(t, ctx, f, everywhere)
	write(t, n2, "hidden", "nobody reads this")
	if err := errors.Join(os.Chmod(filepath.Join(n2.Tree, "hidden"), 0), chownRoot(filepath.Join(n2.Tree, "hidden")),
		syscall.Mkfifo(filepath.Join(n2.Tree, "pipe"), 0o644)); err != nil {
		t.Fatal(err)
	}
	write(t, n2, "plain", "goes on")
	write(t, n1, "other way", "goes on, too")
	appears(t, ctx, n1, "plain", "goes on")
	appears(t, ctx, n2, "other way", "goes on, too")
	problem(t, ctx, f, n2, "hidden", "permission denied")
	problem(t, ctx, f, n2, "pipe", "(?i)fifo|pipe|special|not kept|skipped")
	row := problem(t, ctx, f, n2, "", "owner")
	if !strings.HasPrefix(row.Watcher, "inotify (") {
		t.Errorf("watcher of a user that is not root: %q", row.Watcher)
	}
	if err := os.Chmod(filepath.Join(n2.Tree, "hidden"), 0o644); err != nil {
		t.Fatal(err)
	}
	appears(t, ctx, n1, "hidden", "nobody reads this")
	if err := os.Remove(filepath.Join(n2.Tree, "pipe")); err != nil {
		t.Fatal(err)
	}
	reached(t, ctx, f, everywhere)
	if err := farm.Poll(ctx, 10*time.Millisecond, func() error {
		st, err := n1.Client.DirStatus(ctx, group)
		if err != nil {
			return err
		}
		for _, p := range st.Nodes[1].Problems {
			if p.Path != "" {
				return fmt.Errorf("still a problem: %+v", p)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func chownRoot(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(path, 0, 0)
}

// TestFullDisk: a binding on a small file system of its own runs full, by one large file and by many small ones.
func TestFullDisk(t *testing.T) {
	ctx, f := cluster(t, 2)
	tree := filepath.Join(f.Dir, "n3", "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("lockstep-test", tree, "tmpfs", 0, "size=4m,mode=0755"); err != nil {
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(f.Close(), syscall.Unmount(tree, syscall.MNT_DETACH)); err != nil {
			t.Error(err)
		}
	})
	n3 := add(t, ctx, f)
	if err := f.Share(ctx, group, f.Nodes...); err != nil {
		t.Fatal(err)
	}
	n1, n2 := f.Nodes[0], f.Nodes[1]
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	write(t, n1, "big", strings.Repeat("0123456789abcdef", 10<<20/16))
	problem(t, ctx, f, n3, "big", `not enough space on the disk of .*: 10\.0 MiB needed and .* to be left free, \d\.\d MiB free`)
	write(t, n2, "small", "fits")
	appears(t, ctx, n3, "small", "fits")
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitQuorum})
	if _, err := os.Lstat(filepath.Join(n3.Tree, "big")); err == nil {
		t.Error("a part of what does not fit is to be seen")
	}
	if err := os.Remove(filepath.Join(n1.Tree, "big")); err != nil {
		t.Fatal(err)
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})

	for k := range 600 {
		write(t, n1, fmt.Sprintf("many/f%d", k), strings.Repeat("s", 10_000))
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitQuorum})
	if row := problem(t, ctx, f, n3, "", "space"); row.BehindFiles == 0 {
		t.Errorf("nothing waits on a full disk: %+v", row)
	}
	if err := syscall.Mount("lockstep-test", tree, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	diff, err := exec.Command("rsync", "-nicaHAX", "--delete", "--exclude=/.lockstep/work", "--omit-dir-times", n1.Tree+"/", n3.Tree+"/").CombinedOutput()
	if err != nil || len(diff) > 0 {
		t.Errorf("n1 and n3 differ: %v\n%s", err, diff)
	}
}

// reached waits for as many nodes as are asked for to hold what is on disk now.
func reached(t *testing.T, ctx context.Context, f *farm.Farm, what api.DirWaitFor) {
	t.Helper()
	what.Timeout = "30s"
	if w, err := f.Nodes[0].Client.DirWait(ctx, group, what, nil); err != nil || !w.Done {
		t.Fatalf("wait: %+v %v", w, err)
	}
}

// appears waits for a file.
func appears(t *testing.T, ctx context.Context, n *farm.Node, name, content string) {
	t.Helper()
	if err := farm.Poll(ctx, 10*time.Millisecond, func() error {
		b, err := os.ReadFile(filepath.Join(n.Tree, name))
		if err != nil || string(b) != content {
			return fmt.Errorf("%s on %s: %q %v", name, n.Name, b, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestPortThatBecomesFree: what held the port is gone, the same command works.
func TestPortThatBecomesFree(t *testing.T) {
	ctx, f := cluster(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n1 := f.Nodes[0]
	if err := n1.Stop(); err != nil {
		t.Fatal(err)
	}
	n1.Listen = l.Addr().String()
	refused(t, api.CodeUnavailable, n1.Listen, "in use", "serve", "--data", n1.Data, "--listen", n1.Listen, "--api", "off")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n1, "")
}
