package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Writer takes the writes that make one state of another.
type Writer interface {
	Set(key, value []byte) error // copies both
	Delete(key []byte) error
	DeleteRange(from, to []byte) error // from ≤ key < to; nil to: no upper bound
}

// stageBytes is how much of a difference is held in memory.
const stageBytes = 8 << 20

// A state that is being received is staged, so that the one in force stays whole until the last moment. A small
// difference is held in memory and takes effect in one batch, in place. One that outgrows stageBytes moves to the
// spare slot: what is in force is copied there, and everything from then on is written there in batches of bounded
// size. At the end the spare slot is put in force by one write.
//
// A transfer that breaks off leaves the spare slot, and e/spare says that it is a usable base: what was in force, and
// a beginning of the writes. The next transfer compares with that instead, so it goes on where this one was, from
// whatever source. A restart of the process changes nothing about it. When the state has moved on since, the spare is
// dropped.
type stage struct {
	r       *Replica
	from    slot // in force
	ops     []op // while the difference is small
	size    int
	spilled bool
	batch   kv.Batch // spilled: what is collected
	failed  error    // the store's first error, as against the stream's
}

// op is one write: to the sessions or to the machine's part.
type op struct {
	sessions bool
	kind     byte
	key      []byte // or from
	value    []byte // or to
}

const (
	opSet = iota
	opDelete
	opDeleteRange
)

var spareKey = []byte("e/spare")

// spare is the record e/spare: the spare slot holds the state at base with the beginning of a difference applied.
type spare struct {
	slot slot
	base uint64
}

const spareVersion = 1

func readSpare(r kv.Reader) (s spare, ok bool, err error) {
	v, found, err := r.Get(spareKey)
	if err != nil || !found {
		return s, false, err
	}
	d := reader{rest: v}
	version := d.uvarint()
	s.slot, s.base = slot(d.uvarint()), d.uvarint()
	return s, version == spareVersion && !d.bad && s.slot <= 1, nil
}

func (s spare) write(tx kv.Tx) error {
	b := binary.AppendUvarint(binary.AppendUvarint(nil, spareVersion), uint64(s.slot))
	return tx.Set(spareKey, binary.AppendUvarint(b, s.base))
}

// newStage finds what an interrupted transfer has left. A state that is not trusted is no base: what it has may look
// the same and be different.
func (r *Replica) newStage() (*stage, error) {
	g := &stage{r: r, from: r.state.slot}
	s, ok, err := readSpare(r.store)
	if err != nil {
		return nil, err
	}
	if ok && s.slot == g.from.other() && s.base == r.state.at.Index && r.state.quarantine == nil {
		g.spilled, g.batch = true, r.store.Batch()
		return g, nil
	}
	if r.state.quarantine != nil {
		return g, g.spill()
	}
	return g, nil
}

// local is what the difference is taken against.
func (g *stage) local() kv.Reader { return kv.PrefixedReader(g.r.store, g.target().machine()) }

func (g *stage) target() slot {
	if g.spilled {
		return g.from.other()
	}
	return g.from
}

// part is the machine's part of what is staged, as a Writer.
type part struct {
	g        *stage
	sessions bool
}

func (p part) Set(key, value []byte) error {
	return p.g.add(op{p.sessions, opSet, bytes.Clone(key), bytes.Clone(value)})
}

func (p part) Delete(key []byte) error {
	return p.g.add(op{p.sessions, opDelete, bytes.Clone(key), nil})
}

func (p part) DeleteRange(from, to []byte) error {
	return p.g.add(op{p.sessions, opDeleteRange, bytes.Clone(from), bytes.Clone(to)})
}

func (g *stage) add(o op) error {
	g.size += len(o.key) + len(o.value) + 64
	if !g.spilled {
		g.ops = append(g.ops, o)
		if g.size < stageBytes {
			return nil
		}
		return g.fail(g.spill())
	}
	if err := g.fail(o.apply(g.batch, g.target())); err != nil {
		return err
	}
	if g.size < restoreChunk {
		return nil
	}
	return g.fail(g.flush())
}

func (g *stage) fail(err error) error {
	if g.failed == nil {
		g.failed = err
	}
	return err
}

func (o op) apply(b kv.Batch, s slot) error {
	prefix := s.machine()
	if o.sessions {
		prefix = s.sessions()
	}
	full := func(k []byte) []byte { return append(bytes.Clone(prefix), k...) }
	switch o.kind {
	case opSet:
		return b.Set(full(o.key), o.value)
	case opDelete:
		return b.Delete(full(o.key))
	}
	to := kv.PrefixEnd(prefix)
	if o.value != nil {
		to = full(o.value)
	}
	return b.DeleteRange(full(o.key), to)
}

// flush commits what is collected.
func (g *stage) flush() error {
	if err := g.batch.Commit(); err != nil {
		return err
	}
	g.batch, g.size = g.r.store.Batch(), 0
	return nil
}

// spill moves to the spare slot: a copy of what is in force, unless that is not trusted, then what is held in memory.
func (g *stage) spill() error {
	g.spilled = true
	g.batch = g.r.store.Batch()
	if err := clearSpare(g.batch, g.target()); err != nil {
		return err
	}
	if err := g.copyState(); err != nil {
		return err
	}
	if err := (spare{g.target(), g.r.state.at.Index}).write(g.batch); err != nil {
		return err
	}
	if err := g.flush(); err != nil {
		return err
	}
	for _, o := range g.ops {
		if err := o.apply(g.batch, g.target()); err != nil {
			return err
		}
	}
	g.ops = nil
	return g.flush()
}

func (g *stage) copyState() error {
	if g.r.state.quarantine != nil {
		return nil
	}
	from, to := g.from.machine(), g.target().machine()
	size := 0
	return g.r.store.Scan(from, kv.PrefixEnd(from), func(k, v []byte) error {
		if err := g.batch.Set(append(bytes.Clone(to), k[len(from):]...), v); err != nil {
			return err
		}
		if size += len(k) + len(v); size < restoreChunk {
			return nil
		}
		size = 0
		return g.flush()
	})
}

// clearSpare drops a slot that is not in force, and what is said about it.
func clearSpare(tx kv.Tx, s slot) error {
	if err := tx.Delete(spareKey); err != nil {
		return err
	}
	return s.clear(tx)
}

func (g *stage) discard() {
	if g.batch != nil {
		g.batch.Discard()
	}
}

// finish puts what is staged in force, durably: first the data is synced, then the position.
func (g *stage) finish(next state) error {
	next.slot = g.target()
	if !g.spilled {
		b := g.r.store.Batch()
		defer b.Discard()
		if err := clearSpare(b, g.from.other()); err != nil {
			return err
		}
		for _, o := range g.ops {
			if err := o.apply(b, next.slot); err != nil {
				return err
			}
		}
		return g.r.install(b, next)
	}
	if err := g.flush(); err != nil {
		return err
	}
	if err := g.r.store.Sync(); err != nil {
		return err
	}
	b := g.r.store.Batch()
	defer b.Discard()
	if err := clearSpare(b, g.from); err != nil {
		return err
	}
	return g.r.install(b, next)
}

// dropStale removes a spare slot that the state has left behind.
func (r *Replica) dropStale() error {
	s, _, err := readSpare(r.store)
	if err != nil || s == (spare{}) || s.base == r.state.at.Index {
		return err
	}
	b := r.store.Batch()
	defer b.Discard()
	if err := clearSpare(b, r.state.slot.other()); err != nil {
		return err
	}
	return b.Commit()
}

// RestoreDiff brings the state up to date: stream carries what WriteEngineState wrote, then fetch writes to w what
// turns local into the machine's state at that position. It is durable when RestoreDiff returns, and in force as a
// whole or, after an error, not at all; then the next RestoreDiff continues with what has come so far. A snapshot that
// is not ahead of the state is left alone, with no error. For the applier. Errors: as for Restore, and fetch's.
func (r *Replica) RestoreDiff(stream io.Reader, fetch func(local kv.Reader, w Writer) error) error {
	in := newSnapshotReader(stream)
	next, wanted, err := r.beginRestore(in, r.state.slot)
	if err != nil || !wanted {
		return err
	}
	g, err := r.newStage()
	if err != nil {
		return fmt.Errorf("restore difference to %d: %w", next.at.Index, err)
	}
	defer g.discard()
	if err := g.receive(in, fetch); err != nil {
		// What has come is kept for the next attempt, as far as it can be.
		if g.spilled && g.failed == nil {
			err = errors.Join(err, g.flush())
		}
		return fmt.Errorf("restore difference to %d: %w", next.at.Index, err)
	}
	if err := g.finish(next); err != nil {
		return fmt.Errorf("restore difference to %d: %w", next.at.Index, err)
	}
	return nil
}

func (g *stage) receive(in *snapshotReader, fetch func(local kv.Reader, w Writer) error) error {
	sessions := part{g, true}
	if err := sessions.DeleteRange(nil, nil); err != nil {
		return err
	}
	err := in.records(func(tag byte, key, value []byte) error {
		if tag != tagSession {
			return fmt.Errorf("record of kind %d", tag)
		}
		return sessions.Set(key, value)
	})
	if err != nil && g.failed == nil {
		err = fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if err != nil {
		return err
	}
	return fetch(g.local(), part{g, false})
}
