package logstore

import (
	"errors"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

var errRemoved = errors.New("the log was removed")

// logState is what raft asks of a log that needs no disk. The writing goroutine alone changes it: it may read the
// fields without mu, and takes mu to change what readers look at.
type logState struct {
	mu        sync.RWMutex
	x         index
	hard      hardState
	confIndex uint64
	conf      *raftpb.ConfState
	removed   bool
}

// InitialState implements raft.Storage.
func (l *logState) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.removed {
		return nil, nil, errRemoved
	}
	return l.hard.initial(l.x.start, l.x.mustTerm(l.x.last)), proto.CloneOf(l.conf), nil
}

// FirstIndex implements raft.Storage.
func (l *logState) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.x.start + 1, nil
}

// LastIndex implements raft.Storage.
func (l *logState) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.x.last, nil
}

// Term implements raft.Storage.
func (l *logState) Term(i uint64) (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.x.term(i)
}

// Bytes implements Log.
func (l *logState) Bytes(lo uint64) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if lo > l.x.last {
		return 0
	}
	return l.x.sizes.end - l.x.sizes.offset(max(lo, l.x.start+1))
}

// Snapshot implements raft.Storage, with metadata alone.
func (l *logState) Snapshot() (*raftpb.Snapshot, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.removed {
		return nil, errRemoved
	}
	at := max(l.x.start, min(l.confIndex, l.x.last))
	return metadataOnly(at, l.x.mustTerm(at), l.conf), nil
}

func metadataOnly(index, term uint64, conf *raftpb.ConfState) *raftpb.Snapshot {
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(index), Term: proto.Uint64(term), ConfState: proto.CloneOf(conf)}}
}

// recent answers from memory if all of it is there.
func (l *logState) recent(lo, hi, maxSize uint64) (out []*raftpb.Entry, ok bool, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if err := l.x.check(lo, hi); err != nil {
		return nil, false, err
	}
	if lo < l.x.cache.first {
		return nil, false, nil
	}
	if lo >= hi {
		return nil, true, nil
	}
	return l.x.cache.take(nil, lo, hi, 0, maxSize), true, nil
}

// above leaves out the entries that are compacted already.
func above(entries []*raftpb.Entry, start uint64) []*raftpb.Entry {
	if len(entries) == 0 || entries[0].GetIndex() > start {
		return entries
	}
	return entries[min(start+1-entries[0].GetIndex(), uint64(len(entries))):]
}

// Cached implements Log.
func (l *logState) Cached() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.x.cache.first
}
