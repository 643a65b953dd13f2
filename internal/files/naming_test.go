package files

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestNaming compares the wants that are found by content with all there are.
func TestNaming(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	b := newBoard(func() time.Time { return created })
	var taken []*want
	for step := range 20_000 {
		switch rng.IntN(4) {
		case 0, 1:
			n := manifest.Node{Kind: manifest.File, Size: int64(rng.IntN(2)), Hash: manifest.Hash{byte(rng.IntN(5))}}
			if rng.IntN(4) == 0 {
				n = manifest.Node{}
			}
			c := manifest.Changed{Path: fmt.Sprint(rng.IntN(30)), Node: n}
			if rng.IntN(3) == 0 {
				c.Inline = []byte{1}
			}
			b.commit(uint64(step+1), []manifest.Changed{c})
		case 2:
			taken = append(taken, b.takeWants(1+rng.IntN(3))...)
		case 3:
			if len(taken) == 0 {
				continue
			}
			i := rng.IntN(len(taken))
			w := taken[i]
			taken = slices.Delete(taken, i, i+1)
			if rng.IntN(2) == 0 {
				b.placeDone(w)
			} else {
				b.placeAgain(w, false, created)
				b.due(created)
			}
		}
		for c := range byte(5) {
			h := manifest.Hash{c}
			var all []string
			named := false
			for path, st := range b.paths {
				for _, w := range []*want{st.want, st.placing} {
					if w != nil && w.Node.Kind == manifest.File && w.Node.Size > 0 && w.Node.Hash == h {
						named = true
						if w.Inline == nil {
							all = append(all, path)
						}
					}
				}
			}
			got := b.naming.paths(h)
			slices.Sort(got)
			slices.Sort(all)
			if !slices.Equal(got, all) || b.names(h) != named {
				t.Fatalf("step %d: content %d is named by %q, found %q (%v)", step, c, all, got, b.names(h))
			}
		}
	}
}

// TestContentOfVeryMany: a content that very many paths name counts as needed without asking each of them.
func TestContentOfVeryMany(t *testing.T) {
	b := newBoard(func() time.Time { return created })
	h := manifest.Hash{1}
	for i := range 10 * namedMost {
		b.commit(uint64(i+1), []manifest.Changed{{Path: fmt.Sprint(i), Node: manifest.Node{Kind: manifest.File, Size: 1, Hash: h}}})
	}
	needed, _, _ := b.needed(map[manifest.Hash]int{h: 0, {2}: 1})
	if n := len(needed[h]); n != namedMost+1 || len(needed) != 1 {
		t.Errorf("%d paths, contents %d", n, len(needed))
	}
	a := &Agent{board: b, table: table{newMemory()}}
	e := a.table.edit()
	for i := range 10 * namedMost {
		rec := record{Hash: h}
		rec.Stat.Kind, rec.Stat.Size = manifest.File, 1
		must(t, e.set(fmt.Sprint(i), rec))
	}
	must(t, e.commit())
	must(t, a.dropPlaced(needed))
	if _, ok := needed[h]; !ok {
		t.Error("it counts as not needed")
	}
}

// BenchmarkNames is what is asked for every staged content that is old enough to go, while so many changes wait.
func BenchmarkNames(b *testing.B) {
	for _, waiting := range []int{1_000, 60_000} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			board := newBoard(func() time.Time { return created })
			for i := range waiting {
				h := manifest.Hash{byte(i), byte(i >> 8), byte(i >> 16)}
				board.commit(uint64(i+1), []manifest.Changed{{Path: fmt.Sprint(i), Node: manifest.Node{Kind: manifest.File, Size: 1, Hash: h}}})
			}
			for b.Loop() {
				board.names(manifest.Hash{0xff, 0xff, 0xff})
			}
		})
	}
}
