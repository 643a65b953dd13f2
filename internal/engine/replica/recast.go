package replica

import (
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Recast prepares the state that store holds, durably, for a replica of another role on the same node; none may be
// open. An observer that is to vote begins without a position: it knew no configuration, so raft must give it a
// snapshot, for which what the machine holds is the base of the difference. A voter that is to observe keeps its
// position and forgets the configuration, which nobody would tell it the changes of.
func Recast(store kv.Store, votes bool) error {
	st, err := readState(store)
	if err != nil {
		return fmt.Errorf("recast replica: %w", err)
	}
	if votes {
		st.at = core.Position{}
	}
	st.conf = nil
	b := store.Batch()
	defer b.Discard()
	if err := st.write(b); err != nil {
		return fmt.Errorf("recast replica: %w", err)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("recast replica: %w", err)
	}
	if err := store.Sync(); err != nil {
		return fmt.Errorf("recast replica: %w", err)
	}
	return nil
}
