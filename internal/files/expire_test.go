package files

import (
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestExpireSparesWhatIsNeeded: a content that was staged long ago stays while a path that names it waits, while the placer
// has that path, and while a walk may still come to one.
func TestExpireSparesWhatIsNeeded(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	f.up()
	f.flush()
	store, b := nd.agent.store, newBoard(time.Now)
	data := []byte("staged long ago")
	h := manifest.Hash(blake3.Sum256(data))
	must(t, store.Put(h, data))
	expect := func(when string, there bool) {
		t.Helper()
		must(t, store.Expire(time.Now().Add(2*content.ExpireAfter), b.names))
		if store.Has(h) != there {
			t.Fatalf("%s: staged: %v, want %v", when, !there, there)
		}
	}
	b.want(1, manifest.Changed{Path: "f", Node: inlineFile("f", data).Node})
	expect("a path waits", true)
	w := b.takeWants(1)
	expect("the placer has it", true)
	b.placeAgain(w[0], false, time.Time{})
	b.due(time.Now())
	expect("it waits again", true)
	b.placeDone(b.takeWants(1)[0])
	b.restart(2)
	expect("a walk is due", true)
	hold, _ := b.beginWalk()
	expect("a walk is under way", true)
	b.endWalk(hold)
	expect("nothing names it", false)
}
