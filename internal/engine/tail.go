package engine

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// ErrGone says that entries are no longer there to be sent.
var ErrGone = errors.New("engine: entries are gone")

// prefix is the committed, applied part of a log from which a member feeds others. Indexes are at most the applied one.
type prefix interface {
	First() (uint64, error) // first retained index
	Last() uint64           // last of those that are committed
	Term(index uint64) (uint64, bool)
	Bytes(from, to uint64) uint64 // approximately
	Cached() uint64               // entries from here on are in memory
	// Entries returns from, …, as many as limit bytes hold but at least one, none above to. ErrGone: no longer there.
	Entries(from, to, limit uint64) ([]*raftpb.Entry, error)
}

// logPrefix is a voter's log, as far as it is committed.
type logPrefix struct {
	log     logstore.Log
	pins    *pinSet
	state   func() core.Position
	applied func() uint64 // by raft, from this log
	// damaged notes that a read up to index to found the log damaged: first is above that from then on.
	damaged func(to uint64, err error)
}

func (p logPrefix) First() (uint64, error) {
	first, err := p.log.FirstIndex()
	return p.pins.first(first), err
}

func (p logPrefix) Last() uint64 {
	i, err := core.CommittedIn(p.log, p.state(), p.applied())
	if err != nil {
		return 0 // it offers nothing then
	}
	return i
}

func (p logPrefix) Term(i uint64) (uint64, bool) {
	t, err := p.log.Term(i)
	return t, err == nil
}

func (p logPrefix) Bytes(from, to uint64) uint64 {
	all, rest := p.log.Bytes(from), p.log.Bytes(to+1)
	return all - min(all, rest)
}

func (p logPrefix) Cached() uint64 { return p.log.Cached() }

func (p logPrefix) Entries(from, to, limit uint64) ([]*raftpb.Entry, error) {
	entries, err := p.log.Entries(from, to+1, limit)
	if errors.Is(err, logstore.ErrDamaged) {
		p.damaged(to, err)
	}
	if err != nil || len(entries) == 0 {
		return nil, fmt.Errorf("%w: from %d: %w", ErrGone, from, err)
	}
	return entries, nil
}

// Tail is what an observer keeps of the entries that it has applied, to feed others from. It is in memory only: what
// an observer holds is committed and lies in the voters' logs, so after a restart it can offer nothing but live
// entries, and who lacks older ones takes a fallback. A log on disk would cost every observer a second copy of each
// entry to save that.
type Tail struct {
	limit int // bytes that are kept; four times as many while a child still needs them

	mu    sync.RWMutex
	base  core.Position // of the entry before list
	list  []*raftpb.Entry
	sizes []uint64 // cumulative: list[i] ends at sizes[i]
	gone  uint64   // bytes before list
}

// NewTail begins with nothing, behind a state at at.
func NewTail(limit int, at core.Position) *Tail { return &Tail{limit: limit, base: at} }

// Reset forgets everything: the state was replaced by one at at.
func (t *Tail) Reset(at core.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.list, t.sizes, t.gone = at, nil, nil, 0
}

// Append adds applied entries and drops the oldest ones; needed is the first index that some child still lacks.
func (t *Tail) Append(entries []*raftpb.Entry, needed uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range entries {
		t.list = append(t.list, e)
		t.sizes = append(t.sizes, t.end()+uint64(entrySize(e)))
	}
	n := 0
	for n < len(t.list) {
		held := int(t.end() - t.gone)
		if held <= t.limit || held <= 4*t.limit && t.list[n].GetIndex() >= needed {
			break
		}
		t.gone = t.sizes[n]
		n++
	}
	if n == 0 {
		return
	}
	last := t.list[n-1]
	t.base = core.Position{Term: last.GetTerm(), Index: last.GetIndex()}
	clear(t.list[:n])
	t.list, t.sizes = t.list[n:], t.sizes[n:]
}

// entrySize is about what an entry takes in memory.
func entrySize(e *raftpb.Entry) int { return len(e.GetData()) + 160 }

func (t *Tail) end() uint64 {
	if len(t.sizes) == 0 {
		return t.gone
	}
	return t.sizes[len(t.sizes)-1]
}

// First is the first index that is kept.
func (t *Tail) First() (uint64, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base.Index + 1, nil
}

// Last is the last index that is kept.
func (t *Tail) Last() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base.Index + uint64(len(t.list))
}

// Cached is the first index that is kept: all of them are in memory.
func (t *Tail) Cached() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base.Index + 1
}

// Term of an entry that is kept, or of the one before the first.
func (t *Tail) Term(i uint64) (uint64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	switch {
	case i == t.base.Index:
		return t.base.Term, true
	case i < t.base.Index || i > t.base.Index+uint64(len(t.list)):
		return 0, false
	}
	return t.list[i-t.base.Index-1].GetTerm(), true
}

// Bytes is about what the entries from, …, to take, as far as they are kept.
func (t *Tail) Bytes(from, to uint64) uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	offset := func(i uint64) uint64 { // behind entry i
		if i <= t.base.Index || len(t.list) == 0 {
			return t.gone
		}
		return t.sizes[min(i-t.base.Index, uint64(len(t.list)))-1]
	}
	if from == 0 || to < from {
		return 0
	}
	return offset(to) - offset(from-1)
}

// Entries returns from, …, as many as limit bytes hold but at least one, none above to; ErrGone if from is not kept.
func (t *Tail) Entries(from, to, limit uint64) ([]*raftpb.Entry, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if from <= t.base.Index || from > t.base.Index+uint64(len(t.list)) {
		return nil, fmt.Errorf("%w: from %d, the oldest is %d", ErrGone, from, t.base.Index+1)
	}
	i := int(from - t.base.Index - 1)
	end := min(len(t.list), int(to-t.base.Index))
	n, size := i, uint64(0)
	for ; n < end; n++ {
		if size += uint64(entrySize(t.list[n])); size > limit && n > i {
			break
		}
	}
	return append([]*raftpb.Entry(nil), t.list[i:n]...), nil
}
