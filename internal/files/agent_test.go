package files

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

func TestOneFile(t *testing.T) {
	f := newFarm(t, 3)
	f.up()
	f.flush()
	f.nodes[0].write("a", "hello")
	f.flush()
	f.same()
	if got := f.nodes[2].read("a"); got != "hello" {
		t.Error(got)
	}
	f.nodes[1].write("a", "changed")
	f.flush()
	f.same()
	must(t, os.Remove(f.nodes[2].path("a")))
	f.flush()
	f.same()
	if s, _ := snapshot(f.nodes[0].root); len(s) != 1 {
		t.Error(s)
	}
}

// TestKinds: every kind of entry and every change of one, each from another node.
func TestKinds(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	steps := []func(p func(string) string) error{
		func(p func(string) string) error { return os.MkdirAll(p("d/e/f"), 0o750) },
		func(p func(string) string) error { return os.WriteFile(p("d/e/f/x"), []byte("x"), 0o600) },
		func(p func(string) string) error {
			return os.WriteFile(p("big"), bytes.Repeat([]byte("0123456789"), 100_000), 0o600)
		},
		func(p func(string) string) error { return os.Symlink("d/e", p("l")) },
		func(p func(string) string) error { return os.Symlink("\xff\xfe", p("d/\xff")) },
		func(p func(string) string) error { return os.Chmod(p("d"), 0o700|os.ModeSticky) },
		func(p func(string) string) error { return os.Chmod(p("d/e/f/x"), 0o4755) },
		func(p func(string) string) error { return os.Chtimes(p("big"), time.Now(), time.Unix(5, 123456789)) },
		func(p func(string) string) error { return os.Rename(p("d/e"), p("moved")) },
		func(p func(string) string) error { return os.Rename(p("big"), p("moved/big2")) },
		func(p func(string) string) error { return os.WriteFile(p("empty"), nil, 0o644) },
		func(p func(string) string) error { // directory to file
			if err := os.RemoveAll(p("moved")); err != nil {
				return err
			}
			return os.WriteFile(p("moved"), []byte("now a file"), 0o644)
		},
		func(p func(string) string) error { // file to directory with something in it
			if err := os.Remove(p("moved")); err != nil {
				return err
			}
			if err := os.Mkdir(p("moved"), 0o755); err != nil {
				return err
			}
			return os.WriteFile(p("moved/in"), []byte("in"), 0o644)
		},
		func(p func(string) string) error { // symlink to file
			if err := os.Remove(p("l")); err != nil {
				return err
			}
			return os.WriteFile(p("l"), []byte("l"), 0o644)
		},
		func(p func(string) string) error { return os.Link(p("l"), p("hard")) },
		func(p func(string) string) error { return os.RemoveAll(p("d")) },
	}
	for i, step := range steps {
		nd := f.nodes[i%2]
		must(t, step(nd.path))
		f.flush()
		f.same()
		if t.Failed() {
			t.Fatalf("after step %d", i)
		}
	}
}

// TestMerge: nodes start with what their directories hold.
func TestMerge(t *testing.T) {
	f := newFarm(t, 3)
	for i, nd := range f.nodes {
		must(t, os.Mkdir(nd.path("d"), 0o755))
		nd.write("d/same", "the same everywhere")
		nd.write(fmt.Sprintf("only%d", i), nd.name)
		nd.write("differs", nd.name)
	}
	f.up()
	f.flush()
	f.same()
	s, err := snapshot(f.nodes[0].root)
	must(t, err)
	contents := map[string]bool{}
	copies := 0
	for p := range s {
		contents[f.nodes[0].read(p)] = true
		if strings.Contains(p, ".conflict-") {
			copies++
		}
	}
	if copies != 2 || !contents["n1"] || !contents["n2"] || !contents["n3"] || len(s) != 1+2+3+3 {
		t.Errorf("%q", s)
	}
}

// TestConflict: both nodes change a file while they cannot talk.
func TestConflict(t *testing.T) {
	for _, policy := range []manifest.Policy{{}, {Rule: manifest.RuleNewest}, {Rule: manifest.RulePrefer, Prefer: "n2"}} {
		t.Run(policy.String(), func(t *testing.T) {
			f := newFarm(t, 3)
			f.policy = policy
			f.up()
			f.flush()
			big := strings.Repeat("x", 100_000)
			f.nodes[0].write("f", "base")
			f.nodes[0].write("big", "base")
			f.flush()
			for i, nd := range f.nodes[:2] {
				nd.setCut(true)
				at := time.Unix(2_000_000_000+int64(i), 0) // the second node's edits are newer
				nd.replace("f", "by "+nd.name, at)
				nd.replace("big", big+nd.name, at)
			}
			f.nodes[0].setCut(false)
			eventually(t, func() string {
				if f.nodes[2].read("big") != big+"n1" || f.nodes[2].read("f") != "by n1" {
					return "n1's version does not arrive"
				}
				return ""
			})
			f.nodes[1].setCut(false)
			f.flush()
			f.same()
			s, err := snapshot(f.nodes[2].root)
			must(t, err)
			found := map[string]string{}
			for p := range s {
				found[f.nodes[2].read(p)] = p
			}
			winner, loser := "n1", "n2"
			if policy.Rule != manifest.RuleKeepBoth {
				winner, loser = loser, winner
			}
			if found["by "+winner] != "f" || found[big+winner] != "big" {
				t.Errorf("%s should keep the name: %q", winner, s)
			}
			if !strings.HasPrefix(found["by "+loser], "f.conflict-"+loser) || !strings.HasPrefix(found[big+loser], "big.conflict-"+loser) {
				t.Errorf("%s's bytes are gone: %q", loser, s)
			}
		})
	}
}

// replace renames a finished file into place.
func (nd *node) replace(rel, data string, mtime time.Time) {
	tmp := nd.root + ".tmp"
	must(nd.f.t, os.WriteFile(tmp, []byte(data), 0o644))
	must(nd.f.t, os.Chtimes(tmp, mtime, mtime))
	must(nd.f.t, os.Rename(tmp, nd.path(rel)))
}

func (nd *node) setCut(cut bool) {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	nd.cut = cut
}

// TestAway: a node changes things and misses things while it is down, with and without a clean stop.
func TestAway(t *testing.T) {
	f := newFarm(t, 3)
	f.up()
	f.flush()
	for i := range 20 {
		f.nodes[0].write(fmt.Sprintf("f%d", i), fmt.Sprint("old ", i))
	}
	f.flush()
	f.nodes[2].down()
	must(t, os.Remove(f.nodes[0].path("f0")))
	f.nodes[0].write("f1", "new on n1")
	f.nodes[1].write("g", "made on n2")
	must(t, os.Remove(f.nodes[2].path("f2")))
	f.nodes[2].write("f3", "new on n3")
	must(t, os.Mkdir(f.nodes[2].path("h"), 0o755))
	f.nodes[2].write("h/i", "made on n3")
	f.nodes[2].write("f1", "also on n3")
	f.flush()
	f.nodes[2].up()
	f.flush()
	f.same()
	for p, want := range map[string]string{"f1": "new on n1", "g": "made on n2", "f3": "new on n3", "h/i": "made on n3"} {
		if got := f.nodes[1].read(p); got != want {
			t.Errorf("%s: %q", p, got)
		}
	}
	if _, err := os.Stat(f.nodes[2].path("f0")); err == nil {
		t.Error("f0 came back")
	}
	if _, err := os.Stat(f.nodes[0].path("f2")); err == nil {
		t.Error("f2 came back")
	}
}

// TestWiped: an empty directory and an empty state get everything again, and delete nothing.
func TestWiped(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	for i := range 300 {
		f.nodes[0].write(fmt.Sprintf("f%d", i), fmt.Sprint("content ", i))
	}
	f.flush()
	nd := f.nodes[1]
	nd.down()
	must(t, os.RemoveAll(nd.root))
	must(t, os.Mkdir(nd.root, 0o755))
	nd.table = newMemory()
	nd.up()
	f.flush()
	f.same()
	if len(mustSnapshot(t, nd.root)) != 301 {
		t.Error("files are missing")
	}
}

// TestRandom: random operations on all nodes at once; in the end all trees are equal and every content that
// was written and not replaced knowingly is somewhere.
func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	f := newFarm(t, 3)
	f.up()
	f.flush()
	for range 8 {
		for range 60 {
			nd := f.nodes[rng.IntN(3)]
			randomOperation(rng, nd)
		}
		if rng.IntN(2) == 0 {
			nd := f.nodes[rng.IntN(3)]
			nd.down()
			for range 10 {
				randomOperation(rng, f.nodes[rng.IntN(3)])
			}
			nd.up()
		}
		f.flush()
		f.same()
	}
}

func randomOperation(rng *rand.Rand, nd *node) {
	name := func() string {
		parts := make([]string, 1+rng.IntN(3))
		for i := range parts {
			parts[i] = string(rune('a' + rng.IntN(4)))
		}
		return nd.path(filepath.Join(parts...))
	}
	p := name()
	// Errors are part of it: much of this is impossible at times.
	switch rng.IntN(10) {
	case 0, 1, 2:
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		_ = os.WriteFile(p, []byte(fmt.Sprint(rng.Uint64())), 0o644)
	case 3:
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		_ = os.WriteFile(p, bytes.Repeat([]byte{byte(rng.Uint32())}, 20_000+rng.IntN(200_000)), 0o600)
	case 4:
		_ = os.Mkdir(p, 0o755)
	case 5:
		_ = os.RemoveAll(p)
	case 6:
		_ = os.Rename(p, name())
	case 7:
		_ = os.Symlink("target"+fmt.Sprint(rng.IntN(9)), p)
	case 8:
		_ = os.Chmod(p, os.FileMode(0o700+rng.IntN(64)))
	case 9:
		_ = os.Remove(p)
	}
}

func TestMassDeletion(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	for i := range 150 {
		f.nodes[0].write(fmt.Sprintf("f%d", i), "x")
	}
	f.flush()
	nd := f.nodes[1]
	nd.down()
	for i := range 140 {
		must(t, os.Remove(nd.path(fmt.Sprintf("f%d", i))))
	}
	nd.up()
	scans := func() string {
		nd.agent.status.mu.Lock()
		defer nd.agent.status.mu.Unlock()
		if nd.agent.status.scans == 0 {
			return "no scan runs"
		}
		return ""
	}
	eventually(t, scans)
	nd.agent.rescanAll() // another one comes right behind the first: it judges while the first one's verdict is confirmed
	eventually(t, func() string {
		if st, err := nd.agent.Status(); err != nil || st.Mode != "stopped" || len(st.Problems) == 0 {
			return fmt.Sprintf("%+v %v", st, err)
		}
		return scans()
	})
	if n := len(mustSnapshot(t, f.nodes[0].root)); n != 151 {
		t.Fatalf("%d entries on n1", n)
	}
	must(t, nd.agent.Confirm())
	f.flush()
	f.same()
	if n := len(mustSnapshot(t, f.nodes[0].root)); n != 11 {
		t.Errorf("%d entries on n1", n)
	}
}

func TestRootGone(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	f.nodes[0].write("f", "x")
	f.flush()
	nd := f.nodes[1]
	must(t, os.Rename(nd.root, nd.root+".away"))
	must(t, os.Mkdir(nd.root, 0o755))
	eventually(t, func() string {
		if st, err := nd.agent.Status(); err != nil || st.Mode != "stopped" {
			return fmt.Sprintf("%+v %v", st, err)
		}
		return ""
	})
	must(t, os.Remove(nd.root))
	must(t, os.Rename(nd.root+".away", nd.root))
	if err := <-nd.ended; err == nil {
		t.Error("the agent should ask to be opened anew")
	}
	nd.ended <- nil
	nd.down()
	nd.up()
	f.nodes[0].write("g", "y")
	f.flush()
	f.same()
	if f.nodes[0].read("f") != "x" {
		t.Error("f is gone")
	}
}

func TestReadOnly(t *testing.T) {
	f := newFarm(t, 2)
	f.nodes[1].change = func(c *Config) { c.ReadOnly = true }
	f.up()
	f.flush()
	f.nodes[0].write("f", "right")
	f.flush()
	nd := f.nodes[1]
	nd.write("f", "drift")
	nd.write("g", "more drift")
	eventually(t, func() string {
		if got := nd.read("f"); got != "right" {
			return got
		}
		if _, err := os.Stat(nd.path("g")); err == nil {
			return "g is still there"
		}
		return ""
	})
	f.flush()
	f.same()
	kept := map[string]bool{}
	names, err := os.ReadDir(filepath.Join(nd.work, "kept"))
	must(t, err)
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(nd.work, "kept", n.Name()))
		must(t, err)
		kept[string(b)] = true
	}
	if !kept["drift"] || !kept["more drift"] || nd.agent.Counters().Drifted == 0 {
		t.Errorf("kept aside: %v", kept)
	}
}

// TestSystemCrash: what was placed since the last checkpoint is not trusted after the system went down.
func TestSystemCrash(t *testing.T) {
	f := newFarm(t, 2)
	f.nodes[1].change = func(c *Config) { c.Checkpoint = time.Hour }
	f.up()
	f.flush()
	f.nodes[0].write("f", "good content")
	f.flush()
	nd := f.nodes[1]
	nd.stop()
	must(t, <-nd.ended)
	nd.ended <- nil
	// As if there had been no clean stop, in another boot, and the file's data lost but not its inode.
	rec, err := nd.agent.table.get("f")
	must(t, err)
	b := nd.table.Batch()
	must(t, nd.agent.table.setNumber(b, metaPlaced, 0))
	must(t, nd.agent.table.setNumber(b, metaSynced, 0))
	must(t, nd.agent.table.setNumber(b, metaBoot, 12345))
	must(t, b.Commit())
	nd.down()
	must(t, os.WriteFile(nd.path("f"), []byte("\x00\x00\x00\x00 content"), 0o644))
	must(t, os.Chtimes(nd.path("f"), time.Now(), time.Unix(0, rec.Stat.MTime)))
	nd.boot = "b2"
	nd.up()
	f.flush()
	f.same()
	if got := f.nodes[0].read("f"); got != "good content" {
		t.Errorf("n1 has %q", got)
	}
	if got := nd.read("f"); got != "good content" {
		t.Errorf("n2 has %q", got)
	}
}

// TestPowerFailureAfterPlacing: a content that was placed and did not reach the disk there is still staged, and needs nobody
// else. Once it is durable it is staged no more.
func TestPowerFailureAfterPlacing(t *testing.T) {
	f := newFarm(t, 2)
	f.nodes[1].change = func(c *Config) { c.Checkpoint = time.Hour }
	f.up()
	f.flush()
	data := strings.Repeat("good content ", 5000) // too much to come with its entry
	f.nodes[0].write("f", data)
	f.flush()
	nd := f.nodes[1]
	if got := nd.read("f"); got != data {
		t.Fatalf("%d bytes were placed", len(got))
	}
	nd.agent.expire(time.Now()) // as every minute: gives up a pack that holds nothing any more
	packs, kept := filepath.Join(nd.work, "packs"), filepath.Join(t.TempDir(), "packs")
	must(t, os.CopyFS(kept, os.DirFS(packs))) // as the power failure leaves them
	must(t, nd.agent.checkpoint(false))
	if n := nd.agent.store.Stats().Packs.Contents; n != 0 {
		t.Errorf("%d contents are staged although what was placed is durable", n)
	}
	f.nodes[0].down()
	nd.stop()
	must(t, <-nd.ended)
	nd.ended <- nil
	b := nd.table.Batch()
	must(t, nd.agent.table.setNumber(b, metaPlaced, 0))
	must(t, nd.agent.table.setNumber(b, metaSynced, 0))
	must(t, nd.agent.table.setNumber(b, metaBoot, 12345))
	must(t, b.Commit())
	nd.down()
	must(t, os.RemoveAll(packs))
	must(t, os.CopyFS(packs, os.DirFS(kept)))
	must(t, os.Truncate(nd.path("f"), 0))
	nd.boot = "b2"
	nd.up()
	eventually(t, func() string {
		if got := nd.read("f"); got != data {
			return fmt.Sprintf("the only member that is left has %d bytes", len(got))
		}
		return ""
	})
}

func TestProblemsAndVerify(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	nd := f.nodes[0]
	must(t, unix.Mkfifo(nd.path("fifo"), 0o600))
	nd.write("f", "content")
	nd.write("g", "content of g")
	f.flush()
	eventually(t, func() string {
		st, err := nd.agent.Status()
		if err != nil || len(st.Problems) != 1 || st.Problems[0].Path != "fifo" {
			return fmt.Sprintf("%+v %v", st.Problems, err)
		}
		return ""
	})
	v, err := f.nodes[1].agent.Verify(context.Background(), false)
	if err != nil || v.Files != 2 || len(v.Found) != 0 {
		t.Errorf("%+v %v", v, err)
	}
	f.nodes[1].agent.board.stop() // nothing is repaired under the test's hands
	must(t, os.WriteFile(f.nodes[1].path("f"), []byte("other"), 0o644))
	must(t, os.WriteFile(f.nodes[1].path("new"), nil, 0o644))
	must(t, os.Remove(f.nodes[1].path("g")))
	v, err = f.nodes[1].agent.Verify(context.Background(), false)
	if err != nil || len(v.Found) != 3 {
		t.Errorf("%+v %v", v, err)
	}
}

func mustSnapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	s, err := snapshot(root)
	must(t, err)
	return s
}
