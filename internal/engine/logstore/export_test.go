package logstore

import (
	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3/raftpb"
)

// EntryRecord is an entry's key and value in the database.
func EntryRecord(group uint64, e *raftpb.Entry) (key, value []byte) {
	key, value = entryKey(group, e.GetIndex()), make([]byte, entryValueLen(e))
	putEntry(key, value, e)
	return key, value
}

// PutRaw writes below the store; nil deletes.
func PutRaw(s Store, key, value []byte) error {
	db := s.(*pebbleStore).db
	if value == nil {
		return db.Delete(key, pebble.Sync)
	}
	return db.Set(key, value, pebble.Sync)
}

// DropCache makes reads of a log go to the disk.
func DropCache(l Log) {
	var st *logState
	switch l := l.(type) {
	case *pebbleLog:
		st = &l.logState
	case *segLog:
		st = &l.logState
	}
	st.mu.Lock()
	st.x.cache.evict(-1)
	st.mu.Unlock()
}
