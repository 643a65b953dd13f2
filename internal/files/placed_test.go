package files

import (
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

func FuzzRecord(f *testing.F) {
	file := record{Placed: place.Placed{Version: 9, Stat: place.Stat{Kind: manifest.File, Mode: 0o644, UID: 1, GID: 2, Size: 3, MTime: -4, CTime: 5, Ino: 6, Dev: 7, Nlink: 1}}, Hash: manifest.Hash{1, 2}, After: 300}
	other := record{Placed: place.Placed{Stat: place.Stat{Other: true}}}
	for _, r := range []record{file, other} {
		b := encodeRecord(nil, &r)
		if got, err := decodeRecord(b); err != nil || got != r {
			f.Fatalf("%+v became %+v, %v", r, got, err)
		}
		if len(b) > 90 {
			f.Errorf("a record takes %d bytes", len(b))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		if again, err := decodeRecord(encodeRecord(nil, &r)); err != nil || again != r {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

// TestWantsOfLargeFiles: what is placed at a time is bounded by its bytes too.
func TestWantsOfLargeFiles(t *testing.T) {
	b := newBoard(time.Now)
	for i := range 5 {
		b.want(uint64(i+1), manifest.Changed{Path: string(rune('a' + i)), Node: manifest.Node{Kind: manifest.File, Size: placeBytes / 2}})
	}
	for _, want := range []int{2, 2, 1, 0} {
		if got := len(b.takeWants(placeMax)); got != want {
			t.Errorf("%d files of half of what fits were taken, not %d", got, want)
		}
	}
}

// TestBoard: one path is never with the pipeline and the placer at once (I2), and an older state never
// displaces a newer one.
func TestBoard(t *testing.T) {
	b := newBoard(time.Now)
	b.committed = 5
	b.want(5, manifest.Changed{Path: "p", Node: manifest.Node{Kind: manifest.Dir, Version: 5}})
	w := b.takeWants(9)
	if len(w) != 1 || b.alsoLook("p", "p") {
		t.Fatal("a path that is being placed was handed out to be looked at")
	}
	b.want(8, manifest.Changed{Path: "p", Node: manifest.Node{Kind: manifest.Dir, Version: 8}})
	b.want(7, manifest.Changed{Path: "p", Node: manifest.Node{Kind: manifest.Dir, Version: 7}})
	if len(b.takeWants(9)) != 0 {
		t.Fatal("placed twice at a time")
	}
	b.placeDone(w[0])
	if p := b.takeLooks(1); len(p) != 1 || p[0] != "p" {
		t.Fatal(p)
	}
	if len(b.takeWants(9)) != 0 {
		t.Fatal("a path that is looked at was handed out to be placed")
	}
	b.lookDone("p", created)
	b.due(created.Add(1))
	if p := b.takeLooks(1); len(p) != 1 || p[0] != "p" {
		t.Fatal(p)
	}
	b.lookDone("p", time.Time{})
	w = b.takeWants(9)
	if len(w) != 1 || w[0].Node.Version != 8 || b.placedIndex() != 5 {
		t.Fatalf("%+v %d", w, b.placedIndex())
	}
	b.placeDone(w[0])
	if b.placedIndex() != 8 || len(b.paths) != 0 {
		t.Errorf("placed %d, %v", b.placedIndex(), b.paths)
	}
}

// TestBacklogAge: the age is that of the oldest want that waits, whether anybody asked before or not, and it stays
// when a newer state of the path takes its place.
func TestBacklogAge(t *testing.T) {
	now := created
	b := newBoard(func() time.Time { return now })
	want := func(index uint64, path string) {
		b.commit(index, []manifest.Changed{{Path: path, Node: manifest.Node{Kind: manifest.Dir, Version: index}}})
	}
	age := func(want time.Duration) {
		t.Helper()
		switch _, _, since := b.backlog(); {
		case since.IsZero():
			if want >= 0 {
				t.Error("nothing waits")
			}
		case now.Sub(since) != want:
			t.Errorf("waits for %v, want %v", now.Sub(since), want)
		}
	}
	age(-1)
	want(5, "p")
	now = now.Add(time.Minute)
	want(6, "q")
	want(7, "p")
	age(time.Minute)
	now = now.Add(time.Minute)
	for _, w := range b.takeWants(1) {
		if w.Path != "p" {
			t.Fatal(w.Path)
		}
		age(2 * time.Minute) // on its way to the disk
		b.placeDone(w)
	}
	age(time.Minute) // q's
	for _, w := range b.takeWants(1) {
		b.placeDone(w)
	}
	age(-1)
	now = now.Add(time.Hour)
	want(8, "p")
	age(0)
	now = now.Add(time.Minute)
	b.want(8, manifest.Changed{Path: "r"}) // more for the same entry
	age(time.Minute)
}

// TestWalkHoldsThePlacedIndex: what a walk finds missing belongs to the index at which it began, also if something was
// committed, and placed, meanwhile.
func TestWalkHoldsThePlacedIndex(t *testing.T) {
	b := newBoard(time.Now)
	b.restart(5)
	hold, index := b.beginWalk()
	b.commit(6, []manifest.Changed{{Path: "new", Node: manifest.Node{Kind: manifest.Dir, Version: 6}}})
	b.wantHeld(hold, index, manifest.Changed{Path: "old", Node: manifest.Node{Kind: manifest.Dir, Version: 3}})
	b.endWalk(hold)
	if at := b.placedIndex(); at != 0 {
		t.Errorf("%d counts as placed while what the walk found is not", at)
	}
	for _, w := range b.takeWants(10) {
		b.placeDone(w)
	}
	if at := b.placedIndex(); at != 6 {
		t.Errorf("placed up to %d, want 6", at)
	}
}
