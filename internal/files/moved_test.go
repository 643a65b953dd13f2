package files

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content"
)

// awayAndBack has paths vanish from the node, until all have carried that out, and come back under other names.
func (f *farm) awayAndBack(nd *node, paths map[string]string) {
	f.t.Helper()
	away, err := os.MkdirTemp(filepath.Dir(nd.root), "away")
	must(f.t, err)
	held := map[string]string{}
	for from := range paths {
		held[from] = filepath.Join(away, fmt.Sprint(len(held)))
		must(f.t, os.Rename(nd.path(from), held[from]))
	}
	f.flush()
	for from, to := range paths {
		for _, other := range f.nodes {
			if _, err := os.Lstat(other.path(from)); err == nil {
				f.t.Fatalf("%s: %s is still there", other.name, from)
			}
		}
		must(f.t, os.Rename(held[from], nd.path(to)))
	}
	f.flush()
	f.same()
}

// received is how many bytes of contents a node was sent.
func (nd *node) received() int64 { return nd.agent.Traffic().Received }

// TestMovedIsNotSentAgain: what the members have deleted already when its new name comes they still have.
func TestMovedIsNotSentAgain(t *testing.T) {
	f := newFarm(t, 3)
	one := f.nodes[0]
	f.up()
	must(t, os.Mkdir(one.path("dir"), 0o755))
	data := map[string]string{"dir/a": noise(1, 3<<20), "dir/b": noise(2, 200_000), "c": noise(3, 1<<20)}
	for path, d := range data {
		one.write(path, d)
	}
	one.write("again", data["c"]) // two files with one content
	f.flush()
	before := []int64{f.nodes[1].received(), f.nodes[2].received()}
	f.awayAndBack(one, map[string]string{"dir": "moved", "c": "moved c", "again": "moved again"})
	for i, nd := range f.nodes[1:] {
		if got := nd.received(); got != before[i] {
			t.Errorf("%s received %d bytes of what it had", nd.name, got-before[i])
		}
		nd.has("moved/a", data["dir/a"])
		nd.has("moved again", data["c"])
		st, err := nd.agent.Status()
		must(t, err)
		if len(st.Problems) > 0 {
			t.Error(st.Problems)
		}
	}
}

// TestMovedWhileAway: a member that was down finds what was moved meanwhile in what it has, whether the log tells it or a walk.
func TestMovedWhileAway(t *testing.T) {
	f := newFarm(t, 3)
	one, away := f.nodes[0], f.nodes[2]
	f.up()
	must(t, os.Mkdir(one.path("dir"), 0o755))
	for i := range 4 {
		one.write(fmt.Sprintf("dir/%d", i), noise(byte(i+1), 1<<20))
	}
	f.flush()
	away.down()
	must(t, os.Rename(one.path("dir"), one.path("moved")))
	must(t, one.agent.Flush(t.Context()))
	away.up()
	f.flush()
	f.same()
	if got := away.received(); got > 0 {
		t.Errorf("%d bytes received", got)
	}
}

// TestMovedIsNotBelieved: what a program writes to a file that was removed under its hands never gets to the file's new path.
func TestMovedIsNotBelieved(t *testing.T) {
	f := newFarm(t, 2)
	one, two := f.nodes[0], f.nodes[1]
	f.up()
	data := noise(1, 2<<20)
	one.write("a", data)
	f.flush()
	ro, err := os.Open(two.path("a"))
	must(t, err)
	defer ro.Close()
	away := filepath.Join(filepath.Dir(one.root), "a")
	must(t, os.Rename(one.path("a"), away))
	f.flush()
	if st, err := two.agent.Status(); err != nil || st.LingeringBytes != 2<<20 {
		t.Fatalf("%d bytes linger, %v", st.LingeringBytes, err)
	}
	// A reader may open what it has open for writing; a lease does not stand in the way any more.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", ro.Fd()), os.O_WRONLY, 0)
	must(t, err)
	defer w.Close()
	_, err = w.WriteAt([]byte("not what was there"), 1<<20)
	must(t, err)
	before := two.received()
	must(t, os.Rename(away, one.path("b")))
	f.flush()
	f.same()
	if got := two.received() - before; got < 2<<20 {
		t.Errorf("%d bytes were received, though nothing here had the content", got)
	}
	_, err = w.WriteAt([]byte("later still"), 0)
	must(t, err)
	two.has("b", data)
}

// TestMovedWithoutRoom: a file moves though there is no room for another copy of it; and what lingers is given up for
// whatever comes.
func TestMovedWithoutRoom(t *testing.T) {
	f := newFarm(t, 2)
	one, two := f.nodes[0], f.nodes[1]
	small(t, two, "16m")
	f.up()
	data := noise(1, 8<<20)
	one.write("a", data)
	f.flush()
	before := two.received()
	f.awayAndBack(one, map[string]string{"a": "b"})
	if got := two.received() - before; got > 0 {
		t.Errorf("%d bytes received", got)
	}
	two.has("b", data)

	must(t, os.Remove(one.path("b")))
	f.flush()
	if got := two.agent.store.Stats(); got.Lingering != 8<<20 {
		t.Fatalf("%d bytes linger", got.Lingering)
	}
	other := noise(2, 12<<20)
	one.write("c", other)
	f.flush()
	f.same()
	if got := two.agent.store.Stats(); got.Lingering != 0 {
		t.Errorf("%d bytes linger", got.Lingering)
	}
}

// TestLingeringGoesWithTheRoom: what lingers is gone soon after somebody else fills the disk.
func TestLingeringGoesWithTheRoom(t *testing.T) {
	f := newFarm(t, 2)
	one, two := f.nodes[0], f.nodes[1]
	fill, empty := small(t, two, "16m")
	f.up()
	one.write("a", noise(1, 4<<20))
	f.flush()
	must(t, os.Remove(one.path("a")))
	f.flush()
	gone := filepath.Join(two.work, "gone")
	if left, err := os.ReadDir(gone); err != nil || len(left) != 1 {
		t.Fatal(left, err)
	}
	fill()
	eventually(t, func() string {
		var st unix.Statfs_t
		if err := unix.Statfs(two.root, &st); err != nil {
			return err.Error()
		}
		left, err := os.ReadDir(gone)
		if free := st.Bavail * uint64(st.Bsize); err != nil || len(left) > 0 || free < 4<<20 { // a file is gone before its room is there
			return fmt.Sprint(free, " bytes are free, ", left, err)
		}
		return ""
	})
	empty()
}

// TestReplacedLingers: a log that is rotated moves, too, and nothing of the old one is left in the end.
func TestReplacedLingers(t *testing.T) {
	f := newFarm(t, 2)
	one, two := f.nodes[0], f.nodes[1]
	for _, nd := range f.nodes {
		nd.change = func(c *Config) { c.Chunks = newMemory() }
	}
	f.up()
	log := noise(1, 4<<20)
	one.write("app.log", log)
	f.flush()
	before := two.received()
	away := filepath.Join(filepath.Dir(one.root), "away")
	must(t, os.Rename(one.path("app.log"), away))
	one.write("app.log", "a new day\n")
	f.flush()
	longer := log + "a last line\n"
	must(t, os.WriteFile(away, []byte(longer), 0o644))
	must(t, os.Rename(away, one.path("app.log.1")))
	f.flush()
	f.same()
	if got := two.received() - before; got > 1<<20+4096 {
		t.Errorf("%d bytes received for a line", got)
	}
	two.agent.store.Sweep(two.agent.cfg.Now().Add(2 * content.ExpireAfter))
	if got := two.agent.store.Stats().Lingering; got != 0 {
		t.Errorf("%d bytes linger", got)
	}
}

// TestNothingIsStagedForNothing: a member that is behind gets what others have by now when it places it. Offered afterwards
// it would lie there twice, for an hour.
func TestNothingIsStagedForNothing(t *testing.T) {
	f := newFarm(t, 3)
	one, slow := f.nodes[0], f.nodes[2]
	open := make(chan struct{})
	release := sync.OnceFunc(func() { close(open) })
	t.Cleanup(release)
	one.change = func(c *Config) { c.Peers = &narrowTo{c.Peers, slow.id, open} }
	f.up()
	const files = 12
	for i := range files {
		one.write(fmt.Sprint(i), noise(byte(i+1), 40<<20/files))
	}
	for _, nd := range f.nodes {
		for i := range files {
			nd.has(fmt.Sprint(i), noise(byte(i+1), 40<<20/files))
		}
	}
	release()
	f.flush()
	eventually(t, func() string {
		if busy := one.agent.shipping.queued(); busy > 0 {
			return fmt.Sprintf("%d shipments wait", busy)
		}
		return ""
	})
	// What was under way when the others had it is staged, and of no use: two connections' worth.
	if st := slow.agent.store.Stats(); st.Large > 2 {
		t.Errorf("%d contents (%d MB) are staged for nothing", st.Large, st.LargeBytes>>20)
	}
}

// narrowTo is narrow for one member.
type narrowTo struct {
	Peers
	member uint64
	open   chan struct{}
}

func (p *narrowTo) Dial(ctx context.Context, id uint64) (net.Conn, error) {
	if id != p.member {
		return p.Peers.Dial(ctx, id)
	}
	return (&narrow{p.Peers, p.open}).Dial(ctx, id)
}

// queued is how many shipments wait for a member.
func (s *shipping) queued() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lines {
		n += len(l.queue)
	}
	return n
}
