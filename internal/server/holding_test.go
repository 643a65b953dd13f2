package server

import (
	"context"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// TestHoldingOfANodeThatEnds starts a binding around the moment at which the node ends its bindings: on either side of
// it the binding's agent has ended before the stores that it reads are closed.
func TestHoldingOfANodeThatEnds(t *testing.T) {
	for name, late := range map[string]bool{"entered before the end": false, "entered after it": true} {
		t.Run(name, func(t *testing.T) {
			n := &node{holdings: map[uint64]*holding{}}
			ctx, stop := context.WithCancel(t.Context())
			h := &holding{n: n, group: control.Group{ID: 3}, stop: stop}
			ended := false
			h.tasks.Go(func() {
				<-ctx.Done()
				ended = true
			})
			if late {
				n.closeHoldings()
			}
			n.keep(h)
			if !late {
				if !n.holds(3) || ctx.Err() != nil {
					t.Fatal("a binding of a node that runs is not kept")
				}
				n.closeHoldings()
			}
			if ctx.Err() == nil || !ended || n.holds(3) {
				t.Fatal("the binding outlives the node's stores")
			}
		})
	}
}
