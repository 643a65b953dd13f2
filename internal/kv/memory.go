package kv

import (
	"bytes"
	"errors"
	"slices"
	"sync"

	"github.com/tidwall/btree"
)

// Memory is a Store in memory with the same semantics as Pebble's, crashes included: it remembers which
// batches were committed since the last Sync, so that a simulator can take any of the states that a crash
// may leave. What was committed since the last Sync is kept twice; a user who never syncs lets it grow.
// It is safe for concurrent use.
type Memory struct {
	mu       sync.RWMutex
	tree     *btree.BTreeG[item]
	synced   *btree.BTreeG[item] // the state at the last Sync
	unsynced []delta             // since then, in commit order
	closed   bool
}

var errClosed = errors.New("kv: store is closed")

type item struct {
	key, value []byte // immutable
	deleted    bool   // only in a batch's overlay
}

func newTree() *btree.BTreeG[item] {
	return btree.NewBTreeGOptions(func(a, b item) bool { return bytes.Compare(a.key, b.key) < 0 },
		btree.Options{NoLocks: true})
}

// NewMemory makes an empty store.
func NewMemory() *Memory { return &Memory{tree: newTree(), synced: newTree()} }

// Crash returns the store as it may be found after a crash now: everything that was synced, and the first
// keep(n) of the n batches committed since. The receiver goes on unchanged.
func (m *Memory) Crash(keep func(unsynced int) int) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := min(max(keep(len(m.unsynced)), 0), len(m.unsynced))
	tree := m.synced.Copy()
	for _, d := range m.unsynced[:n] {
		d.applyTo(tree)
	}
	return &Memory{tree: tree, synced: tree.Copy()}
}

func (m *Memory) Get(key []byte) ([]byte, bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, false, errClosed
	}
	return treeGet(m.tree, key)
}

func treeGet(tree *btree.BTreeG[item], key []byte) ([]byte, bool, error) {
	it, ok := tree.Get(item{key: key})
	if !ok {
		return nil, false, nil
	}
	return append(make([]byte, 0, len(it.value)), it.value...), true, nil
}

// Lookup visits the state at the time of the call, as Scan does.
func (m *Memory) Lookup(keys [][]byte, visit func(i int, value []byte) error) error {
	tree, err := m.snapshot()
	if err != nil {
		return err
	}
	return treeLookup(tree, keys, visit)
}

func treeLookup(tree *btree.BTreeG[item], keys [][]byte, visit func(i int, value []byte) error) error {
	for i, key := range keys {
		if it, ok := tree.Get(item{key: key}); ok {
			if err := visit(i, it.value); err != nil {
				return ended(err)
			}
		}
	}
	return nil
}

// Scan visits the state at the time of the call: visit may commit batches.
func (m *Memory) Scan(from, to []byte, visit func(key, value []byte) error) error {
	tree, err := m.snapshot()
	if err != nil {
		return err
	}
	return treeScan(tree, from, to, visit)
}

func treeScan(tree *btree.BTreeG[item], from, to []byte, visit func(key, value []byte) error) (err error) {
	tree.Ascend(item{key: from}, func(it item) bool {
		if to != nil && bytes.Compare(it.key, to) >= 0 {
			return false
		}
		err = visit(it.key, it.value)
		return err == nil
	})
	return ended(err)
}

func (m *Memory) snapshot() (*btree.BTreeG[item], error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	return m.tree.Copy(), nil
}

// Through is m itself: its crash is that of the system.
func (m *Memory) Through() Store { return m }

func (m *Memory) Batch() Batch { return &memoryBatch{store: m, delta: delta{sets: newTree()}} }

func (m *Memory) View() View {
	tree, err := m.snapshot()
	return &memoryView{tree: tree, err: err}
}

func (m *Memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	if len(m.unsynced) > 0 {
		m.synced, m.unsynced = m.tree.Copy(), nil
	}
	return nil
}

func (m *Memory) Size(from, to []byte) (n uint64, err error) {
	err = m.Scan(from, to, func(k, v []byte) error {
		n += uint64(len(k) + len(v))
		return nil
	})
	return n, err
}

func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

type memoryView struct {
	tree *btree.BTreeG[item]
	err  error
}

func (v *memoryView) Get(key []byte) ([]byte, bool, error) {
	if v.err != nil {
		return nil, false, v.err
	}
	return treeGet(v.tree, key)
}

func (v *memoryView) Lookup(keys [][]byte, visit func(i int, value []byte) error) error {
	if v.err != nil {
		return v.err
	}
	return treeLookup(v.tree, keys, visit)
}

func (v *memoryView) Scan(from, to []byte, visit func(key, value []byte) error) error {
	if v.err != nil {
		return v.err
	}
	return treeScan(v.tree, from, to, visit)
}

func (v *memoryView) Close() error {
	v.tree, v.err = nil, errClosed
	return nil
}

// delta is what a batch does: first the range deletions, then the sets and deletions. A range deletion
// drops the sets that it covers from the delta itself, so this order says the same as the order of calls.
type delta struct {
	ranges []span // sorted, disjoint
	sets   *btree.BTreeG[item]
}

type span struct{ from, to []byte } // nil to: no upper bound

// endsBefore says whether nothing at k or above is in the span.
func (s span) endsBefore(k []byte) bool { return s.to != nil && bytes.Compare(s.to, k) <= 0 }

func (d *delta) covered(key []byte) bool {
	i, _ := slices.BinarySearchFunc(d.ranges, key, func(s span, k []byte) int {
		if s.endsBefore(k) {
			return -1
		}
		return 1
	})
	return i < len(d.ranges) && bytes.Compare(d.ranges[i].from, key) <= 0
}

func (d *delta) deleteRange(from, to []byte) {
	for _, k := range keysIn(d.sets, from, to) {
		d.sets.Delete(item{key: k})
	}
	s := span{bytes.Clone(from), bytes.Clone(to)}
	lo := 0
	for lo < len(d.ranges) && d.ranges[lo].endsBefore(s.from) {
		lo++
	}
	hi := lo
	for hi < len(d.ranges) && (s.to == nil || bytes.Compare(d.ranges[hi].from, s.to) < 0) {
		hi++
	}
	if lo < hi { // one span for all that overlap
		if bytes.Compare(d.ranges[lo].from, s.from) < 0 {
			s.from = d.ranges[lo].from
		}
		if end := d.ranges[hi-1].to; end == nil || s.to != nil && bytes.Compare(end, s.to) > 0 {
			s.to = end
		}
	}
	d.ranges = slices.Replace(d.ranges, lo, hi, s)
}

func (d *delta) applyTo(tree *btree.BTreeG[item]) {
	for _, r := range d.ranges {
		for _, k := range keysIn(tree, r.from, r.to) {
			tree.Delete(item{key: k})
		}
	}
	d.sets.Scan(func(it item) bool {
		if it.deleted {
			tree.Delete(it)
		} else {
			tree.Set(it)
		}
		return true
	})
}

func keysIn(tree *btree.BTreeG[item], from, to []byte) (keys [][]byte) {
	tree.Ascend(item{key: from}, func(it item) bool {
		if to != nil && bytes.Compare(it.key, to) >= 0 {
			return false
		}
		keys = append(keys, it.key)
		return true
	})
	return keys
}

type memoryBatch struct {
	store *Memory
	delta delta
	done  bool
}

func (b *memoryBatch) Set(key, value []byte) error {
	b.delta.sets.Set(item{key: bytes.Clone(key), value: bytes.Clone(value)})
	return nil
}

func (b *memoryBatch) Delete(key []byte) error {
	b.delta.sets.Set(item{key: bytes.Clone(key), deleted: true})
	return nil
}

func (b *memoryBatch) DeleteRange(from, to []byte) error {
	if to != nil && bytes.Compare(from, to) >= 0 {
		return nil
	}
	b.delta.deleteRange(from, to)
	return nil
}

func (b *memoryBatch) Get(key []byte) ([]byte, bool, error) {
	if it, ok := b.delta.sets.Get(item{key: key}); ok {
		if it.deleted {
			return nil, false, nil
		}
		return append(make([]byte, 0, len(it.value)), it.value...), true, nil
	}
	if b.delta.covered(key) {
		return nil, false, nil
	}
	return b.store.Get(key)
}

func (b *memoryBatch) Lookup(keys [][]byte, visit func(i int, value []byte) error) error {
	for i, key := range keys {
		v, ok, err := b.Get(key)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := visit(i, v); err != nil {
			return ended(err)
		}
	}
	return nil
}

// Scan merges the batch's state at the time of the call over the store's: visit may write to the batch.
func (b *memoryBatch) Scan(from, to []byte, visit func(key, value []byte) error) error {
	base, err := b.store.snapshot()
	if err != nil {
		return err
	}
	over := delta{ranges: slices.Clone(b.delta.ranges), sets: b.delta.sets.Copy()}
	next, stop := seq(over.sets, from, to)
	defer stop()
	top, more := next()
	flush := func(before []byte) error { // the overlay's items below a key, or all
		for more && (before == nil || bytes.Compare(top.key, before) < 0) {
			if !top.deleted {
				if err := visit(top.key, top.value); err != nil {
					return err
				}
			}
			top, more = next()
		}
		return nil
	}
	stopped := false
	err = treeScan(base, from, to, func(key, value []byte) error {
		err := flush(key)
		if err == nil && (!more || !bytes.Equal(top.key, key)) && !over.covered(key) {
			err = visit(key, value)
		}
		stopped = err == ErrStop
		return err
	})
	if err == nil && !stopped {
		err = flush(nil)
	}
	return ended(err)
}

func seq(tree *btree.BTreeG[item], from, to []byte) (next func() (item, bool), stop func()) {
	it := tree.Iter()
	ok := it.Seek(item{key: from})
	return func() (item, bool) {
		if !ok {
			return item{}, false
		}
		v := it.Item()
		if to != nil && bytes.Compare(v.key, to) >= 0 {
			return item{}, false
		}
		ok = it.Next()
		return v, true
	}, it.Release
}

func (b *memoryBatch) Commit() error {
	m := b.store
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || b.done {
		return errClosed
	}
	b.done = true
	b.delta.applyTo(m.tree)
	m.unsynced = append(m.unsynced, b.delta)
	return nil
}

func (b *memoryBatch) Discard() { b.done = true }
