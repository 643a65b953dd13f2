package replica

import (
	"bytes"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// TestLineTravelsWithTheState: which line a state is of survives a restart and a snapshot, and cannot become one that
// was cut below it.
func TestLineTravelsWithTheState(t *testing.T) {
	store := kv.NewMemory()
	src, err := Open(store, &tally{})
	if err != nil {
		t.Fatal(err)
	}
	first := Line{History: [16]byte{1}}
	if err := src.InitLine(initial, first); err != nil {
		t.Fatal(err)
	}
	if err := src.Adopt(Line{History: [16]byte{2}, Before: first.History}); err == nil {
		t.Error("a line that was cut below the state was adopted")
	}
	second := Line{History: [16]byte{2}, Before: first.History, Fork: core.Position{Term: 1, Index: 7}}
	if err := src.Adopt(second); err != nil {
		t.Fatal(err)
	}
	again, err := Open(store.Crash(func(int) int { return 0 }), &tally{})
	if err != nil || again.Line() != second || again.Applied() != src.Applied() {
		t.Errorf("after a crash: %+v at %v, %v", again.Line(), again.Applied(), err)
	}
	var snap bytes.Buffer
	view := src.StateView()
	defer view.Close()
	if err := src.WriteSnapshot(view, &snap); err != nil {
		t.Fatal(err)
	}
	dst, err := Open(kv.NewMemory(), &tally{})
	if err != nil {
		t.Fatal(err)
	}
	if err := dst.Restore(&snap); err != nil || dst.Line() != second {
		t.Errorf("after a snapshot: %+v, %v", dst.Line(), err)
	}
}
