package replica

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// Commands of the engine itself travel through the log like a machine's, as proposals with core.Proposal.Engine
// set. They change nothing that is replicated, so a replica that replays them, or does not know them, ends up with
// the same state; they make replicas look at what they have at one index.

// The first byte of a command.
const (
	cmdProbe   = iota + 1 // nothing: somebody wants to know how writes are answered
	cmdMark               // flags u8: compute the digest of the state at this entry
	cmdVerdict            // what a majority of the voters found at a mark
)

// Mark asks every replica for the digest of its state after the entry at Index.
type Mark struct {
	Index uint64 // of the entry; not encoded
	Deep  bool   // from the records themselves, whatever was remembered of them
}

// Verdict is what the leader learned of the digests at a mark: Digest is that of a majority of all voters, two at
// least. Whoever has another one at that index is the odd one.
type Verdict struct {
	Mark   uint64
	Digest machine.Digest
	Agree  []uint64 // the replicas that have it
}

// Hooks are called on the applier's goroutine, between two batches: the state is the one after the entry.
type Hooks struct {
	Marked func(Mark)
	Judged func(Verdict)
}

// Watch registers the hooks, before the first Apply.
func (r *Replica) Watch(h Hooks) { r.hooks = h }

// own is a decoded command.
type own struct {
	mark    *Mark
	verdict *Verdict
}

// EncodeProbe returns a command that does nothing.
func EncodeProbe() []byte { return []byte{cmdProbe} }

// Encode returns the command.
func (m Mark) Encode() []byte {
	if m.Deep {
		return []byte{cmdMark, 1}
	}
	return []byte{cmdMark, 0}
}

// Encode returns the command: mark, digest, number of replicas, replicas; numbers as uvarints.
func (v *Verdict) Encode() []byte {
	b := binary.AppendUvarint([]byte{cmdVerdict}, v.Mark)
	b = append(b, v.Digest[:]...)
	b = binary.AppendUvarint(b, uint64(len(v.Agree)))
	for _, r := range v.Agree {
		b = binary.AppendUvarint(b, r)
	}
	return b
}

var errCommand = errors.New("malformed command of the engine")

func decodeOwn(b []byte) (own, error) {
	if len(b) == 0 {
		return own{}, errCommand
	}
	d := reader{rest: b[1:]}
	switch b[0] {
	case cmdProbe:
		return own{}, nil
	case cmdMark:
		if len(b) != 2 || b[1] > 1 {
			return own{}, errCommand
		}
		return own{mark: &Mark{Deep: b[1] == 1}}, nil
	case cmdVerdict:
		v := &Verdict{Mark: d.uvarint()}
		copy(v.Digest[:], d.bytes(uint64(len(v.Digest))))
		n := d.uvarint()
		if d.bad || n > uint64(len(d.rest)) {
			return own{}, errCommand
		}
		for range n {
			v.Agree = append(v.Agree, d.uvarint())
		}
		if d.bad || len(d.rest) > 0 {
			return own{}, errCommand
		}
		return own{verdict: v}, nil
	}
	return own{}, errCommand
}

// engine notes a command for after the batch. One that is not understood, of a later version, is left alone.
func (a *applier) engine(payload []byte) []byte {
	o, err := decodeOwn(payload)
	if err == nil && (o.mark != nil || o.verdict != nil) {
		if o.mark != nil {
			o.mark.Index = a.next.at.Index
		}
		a.own = append(a.own, o)
	}
	return encodeResult(resultOK, nil)
}

func (r *Replica) runOwn(list []own) {
	for _, o := range list {
		if o.mark != nil && r.hooks.Marked != nil {
			r.hooks.Marked(*o.mark)
		}
		if o.verdict != nil && r.hooks.Judged != nil {
			r.hooks.Judged(*o.verdict)
		}
	}
}

// Quarantine says that a majority of the voters had another digest at Mark than this replica. It is kept with the
// state until another state is installed.
type Quarantine struct {
	Mark        uint64
	Want, Found machine.Digest
	Agree       []uint64 // replicas that have Want
}

// String says it in words.
func (q *Quarantine) String() string {
	return fmt.Sprintf("its state after entry %d is not what the majority has; it is being replaced", q.Mark)
}

// Quarantine is the reason not to trust the state; nil: there is none.
func (r *Replica) Quarantine() *Quarantine { return r.public.Load().quarantine }

// Distrust records q, durably. For the applier.
func (r *Replica) Distrust(q Quarantine) error {
	b := r.store.Batch()
	defer b.Discard()
	v := (&Verdict{Mark: q.Mark, Digest: q.Want, Agree: q.Agree}).Encode()
	err := b.Set(quarantineKey, append(q.Found[:], v...))
	if err == nil {
		err = b.Commit()
	}
	if err == nil {
		err = r.store.Sync()
	}
	if err != nil {
		return fmt.Errorf("record that the state at %d is doubtful: %w", q.Mark, err)
	}
	r.state.quarantine = &q
	r.publish()
	return nil
}

func readQuarantine(r kv.Reader) (*Quarantine, error) {
	v, found, err := r.Get(quarantineKey)
	if err != nil || !found {
		return nil, err
	}
	var q Quarantine
	if len(v) < len(q.Found) {
		return nil, fmt.Errorf("quarantine of %d bytes: %w", len(v), ErrDamaged)
	}
	copy(q.Found[:], v)
	o, err := decodeOwn(v[len(q.Found):])
	if err != nil || o.verdict == nil {
		return nil, fmt.Errorf("quarantine: %w", ErrDamaged)
	}
	q.Mark, q.Want, q.Agree = o.verdict.Mark, o.verdict.Digest, o.verdict.Agree
	return &q, nil
}

// Losses of this replica: writes that it answered Accepted as the leader and that were never committed, ever.
func (r *Replica) Losses() (uint64, error) {
	v, found, err := r.store.Get(lossesKey)
	if err != nil || !found {
		return 0, err
	}
	d := reader{rest: v}
	n := d.uvarint()
	if d.bad {
		return 0, fmt.Errorf("number of losses: %w", ErrDamaged)
	}
	return n, nil
}

// AddLosses counts n more. For the applier.
func (r *Replica) AddLosses(n uint64) error {
	old, err := r.Losses()
	if err != nil {
		return err
	}
	b := r.store.Batch()
	defer b.Discard()
	if err := b.Set(lossesKey, binary.AppendUvarint(nil, old+n)); err != nil {
		return fmt.Errorf("count %d lost writes: %w", n, err)
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("count %d lost writes: %w", n, err)
	}
	return nil
}
