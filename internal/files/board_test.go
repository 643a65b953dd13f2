package files

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWaitingAbove: of what waits for its directory no more is remembered than that, however often it is looked at, and nothing
// once it is gone.
func TestWaitingAbove(t *testing.T) {
	b := newBoard(time.Now)
	look := func(path string) {
		t.Helper()
		b.hint(path, time.Time{})
		for {
			if got := b.takeLooks(1)[0]; got == path {
				return
			} else if got != "d" {
				t.Fatalf("looks at %q", got)
			}
		}
	}
	for range 100 {
		look("d/f")
		b.waitAbove("d/f", "d")
	}
	for i := range 100 {
		tmp := fmt.Sprint("d/tmp", i)
		look(tmp)
		b.waitAbove(tmp, "d")
		look(tmp)
		b.lookDone(tmp, time.Time{})
	}
	if n := len(b.paths["d"].waiting); n != 1 || len(b.paths) != 2 {
		t.Fatalf("%d wait for the directory, %d paths are known", n, len(b.paths))
	}
	b.lookDone("d", time.Time{})
	if got := b.takeLooks(1); got[0] != "d/f" {
		t.Errorf("then looks at %q", got)
	}
	b.lookDone("d/f", time.Time{})
	if len(b.paths) != 0 {
		t.Errorf("known for ever: %v", b.paths)
	}
}

// TestFailedLookIsDue: a look that failed comes again even if no more looks can wait just now: with all others, by a scan.
func TestFailedLookIsDue(t *testing.T) {
	a := &Agent{cfg: Config{Now: time.Now}, board: newBoard(time.Now), rescan: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
	a.status.start(time.Now)
	a.board.hint("f", time.Time{})
	a.board.takeLooks(1)
	for i := range looksMax {
		a.board.hint(fmt.Sprint(i), time.Time{})
	}
	a.lookFailed("f", unix.EIO)
	if !a.scanDue.busy() {
		t.Error("nobody looks at it again")
	}
}
