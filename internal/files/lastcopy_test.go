package files

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// commit proposes changes in the name of author, whether nd is up or not.
func (nd *node) commit(author string, changes ...manifest.Change) uint64 {
	nd.f.t.Helper()
	index, _, err := nd.Propose(nd.f.t.Context(), manifest.EncodeBatch(manifest.Batch{Author: author, Changes: changes}), nil)
	must(nd.f.t, err)
	return index
}

// dated is an inline file with an mtime of so many seconds after the group was created.
func dated(path, data string, at int64) manifest.Change {
	c := inlineFile(path, []byte(data))
	c.Node.MTime = created.UnixNano() + at*1e9
	return c
}

// keeps waits until exactly one conflict copy of path is on disk, and it holds data.
func (nd *node) keeps(path, data string) {
	nd.f.t.Helper()
	eventually(nd.f.t, func() string {
		names, err := os.ReadDir(nd.root)
		must(nd.f.t, err)
		var found []string
		for _, e := range names {
			if strings.HasPrefix(e.Name(), path+".conflict-") {
				found = append(found, nd.read(e.Name()))
			}
		}
		if len(found) != 1 || found[0] != data {
			return fmt.Sprintf("%s: copies of %s: %.60q, want %.20q\n%s", nd.name, path, found, data, nd.agent.board.describe())
		}
		return ""
	})
}

func (nd *node) has(path, data string) {
	nd.f.t.Helper()
	eventually(nd.f.t, func() string {
		if got := nd.read(path); got != data {
			return fmt.Sprintf("%s: %s is %.60q, want %.20q\n%s", nd.name, path, got, data, nd.agent.board.describe())
		}
		return ""
	})
}

// lonely is a node alone in a group in which the newest change wins: nobody else has what it loses.
func lonely(t *testing.T) (*farm, *node) {
	t.Helper()
	f := newFarm(t, 1)
	f.policy = manifest.Policy{Rule: manifest.RuleNewest}
	f.up()
	f.flush()
	return f, f.nodes[0]
}

// TestLoserBeforePlacing: a content that came with its entry lost its name before it was placed. The copy's event comes
// without it.
func TestLoserBeforePlacing(t *testing.T) {
	for _, placing := range []bool{false, true} {
		t.Run(fmt.Sprintf("placing=%v", placing), func(t *testing.T) {
			_, nd := lonely(t)
			b := nd.agent.board
			b.stop()
			nd.commit("x", dated("f", "the loser", 1))
			var taken []*want
			if placing {
				taken = b.takeWants(1)
			}
			nd.commit("y", dated("f", "the winner", 2))
			for _, w := range taken {
				b.placeAgain(w, false, nd.agent.cfg.Now())
			}
			b.resume()
			nd.has("f", "the winner")
			nd.keeps("f", "the loser")
		})
	}
}

// TestLoserDroppedByWalk: what waits with its content gives way to what a walk, or a second look at the manifest, finds at
// its path, before the copy's path comes.
func TestLoserDroppedByWalk(t *testing.T) {
	_, nd := lonely(t)
	b := nd.agent.board
	b.stop()
	nd.commit("x", dated("f", "the loser", 1))
	b.mu.Lock()
	b.behind = true // as if too much had come
	b.mu.Unlock()
	nd.commit("y", dated("f", "the winner", 2))
	nd.f.mu.Lock()
	nd.f.cut = uint64(len(nd.f.entries))
	nd.f.mu.Unlock()
	b.resume()
	nd.has("f", "the winner")
	nd.keeps("f", "the loser")
}

// TestWalkKeepsLoser: a node missed that its file lost its name. A walk comes to the name before it comes to the copy, and
// the winner is there already.
func TestWalkKeepsLoser(t *testing.T) {
	for _, between := range []int{0, 5} {
		t.Run(fmt.Sprint(between), func(t *testing.T) {
			for _, size := range []int{20, 300_000} {
				f, nd := lonely(t)
				loser := strings.Repeat("l", size)
				nd.write("f", loser)
				f.flush()
				nd.down()
				f.cut = f.last()
				var changes []manifest.Change
				for i := range between {
					changes = append(changes, inlineFile(fmt.Sprintf("f-%05d", i), nil))
				}
				nd.commit("y", append(changes, dated("f", "the winner", 1<<32))...)
				nd.change = func(cfg *Config) { cfg.walkStep = 2 }
				nd.up()
				nd.has("f", "the winner")
				nd.keeps("f", loser)
			}
		})
	}
}

// TestCopyBeforeOriginal: as long as the copy cannot be placed, the only file with its content is not replaced, unless the
// content can be staged.
func TestCopyBeforeOriginal(t *testing.T) {
	for _, c := range []struct {
		name string
		size int
		full bool
	}{{"small", 20, false}, {"large", 300_000, false}, {"full", 20, true}, {"large, full", 300_000, true}} {
		t.Run(c.name, func(t *testing.T) {
			f, nd := lonely(t)
			loser := strings.Repeat("l", c.size)
			nd.write("f", loser)
			f.flush()
			if c.full {
				nd.down()
				nd.change = func(cfg *Config) { cfg.Reserve = 1 << 60 }
				nd.up()
				f.flush()
			}
			a := nd.agent
			rec, err := a.table.get("f")
			must(t, err)
			a.board.stop()
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
			for range 5 {
				must(t, a.place(context.Background(), []*want{original}))
				if nd.read("f") != loser {
					break
				}
				a.board.due(a.cfg.Now().Add(1 << 38))
				if again := a.board.takeWants(1); len(again) != 1 || again[0] != original {
					t.Fatalf("it does not wait: %v", again)
				}
			}
			if got := nd.read("f"); c.full != (got == loser) {
				t.Errorf("f is %.20q", got)
			}
			if !c.full && !a.store.Has(rec.Hash) {
				t.Error("the loser was replaced and is not staged")
			}
			if c.full {
				a.board.placeAgain(original, false, a.cfg.Now())
			}
			a.board.due(a.cfg.Now().Add(1 << 41))
			a.board.resume()
			nd.has("f", "the winner")
			nd.keeps("f", loser)
		})
	}
}

// TestSwapped: two files that each hold what the other is to be.
func TestSwapped(t *testing.T) {
	for _, size := range []int{20, 300_000} {
		f, nd := lonely(t)
		a, b := strings.Repeat("a", size), strings.Repeat("b", size)
		nd.write("a", a)
		nd.write("b", b)
		f.flush()
		ra, err := nd.agent.table.get("a")
		must(t, err)
		rb, err := nd.agent.table.get("b")
		must(t, err)
		na, nb := ra.node(), rb.node()
		nd.commit("y", manifest.Change{Path: "a", Base: ra.Version, Node: nb}, manifest.Change{Path: "b", Base: rb.Version, Node: na})
		nd.has("a", b)
		nd.has("b", a)
	}
}

// TestNothingIsReplacedUnseen: while events were dropped, or are still to come, nobody knows which contents are needed.
func TestNothingIsReplacedUnseen(t *testing.T) {
	for _, dropped := range []bool{true, false} {
		t.Run(fmt.Sprintf("dropped=%v", dropped), func(t *testing.T) {
			f, nd := lonely(t)
			nd.write("f", "the loser")
			f.flush()
			a := nd.agent
			a.board.stop()
			winner := dated("f", "the winner", 1<<32)
			must(t, a.store.Put(winner.Node.Hash, winner.Inline))
			winner.Node.Version = f.last() + 1
			index := f.last()
			if dropped {
				a.board.mu.Lock()
				a.board.behind = true
				a.board.mu.Unlock()
				index = nd.commit("y", winner)
			}
			a.board.want(index, manifest.Changed{Path: "f", Node: winner.Node}) // as a walk or a second look finds it
			must(t, a.place(t.Context(), a.board.takeWants(1)))
			if got := nd.read("f"); got != "the loser" {
				t.Errorf("f is %q", got)
			}
			if !dropped {
				nd.commit("y", winner)
			}
			a.board.due(a.cfg.Now().Add(1 << 40))
			a.board.resume()
			nd.has("f", "the winner")
			nd.keeps("f", "the loser")
		})
	}
}
