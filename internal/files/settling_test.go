package files

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// TestWrittenWithoutPause: a file that somebody appends to all the time, as to a log, goes to the others meanwhile.
func TestWrittenWithoutPause(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	file, err := os.Create(f.nodes[0].path("log"))
	must(t, err)
	defer file.Close()
	tick := time.NewTicker(settleTime / 10)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < 3*settleMost; {
		<-tick.C
		_, err := fmt.Fprintln(file, "line")
		must(t, err)
		if in, err := os.Stat(f.nodes[1].path("log")); err == nil && in.Size() > 0 {
			return
		}
	}
	t.Error("nothing of it has arrived")
}

// TestSettles: a file that is written waits until it is not any more, and not for ever; a large one longer.
func TestSettles(t *testing.T) {
	now := created
	a := &Agent{cfg: Config{Now: func() time.Time { return now }}}
	a.board = newBoard(a.cfg.Now)
	step := 100 * time.Millisecond
	write := func(n int) (looked time.Duration) {
		for range n {
			a.board.settle("f", now)
			a.board.due(now)
			if len(a.board.looks) > 0 {
				return now.Sub(created)
			}
			now = now.Add(step)
		}
		return -1
	}
	if at := write(100); at != settleMost {
		t.Errorf("what is written all the time is looked at after %v", at)
	}
	a.board.takeLooks(1)
	s := place.Stat{Kind: manifest.File, MTime: now.UnixNano(), Size: 10 * settleRate}
	if !a.settles("f", &s) {
		t.Error("a large file is read while it is written")
	}
	small := s
	small.Size = settleRate
	if a.settles("f", &small) {
		t.Error("a small one is not")
	}
	a.board.lookDone("f", now.Add(settleTime))
	now = created.Add(10 * time.Second)
	s.MTime = now.UnixNano()
	if a.settles("f", &s) {
		t.Error("a large file that is written all the time is never read")
	}
	now = created.Add(9 * time.Second)
	s.MTime = now.Add(-settleTime).UnixNano()
	if a.settles("f", &s) {
		t.Error("a large file waits although nobody writes to it any more")
	}
	a.board.due(now)
	a.board.takeLooks(1)
	a.board.lookDone("f", time.Time{})
	now = now.Add(time.Hour)
	s.MTime = now.UnixNano()
	a.board.settle("f", now)
	if !a.settles("f", &s) {
		t.Error("what was read counts as written ever since")
	}
}
