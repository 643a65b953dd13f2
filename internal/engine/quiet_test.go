package engine

import (
	"context"
	"testing"
	"time"
)

// TestQuietFollower: a follower that is started again while its group is quiet is told nothing but that there is a leader.
// It lacks nothing and says so, without a write that would tell.
func TestQuietFollower(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	index, err := members[1].group.Barrier(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range members {
		if err := one.group.WaitApplied(ctx, index); err != nil {
			t.Fatal(err)
		}
	}
	away := members[1].group.Core().Leader%3 + 1
	// The leader does not hear that it is away: it would send an empty append to find out what it has.
	m.mu.Lock()
	e := m.nodes[away]
	delete(m.nodes, away)
	m.mu.Unlock()
	e.Close()
	back := boot(t, m, away, []uint64{1, 2, 3}, members[away].logs, members[away].state)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c := back.group.Catchup()
		if c.Mode == ModeLive && c.Rule == "R3" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%+v", c)
		}
	}
}
