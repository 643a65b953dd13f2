package engine

import "testing"

// TestTicksWake: while a group has a leader, a tick alone wakes nobody, the next one does, and none is forgotten; without a
// leader each does.
func TestTicksWake(t *testing.T) {
	b := newMailbox()
	woken := func() bool {
		select {
		case <-b.wake:
			return true
		default:
			return false
		}
	}
	for i, step := range []struct {
		do    func()
		woken bool
		ticks int // taken afterwards, if it was woken
	}{
		{b.tick, true, 1}, // a new group has none
		{func() { b.setCalm(true) }, false, 0},
		{b.tick, false, 0},
		{b.tick, true, 2},
		{b.tick, false, 0},
		{b.nudge, true, 1}, // what comes anyway takes it along
		{func() { b.tick(); b.tick(); b.tick() }, true, 2},
		{func() { b.setCalm(false) }, false, 0},
		{b.tick, true, 1},
		{b.tick, true, 1},
	} {
		step.do()
		if got := woken(); got != step.woken {
			t.Fatalf("step %d: woken %v, want %v", i, got, step.woken)
		}
		if step.woken {
			if m := b.take(mail{}); m.ticks != step.ticks {
				t.Fatalf("step %d: %d ticks, want %d", i, m.ticks, step.ticks)
			}
		}
	}
}
