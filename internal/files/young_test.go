package files

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/watch"
)

// deaf is a watcher that tells of nothing more once it is to be.
type deaf struct {
	watch.Watcher
	now *atomic.Bool
}

func (d deaf) Read(ctx context.Context) ([]watch.Event, error) {
	events, err := d.Watcher.Read(ctx)
	return slices.DeleteFunc(events, func(e watch.Event) bool { return d.now.Load() && e.Kind != watch.Barrier }), err
}

// coarse has the file system of a node keep times so coarsely that a change within a minute leaves no trace, and returns
// what lets the minute pass, and what takes the node's ears.
func coarse(nd *node) (pass, deafen func()) {
	var ahead atomic.Int64
	var dull atomic.Bool
	nd.change = func(c *Config) {
		c.Youth = time.Minute
		next := c.Watch
		c.Watch = func(wc watch.Config) (watch.Watcher, error) {
			w, err := next(wc)
			return deaf{w, &dull}, err
		}
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	return func() { ahead.Store(int64(2 * time.Minute)) }, func() { dull.Store(true) }
}

// holds waits until a node has the content.
func (nd *node) holds(path, want string) {
	nd.f.t.Helper()
	eventually(nd.f.t, func() string {
		if got := nd.read(path); got != want {
			return fmt.Sprintf("%s: %s is %q, not %q\n%s", nd.name, path, got, want, nd.agent.board.describe())
		}
		return ""
	})
}

// unseen changes a file that n1 has recorded, so that nothing but its content tells.
func unseen(t *testing.T) (f *farm, nd *node, pass func()) {
	t.Helper()
	f = newFarm(t, 2)
	nd = f.nodes[0]
	pass, deafen := coarse(nd)
	f.up()
	eventually(t, func() string { // n1 cannot be flushed before the minute is over
		if n1, n2 := nd.agent.Placed(), f.nodes[1].agent.Placed(); n1 == 0 || n2 < n1 {
			return fmt.Sprintf("placed %d and %d", n1, n2)
		}
		return ""
	})
	nd.write("f", "1")
	f.nodes[1].holds("f", "1") // the edit itself does not wait
	nd.waitsToRead("f")
	deafen()
	damage(nd, "f", "2")
	return f, nd, pass
}

// waitsToRead waits until path is about to be read once more.
func (nd *node) waitsToRead(path string) {
	nd.f.t.Helper()
	b := nd.agent.board
	eventually(nd.f.t, func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		if st := b.paths[path]; st == nil || !st.young || st.claim != free {
			return path + " is not to be read once more"
		}
		return ""
	})
}

// TestChangeWithoutATrace: a file that was written again within a tick after it was read looks as it was, and is read once
// more when the tick is over.
func TestChangeWithoutATrace(t *testing.T) {
	f, nd, pass := unseen(t)
	pass()
	f.nodes[1].holds("f", "2")
	f.flush()
	alone(f, "f", "2")
	nd.agent.board.mu.Lock()
	defer nd.agent.board.mu.Unlock()
	if n := len(nd.agent.board.paths); n > 0 {
		t.Errorf("%d paths are looked at for ever", n)
	}
}

// TestYoungAtTheEnd: a node that ends before it has read such a file again does so when it is back.
func TestYoungAtTheEnd(t *testing.T) {
	f, nd, _ := unseen(t)
	nd.down()
	if got := f.nodes[1].read("f"); got != "1" {
		t.Fatalf("n2 has %q already", got)
	}
	nd.change = nil
	nd.up()
	f.nodes[1].holds("f", "2")
	f.flush()
	alone(f, "f", "2")
	if rec, err := nd.agent.table.get("f"); err != nil || rec.Stat.CTime == 0 {
		t.Errorf("it is read at every start: %+v, %v", rec, err)
	}
}

// TestPlacedOverAChangeWithoutATrace: what comes from elsewhere meanwhile does not take the place of a content that nobody
// has seen yet.
func TestPlacedOverAChangeWithoutATrace(t *testing.T) {
	f, nd, pass := unseen(t)
	f.nodes[1].write("f", "three")
	must(t, f.nodes[1].agent.Flush(t.Context()))
	eventually(t, func() string {
		nd.agent.board.mu.Lock()
		defer nd.agent.board.mu.Unlock()
		if st := nd.agent.board.paths["f"]; st == nil || st.want == nil && st.placing == nil {
			return "what n2 wrote did not come"
		}
		return ""
	})
	if v, err := nd.agent.Verify(t.Context(), true); err != nil || v.Repaired > 0 {
		t.Errorf("%+v %v", v, err)
	}
	if got := nd.read("f"); got != "2" {
		t.Errorf("n1 has %q", got)
	}
	pass()
	f.flush()
	f.same()
	copies, err := filepath.Glob(nd.path("f.conflict-*"))
	if err != nil || len(copies) != 1 || nd.read("f") != "three" {
		t.Fatalf("%q, copies %q (%v)", nd.read("f"), copies, err)
	}
	if b, err := os.ReadFile(copies[0]); err != nil || string(b) != "2" {
		t.Errorf("the copy holds %q (%v)", b, err)
	}
}

// TestNothingIsPlacedOverWhatIsYoung: also where nothing waited to be placed when it was read.
func TestNothingIsPlacedOverWhatIsYoung(t *testing.T) {
	b := newBoard(func() time.Time { return created })
	look := func() {
		t.Helper()
		b.hint("p", time.Time{})
		if p := b.takeLooks(1); len(p) != 1 {
			t.Fatal("nothing to look at")
		}
	}
	want := func(index uint64) {
		b.want(index, manifest.Changed{Path: "p", Node: manifest.Node{Kind: manifest.Dir, Version: index}})
	}
	look()
	b.lookYoung("p", created.Add(youth))
	want(1)
	if len(b.takeWants(9)) != 0 || b.claimIdle("p") {
		t.Fatal("placed over what may have changed")
	}
	look() // somebody asks for it before its time
	b.lookYoung("p", created.Add(youth))
	if len(b.takeWants(9)) != 0 {
		t.Fatal("placed after a look that was too early")
	}
	b.due(created.Add(youth))
	if p := b.takeLooks(1); len(p) != 1 || !b.paths["p"].young {
		t.Fatalf("not read once more: %q", p)
	}
	b.lookDone("p", time.Time{})
	if len(b.takeWants(9)) != 1 {
		t.Fatal("what waits to be placed is forgotten")
	}
	// What is queued to be placed before a look begins waits too.
	b = newBoard(func() time.Time { return created })
	want(1)
	look()
	b.lookYoung("p", created.Add(youth))
	if len(b.takeWants(9)) != 0 {
		t.Fatal("placed over what may have changed")
	}
}

func TestIsYoung(t *testing.T) {
	a := &Agent{cfg: Config{Youth: youth}}
	for ago, want := range map[time.Duration]bool{0: true, 15 * time.Millisecond: true, 20 * time.Millisecond: false, time.Hour: false,
		-10 * time.Millisecond: true, -time.Hour: false} {
		if got := a.isYoung(&place.Stat{CTime: created.Add(-ago).UnixNano()}, created); got != want {
			t.Errorf("changed %v ago: %v", ago, got)
		}
	}
	a.cfg.Youth = 0
	if a.isYoung(&place.Stat{CTime: created.UnixNano()}, created) {
		t.Error("young although every change has a time of its own")
	}
}

func TestFindYouth(t *testing.T) {
	dir := t.TempDir()
	got, err := findYouth(dir)
	if err != nil || got != 0 && got != youth {
		t.Errorf("%v, %v", got, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if got, err := findYouth(filepath.Join(dir, "none")); err == nil || got != youth {
		t.Errorf("where there is no directory: %v, %v", got, err)
	}
	t.Log("changes leave no trace for", got)
}
