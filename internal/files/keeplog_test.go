package files

import (
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestCopyHoldsTheLog: a content that came with an entry to one path and waits for another one now is on no disk. Whatever
// becomes of the first path, the entry is needed until the second one is placed.
func TestCopyHoldsTheLog(t *testing.T) {
	for _, placing := range []bool{false, true} {
		b := newBoard(func() time.Time { return created })
		loser, winner := dated("f", "the loser", 1), dated("f", "the winner", 2)
		b.commit(1, []manifest.Changed{{Path: "f", Node: loser.Node, Inline: loser.Inline}})
		var first []*want
		if placing {
			first = b.takeWants(1)
		}
		b.commit(2, []manifest.Changed{
			{Path: "copy", Node: loser.Node, From: "f"},
			{Path: "f", Node: winner.Node, Inline: winner.Inline},
		})
		for _, w := range first {
			b.placeDone(w)
		}
		var copied *want
		for range 2 {
			for _, w := range b.takeWants(2) {
				if w.Path == "f" {
					b.placeDone(w)
				} else {
					copied = w
				}
			}
		}
		if copied == nil || string(copied.Inline) != "the loser" {
			t.Fatalf("placing=%v: the copy came without its content: %+v", placing, copied)
		}
		if got := b.placedIndex(); got != 0 {
			t.Errorf("placing=%v: placed up to %d, but what entry 1 brought is nowhere", placing, got)
		}
		b.placeDone(copied)
		if got := b.placedIndex(); got != 2 {
			t.Errorf("placing=%v: placed up to %d in the end", placing, got)
		}
	}
}
