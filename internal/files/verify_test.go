package files

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestRepair: damage, which no time of the file tells of, is replaced by what another member has, and nothing of
// it reaches that one; local changes go the usual way.
func TestRepair(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	nd := f.nodes[1]
	good := map[string]string{"small": "good content", "large": strings.Repeat("good content", 30_000)}
	for name, data := range good {
		f.nodes[0].write(name, data)
	}
	f.nodes[0].write("edited", "before")
	f.flush()
	nd.agent.board.stop() // the damage is done before anybody looks
	for name, data := range good {
		damage(nd, name, "BAD"+data[3:])
	}
	v, err := nd.agent.Verify(t.Context(), false)
	if err != nil || len(v.Found) != 2 || !v.Found[0].Damage || !v.Found[1].Damage || v.Repaired != 0 {
		t.Fatalf("%+v %v", v, err)
	}
	nd.agent.board.resume()
	must(t, nd.agent.Flush(t.Context())) // who looks at what was written finds nothing to say
	nd.write("edited", "after")
	if v, err = nd.agent.Verify(t.Context(), true); err != nil || v.Repaired != 2 {
		t.Fatalf("%+v %v", v, err)
	}
	eventually(t, func() string {
		for name, data := range good {
			if nd.read(name) != data {
				return fmt.Sprintf("%s is still damaged\n%s", name, nd.agent.board.describe())
			}
		}
		return ""
	})
	f.flush()
	f.same()
	for name, data := range good {
		if f.nodes[0].read(name) != data {
			t.Errorf("the damage of %s went to the other member", name)
		}
	}
	if got := f.nodes[0].read("edited"); got != "after" {
		t.Errorf("the edit did not arrive: %q", got)
	}
	if v, err = nd.agent.Verify(t.Context(), true); err != nil || len(v.Found) != 0 || v.Repaired != 0 {
		t.Errorf("%+v %v", v, err)
	}
	if kept, err := os.ReadDir(filepath.Join(nd.work, "kept")); err != nil || len(kept) != 2 {
		t.Errorf("%d damaged contents were kept aside: %v", len(kept), err)
	}
}

// TestClaimIdle: a claim takes no look away that waits, and nobody else gets the path meanwhile (I2).
func TestClaimIdle(t *testing.T) {
	b := newBoard(time.Now)
	b.hint("p", time.Time{})
	if !b.claimIdle("p") || b.claimIdle("p") {
		t.Fatal("claimed by two, or by nobody")
	}
	b.want(1, manifest.Changed{Path: "p", Node: manifest.Node{Kind: manifest.Dir, Version: 1}})
	if len(b.takeWants(9)) != 0 {
		t.Fatal("handed to the placer too")
	}
	b.lookDone("p", time.Time{})
	if p := b.takeLooks(1); len(p) != 1 || p[0] != "p" {
		t.Fatalf("look at %q", p)
	}
	b.lookDone("p", time.Time{})
	if w := b.takeWants(9); len(w) != 1 {
		t.Fatal("what waits to be placed is forgotten")
	}
}

// TestDistantTimes: a time that is not told in 64 bits is the nearest that is, for all nodes alike.
func TestDistantTimes(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	f.nodes[0].write("far", "x")
	at := f.nodes[0].path("far")
	far := time.Unix(9999999999, 0)        // 2286
	spec := unix.Timespec{Sec: far.Unix()} // os.Chtimes counts in ns
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{spec, spec}, 0))
	if st, err := os.Stat(at); err != nil || !st.ModTime().Equal(far) {
		t.Skipf("the file system keeps no such time: %v %v", st.ModTime(), err)
	}
	f.flush()
	nearest := time.Unix(0, math.MaxInt64) // 2262
	eventually(t, func() string {
		if st, err := os.Stat(filepath.Join(f.nodes[1].root, "far")); err != nil || !st.ModTime().Equal(nearest) {
			return fmt.Sprintf("the other member has it as %v, %v", st, err)
		}
		return ""
	})
	for i, nd := range f.nodes {
		if v, err := nd.agent.Verify(t.Context(), false); err != nil || len(v.Found) != 0 {
			t.Errorf("member %d: %+v %v", i, v, err)
		}
	}
}

// TestDifference: what cannot be read is not said to differ, and what is not there is missing.
func TestDifference(t *testing.T) {
	for name, c := range map[string]struct {
		what   string
		damage bool
		err    error
		want   Difference
	}{
		"as it should be": {want: Difference{Path: "p"}},
		"differs":         {what: "content differs", want: Difference{Path: "p", What: "content differs"}},
		"damaged":         {what: "content differs", damage: true, want: Difference{Path: "p", What: "content differs", Damage: true}},
		"missing":         {err: &fs.PathError{Op: "stat", Path: "p", Err: syscall.ENOENT}, want: Difference{Path: "p", What: "is missing"}},
		"closed":          {err: fmt.Errorf("hash: %w", &fs.PathError{Op: "open", Path: "p", Err: syscall.EACCES}), want: Difference{Path: "p", What: "permission denied", Unread: true}},
		"broken":          {err: syscall.EIO, want: Difference{Path: "p", What: "input/output error", Unread: true}},
	} {
		if got := difference("p", c.what, c.damage, c.err); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
