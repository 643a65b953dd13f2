package replica

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// Result is what a proposer is told, decoded.
type Result struct {
	Payload   []byte // the machine's result; nil if Expired
	Duplicate bool   // executed before; Payload is of that time
	Expired   bool   // the session or its result is forgotten: not executed now, perhaps executed before
}

// The first byte of an encoded result.
const (
	resultOK = iota
	resultDuplicate
	resultExpired
)

func encodeResult(flag byte, payload []byte) []byte {
	return append(append(make([]byte, 0, 1+len(payload)), flag), payload...)
}

// DecodeResult decodes one of the results that Apply returned; Payload shares b's memory.
func DecodeResult(b []byte) (Result, error) {
	if len(b) == 0 || b[0] > resultExpired {
		return Result{}, errors.New("malformed result")
	}
	return Result{Payload: b[1:], Duplicate: b[0] == resultDuplicate, Expired: b[0] == resultExpired}, nil
}

// Apply executes committed entries, in order and without a gap; those that the state covers already are
// skipped. All that they change takes effect in one batch, which is not synced. results[i][j] is the encoded
// Result of proposal j in entry i. conf puts a configuration change in force and returns the result; it is
// called for skipped entries too. nil conf: the replica is no member, configurations are not recorded.
//
// Errors: ErrDamaged, ErrInterrupted, a NewerLevelError, and what the store or the machine returned; after one the replica must
// be opened anew.
func (r *Replica) Apply(
	entries []*raftpb.Entry, conf func(*raftpb.Entry) *raftpb.ConfState,
) (results [][][]byte, err error) {
	results = make([][][]byte, len(entries))
	for done := 0; done < len(entries); {
		n, err := r.applySome(entries[done:], results[done:], conf)
		if err != nil {
			return nil, err
		}
		done += n
	}
	return results, nil
}

// applySome executes entries in one batch, up to the first that carries a command for the engine, and returns how
// many: the hooks are called between two batches, when the state is exactly the one at that entry.
func (r *Replica) applySome(
	entries []*raftpb.Entry, results [][][]byte, conf func(*raftpb.Entry) *raftpb.ConfState,
) (n int, err error) {
	b := r.store.Batch()
	defer b.Discard()
	a := applier{r: r, tx: kv.PrefixedTx(b, r.state.slot.machine()), conf: conf, next: r.state}
	for n < len(entries) && len(a.own) == 0 {
		if results[n], err = a.entry(entries[n]); err != nil {
			return 0, fmt.Errorf("apply entry %d: %w", entries[n].GetIndex(), err)
		}
		n++
	}
	if a.next.at == r.state.at {
		return n, nil
	}
	if err := a.commit(b); err != nil {
		return 0, fmt.Errorf("apply up to %d: %w", a.next.at.Index, err)
	}
	r.runOwn(a.own)
	return n, nil
}

// commit puts in force what a has done.
func (a *applier) commit(b kv.Batch) error {
	r := a.r
	if err := r.sessions.flush(b, a.next.slot); err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	if !a.next.terms.Equal(r.state.terms) {
		if err := b.Set(termsKey, a.next.terms.Append(nil)); err != nil {
			return fmt.Errorf("write terms: %w", err)
		}
	}
	if a.next.level != r.state.level {
		if err := writeLevel(b, a.next.level); err != nil {
			return fmt.Errorf("write level: %w", err)
		}
	}
	if err := a.next.write(b); err != nil {
		return fmt.Errorf("write position: %w", err)
	}
	if err := b.Commit(); err != nil {
		return err
	}
	r.state = a.next
	r.publish()
	r.machine.Committed(r.state.at.Index)
	return nil
}

// applier is one batch of Apply.
type applier struct {
	r    *Replica
	tx   kv.Tx // the machine's part of the batch
	conf func(*raftpb.Entry) *raftpb.ConfState
	next state
	own  []own // commands for the engine in the last entry
}

func (a *applier) entry(e *raftpb.Entry) ([][]byte, error) {
	at := core.Position{Term: e.GetTerm(), Index: e.GetIndex()}
	covered := at.Index <= a.next.at.Index
	if !covered && at.Index != a.next.at.Index+1 {
		return nil, fmt.Errorf("the state is at %d: %w", a.next.at.Index, ErrDamaged)
	}
	if e.GetType() != raftpb.EntryNormal {
		if err := a.change(e, covered); err != nil {
			return nil, err
		}
	}
	if covered {
		return nil, nil
	}
	a.next.at = at
	a.next.terms = a.next.terms.Note(at)
	if e.GetType() != raftpb.EntryNormal {
		a.next.written = at.Index
		return nil, nil
	}
	if len(e.GetData()) == 0 {
		return nil, nil
	}
	batch, err := a.decode(e)
	if err != nil {
		return nil, err
	}
	// Leaders' clocks differ; the log's time does not go back. Nor does its level: a leader may not have heard yet.
	a.next.time, a.next.level = max(a.next.time, batch.Time), max(a.next.level, batch.Level)
	results := make([][]byte, len(batch.Proposals))
	for i := range batch.Proposals {
		if results[i], err = a.proposal(&batch.Proposals[i], i); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// decode reads no more than the level of an entry that the program may not execute.
func (a *applier) decode(e *raftpb.Entry) (batch core.Batch, err error) {
	level, err := core.BatchLevel(e.GetData())
	if err != nil {
		return batch, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !a.r.knows(level) {
		return batch, a.r.newer(level)
	}
	if batch, err = core.DecodeBatch(e.GetData()); err != nil {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return batch, err
}

func (a *applier) change(e *raftpb.Entry, covered bool) error {
	if a.conf == nil {
		return nil
	}
	cs := a.conf(e)
	if cs == nil {
		return ErrInterrupted
	}
	if !covered {
		a.next.conf = cs
	}
	return nil
}

func (a *applier) proposal(p *core.Proposal, ordinal int) ([]byte, error) {
	if p.Engine {
		return a.engine(p.Payload), nil
	}
	a.next.written = a.next.at.Index
	cmd := machine.Command{Index: a.next.at.Index, Time: a.next.time, Level: a.next.level, Payload: p.Payload}
	if p.Client == ([16]byte{}) {
		result, err := a.r.machine.Apply(a.tx, cmd)
		return encodeResult(resultOK, result), err
	}
	s := a.r.sessions.touch(p, use{index: cmd.Index, ordinal: uint64(ordinal)})
	if s == nil || p.Seq < s.floor {
		return encodeResult(resultExpired, nil), nil
	}
	if old, ok := s.find(p.Seq); ok {
		return encodeResult(resultDuplicate, old), nil
	}
	result, err := a.r.machine.Apply(a.tx, cmd)
	if err != nil {
		return nil, err
	}
	a.r.sessions.add(s, p.Seq, result)
	return encodeResult(resultOK, result), nil
}
