package replica

import (
	"encoding/binary"
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// The level under which commands are executed is part of the replicated state: it rises to that of the first entry
// which was proposed under a higher one, and never falls, whatever a leader stamps that has not heard yet. So it is a
// function of the log, the same for every replica and at every replay, whatever program executes it. What the program
// knows (Limits.Level) decides one thing only: whether it goes on at all.

// NewerLevelError says that a state, a snapshot or an entry is of a cluster level that this program does not know.
// Nothing of it was executed or put in force, and nothing is damaged: a newer program goes on from here.
type NewerLevelError struct {
	Level, Knows uint64
}

func (e *NewerLevelError) Error() string {
	return fmt.Sprintf("it is of cluster level %d, this program knows levels up to %d", e.Level, e.Knows)
}

// levelKey is only there above core.FirstLevel.
var levelKey = []byte("e/level")

// Level is the one that the state is at.
func (r *Replica) Level() uint64 { return r.public.Load().level }

// knows says whether the program knows level.
func (r *Replica) knows(level uint64) bool { return level <= r.known() }

// known is the newest level that the program knows.
func (r *Replica) known() uint64 { return max(r.sessions.limits.Level, core.FirstLevel) }

func (r *Replica) newer(level uint64) error {
	return &NewerLevelError{Level: level, Knows: r.known()}
}

func readLevel(r kv.Reader) (uint64, error) {
	v, found, err := r.Get(levelKey)
	if err != nil || !found {
		return core.FirstLevel, err
	}
	d := reader{rest: v}
	level := d.uvarint()
	if d.bad || level < core.FirstLevel || len(d.rest) > 0 {
		return 0, fmt.Errorf("level of %d bytes: %w", len(v), ErrDamaged)
	}
	return level, nil
}

func writeLevel(tx kv.Tx, level uint64) error {
	if level <= core.FirstLevel {
		return tx.Delete(levelKey)
	}
	return tx.Set(levelKey, binary.AppendUvarint(nil, level))
}
