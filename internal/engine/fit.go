package engine

import (
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// Log and state of a replica are of one moment if the log leads to the state: entries are applied once they are durable in
// the log, and the log is cut only below what is durable in the state. Two things may be found all the same.
//
//   - A state that was installed is ahead of the log, or the log has other entries there: the process ended before the log
//     was reset. Nothing but the installation itself puts a state ahead, so it is then exactly where it was installed
//     (replica.Standing.Installed), and the log is reset to it. Once the log leads to the state that is forgotten (settle):
//     from then on votes and acknowledgements may be in it, and an older log in its place does not pass for one that was
//     not reset yet.
//   - Else one of them is an older copy that was put back, or the disk has lost the end of the log. The replica may have voted
//     and acknowledged what the log does not know: logstore.ErrDamaged.

// LogFits says whether a log leads to the state of the same replica; false: a state was installed and the log is to be reset
// to it. What is not of one moment is an error, see logstore.ErrDamaged.
func LogFits(log logstore.Log, st replica.Standing) (bool, error) {
	fits, err := core.LogFits(log, st.At)
	if err != nil {
		return false, err
	}
	first, err := log.FirstIndex()
	if err != nil {
		return false, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return false, err
	}
	return fits, OutOfStep(st, first-1, last, fits)
}

// Settles says whether a log leads to the state that was installed last, so that replica.Settled is due. raft has applied
// from the log up to applied; what it has applied is durable there.
func Settles(log logstore.Log, st replica.Standing, applied uint64) (bool, error) {
	if st.Installed.Index == 0 || applied < st.At.Index {
		return false, nil
	}
	return core.LogFits(log, st.At)
}

// settle has it recorded that the log leads to a state that was installed.
func (g *Group) settle() {
	due := func() (bool, error) { return Settles(g.log, g.rep.Standing(), g.Core().Applied) }
	if is, err := due(); !is || err != nil {
		return // an error of the log is found by who needs it
	}
	g.jobs.call(func() {
		if is, err := due(); !is || err != nil { // another state was installed meanwhile
			return
		}
		if err := g.rep.Settled(); err != nil {
			g.eng.failed(err)
		}
	})
}

// OutOfStep says why a log that begins after start and ends at last is not of one moment with a state, or nothing; fits is
// whether it holds the entry that the state ends with, or begins after it. The error wraps logstore.ErrDamaged.
func OutOfStep(st replica.Standing, start, last uint64, fits bool) error {
	switch {
	case st.At.Index == 0: // there is no state
		return nil
	case start > st.At.Index:
		return fmt.Errorf("the state is at %d, but the log begins with %d: an older state has taken its place: %w", st.At.Index, start+1, logstore.ErrDamaged)
	case fits || st.Installed == st.At:
		return nil
	case last < st.At.Index:
		return fmt.Errorf("the log ends at %d, but the state is at %d: an older log has taken its place, or its end is lost: %w", last, st.At.Index, logstore.ErrDamaged)
	}
	return fmt.Errorf("the log holds another entry %d than that of term %d, with which the state ends: %w", st.At.Index, st.At.Term, logstore.ErrDamaged)
}
