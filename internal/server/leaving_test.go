package server

import (
	"testing"
	"time"
)

func TestMotion(t *testing.T) {
	var m motion
	at := time.Unix(1000, 0)
	for i, step := range []struct {
		after time.Duration
		seen  string
		want  time.Duration
	}{
		{0, "", 0}, {time.Second, "", time.Second}, {time.Second, "a", 0}, {3 * time.Second, "a", 3 * time.Second},
		{time.Second, "b", 0}, {time.Minute, "a", 0}, {time.Minute, "a", time.Minute},
	} {
		at = at.Add(step.after)
		if got := m.stands(at, step.seen); got != step.want {
			t.Errorf("step %d: it stands still for %v, want %v", i, got, step.want)
		}
	}
}
