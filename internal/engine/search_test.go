package engine

import (
	"net"
	"testing"
	"time"
)

// TestSnapshotForNobody: who opens the stream and does not say of which group holds nothing up for long.
func TestSnapshotForNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 1, nil)
		defer f.close()
		far, near := net.Pipe()
		defer far.Close()
		served := make(chan struct{})
		go func() {
			defer close(served)
			f.fabric.engine(1).ServeSnapshot(t.Context(), 2, near)
		}()
		select {
		case <-served:
		case <-time.After(2 * planPatience):
			t.Error("it is still waited for")
		}
		near.Close()
		<-served
	})
}

// TestSourceLostDuringASearch: an observer whose first choices are silent looks for them now and then. If it loses its
// source just then it does not wait until all of them have been asked.
func TestSourceLostDuringASearch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(5, 100)
		silent := []uint64{21, 22, 23}
		for _, n := range silent {
			f.observe(n, 1)
			f.fedBy(n, 1, 1)
			f.fabric.setSilent(n, true)
		}
		f.observe(11, 1)
		f.fedBy(11, 1, 1)
		f.observe(12, 21, 22, 23, 11)
		f.fedBy(12, 11, 2)
		began := f.fabric.attempts(12, 21)
		f.until("12 looks for its first choice again", func() bool { return f.fabric.attempts(12, 21) > began })
		at := time.Now()
		f.kill(11)
		f.write(1, 100)
		f.reaches(12)
		// Each that is silent is asked for a second, once.
		if gap := time.Since(at); gap > time.Duration(len(silent))*openPatience+500*time.Millisecond {
			t.Errorf("12 was without news for %v", gap)
		}
	})
}
