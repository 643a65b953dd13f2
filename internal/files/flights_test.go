package files

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// noise is n bytes that are like no others.
func noise(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return string(b)
}

// narrow is members to whom a connection takes 2 MiB and then nothing more until open is closed.
type narrow struct {
	Peers
	open chan struct{}
}

func (p *narrow) Dial(ctx context.Context, id uint64) (net.Conn, error) {
	c, err := p.Peers.Dial(ctx, id)
	if err != nil {
		return nil, err
	}
	return &narrowConn{Conn: c, open: p.open}, nil
}

type narrowConn struct {
	net.Conn
	open chan struct{}
	sent atomic.Int64
}

func (c *narrowConn) Write(b []byte) (int, error) {
	if c.sent.Add(int64(len(b))) > 2<<20 {
		<-c.open
	}
	return c.Conn.Write(b)
}

// TestSmallPassesLarge: what is small goes on while a large content is on its way, which a flush waits for.
func TestSmallPassesLarge(t *testing.T) {
	f := newFarm(t, 2)
	one, two := f.nodes[0], f.nodes[1]
	open := make(chan struct{})
	release := sync.OnceFunc(func() { close(open) })
	t.Cleanup(release)
	one.change = func(c *Config) { c.Peers = &narrow{c.Peers, open} }
	f.up()
	one.write("first", "one")
	f.flush()
	one.write("large", noise(1, 8<<20))
	for i := range 20 { // more than what rides in an entry
		path, data := fmt.Sprint("small", i), noise(byte(2+i), 20_000)
		one.write(path, data)
		eventually(t, func() string {
			if two.read(path) != data {
				return path + " waits for what is large"
			}
			return ""
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := one.agent.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush while a large content is on its way: %v", err)
	}
	release()
	f.flush()
	f.same()
}

// TestUnstageable: a content for which a member has no room holds up nothing else, and the status says what is missing
// where, until there is room.
func TestUnstageable(t *testing.T) {
	f := newFarm(t, 2)
	one, two := f.nodes[0], f.nodes[1]
	_, empty := small(t, two, "24m")
	must(t, os.WriteFile(filepath.Join(filepath.Dir(two.root), "ballast"), make([]byte, 16<<20), 0o600))
	f.up()
	one.write("first", "one")
	f.flush()
	one.write("large", noise(1, 12<<20))
	about := func() (p api.Problem, ok bool) {
		st, err := one.agent.Status()
		must(t, err)
		i := slices.IndexFunc(st.Problems, func(p api.Problem) bool { return p.Path == "large" })
		if i < 0 {
			return p, false
		}
		return st.Problems[i], true
	}
	eventually(t, func() string {
		p, ok := about()
		if !ok || !strings.Contains(p.What, "n2 (not enough space") || !strings.Contains(p.What, "12.0 MiB needed") || !strings.Contains(p.What, " MiB free") || !strings.Contains(p.Hint, "make room on n2") {
			return fmt.Sprintf("the status says %v %+v", ok, p)
		}
		return ""
	})
	began := time.Now()
	for i := range 6 {
		path, data := fmt.Sprint("small", i), noise(byte(2+i), 20_000)
		one.write(path, data)
		eventually(t, func() string {
			if two.read(path) != data {
				return path + " waits for what cannot be staged"
			}
			return ""
		})
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("six small files took %v", took)
	}
	if _, ok := about(); !ok {
		t.Error("nothing says any more that the large one waits")
	}
	empty()
	f.flush()
	f.same()
	if p, ok := about(); ok {
		t.Errorf("still said: %+v", p)
	}
}

// TestRemovalWaitsForMove: the removal of a file whose large content is on its way under another name waits for that; and
// flights of large contents are bounded, with what is very large alone.
func TestRemovalWaitsForMove(t *testing.T) {
	file := func(path string, h byte, size int64) finding {
		return finding{change: manifest.Change{Path: path, Node: manifest.Node{Kind: manifest.File, Hash: manifest.Hash{h}, Size: size}}}
	}
	gone := func(path string, h byte) (f finding) {
		f.change.Path, f.old.Stat.Kind, f.old.Hash = path, manifest.File, manifest.Hash{h}
		return f
	}
	g := &gathering{a: &Agent{}, aloft: map[manifest.Hash]int{}, removed: map[manifest.Hash][]finding{}}
	const large = content.SmallMax + 1
	g.add([]finding{gone("was", 1), gone("other", 2), file("is", 1, large), file("little", 3, large-1)})
	g.add([]finding{gone("was too", 1), file("copy", 1, large)})
	names := func() (paths []string) {
		for _, f := range g.small.found {
			paths = append(paths, f.change.Path)
		}
		return paths
	}
	if got := names(); !slices.Equal(got, []string{"other", "little"}) || len(g.large) != 2 || g.waiting != 4 {
		t.Errorf("small %q, %d large, %d wait", got, len(g.large), g.waiting)
	}
	g.land(landing{large: true, contents: []manifest.Hash{{1}}})
	if got := names(); len(got) != 2 {
		t.Errorf("removed before the last copy has landed: %q", got)
	}
	g.land(landing{large: true, contents: []manifest.Hash{{1}}})
	if got := names(); !slices.Equal(got, []string{"other", "little", "was", "was too"}) || len(g.aloft)+len(g.removed) > 0 {
		t.Errorf("%q, left %v %v", got, g.aloft, g.removed)
	}
	for i := range largeWaiting - g.waiting {
		if g.full() {
			t.Fatalf("full with %d large ones", i)
		}
		g.add([]finding{file(fmt.Sprint(i), 4, large)})
	}
	if !g.full() {
		t.Error("what waits is not bounded")
	}
}

// TestUnstagedPause: the pause between attempts grows, up to a bound, and starts anew once one succeeded.
func TestUnstagedPause(t *testing.T) {
	now := time.Unix(1000, 0)
	b := newBoard(func() time.Time { return now })
	attempt := func(ends func()) {
		t.Helper()
		b.hint("large", time.Time{})
		if got := b.takeLooks(1); len(got) != 1 {
			t.Fatal(got)
		}
		ends()
	}
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		attempt(func() { b.lookLater("large", now) })
		if got := b.later.at["large"].Sub(now); got != time.Duration(seconds)*time.Second {
			t.Errorf("a pause of %v, not of %d s", got, seconds)
		}
	}
	attempt(func() { b.lookDone("large", time.Time{}) })
	attempt(func() { b.lookLater("large", now) })
	if got := b.later.at["large"].Sub(now); got != time.Second {
		t.Errorf("after a success a pause of %v", got)
	}
}
