package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/watch"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// farm is a group of nodes in one process: a log that commits at once, real directories, real everything else.
type farm struct {
	t     testing.TB
	nodes []*node

	mu      sync.Mutex
	clock   int64
	entries []machine.Command // index i+1
	cut     uint64            // entries up to this index cannot be replayed
	stalled *node             // whose proposals the leader has and cannot commit yet
	flight  [][]byte          // those, which are committed before the next one of anybody
	policy  manifest.Policy
}

type node struct {
	f     *farm
	id    uint64
	name  string
	root  string
	work  string
	state *kv.Memory
	table *kv.Memory
	boot  string

	mu      sync.Mutex
	m       *manifest.Machine
	applied uint64
	agent   *Agent // nil: down
	cut     bool   // no Propose, no Fence: waits
	stop    context.CancelFunc
	serve   context.Context // of ServeContent's streams
	unserve context.CancelFunc
	serving sync.WaitGroup
	ended   chan error
	change  func(*Config)
	late    chan machine.Command // entries that this node hears of only after their proposers have; nil: at once
}

var created = time.Unix(1_700_000_000, 0)

func newFarm(t testing.TB, n int) *farm {
	t.Helper()
	f := &farm{t: t, clock: created.UnixNano()}
	for i := range n {
		base := t.TempDir()
		nd := &node{f: f, id: uint64(i + 1), name: fmt.Sprintf("n%d", i+1), root: filepath.Join(base, "root"), state: kv.NewMemory(), table: kv.NewMemory(), boot: "b1"}
		must(t, os.Mkdir(nd.root, 0o755))
		f.nodes = append(f.nodes, nd)
	}
	t.Cleanup(func() {
		for _, nd := range f.nodes {
			nd.down()
		}
	})
	return f
}

func newMemory() *kv.Memory { return kv.NewMemory() }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// up starts all nodes that are down.
func (f *farm) up() {
	f.t.Helper()
	for _, nd := range f.nodes {
		if nd.agent == nil {
			nd.up()
		}
	}
}

func (nd *node) up() {
	t := nd.f.t
	t.Helper()
	must(t, place.EnsureMarker(nd.root, "g1", created))
	var err error
	nd.work, err = place.WorkDir(filepath.Join(filepath.Dir(nd.root), "work"), nd.root)
	must(t, err)
	cfg := Config{
		GroupID: "g1", Created: created, Node: nd.name, Root: nd.root, Work: nd.work, Table: nd.table,
		Log: nd, Peers: nd, Owner: os.Geteuid() == 0, Checkpoint: 100 * time.Millisecond, BootID: nd.boot,
		// The test's own changes are the user's.
		Watch:  func(c watch.Config) (watch.Watcher, error) { c.OwnEvents = true; return watch.Open(c) },
		Logger: slog.New(slog.NewTextHandler(&testLog{t: t, node: nd.name}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if nd.change != nil {
		nd.change(&cfg)
	}
	a, err := New(cfg)
	must(t, err)
	nd.f.mu.Lock()
	nd.mu.Lock()
	nd.agent = a
	nd.serve, nd.unserve = context.WithCancel(context.Background())
	nd.m = manifest.New(manifest.Config{Policy: nd.f.policy, Changed: a.Changed, Restored: a.Restored})
	must(t, nd.m.Restored(nd.state, nd.applied))
	nd.mu.Unlock()
	for _, c := range nd.f.entries[nd.applied:] {
		_, err := nd.apply(c)
		must(t, err)
	}
	nd.f.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	nd.stop, nd.ended = stop, make(chan error, 1)
	go func() { nd.ended <- a.Run(ctx) }()
}

func (nd *node) down() {
	if nd.agent == nil {
		return
	}
	nd.stop()
	if err := <-nd.ended; err != nil && !errors.Is(err, ErrReopen) {
		nd.f.t.Errorf("%s: %v", nd.name, err)
	}
	nd.mu.Lock()
	a := nd.agent
	nd.agent = nil
	nd.mu.Unlock()
	nd.unserve()
	nd.serving.Wait()
	if err := a.Close(); err != nil {
		nd.f.t.Errorf("%s: close: %v", nd.name, err)
	}
}

// apply is under f.mu.
func (nd *node) apply(c machine.Command) ([]byte, error) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	b := nd.state.Batch()
	res, err := nd.m.Apply(b, c)
	if err == nil {
		err = b.Commit()
	}
	if err != nil {
		return nil, err
	}
	nd.applied = c.Index
	nd.m.Committed(c.Index)
	return res, nil
}

func (nd *node) Propose(ctx context.Context, payload []byte, _ []uint64) (uint64, []byte, error) {
	if err := nd.connected(ctx); err != nil {
		return 0, nil, err
	}
	f := nd.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled == nd {
		f.flight = append(f.flight, bytes.Clone(payload))
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return 0, nil, ctx.Err()
	}
	if err := f.land(); err != nil {
		return 0, nil, err
	}
	return nd.order(payload)
}

// stall has the leader take what nd proposes because of do, and commit it only before whatever is proposed after that.
func (f *farm) stall(nd *node, do func()) {
	f.t.Helper()
	f.mu.Lock()
	f.stalled = nd
	f.mu.Unlock()
	do()
	eventually(f.t, func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.flight) == 0 {
			return "nothing is proposed"
		}
		f.stalled = nil
		return ""
	})
}

// land is under f.mu.
func (f *farm) land() error {
	for _, payload := range f.flight {
		if _, _, err := f.nodes[0].order(payload); err != nil {
			return err
		}
	}
	f.flight = nil
	return nil
}

// order is under f.mu.
func (nd *node) order(payload []byte) (uint64, []byte, error) {
	f := nd.f
	f.clock += int64(time.Millisecond)
	c := machine.Command{Index: uint64(len(f.entries) + 1), Time: f.clock, Payload: bytes.Clone(payload)}
	f.entries = append(f.entries, c)
	var mine []byte
	for _, n := range f.nodes {
		switch {
		case !n.isUp():
		case n.late != nil:
			n.late <- c
		default:
			res, err := n.apply(c)
			if err != nil {
				return 0, nil, err
			}
			if n == nd || nd.late != nil {
				mine = res
			}
		}
	}
	return c.Index, mine, nil
}

// lag has the node apply what is committed when next returns, which its own proposals do not wait for, as those of a
// follower. It has to be up, and not the only one.
func (nd *node) lag(next func()) {
	late := make(chan machine.Command, 1<<16)
	nd.f.mu.Lock()
	nd.late = late
	nd.f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c := range late {
			next()
			if _, err := nd.apply(c); err != nil {
				nd.f.t.Errorf("%s: apply entry %d: %v", nd.name, c.Index, err)
			}
		}
	}()
	nd.f.t.Cleanup(func() {
		nd.f.mu.Lock()
		nd.late = nil
		nd.f.mu.Unlock()
		close(late)
		<-done
	})
}

func (nd *node) connected(ctx context.Context) error {
	for {
		nd.mu.Lock()
		cut := nd.cut
		nd.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (nd *node) Fence(ctx context.Context) error {
	if err := nd.connected(ctx); err != nil {
		return err
	}
	nd.f.mu.Lock()
	err := nd.f.land()
	end := uint64(len(nd.f.entries))
	nd.f.mu.Unlock()
	if err != nil {
		return err
	}
	for nd.Applied() < end {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (nd *node) Replay(_ context.Context, after, upTo uint64, fn func(uint64, []byte) error) error {
	nd.f.mu.Lock()
	entries := nd.f.entries[min(max(after, nd.f.cut), upTo):upTo]
	nd.f.mu.Unlock()
	for _, c := range entries {
		if err := fn(c.Index, c.Payload); err != nil {
			return err
		}
	}
	return nil
}

func (nd *node) Applied() uint64 {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	return nd.applied
}

func (nd *node) View() (kv.View, error) { return nd.state.View(), nil }
func (nd *node) Backlog() int           { return 0 }

func (nd *node) isUp() bool {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	return nd.agent != nil
}

func (nd *node) List() (out []Peer) {
	for _, n := range nd.f.nodes {
		if n != nd {
			out = append(out, Peer{ID: n.id, Name: n.name, Up: n.isUp()})
		}
	}
	return out
}

func (nd *node) Holders() Holders {
	return Holders{Voters: ids(nd.List()), Quorum: len(nd.f.nodes) / 2}
}

func (nd *node) Dial(ctx context.Context, id uint64) (net.Conn, error) {
	peer := nd.f.nodes[id-1]
	peer.mu.Lock()
	a, serve := peer.agent, peer.serve
	if a == nil {
		peer.mu.Unlock()
		return nil, errors.New("is down")
	}
	peer.serving.Add(1)
	peer.mu.Unlock()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		peer.serving.Done()
		return nil, err
	}
	defer l.Close()
	go func() {
		defer peer.serving.Done()
		if c, err := l.Accept(); err == nil {
			_ = a.ServeContent(serve, c)
		}
	}()
	var d net.Dialer
	return d.DialContext(ctx, "tcp", l.Addr().String())
}

// testLog forwards logs to the test while it runs.
type testLog struct {
	t    testing.TB
	node string
}

func (l *testLog) Write(p []byte) (int, error) {
	if testing.Verbose() {
		l.t.Logf("%s %s", l.node, bytes.TrimSpace(p))
	}
	return len(p), nil
}

func (nd *node) path(rel string) string { return filepath.Join(nd.root, rel) }

func (nd *node) write(rel, data string) {
	nd.f.t.Helper()
	must(nd.f.t, os.WriteFile(nd.path(rel), []byte(data), 0o644))
}

func (nd *node) read(rel string) string {
	b, err := os.ReadFile(nd.path(rel))
	if err != nil {
		return "!" + err.Error()
	}
	return string(b)
}

// snapshot describes a tree completely, without what is Lockstep's own.
func snapshot(root string) (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == manifest.Reserved {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch d.Type() {
		case 0:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %d %q", len(b), string(b[:min(len(b), 64)]))
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s += " -> " + target
		}
		out[rel] = s
		return nil
	})
	return out, err
}

func differences(a, b map[string]string) (out []string) {
	for p, s := range a {
		if b[p] != s {
			out = append(out, fmt.Sprintf("%q: %q / %q", p, s, b[p]))
		}
	}
	for p, s := range b {
		if _, ok := a[p]; !ok {
			out = append(out, fmt.Sprintf("%q: - / %q", p, s))
		}
	}
	sort.Strings(out)
	return out
}

// eventually polls cond, which says what is still wrong.
func eventually(t testing.TB, cond func() string) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		what := cond()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		<-tick.C
	}
}

// flush waits until the disk's changes are committed and placed everywhere that is up.
func (f *farm) flush() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for range 2 { // placing can lead to looks, and these to entries
		for _, nd := range f.nodes {
			if nd.isUp() {
				eventually(f.t, func() string {
					if nd.agent.currentWatcher() == nil {
						return nd.name + " does not watch"
					}
					return ""
				})
				if err := nd.agent.Flush(ctx); err != nil {
					st, _ := nd.agent.Status()
					f.t.Fatalf("%s: %v\n%+v\n%s", nd.name, err, st, nd.agent.board.describe())
				}
			}
		}
		last := f.last()
		for _, nd := range f.nodes {
			if nd.isUp() {
				eventually(f.t, func() string {
					if p := nd.agent.Placed(); p < last {
						return fmt.Sprintf("%s: placed %d of %d\n%s", nd.name, p, last, nd.agent.board.describe())
					}
					return ""
				})
			}
		}
	}
}

func (f *farm) last() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.entries))
}

func (b *board) describe() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := fmt.Sprintf("behind %v stopped %v looks %d places %d later %v\n", b.behind, b.stopped, len(b.looks), len(b.places), b.later.at)
	for p, st := range b.paths {
		s += fmt.Sprintf("  %q: %+v", p, *st)
		if st.want != nil {
			s += fmt.Sprintf(" want %+v tries %d", st.want.Node, st.want.tries)
		}
		s += "\n"
	}
	return s
}

// same checks that all nodes that are up hold the same tree as the first.
func (f *farm) same() {
	f.t.Helper()
	eventually(f.t, func() string {
		var first map[string]string
		for _, nd := range f.nodes {
			if !nd.isUp() {
				continue
			}
			s, err := snapshot(nd.root)
			if err != nil {
				return err.Error()
			}
			if first == nil {
				first = s
			} else if d := differences(first, s); len(d) > 0 {
				what := fmt.Sprintf("%s differs: %q\n%s", nd.name, d, nd.agent.board.describe())
				for p := range s {
					rel := p
					if p == "." {
						rel = ""
					}
					n, _, _ := manifest.Get(nd.state, rel)
					for _, nd := range f.nodes {
						if nd.isUp() && (first[p] != s[p]) {
							rec, _ := nd.agent.table.get(rel)
							what += fmt.Sprintf("%q manifest %+v, %s record %+v\n", p, n, nd.name, rec)
						}
					}
				}
				return what
			}
		}
		return ""
	})
}
