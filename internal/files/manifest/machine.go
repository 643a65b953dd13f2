package manifest

import (
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// Config of a group's machine.
type Config struct {
	// Policy holds until a command sets another; it must be equal on all replicas.
	Policy Policy
	// Changed is told, from Committed, what changed since the last call: in log order, all of it ≤ index.
	// It must not block for long. The slice is the callee's. nil: nobody listens.
	Changed func(index uint64, changes []Changed)
	// Restored is told that the whole state was replaced, or just opened, at index. nil: nobody listens.
	Restored func(index uint64)
}

// Machine implements machine.Machine. Its state is in the kv.Tx that it is handed; it caches nothing
// between commands except the events that wait for Committed.
type Machine struct {
	cfg     Config
	pending []Changed
}

var _ machine.Recomputer = (*Machine)(nil)

// New returns a machine without state of its own.
func New(cfg Config) *Machine { return &Machine{cfg: cfg} }

// Apply implements machine.Machine.
func (m *Machine) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	if len(cmd.Payload) == 0 {
		return []byte{resMalformed}, nil
	}
	switch cmd.Payload[0] {
	case cmdBatch:
		b, err := DecodeBatch(cmd.Payload)
		if err != nil {
			return []byte{resMalformed}, nil
		}
		return m.applyBatch(tx, cmd, b)
	case cmdPolicy:
		p, err := ParsePolicy(string(cmd.Payload[1:]))
		if err != nil {
			return []byte{resMalformed}, nil
		}
		if err := tx.Set([]byte{tagPolicy}, []byte(p.String())); err != nil {
			return nil, fmt.Errorf("manifest: set policy: %w", err)
		}
		return encodeOutcomes(cmd.Index, nil), nil
	}
	return []byte{resMalformed}, nil
}

func (m *Machine) applyBatch(tx kv.Tx, cmd machine.Command, b Batch) ([]byte, error) {
	a, err := m.begin(tx, cmd, b.Author)
	if err != nil {
		return nil, fmt.Errorf("manifest: apply %d: %w", cmd.Index, err)
	}
	if err := a.foresee(b.Changes); err != nil {
		return nil, fmt.Errorf("manifest: apply %d: %w", cmd.Index, err)
	}
	outs := make([]Outcome, len(b.Changes))
	for i := range b.Changes {
		if outs[i], err = a.change(&b.Changes[i]); err != nil {
			return nil, fmt.Errorf("manifest: apply %d: %w", cmd.Index, err)
		}
	}
	if err := a.end(); err != nil {
		return nil, fmt.Errorf("manifest: apply %d: %w", cmd.Index, err)
	}
	m.pending = append(m.pending, a.events...)
	return encodeOutcomes(cmd.Index, outs), nil
}

// Committed implements machine.Machine.
func (m *Machine) Committed(index uint64) {
	changes := m.pending
	m.pending = nil
	if m.cfg.Changed != nil {
		m.cfg.Changed(index, changes)
	}
}

// Restored implements machine.Machine.
func (m *Machine) Restored(_ kv.Reader, index uint64) error {
	m.pending = nil
	if m.cfg.Restored != nil {
		m.cfg.Restored(index)
	}
	return nil
}

// Recompute implements machine.Recomputer.
func (m *Machine) Recompute(r kv.Reader) (machine.Digest, error) {
	g := newDigester(r, nil)
	g.doubting = true
	d, err := stateDigest(r, g)
	if err != nil {
		return machine.Digest{}, fmt.Errorf("manifest: recompute digest: %w", err)
	}
	return d, nil
}

// Digest implements machine.Machine. It covers everything that is replicated: versions, authors, counters
// and the conflict log too, so replicas that would answer a later command differently differ here. Compare
// TreeDigest, which covers what the directory holds and nothing else.
func (m *Machine) Digest(tx kv.Tx) (machine.Digest, error) {
	d, err := stateDigest(tx, newDigester(tx, tx))
	if err != nil {
		return machine.Digest{}, fmt.Errorf("manifest: digest: %w", err)
	}
	return d, nil
}
