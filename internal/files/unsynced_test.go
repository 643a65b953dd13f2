package files

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// outage remembers, for a power failure, what the last syncfs of a node found on its disk.
type outage struct {
	mu      sync.Mutex
	durable map[string]string
}

func (o *outage) of(nd *node) {
	nd.change = func(c *Config) {
		c.Checkpoint = time.Hour
		c.syncfs = func(fd int) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			var err error
			if o.durable, err = snapshot(nd.root); err != nil {
				return err
			}
			return unix.Syncfs(fd)
		}
	}
}

// holds says at which paths a content was when the disk was synced last.
func (o *outage) holds(data string) (paths []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for path, is := range o.durable {
		if strings.HasSuffix(is, fmt.Sprintf(" %d %q", len(data), data[:min(len(data), 64)])) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// TestLoserOutlivesAPowerFailure: a file whose content another path was given since the last syncfs is not replaced before
// the next: all members may go down together just then. Not for each replacement, and not for a content that is in the log.
func TestLoserOutlivesAPowerFailure(t *testing.T) {
	f := newFarm(t, 1)
	f.policy = manifest.Policy{Rule: manifest.RuleNewest}
	nd := f.nodes[0]
	var o outage
	o.of(nd)
	nd.up()
	f.flush()
	for i, size := range []int{20, 300_000} {
		path := fmt.Sprint("f", i)
		loser := strings.Repeat("l", size)
		nd.write(path, loser)
		f.flush()
		nd.commit("y", dated(path, "the winner", 1<<32))
		nd.has(path, "the winner")
		nd.keeps(path, loser)
		at := o.holds(loser)
		if len(at) != 2 || at[0] != path || !strings.HasPrefix(at[1], path+".conflict-") {
			t.Errorf("%d bytes: the original went while these were durable: %q", size, at)
		}
	}
	o.mu.Lock()
	o.durable = nil
	o.mu.Unlock()
	nd.commit("y", dated("h", "both", 1))
	nd.has("h", "both")
	rec, err := nd.agent.table.get("h")
	must(t, err)
	moved := dated("i", "both", 1)
	nd.commit("y", moved, manifest.Change{Path: "h", Base: rec.Version})
	nd.has("i", "both")
	f.flush()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.durable != nil {
		t.Error("synced although the log has it")
	}
}

// TestStagedForACopyStays: a file gave way because its content is staged. It stays staged until the path that needs it is
// placed, and that is durable.
func TestStagedForACopyStays(t *testing.T) {
	f, nd := lonely(t)
	nd.write("f", "the loser")
	f.flush()
	a := nd.agent
	rec, err := a.table.get("f")
	must(t, err)
	a.board.stop()
	must(t, a.store.Put(rec.Hash, []byte("the loser")))
	must(t, a.store.Release(rec.Hash)) // as often as it was staged
	nd.commit("y", dated("f", "the winner", 1<<32))
	var original, copied *want
	for _, w := range a.board.takeWants(placeMax) {
		if w.Path == "f" {
			original = w
		} else {
			copied = w
		}
	}
	a.board.placeAgain(copied, false, a.cfg.Now().Add(1<<40)) // it failed
	a.unsynced.add("elsewhere", rec.Hash)
	must(t, a.place(t.Context(), []*want{original}))
	if got := nd.read("f"); got != "the winner" {
		t.Fatalf("f is %q", got)
	}
	for range 3 {
		must(t, a.syncPlaced())
	}
	if !a.store.Has(rec.Hash) {
		t.Fatal("the loser is on no disk any more")
	}
	must(t, a.store.Expire(a.cfg.Now().Add(2*time.Hour), a.board.names))
	a.board.due(a.cfg.Now().Add(1 << 41))
	a.board.resume()
	nd.keeps("f", "the loser")
	f.flush()
	must(t, a.syncPlaced())
	must(t, a.syncPlaced())
	if a.store.Has(rec.Hash) {
		t.Error("it stays staged for ever")
	}
}

func TestUnsynced(t *testing.T) {
	var u unsynced
	h, named := manifest.Hash{1}, false
	var dropped []manifest.Hash
	sync := func(meanwhile func()) {
		t.Helper()
		dropped = nil
		must(t, u.sync(func() error { meanwhile(); return nil }, func(manifest.Hash) bool { return named },
			func(over ...manifest.Hash) { dropped = append(dropped, over...) }))
	}
	check := func(when string, elsewhere, keeps, idle bool, drops int) {
		t.Helper()
		if e, k, i := u.elsewhere("a", h), u.keeps(h), u.idle(); e != elsewhere || k != keeps || i != idle || len(dropped) != drops {
			t.Errorf("%s: elsewhere %v, keeps %v, idle %v, dropped %v", when, e, k, i, dropped)
		}
	}
	nothing := func() {}
	check("before the first sync", true, false, true, 0)
	sync(nothing)
	check("after the first sync", false, false, true, 0)
	u.add("a", h)
	check("placed at the path itself", false, true, false, 0)
	u.add("b", h)
	check("and at another", true, true, false, 0)
	sync(func() { check("while that is synced", true, false, true, 0) })
	check("after that", false, false, true, 1)
	u.add("b", h)
	sync(func() { u.add("c", h) })
	check("placed once more meanwhile", true, true, false, 0)
	sync(nothing)
	check("after that", false, false, true, 1)
	u.rely(h)
	named = true
	check("relied upon", false, true, true, 0+1)
	sync(nothing)
	check("and still named", false, true, true, 0)
	named = false
	sync(nothing)
	check("and no longer", false, false, true, 1)
	if err := u.sync(func() error { return unix.EIO }, nil, nil); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
}
