package files

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/files/content"
)

// TestShipmentBlame: an item fails for its author's sake only; what a member could not take says nothing about
// the item, which another member may have.
func TestShipmentBlame(t *testing.T) {
	for _, c := range []struct {
		err  error
		ours bool
	}{
		{content.ErrChanged, true},
		{fmt.Errorf("read: %w", os.ErrNotExist), true},
		{fmt.Errorf("the member: %w", content.ErrNoSpace), false},
		{fmt.Errorf("%w to store it", content.ErrMember), false},
	} {
		sh := &shipment{need: 1, asked: 2, failed: map[int]error{}, done: make(chan struct{})}
		sh.answer(&content.PushError{Failed: map[int]error{7: c.err}})
		if sh.closed != c.ours || len(sh.failed) == 1 != c.ours {
			t.Errorf("%v: enough members %v, the author's %v", c.err, sh.closed, sh.failed)
		}
		sh.answer(nil)
		if !sh.closed || sh.have < 1 || errors.Is(sh.failed[7], content.ErrMember) {
			t.Errorf("%v: the other member's copy did not count", c.err)
		}
	}
}
