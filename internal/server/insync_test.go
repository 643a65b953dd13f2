package server

import (
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// TestProposedSetsAreRemembered: each that may still be recorded, and none twice, however long nobody answers.
func TestProposedSetsAreRemembered(t *testing.T) {
	var k inSyncKeeper
	for range 100 {
		k.note(control.SetInSync{Version: 3, Replicas: []uint64{1, 2}, Why: "n3 is down"})
		k.note(control.SetInSync{Version: 3, Replicas: []uint64{1, 2, 3}, Why: "n3 has caught up"})
	}
	k.note(control.SetInSync{Version: 4, Replicas: []uint64{1, 2}})
	if len(k.proposed) != 3 {
		t.Errorf("%d: %+v", len(k.proposed), k.proposed)
	}
}
