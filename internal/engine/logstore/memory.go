package logstore

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Memory is a Store in memory that behaves as the one on Pebble, crashes included: it keeps the durable
// state beside the live one, so that a simulator can take what a crash may leave. It is safe for concurrent
// use as far as Store says.
type Memory struct {
	mu       sync.RWMutex
	live     memState
	durable  memState
	unsynced []memOp   // applied to live, not yet to durable, in order
	confs    []memConf // configurations that wait for a write
	failed   error
	bad      map[uint64]error // condemned
}

// memOp changes a state. It has been checked and does not fail.
type memOp func(memState)

type memConf struct {
	group uint64
	set   memOp
}

type memState map[uint64]*memLog

// memLog is a log that shares no memory with another but the entries: ents[i] has index start+1+i.
type memLog struct {
	start, startTerm uint64
	ents             []*raftpb.Entry
	hard             hardState
	confIndex        uint64
	conf             *raftpb.ConfState
}

func (l *memLog) last() uint64 { return l.start + uint64(len(l.ents)) }

func (l *memLog) term(i uint64) uint64 {
	if i == l.start {
		return l.startTerm
	}
	return l.ents[i-l.start-1].GetTerm()
}

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{live: memState{}, durable: memState{}, bad: map[uint64]error{}}
}

// Crash returns the store as it may be found after a crash during Write(inFlight), which was not
// acknowledged (nil: no write was under way). Everything that was synced is there. Of what was not, first the
// Compacts since the last sync and then the write in flight, the first keep(n) of n are there; the write is
// there as a whole or not at all. The receiver goes on unchanged.
func (m *Memory) Crash(inFlight []Write, keep func(unsynced int) int) (*Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ops := m.unsynced
	if inFlight != nil {
		op, err := m.writeOp(inFlight)
		if err != nil {
			return nil, err
		}
		ops = append(slices.Clone(ops), op)
	}
	c := NewMemory()
	c.bad = maps.Clone(m.bad)
	for g, l := range m.durable {
		c.live[g] = l.clone()
	}
	for _, op := range ops[:min(max(keep(len(ops)), 0), len(ops))] {
		op(c.live)
	}
	for g, l := range c.live {
		c.durable[g] = l.clone()
	}
	return c, nil
}

func (l *memLog) clone() *memLog {
	c := *l
	c.ents = slices.Clone(l.ents)
	return &c
}

// perform applies op to the live state and, if it is synced, everything so far to the durable one.
func (m *Memory) perform(op memOp, sync bool) {
	op(m.live)
	m.unsynced = append(m.unsynced, op)
	if sync {
		for _, op := range m.unsynced {
			op(m.durable)
		}
		m.unsynced = nil
	}
}

func (m *Memory) Log(group uint64) (Log, bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.live[group] == nil {
		return nil, false, nil
	}
	if err := m.bad[group]; err != nil {
		return nil, true, fmt.Errorf("open log of group %d: %w", group, err)
	}
	return &memoryLog{m, group}, true, nil
}

func (m *Memory) Condemn(group uint64, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[group] != nil && m.bad[group] == nil {
		m.bad[group] = why
	}
}

func (m *Memory) Groups() ([]uint64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.live)), nil
}

func (m *Memory) Create(group uint64, snap *raftpb.SnapshotMetadata) (Log, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return nil, m.failed
	}
	if m.live[group] != nil {
		return nil, fmt.Errorf("create log of group %d: it exists", group)
	}
	snap = proto.CloneOf(snap)
	m.perform(func(s memState) {
		l := &memLog{}
		l.reset(snap)
		s[group] = l
	}, true)
	return &memoryLog{m, group}, nil
}

func (l *memLog) reset(snap *raftpb.SnapshotMetadata) {
	l.start, l.startTerm, l.ents = snap.GetIndex(), snap.GetTerm(), nil
	l.confIndex, l.conf = snap.GetIndex(), proto.CloneOf(raftpb.EnsureConfState(snap.GetConfState()))
}

func (m *Memory) Write(writes []Write) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	op, err := m.writeOp(writes)
	if err != nil {
		m.failed = fmt.Errorf("write log: %w", err)
		return m.failed
	}
	m.perform(op, true)
	m.confs = nil
	return nil
}

// writeOp checks the writes and says how to carry all of them out.
func (m *Memory) writeOp(writes []Write) (memOp, error) {
	trial := map[uint64]bounds{}
	for i := range writes {
		w := &writes[i]
		l := m.live[w.Group]
		if l == nil {
			return nil, fmt.Errorf("group %d has no log", w.Group)
		}
		b, ok := trial[w.Group]
		if !ok {
			b = bounds{l.start, l.last(), l.term(l.last())}
		}
		if err := b.advance(w); err != nil {
			return nil, fmt.Errorf("group %d: %w", w.Group, err)
		}
		trial[w.Group] = b
	}
	writes, confs := slices.Clone(writes), m.confs
	return func(s memState) {
		for _, c := range confs {
			c.set(s)
		}
		for i := range writes {
			s[writes[i].Group].write(&writes[i])
		}
	}, nil
}

// bounds of a log while writes are checked.
type bounds struct{ start, last, term uint64 }

func (b *bounds) advance(w *Write) error {
	if w.Snapshot != nil {
		*b = bounds{w.Snapshot.GetIndex(), w.Snapshot.GetIndex(), w.Snapshot.GetTerm()}
	}
	for i, e := range above(w.Entries, b.start) {
		if i == 0 && e.GetIndex() <= b.last {
			b.last, b.term = e.GetIndex()-1, 0
		}
		if e.GetIndex() != b.last+1 || e.GetTerm() < b.term {
			return fmt.Errorf("entry %d of term %d follows %d of term %d", e.GetIndex(), e.GetTerm(), b.last, b.term)
		}
		b.last, b.term = e.GetIndex(), e.GetTerm()
	}
	if w.HardState.GetCommit() > b.last {
		return fmt.Errorf("hard state commits %d, but the log ends at %d", w.HardState.GetCommit(), b.last)
	}
	return nil
}

func (l *memLog) write(w *Write) {
	if w.Snapshot != nil {
		l.reset(w.Snapshot)
	}
	if es := above(w.Entries, l.start); len(es) > 0 {
		l.ents = append(l.ents[:es[0].GetIndex()-l.start-1], es...)
	}
	if w.HardState != nil {
		l.hard = hardStateOf(w.HardState)
	}
}

func (m *Memory) SetConfState(group, index uint64, cs *raftpb.ConfState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	if m.live[group] == nil {
		return fmt.Errorf("set configuration: group %d has no log", group)
	}
	cs = proto.CloneOf(raftpb.EnsureConfState(cs))
	set := func(s memState) { s[group].confIndex, s[group].conf = index, cs }
	set(m.live)
	m.confs = append(m.confs, memConf{group, set})
	return nil
}

func (m *Memory) Compact(group, index uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	l := m.live[group]
	if l == nil {
		return fmt.Errorf("compact: group %d has no log", group)
	}
	if index <= l.start {
		return nil
	}
	if index > l.last() {
		return fmt.Errorf("compact group %d to %d: the log ends at %d", group, index, l.last())
	}
	confs := m.confs
	m.confs = nil
	m.perform(func(s memState) {
		l := s[group]
		l.startTerm = l.term(index)
		l.ents = slices.Clone(l.ents[index-l.start:])
		l.start = index
		for _, c := range confs {
			c.set(s)
		}
	}, false)
	return nil
}

func (m *Memory) Remove(group uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	m.confs = slices.DeleteFunc(m.confs, func(c memConf) bool { return c.group == group })
	m.perform(func(s memState) { delete(s, group) }, true)
	delete(m.bad, group)
	return nil
}

// Close makes pending configurations durable.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.confs {
		m.perform(c.set, true)
	}
	m.confs = nil
	return nil
}

type memoryLog struct {
	m     *Memory
	group uint64
}

// get returns the log with the lock held.
func (g *memoryLog) get() (*memLog, func(), error) {
	g.m.mu.RLock()
	if l := g.m.live[g.group]; l != nil {
		return l, g.m.mu.RUnlock, nil
	}
	g.m.mu.RUnlock()
	return nil, nil, errRemoved
}

func (g *memoryLog) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	l, unlock, err := g.get()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	return l.hard.initial(l.start, l.term(l.last())), proto.CloneOf(l.conf), nil
}

func (g *memoryLog) FirstIndex() (uint64, error) {
	l, unlock, err := g.get()
	if err != nil {
		return 0, err
	}
	defer unlock()
	return l.start + 1, nil
}

func (g *memoryLog) LastIndex() (uint64, error) {
	l, unlock, err := g.get()
	if err != nil {
		return 0, err
	}
	defer unlock()
	return l.last(), nil
}

func (g *memoryLog) Term(i uint64) (uint64, error) {
	l, unlock, err := g.get()
	if err != nil {
		return 0, err
	}
	defer unlock()
	switch {
	case i < l.start:
		return 0, raft.ErrCompacted
	case i > l.last():
		return 0, raft.ErrUnavailable
	}
	return l.term(i), nil
}

func (g *memoryLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l, unlock, err := g.get()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if lo <= l.start {
		return nil, raft.ErrCompacted
	}
	if hi > l.last()+1 || len(l.ents) == 0 {
		return nil, raft.ErrUnavailable
	}
	if lo >= hi {
		return nil, nil
	}
	var size uint64
	n := lo
	for ; n < hi; n++ {
		if size += entrySize(l.ents[n-l.start-1]); size > maxSize && n > lo {
			break
		}
	}
	return slices.Clone(l.ents[lo-l.start-1 : n-l.start-1]), nil
}

func (g *memoryLog) Bytes(lo uint64) (n uint64) {
	l, unlock, err := g.get()
	if err != nil {
		return 0
	}
	defer unlock()
	for i := max(lo, l.start+1); i <= l.last(); i++ {
		n += uint64(storedBytes(len(l.ents[i-l.start-1].Data)))
	}
	return n
}

func (g *memoryLog) Cached() uint64 {
	l, unlock, err := g.get()
	if err != nil {
		return 0
	}
	defer unlock()
	return l.start + 1
}

func (g *memoryLog) Snapshot() (*raftpb.Snapshot, error) {
	l, unlock, err := g.get()
	if err != nil {
		return nil, err
	}
	defer unlock()
	at := max(l.start, min(l.confIndex, l.last()))
	return metadataOnly(at, l.term(at), l.conf), nil
}

// Idle implements Store.
func (m *Memory) Idle() error { return nil }

// Full implements Store.
func (m *Memory) Full() error { return nil }

func (m *Memory) Retry() {}
