package files

import (
	"log/slog"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// TestUnplacedIsOver: that a content cannot be had is said no more once the path is to have another state that is there
// already, though nothing is placed for that.
func TestUnplacedIsOver(t *testing.T) {
	now := func() time.Time { return created }
	a := &Agent{board: newBoard(now), table: table{newMemory()}, log: slog.New(slog.DiscardHandler)}
	a.cfg.Now = now
	a.status.start(now)
	take := func(index uint64, n manifest.Node) []*want {
		t.Helper()
		if !a.board.commit(index, []manifest.Changed{{Path: "f", Node: n}}) {
			t.Fatal("no room")
		}
		wants := a.board.takeWants(9)
		if len(wants) != 1 {
			t.Fatalf("%d wants", len(wants))
		}
		return wants
	}
	a.placedOne(t.Context(), take(5, manifest.Node{Kind: manifest.File, Size: 1, Hash: manifest.Hash{1}, Version: 5})[0], &place.Result{Code: place.Missing})
	if n := len(a.status.problems); n != 1 {
		t.Fatalf("%d problems, want the one that nobody has the content", n)
	}
	if todo, err := a.toPlace(take(6, manifest.Node{})); err != nil || len(todo) > 0 {
		t.Fatalf("%d to be placed, %v", len(todo), err)
	}
	if n := len(a.status.problems); n > 0 {
		t.Errorf("%d problems of a path that is as it should be", n)
	}
}
