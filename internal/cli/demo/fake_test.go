package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	httpdoor "github.com/lockstep-sync/lockstep/internal/door/http"
)

// fakeNode is a process that looks like a node to the demo: it answers the API and keeps its directory like an agreed
// tree that all nodes share in a file below a lock. Whoever holds the lock on its own file is up.
type fakeNode struct {
	httpdoor.Node // what the demo does not ask panics
	root, name    string
}

// version is one path's state: in the agreed tree, or as a node put it.
type version struct {
	Text string // "/" for a directory
	Time time.Time
	N    int
}

// fakeServe is `serve` in the test binary. With FAKE=crash it dies after a moment, with FAKE=sloppy it does not keep
// times, with FAKE=forget it drops the losing content of a conflict.
func fakeServe(args []string) int {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	base := filepath.Dir(flags["--data"])
	n := &fakeNode{root: filepath.Dir(base), name: flags["--name"]}
	if err := n.run(flags["--api"]); err != nil {
		fmt.Fprintln(os.Stderr, "fake node:", err)
		return 1
	}
	return 0
}

func (n *fakeNode) run(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if os.Getenv("FAKE") == "crash" {
		return errors.New("last words of a crash")
	}
	lock, err := os.OpenFile(filepath.Join(n.root, n.name, "alive"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	door, err := httpdoor.Open(ctx, httpdoor.Config{Node: n, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler), API: address})
	if err != nil {
		return err
	}
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if n.bound() {
			n.pull()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return door.Close(context.Background())
}

func (n *fakeNode) dir(name string) string { return filepath.Join(n.root, name, "dir") }

func (n *fakeNode) bound() bool {
	_, err := os.Stat(filepath.Join(n.root, "bound"))
	return err == nil
}

// names lists all nodes, alive those that hold their lock.
func (n *fakeNode) names() []string {
	found, _ := filepath.Glob(filepath.Join(n.root, "n*"))
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return found
}

func (n *fakeNode) alive() []string {
	return slices.DeleteFunc(n.names(), func(name string) bool { return !n.up(name) })
}

func (n *fakeNode) up(name string) bool {
	if name == n.name {
		return true
	}
	f, err := os.OpenFile(filepath.Join(n.root, name, "alive"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// picture reads a directory's files and their times; unstable ones are left out.
func picture(dir string) (map[string]string, map[string]time.Time) {
	text, times := map[string]string{}, map[string]time.Time{}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		rel, _ := filepath.Rel(dir, p)
		before, err := os.Lstat(p)
		if err != nil {
			return nil
		}
		body := ""
		if !d.IsDir() {
			b, err := os.ReadFile(p)
			after, err2 := os.Lstat(p)
			if err != nil || err2 != nil || len(b) == 0 || !after.ModTime().Equal(before.ModTime()) || int64(len(b)) != after.Size() {
				return nil
			}
			body = string(b)
		} else {
			body = "/"
		}
		text[rel], times[rel] = body, before.ModTime()
		return nil
	})
	return text, times
}

// pull takes this node's changes into the agreed tree, and that into this node's directory.
func (n *fakeNode) pull() {
	order, err := os.OpenFile(filepath.Join(n.root, "order"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil || unix.Flock(int(order.Fd()), unix.LOCK_EX) != nil {
		return
	}
	defer order.Close()
	agreedFile, placedFile := filepath.Join(n.root, "agreed.json"), filepath.Join(n.root, n.name, "placed.json")
	agreed, placed := load(agreedFile), load(placedFile)
	mine, times := picture(n.dir(n.name))
	for _, p := range slices.Sorted(maps.Keys(mine)) {
		n.take(p, mine[p], times[p], agreed, placed)
	}
	for _, p := range slices.Sorted(maps.Keys(agreed)) {
		if want := agreed[p]; placed[p].N != want.N && n.put(p, want, mine) {
			placed[p] = want
		}
	}
	for p, want := range agreed {
		if want.Text == "/" && os.Getenv("FAKE") != "sloppy" {
			_ = os.Chtimes(filepath.Join(n.dir(n.name), p), time.Time{}, want.Time)
		}
	}
	store(placedFile, placed)
	store(agreedFile, agreed)
}

// take proposes what is new here; who comes second in a conflict is kept under another name.
func (n *fakeNode) take(p, text string, at time.Time, agreed, placed map[string]version) {
	was, cur := placed[p], agreed[p]
	switch {
	case text == was.Text && (text != "/" || at.Equal(was.Time)):
	case was.N == cur.N, text == "/":
		agreed[p] = version{text, at, cur.N + 1}
		placed[p] = agreed[p]
	case text == cur.Text:
		placed[p] = cur
	default:
		sum := sha256.Sum256([]byte(text))
		if os.Getenv("FAKE") == "forget" {
			text = "forgotten"
		}
		agreed[p+".conflict-"+hex.EncodeToString(sum[:4])] = version{text, at, 1}
	}
}

// put brings one path to what it should be, unless it was edited since it was looked at.
func (n *fakeNode) put(p string, want version, mine map[string]string) bool {
	to := filepath.Join(n.dir(n.name), p)
	if want.Text == "/" {
		_ = os.Mkdir(to, 0o755)
		return true
	}
	if now, err := os.ReadFile(to); err == nil && string(now) != mine[p] {
		return false
	}
	tmp := filepath.Join(n.root, n.name, "tmp")
	return errors.Join(os.WriteFile(tmp, []byte(want.Text), 0o644), os.Chtimes(tmp, time.Time{}, want.Time), os.Rename(tmp, to)) == nil
}

func load(file string) map[string]version {
	out := map[string]version{}
	if js, err := os.ReadFile(file); err == nil {
		_ = json.Unmarshal(js, &out)
	}
	return out
}

// store replaces the file in one step: a killed node must not tear it.
func store(file string, v map[string]version) {
	if js, err := json.Marshal(v); err == nil && os.WriteFile(file+".new", js, 0o600) == nil {
		_ = os.Rename(file+".new", file)
	}
}

// What the demo asks.

func (n *fakeNode) Version(context.Context) (api.Version, error) { return api.Version{}, nil }

func (n *fakeNode) TokenCreate(context.Context, time.Duration) (api.Token, error) {
	if err := n.notYet("token create"); err != nil {
		return api.Token{}, err
	}
	return api.Token{Token: "tok"}, nil
}

func (n *fakeNode) Nodes(context.Context) ([]api.Node, error) {
	var out []api.Node
	for _, name := range n.alive() {
		out = append(out, api.Node{Name: name, State: "up"})
	}
	return out, nil
}

func (n *fakeNode) Group(context.Context, string) (api.Group, error) {
	replicas := []api.Replica{{Node: "n1", Mode: "diff", Why: "caught up by diff: the fake says so"}}
	return api.Group{Name: group, Leader: n.alive()[0], Replicas: replicas}, nil
}

// notYet refuses the first of each kind, as a node does that answers and does not know its cluster yet.
func (n *fakeNode) notYet(op string) error {
	f, err := os.OpenFile(filepath.Join(n.root, op), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil
	}
	return errors.Join(&api.Error{Code: api.CodeUnavailable, Op: op, Subject: n.name, Why: "this node does not know its cluster yet", Hint: "try again"}, f.Close())
}

func (n *fakeNode) DirCreate(context.Context, api.DirCreate) error {
	if err := n.notYet("dir create"); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.root, "bound"), nil, 0o600)
}

func (n *fakeNode) DirStatus(context.Context, string) (api.DirStatus, error) {
	out := api.DirStatus{Group: group}
	counts := map[string]tally{}
	for _, name := range n.names() {
		var t tally
		text, _ := picture(n.dir(name))
		for _, body := range text {
			if body != "/" {
				t = tally{t.files + 1, t.bytes + uint64(len(body))}
			}
		}
		counts[name] = t
		out.Files, out.Bytes = max(out.Files, t.files), max(out.Bytes, t.bytes)
	}
	for _, name := range n.names() {
		d := api.DirNode{Node: name, Mode: "down", BehindFiles: out.Files - counts[name].files, BehindBytes: out.Bytes - counts[name].bytes}
		if n.up(name) {
			d.Mode = "live"
			if d.BehindFiles > 0 {
				d.Mode, d.Why = "diff", "the fake says so"
			}
		}
		out.Nodes = append(out.Nodes, d)
	}
	return out, nil
}

func (n *fakeNode) DirWait(ctx context.Context, _ string, _ api.DirWaitFor, _ func(api.Progress)) (api.DirWait, error) {
	err := until(ctx, 5*time.Millisecond, "equal", func() (bool, error) { return n.inStep(ctx), nil })
	return api.DirWait{Done: err == nil, Missing: []string{"somebody"}}, nil
}

// inStep looks while nobody moves.
func (n *fakeNode) inStep(ctx context.Context) bool {
	order, err := os.OpenFile(filepath.Join(n.root, "order"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil || unix.Flock(int(order.Fd()), unix.LOCK_EX) != nil {
		return false
	}
	defer order.Close()
	agreed := load(filepath.Join(n.root, "agreed.json"))
	var roots []string
	for _, name := range n.alive() {
		placed := load(filepath.Join(n.root, name, "placed.json"))
		for p := range agreed {
			if placed[p].N != agreed[p].N {
				return false
			}
		}
		roots = append(roots, n.dir(name))
	}
	diffs, _, err := compareAll(ctx, roots)
	left := slices.DeleteFunc(slices.Concat(diffs...), func(d string) bool {
		return os.Getenv("FAKE") == "sloppy" && strings.Contains(d, "mtime")
	})
	return err == nil && len(left) == 0
}

func (n *fakeNode) DirConflicts(context.Context, string) ([]api.Conflict, error) {
	var out []api.Conflict
	text, _ := picture(n.dir(n.name))
	for p := range text {
		if path, _, ok := strings.Cut(p, ".conflict-"); ok {
			out = append(out, api.Conflict{Path: path, Copy: p})
		}
	}
	return out, nil
}
