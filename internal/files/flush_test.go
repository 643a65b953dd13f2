package files

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestFlushEndsWithItsAgent: who waits for an agent that is still being taken up, and one that asks when it has ended,
// hear that it has, however much time they have.
func TestFlushEndsWithItsAgent(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	nd.cut = true // the agent waits for the group's state
	nd.up()
	a := nd.agent
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	flushed := make(chan error, 1)
	go func() { flushed <- a.Flush(ctx) }()
	nd.down()
	for _, err := range []error{<-flushed, a.Flush(ctx)} {
		if !errors.Is(err, errEnded) {
			t.Errorf("flush: %v", err)
		}
	}
}

// TestBarrierWaitEnds: a barrier that the watcher no longer delivers keeps nobody waiting, nor is it remembered.
func TestBarrierWaitEnds(t *testing.T) {
	over := make(chan struct{})
	close(over)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var b barrierWaits
	if err := b.wait(t.Context(), over, 1); !errors.Is(err, errEnded) {
		t.Errorf("the agent has ended: %v", err)
	}
	if err := b.wait(gone, make(chan struct{}), 2); !errors.Is(err, context.Canceled) {
		t.Errorf("the asker has gone: %v", err)
	}
	if len(b.waiting) != 0 {
		t.Errorf("still waiting: %v", b.waiting)
	}
	b.reached(3)
	if err := b.wait(t.Context(), make(chan struct{}), 3); err != nil {
		t.Errorf("a barrier that came first: %v", err)
	}
}
