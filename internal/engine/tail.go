package engine

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// errGone says that entries are no longer there to be sent.
var errGone = errors.New("engine: entries are gone")

// prefix is the committed, applied part of a log from which a member feeds others. Indexes are at most the applied one.
type prefix interface {
	first() (uint64, error) // first retained index
	last() uint64           // last of those that are committed
	term(index uint64) (uint64, bool)
	bytes(from, to uint64) uint64 // approximately
	cached() uint64               // entries from here on are in memory
	// entries returns from, …, as many as limit bytes hold but at least one, none above to. errGone: no longer there.
	entries(from, to, limit uint64) ([]*raftpb.Entry, error)
}

// logPrefix is a voter's log, as far as it is committed.
type logPrefix struct {
	log     logstore.Log
	pins    *pinSet
	state   func() core.Position
	applied func() uint64 // by raft, from this log
}

func (p logPrefix) first() (uint64, error) {
	first, err := p.log.FirstIndex()
	return p.pins.first(first), err
}

func (p logPrefix) last() uint64 {
	i, err := core.CommittedIn(p.log, p.state(), p.applied())
	if err != nil {
		return 0 // it offers nothing then
	}
	return i
}

func (p logPrefix) term(i uint64) (uint64, bool) {
	t, err := p.log.Term(i)
	return t, err == nil
}

func (p logPrefix) bytes(from, to uint64) uint64 {
	all, rest := p.log.Bytes(from), p.log.Bytes(to+1)
	return all - min(all, rest)
}

func (p logPrefix) cached() uint64 { return p.log.Cached() }

func (p logPrefix) entries(from, to, limit uint64) ([]*raftpb.Entry, error) {
	entries, err := p.log.Entries(from, to+1, limit)
	if err != nil || len(entries) == 0 {
		return nil, fmt.Errorf("%w: from %d: %w", errGone, from, err)
	}
	return entries, nil
}

// tail is what an observer keeps of the entries that it has applied, to feed others from. It is in memory only: what
// an observer holds is committed and lies in the voters' logs, so after a restart it can offer nothing but live
// entries, and who lacks older ones takes a fallback. A log on disk would cost every observer a second copy of each
// entry to save that.
type tail struct {
	limit int // bytes that are kept; four times as many while a child still needs them

	mu    sync.RWMutex
	base  core.Position // of the entry before list
	list  []*raftpb.Entry
	sizes []uint64 // cumulative: list[i] ends at sizes[i]
	gone  uint64   // bytes before list
}

func newTail(limit int, at core.Position) *tail { return &tail{limit: limit, base: at} }

// reset forgets everything: the state was replaced by one at at.
func (t *tail) reset(at core.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.list, t.sizes, t.gone = at, nil, nil, 0
}

// append adds applied entries and drops the oldest ones; needed is the first index that some child still lacks.
func (t *tail) append(entries []*raftpb.Entry, needed uint64) {
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

func (t *tail) end() uint64 {
	if len(t.sizes) == 0 {
		return t.gone
	}
	return t.sizes[len(t.sizes)-1]
}

func (t *tail) first() (uint64, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base.Index + 1, nil
}

func (t *tail) last() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base.Index + uint64(len(t.list))
}

func (t *tail) cached() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base.Index + 1
}

func (t *tail) term(i uint64) (uint64, bool) {
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

func (t *tail) bytes(from, to uint64) uint64 {
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

func (t *tail) entries(from, to, limit uint64) ([]*raftpb.Entry, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if from <= t.base.Index || from > t.base.Index+uint64(len(t.list)) {
		return nil, fmt.Errorf("%w: from %d, the oldest is %d", errGone, from, t.base.Index+1)
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
