package logstore

import (
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// pebbleLog is one group's log. The writing goroutine alone changes it: it may read the fields without mu,
// and takes mu to change what readers look at.
type pebbleLog struct {
	store *pebbleStore
	group uint64

	staged  pebbleStaging // of the Write at hand
	stored  uint64        // first index that may still be in the database, below the log's start
	garbage uint64        // bytes there
	counted int           // what store.cached includes for this log

	// cold is held shared while entries are read from the database, and alone while entries that the index
	// names are taken away there. It is taken before mu.
	cold sync.RWMutex

	logState
}

// pebbleStaging is the log as it will be after the writes staged so far.
type pebbleStaging struct {
	active, destructive bool
	start, last, term   uint64 // term of last
	stored              uint64
}

func newPebbleLog(s *pebbleStore, group uint64) *pebbleLog { return &pebbleLog{store: s, group: group} }

// account brings store.cached up to date.
func (l *pebbleLog) account() {
	l.store.cached += l.x.cache.bytes - l.counted
	l.counted = l.x.cache.bytes
}

func (l *pebbleLog) beginStaging() {
	if l.staged.active {
		return
	}
	l.staged = pebbleStaging{active: true, start: l.x.start, last: l.x.last, term: l.x.mustTerm(l.x.last), stored: l.stored}
	l.store.touched = append(l.store.touched, l)
}

func (l *pebbleLog) stage(b *pebble.Batch, w *Write) error {
	if w.Snapshot != nil {
		if err := l.stageReset(b, w.Snapshot); err != nil {
			return err
		}
	}
	if err := l.stageEntries(b, w.Entries); err != nil {
		return err
	}
	if w.HardState == nil {
		return nil
	}
	h := hardStateOf(w.HardState)
	if h.commit > l.staged.last {
		return fmt.Errorf("hard state commits %d, but the log ends at %d", h.commit, l.staged.last)
	}
	return l.stageHard(b, h)
}

func (l *pebbleLog) stageReset(b *pebble.Batch, snap *raftpb.SnapshotMetadata) error {
	st := &l.staged
	if st.last >= st.stored && st.last > 0 {
		st.destructive = true
		if err := b.DeleteRange(entryKey(l.group, st.stored), entryKey(l.group, st.last+1), nil); err != nil {
			return err
		}
	}
	st.start, st.last, st.term, st.stored = snap.GetIndex(), snap.GetIndex(), snap.GetTerm(), snap.GetIndex()+1
	key := groupKey(l.group, kindStart)
	if err := b.Set(key, encodeStart(key, st.start, st.term), nil); err != nil {
		return err
	}
	return l.stageConf(b, snap.GetIndex(), snap.GetConfState())
}

func (l *pebbleLog) stageConf(b *pebble.Batch, index uint64, cs *raftpb.ConfState) error {
	key := groupKey(l.group, kindConf)
	value, err := encodeConf(key, index, cs)
	if err != nil {
		return err
	}
	return b.Set(key, value, nil)
}

func (l *pebbleLog) stageHard(b *pebble.Batch, h hardState) error {
	key := groupKey(l.group, kindHard)
	return b.Set(key, encodeHard(key, h), nil)
}

// stageEntries writes each entry's record straight into the batch: the one copy of its data.
func (l *pebbleLog) stageEntries(b *pebble.Batch, entries []*raftpb.Entry) error {
	st := &l.staged
	entries = above(entries, st.start)
	if len(entries) == 0 {
		return nil
	}
	first, last := entries[0].GetIndex(), entries[len(entries)-1].GetIndex()
	if first > st.last+1 {
		return fmt.Errorf("entry %d follows %d", first, st.last)
	}
	if first <= st.last {
		st.destructive = true
		st.term = 0 // the new tail may start below the old one's term
		if last < st.last {
			if err := b.DeleteRange(entryKey(l.group, last+1), entryKey(l.group, st.last+1), nil); err != nil {
				return err
			}
		}
	}
	for i, e := range entries {
		if e.GetIndex() != first+uint64(i) || e.GetTerm() < st.term {
			return fmt.Errorf("entry %d of term %d follows %d of term %d", e.GetIndex(), e.GetTerm(), first+uint64(i)-1, st.term)
		}
		st.term = e.GetTerm()
		op := b.SetDeferred(entryKeyLen, entryValueLen(e))
		putEntryKey(op.Key, l.group, e.GetIndex())
		putEntry(op.Key, op.Value, e)
		if err := op.Finish(); err != nil {
			return err
		}
	}
	st.last = last
	return nil
}

// publish lets readers see a write that is durable.
func (l *pebbleLog) publish(w *Write) {
	if w.Snapshot != nil {
		l.publishReset(w.Snapshot)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if entries := above(w.Entries, l.x.start); len(entries) > 0 {
		l.x.truncate(entries[0].GetIndex() - 1)
		for _, e := range entries {
			l.x.append(e.GetIndex(), e.GetTerm(), len(e.Data)+entryKeyLen+8)
			l.x.cache.append(e)
		}
		l.x.cache.evict(l.store.opts.GroupCacheBytes)
	}
	if w.HardState != nil {
		l.hard = hardStateOf(w.HardState)
	}
	l.account()
}

func (l *pebbleLog) publishReset(snap *raftpb.SnapshotMetadata) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.x.reset(snap.GetIndex(), snap.GetTerm())
	l.stored, l.garbage = l.x.start+1, 0
	l.confIndex, l.conf = snap.GetIndex(), proto.CloneOf(raftpb.EnsureConfState(snap.GetConfState()))
	l.account()
}

func (l *pebbleLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
	l.x.reset(l.x.start, l.x.startTerm)
	l.account()
}

func (l *pebbleLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if out, ok, err := l.recent(lo, hi, maxSize); ok || err != nil {
		return out, err
	}
	l.cold.RLock()
	defer l.cold.RUnlock()
	l.mu.RLock()
	err := l.x.check(lo, hi)
	mid := min(hi, l.x.cache.first)
	var hot []*raftpb.Entry
	if err == nil && mid < hi {
		hot = l.x.cache.take(nil, max(lo, mid), hi, 0, maxSize)
	}
	l.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	out, size, err := l.read(lo, mid, maxSize)
	if err != nil {
		return nil, fmt.Errorf("group %d: read entries %d to %d: %w", l.group, lo, mid, err)
	}
	if lo+uint64(len(out)) < mid {
		return out, nil // the limit
	}
	for _, e := range hot {
		if size += entrySize(e); size > maxSize && len(out) > 0 {
			break
		}
		out = append(out, e)
	}
	return out, nil
}

// read reads entries that are in the database, up to the size limit but at least one.
func (l *pebbleLog) read(lo, hi, maxSize uint64) (out []*raftpb.Entry, size uint64, err error) {
	if lo >= hi {
		return nil, 0, nil
	}
	it, err := l.store.db.NewIter(&pebble.IterOptions{LowerBound: entryKey(l.group, lo), UpperBound: entryKey(l.group, hi)})
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if cerr := it.Close(); err == nil {
			err = cerr
		}
		err = asDamage(err)
	}()
	next := lo
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, 0, err
		}
		e, err := decodeEntry(it.Key(), value)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if e.GetIndex() != next {
			break
		}
		if n := entrySize(e); size+n > maxSize && len(out) > 0 {
			return out, size, nil
		} else {
			size += n
		}
		out = append(out, e)
		next++
	}
	if err := it.Error(); err != nil {
		return nil, 0, err
	}
	if next < hi {
		return nil, 0, fmt.Errorf("%w: entry %d is missing", ErrDamaged, next)
	}
	return out, size, nil
}
