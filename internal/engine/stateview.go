package engine

import (
	"errors"
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// StateView is a replica's whole state at one position, while the replica goes on. It is to be closed.
type StateView struct {
	At      core.Position
	Line    replica.Line
	Level   uint64
	Machine kv.Reader
	rep     *replica.Replica
	view    kv.View
}

// StateView takes one; any goroutine may.
func (g *Group) StateView() (*StateView, error) { return viewOf(g.rep) }

// StateView takes one; any goroutine may.
func (o *Observer) StateView() (*StateView, error) { return viewOf(o.rep) }

func viewOf(rep *replica.Replica) (*StateView, error) {
	v := &StateView{rep: rep, view: rep.StateView()}
	st, err := replica.ReadStanding(v.view)
	if err == nil {
		v.At, v.Line, v.Level = st.At, st.Line, st.Level
		v.Machine, err = rep.MachineView(v.view)
	}
	if err != nil {
		v.view.Close()
		return nil, err
	}
	return v, nil
}

// Write writes the state as a snapshot (docs/en/formats/state.md).
func (v *StateView) Write(w io.Writer) error { return v.rep.WriteSnapshot(v.view, w) }

// Close releases the view.
func (v *StateView) Close() error { return v.view.Close() }

// Install replaces what this node has of a group, which does not run, by the state in a snapshot, and makes this
// replica the only voter under a new history that forks from the snapshot's there. It may be interrupted anywhere
// and done again; the replica is on the new history only once all is done. A state above the level that the node acts
// under is refused; it is a replica.NewerLevelError only if the program does not know that level.
func (e *Engine) Install(cfg RecoverConfig, snapshot io.Reader) error {
	fail := func(err error) error {
		return fmt.Errorf("engine: install a state for group %d: %w", cfg.Group, e.tooEarly(err))
	}
	if err := e.StopGroup(cfg.Group, true); err != nil {
		return err
	}
	store := kv.Prefixed(e.cfg.State, groupPrefix(cfg.Group))
	limits := e.limits()
	limits.Level = e.level() // a state of a higher one would take the cluster there, whoever can follow
	rep, err := replica.OpenLimited(store, inert{}, limits)
	if err != nil {
		return fail(err)
	}
	if err := rep.Restore(snapshot); err != nil {
		return fail(err)
	}
	at, before := rep.Applied(), rep.Line().History
	if at != cfg.Fork || at.Index == 0 {
		return fail(fmt.Errorf("it is at %v, not at %v", at, cfg.Fork))
	}
	conf := &raftpb.ConfState{Voters: []uint64{cfg.Replica}}
	err = e.writer.do(func(s logstore.Store) error {
		_, err := s.Create(cfg.Group, &raftpb.SnapshotMetadata{Index: &at.Index, Term: &at.Term, ConfState: conf})
		return err
	})
	if err != nil {
		return fail(err)
	}
	line := replica.Line{History: cfg.History, Before: before, Fork: at, Start: at.Index + 1, Seed: cfg.Replica}
	return replica.Turn(store, line, conf, false)
}

// tooEarly is err, or, if that is about a level which the program knows, that the node does not act under it yet.
func (e *Engine) tooEarly(err error) error {
	var newer *replica.NewerLevelError
	if !errors.As(err, &newer) || newer.Level > max(e.cfg.Knows, core.FirstLevel) {
		return err
	}
	return fmt.Errorf("it is of cluster level %d, this node acts under level %d so far", newer.Level, newer.Knows)
}

// SnapshotLevel is the cluster level of the state that a snapshot holds, see replica.SnapshotLevel.
func SnapshotLevel(snapshot io.Reader) (uint64, error) { return replica.SnapshotLevel(snapshot) }

// inert stands in for a machine while its state is only moved.
type inert struct{}

func (inert) Apply(kv.Tx, machine.Command) ([]byte, error) { return nil, errInert }
func (inert) Committed(uint64)                             {}
func (inert) Restored(kv.Reader, uint64) error             { return nil }
func (inert) Digest(kv.Tx) (machine.Digest, error)         { return machine.Digest{}, errInert }

var errInert = fmt.Errorf("engine: the group does not run")

// ReadState loads the state that a snapshot holds into store, which is empty, verified: its position, its line, and
// the machine's part. It may be of any level up to knows.
func ReadState(store kv.Store, knows uint64, snapshot io.Reader) (core.Position, replica.Line, kv.Reader, error) {
	limits := replica.DefaultLimits()
	limits.Level = knows
	rep, err := replica.OpenLimited(store, inert{}, limits)
	if err == nil {
		err = rep.Restore(snapshot)
	}
	if err != nil {
		return core.Position{}, replica.Line{}, nil, fmt.Errorf("engine: read a state: %w", err)
	}
	r, err := rep.MachineView(store)
	return rep.Applied(), rep.Line(), r, err
}
