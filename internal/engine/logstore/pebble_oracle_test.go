package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/kv/guard"
)

// DefaultMemTableBytes of PebbleOptions.
const DefaultMemTableBytes = 8 << 20

// Physical deletion waits until this much of a log is compacted: a range tombstone per entry would cost
// more than the entries.
const (
	reclaimBytes   = 1 << 20
	reclaimEntries = 4096
)

// PebbleOptions tunes OpenPebble; the zero value is right for a node.
type PebbleOptions struct {
	Log *slog.Logger // nil: silent
	// OnError is told of a failed disk on Pebble's goroutine, perhaps with its locks held: it must neither
	// block nor use the store. After the first error that is not a full disk (ENOSPC, EDQUOT) every call
	// fails and Close may not return: the owner ends the process. nil: such an error panics.
	OnError func(error)
	FS      vfs.FS // nil: the operating system's
	// MemTableBytes should be above what all logs retain together, so that most entries are compacted
	// before they are ever written a second time. 0: DefaultMemTableBytes.
	MemTableBytes   uint64
	GroupCacheBytes int // recent entries of one group in memory; 0: DefaultGroupCacheBytes
	CacheBytes      int // recent entries of all groups in memory; 0: DefaultCacheBytes
}

// pebbleStore keeps all logs in one database. Its fields belong to the one goroutine that writes, except
// groups, which mu guards for Log and Groups.
type pebbleStore struct {
	db     *pebble.DB
	guard  *guard.Guard
	opts   PebbleOptions
	failed error // sticky
	cached int   // bytes in all tails

	mu     sync.RWMutex
	groups map[uint64]*pebbleLog
	bad    map[uint64]error // damaged groups

	dirty   map[uint64]*pebbleLog // configuration changed since it was last written
	touched []*pebbleLog          // of the Write at hand
}

// OpenPebble opens the logs in dir, or makes an empty store. It reads every retained entry: a group whose
// log is not as it was acknowledged answers Log with ErrDamaged.
func OpenPebble(dir string, o PebbleOptions) (Store, error) {
	if o.MemTableBytes == 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if o.GroupCacheBytes == 0 {
		o.GroupCacheBytes = DefaultGroupCacheBytes
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	g := guard.New(o.Log, o.OnError, nil)
	db, err := openDB(dir, o, g)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", dir, asDamage(err))
	}
	s := &pebbleStore{db: db, guard: g, opts: o,
		groups: map[uint64]*pebbleLog{}, bad: map[uint64]error{}, dirty: map[uint64]*pebbleLog{}}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open log %s: %w", dir, asDamage(err)), db.Close())
	}
	return s, nil
}

func openDB(dir string, o PebbleOptions, g *guard.Guard) (*pebble.DB, error) {
	cache := pebble.NewCache(4 << 20) // reads are rare and sequential
	defer cache.Unref()
	if o.FS == nil {
		o.FS = zeroedFS{vfs.Default, int64(o.MemTableBytes) + 1<<20}
	}
	opts := &pebble.Options{
		FS:                          o.FS,
		Cache:                       cache,
		MemTableSize:                o.MemTableBytes,
		MemTableStopWritesThreshold: 4, // also bounds the recycled write-ahead logs
		FormatMajorVersion:          pebble.FormatValueSeparation,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		MaxOpenFiles:                128,
		L0CompactionThreshold:       8, // give range tombstones time to make the tables obsolete
		L0CompactionFileThreshold:   64,
		L0StopWritesThreshold:       128,
		LBaseMaxBytes:               256 << 20,
	}
	opts.Experimental.FileCacheShards = 1
	opts.TargetFileSizes[0] = 8 << 20
	for i := range opts.Levels {
		opts.Levels[i].BlockSize = 32 << 10
		opts.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	g.Install(opts)
	return pebble.Open(dir, opts)
}

// asDamage marks what Pebble calls corruption as ErrDamaged.
func asDamage(err error) error {
	if pebble.IsCorruptionError(err) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// usable fails once anything failed.
func (s *pebbleStore) usable() error {
	if s.failed != nil {
		return s.failed
	}
	return s.guard.Err()
}

func (s *pebbleStore) fail(err error) error {
	if s.failed == nil {
		s.failed = err
	}
	return err
}

func (s *pebbleStore) Log(group uint64) (Log, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.bad[group]; err != nil {
		return nil, true, fmt.Errorf("open log of group %d: %w", group, err)
	}
	l, ok := s.groups[group]
	if !ok {
		return nil, false, nil
	}
	return l, true, nil
}

func (s *pebbleStore) Groups() ([]uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(func(yield func(uint64) bool) {
		for g := range maps.Keys(s.groups) {
			if !yield(g) {
				return
			}
		}
		for g := range maps.Keys(s.bad) {
			if s.groups[g] == nil && !yield(g) {
				return
			}
		}
	}), nil
}

func (s *pebbleStore) Create(group uint64, snap *raftpb.SnapshotMetadata) (Log, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if _, found, _ := s.Log(group); found {
		return nil, fmt.Errorf("create log of group %d: it exists", group)
	}
	l := newPebbleLog(s, group)
	b := s.db.NewBatch()
	err := errors.Join(l.stageReset(b, snap), l.stageHard(b, hardState{}))
	if err == nil {
		err = s.commit(b, pebble.Sync)
	}
	if err != nil {
		return nil, s.fail(fmt.Errorf("create log of group %d: %w", group, err))
	}
	l.publishReset(snap)
	s.mu.Lock()
	s.groups[group] = l
	s.mu.Unlock()
	return l, nil
}

// commit makes b take effect and closes it.
func (s *pebbleStore) commit(b *pebble.Batch, o *pebble.WriteOptions) error {
	if err := b.Commit(o); err != nil {
		return err
	}
	if err := s.guard.Err(); err != nil {
		return err
	}
	return b.Close()
}

func (s *pebbleStore) Write(writes []Write) error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.write(writes); err != nil {
		return s.fail(fmt.Errorf("write log: %w", err))
	}
	s.evict()
	return nil
}

func (s *pebbleStore) write(writes []Write) error {
	b := s.db.NewBatchWithSize(batchSize(writes))
	s.touched = s.touched[:0]
	if err := s.stageConfs(b); err != nil { // before a snapshot that replaces one
		return err
	}
	for i := range writes {
		l, ok := s.groups[writes[i].Group]
		if !ok {
			return fmt.Errorf("group %d has no log", writes[i].Group)
		}
		l.beginStaging()
		if err := l.stage(b, &writes[i]); err != nil {
			return fmt.Errorf("group %d: %w", l.group, err)
		}
	}
	for _, l := range s.touched {
		if l.staged.destructive {
			l.cold.Lock() // until what is read is again what the index says
		}
	}
	err := s.commit(b, pebble.Sync)
	for i := 0; err == nil && i < len(writes); i++ {
		s.groups[writes[i].Group].publish(&writes[i])
	}
	for _, l := range s.touched {
		if l.staged.destructive {
			l.cold.Unlock()
		}
		l.staged.active = false
	}
	return err
}

func batchSize(writes []Write) int {
	n := 64
	for i := range writes {
		n += 128
		for _, e := range writes[i].Entries {
			n += len(e.Data) + entryKeyLen + 32
		}
	}
	return n
}

// stageConfs adds the configurations that wait for a write.
func (s *pebbleStore) stageConfs(b *pebble.Batch) error {
	for id, l := range s.dirty {
		if err := l.stageConf(b, l.confIndex, l.conf); err != nil {
			return fmt.Errorf("group %d: %w", id, err)
		}
		delete(s.dirty, id)
	}
	return nil
}

// evict keeps all tails together below the limit, at the cost of the largest.
func (s *pebbleStore) evict() {
	for s.cached > s.opts.CacheBytes {
		var largest *pebbleLog
		for _, l := range s.groups {
			if largest == nil || l.x.cache.bytes > largest.x.cache.bytes {
				largest = l
			}
		}
		largest.mu.Lock()
		largest.x.cache.evict(largest.x.cache.bytes / 2)
		largest.mu.Unlock()
		largest.account()
	}
}

func (s *pebbleStore) SetConfState(group, index uint64, cs *raftpb.ConfState) error {
	if err := s.usable(); err != nil {
		return err
	}
	l, ok := s.groups[group]
	if !ok {
		return fmt.Errorf("set configuration: group %d has no log", group)
	}
	l.mu.Lock()
	l.confIndex, l.conf = index, proto.CloneOf(raftpb.EnsureConfState(cs))
	l.mu.Unlock()
	s.dirty[group] = l
	return nil
}

func (s *pebbleStore) Compact(group, index uint64) error {
	if err := s.usable(); err != nil {
		return err
	}
	l, ok := s.groups[group]
	if !ok {
		return fmt.Errorf("compact: group %d has no log", group)
	}
	if index <= l.x.start {
		return nil
	}
	if index > l.x.last {
		return fmt.Errorf("compact group %d to %d: the log ends at %d", group, index, l.x.last)
	}
	if err := s.compact(l, index); err != nil {
		return s.fail(fmt.Errorf("compact group %d to %d: %w", group, index, err))
	}
	return nil
}

func (s *pebbleStore) compact(l *pebbleLog, index uint64) error {
	b := s.db.NewBatch()
	key := groupKey(l.group, kindStart)
	err := b.Set(key, encodeStart(key, index, l.x.mustTerm(index)), nil)
	if err == nil {
		err = s.stageConfs(b)
	}
	l.garbage += l.x.sizes.offset(index+1) - l.x.sizes.offset(l.x.start+1)
	reclaim := l.garbage >= reclaimBytes || index+1-l.stored >= reclaimEntries
	if err == nil && reclaim {
		err = b.DeleteRange(entryKey(l.group, l.stored), entryKey(l.group, index+1), nil)
	}
	if err != nil {
		return err
	}
	l.cold.Lock()
	defer l.cold.Unlock()
	if err := s.commit(b, pebble.NoSync); err != nil {
		return err
	}
	if reclaim {
		l.stored, l.garbage = index+1, 0
	}
	l.mu.Lock()
	l.x.compact(index)
	l.mu.Unlock()
	l.account()
	return nil
}

func (s *pebbleStore) Condemn(group uint64, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups[group] != nil && s.bad[group] == nil {
		s.bad[group] = why
	}
}

func (s *pebbleStore) Remove(group uint64) error {
	if err := s.usable(); err != nil {
		return err
	}
	if _, found, _ := s.Log(group); !found {
		return nil
	}
	b := s.db.NewBatch()
	err := b.DeleteRange(groupKey(group, 0), groupKey(group, 0xff), nil)
	if err == nil {
		err = b.DeleteRange(entryKey(group, 0), append(entryKey(group, ^uint64(0)), 0), nil)
	}
	l := s.groups[group]
	if l != nil {
		l.cold.Lock()
		defer l.cold.Unlock()
	}
	if err == nil {
		err = s.commit(b, pebble.Sync)
	}
	if err != nil {
		return s.fail(fmt.Errorf("remove log of group %d: %w", group, err))
	}
	s.mu.Lock()
	delete(s.groups, group)
	delete(s.bad, group)
	s.mu.Unlock()
	delete(s.dirty, group)
	if l != nil {
		l.close()
	}
	return nil
}

// Close makes pending configurations durable.
func (s *pebbleStore) Close() error {
	var err error
	if s.usable() == nil && len(s.dirty) > 0 {
		b := s.db.NewBatch()
		if err = s.stageConfs(b); err == nil {
			err = s.commit(b, pebble.Sync)
		}
	}
	if err = errors.Join(err, s.db.Close()); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return s.usable()
}

// Idle implements Store.
func (s *pebbleStore) Idle() error { return s.usable() }

// Full implements Store.
func (s *pebbleStore) Full() error { return nil }

func (s *pebbleStore) Retry() {}
