package replica

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Standing is where a replica stands.
type Standing struct {
	At core.Position
	// Installed is where the state was when it was last installed as a whole; zero: it never was, or the log has led to it
	// since (Settled). As long as nothing was applied since, the state may be ahead of the log.
	Installed core.Position

	Line Line
	Conf *raftpb.ConfState // nil: not known
	// Level of the state; at least core.FirstLevel.
	Level uint64
	// Quarantine is why the state is not to be trusted; nil: there is no reason.
	Quarantine *Quarantine
}

// ReadStanding reads it from the group's part of the node's state; zero if there is none.
func ReadStanding(store kv.Reader) (Standing, error) {
	st, err := readState(store)
	if err == nil {
		st.quarantine, err = readQuarantine(store)
	}
	return st.standing(), err
}

func (st *state) standing() Standing {
	return Standing{At: st.at, Installed: st.installed, Line: st.line, Conf: st.conf, Level: st.level, Quarantine: st.quarantine}
}

// Settled records, durably, that the log leads to the state that was installed: if it does not at a later start, an older log
// has taken its place. For the applier, once the log has been reset, or has come as far, on its disk.
func (r *Replica) Settled() error {
	if r.state.installed == (core.Position{}) {
		return nil
	}
	b := r.store.Batch()
	defer b.Discard()
	err := b.Delete(installedKey)
	if err == nil {
		err = b.Commit()
	}
	if err == nil {
		err = r.store.Sync()
	}
	if err != nil {
		return fmt.Errorf("record that the log leads to the state installed at %d: %w", r.state.installed.Index, err)
	}
	r.state.installed = core.Position{}
	r.publish()
	return nil
}

// ReadMachine is the machine's state of a replica that does not run, and the index that it covers.
func ReadMachine(store kv.Reader) (kv.Reader, uint64, error) {
	st, err := readState(store)
	return kv.PrefixedReader(store, st.slot.machine()), st.at.Index, err
}

// Turn puts a replica that does not run, and has a state, on another line with another configuration, durably.
// Position, sessions and the machine's state stay as they are; so does a quarantine, unless the state is to be trusted from
// now on.
func Turn(store kv.Store, line Line, conf *raftpb.ConfState, trust bool) error {
	st, err := readState(store)
	if err != nil {
		return err
	}
	st.line, st.conf = line, conf
	b := store.Batch()
	defer b.Discard()
	err = st.write(b)
	if err == nil && trust {
		err = b.Delete(quarantineKey)
	}
	if err != nil {
		return fmt.Errorf("turn to %x at %d: %w", line.History, st.at.Index, err)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("turn to %x at %d: %w", line.History, st.at.Index, err)
	}
	return store.Sync()
}
