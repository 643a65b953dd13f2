package kv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lockstep-sync/lockstep/internal/kv/guard"
)

// Sizes of a store's buffers unless PebbleOptions says otherwise.
const (
	DefaultCacheBytes    = 24 << 20 // memory tables count in: with 16 MiB two of 8 MiB left nothing for blocks
	DefaultMemTableBytes = 4 << 20
)

// PebbleOptions tunes OpenPebble; the zero value is right for a node.
type PebbleOptions struct {
	Log *slog.Logger // nil: silent
	// OnError is told when the disk failed behind a batch: on Pebble's goroutine, perhaps with its locks
	// held, so it must neither block nor use the store. After the first error every Commit, Sync and read
	// fails, and Close may not return: the owner ends the process. nil: such an error panics.
	OnError func(error)
	// OnDamage is told of a file that is not as it was written, whenever it is read, under the same conditions; whoever
	// reads what was in it gets an ErrDamaged. nil: nobody is told.
	OnDamage func(path string, err error)
	// OnFull is told why there is no room on the disk, and nil when there is again, under the same conditions. Until
	// then Commit, Sync and Close may wait. nil: nobody is told.
	OnFull func(error)
	// NoWait is for a store that nobody keeps waiting for room: that there is none is an error of the disk like any
	// other. Every call returns after any error of the disk, OpenPebble and Close too, but what Pebble was doing may
	// keep memory and files until the process ends. OnFull is not called.
	NoWait        bool
	FS            vfs.FS // nil: the operating system's
	CacheBytes    int64  // block cache; 0: DefaultCacheBytes
	MemTableBytes uint64 // 0: DefaultMemTableBytes; up to three may exist for a moment
}

// ErrDamaged is in the errors of reads that came to a file of the store that is not as it was written.
var ErrDamaged = guard.ErrDamaged

// OpenPebble opens the store in dir, or makes an empty one. Batches go to a write-ahead log that only
// Sync makes durable; those of Through also to a file that the kernel has when Commit returns.
func OpenPebble(dir string, o PebbleOptions) (Store, error) {
	s, err := openPebble(dir, o, false)
	if err != nil {
		return nil, err
	}
	err = inTime(s.fs, s.guard, func() (err error) {
		s.through, err = openThrough(s.db, s.fs, dir, s.guard)
		return err
	})
	if err == nil {
		err = s.guard.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", dir, err), s.closeDB())
	}
	s.fs.open.Store(true)
	return s, nil
}

// ViewPebble opens the store in dir, which must exist and be used by nobody else, to look at it: nothing in dir
// changes. The view ends with its Close. What was written through and is not in the database yet is not in the view.
func ViewPebble(dir string, o PebbleOptions) (View, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	o.FS = unlocked{o.FS}
	s, err := openPebble(dir, o, true)
	if err != nil {
		return nil, err
	}
	return pebbleLook{s.pebbleReader, s.db}, nil
}

// unlocked takes no lock: Pebble's is a file that is written.
type unlocked struct{ vfs.FS }

func (unlocked) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// pebbleLook is a database that was opened to be read.
type pebbleLook struct {
	pebbleReader
	db *pebble.DB
}

func (l pebbleLook) Close() error { return l.db.Close() }

func openPebble(dir string, o PebbleOptions, readOnly bool) (*pebbleStore, error) {
	var fs *roomFS
	g := guard.New(o.Log, func(err error) {
		switch {
		case !fs.open.Load(): // it is returned
		case o.OnError == nil:
			panic(err)
		default:
			o.OnError(err)
		}
	}, o.OnDamage)
	onFull := o.OnFull
	if o.NoWait {
		onFull = g.Fail
	}
	fs = newRoomFS(o.FS, o.NoWait, onFull)
	cache := pebble.NewCache(cmpOr(o.CacheBytes, DefaultCacheBytes))
	opts := &pebble.Options{
		FS:                          fs,
		ReadOnly:                    readOnly,
		Cache:                       cache,
		MemTableSize:                cmpOr(o.MemTableBytes, DefaultMemTableBytes),
		MemTableStopWritesThreshold: 3,
		FormatMajorVersion:          pebble.FormatValueSeparation,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		MaxOpenFiles:                256,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               32 << 20,
	}
	opts.Experimental.FileCacheShards = 1
	opts.TargetFileSizes[0] = 4 << 20
	for i := range opts.Levels {
		opts.Levels[i].BlockSize = 16 << 10
		opts.Levels[i].IndexBlockSize = 256 << 10 // one level of index for tables of up to 64 MiB
		// Most keys that are asked for in bulk are new: without filters a third of the time of taking a
		// tree of 100,000 files up went into finding that they are absent.
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	}
	g.Install(opts)
	var db *pebble.DB
	err := inTime(fs, g, func() (err error) {
		defer cache.Unref()
		db, err = pebble.Open(dir, opts)
		return err
	})
	if err == nil {
		err = g.Err() // Pebble does not look back after a fatal error, and neither may be closed
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, guard.Plain(err))
	}
	return &pebbleStore{pebbleReader{db, g}, db, fs, nil}, nil
}

// inTime does what Pebble may never come back from. For a store that does not wait it is over when the store has failed.
func inTime(fs *roomFS, g *guard.Guard, do func() error) error {
	if !fs.final {
		return do()
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-g.Failed():
		return g.Err()
	}
}

func cmpOr[T int64 | uint64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// pebbleReader reads from a database, a batch or a snapshot.
type pebbleReader struct {
	r     pebble.Reader
	guard *guard.Guard
}

func (p pebbleReader) Get(key []byte) ([]byte, bool, error) {
	if err := p.guard.Err(); err != nil {
		return nil, false, err
	}
	v, c, err := p.r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read key %q: %w", key, guard.Plain(err))
	}
	v = append(make([]byte, 0, len(v)), v...) // found values are never nil
	if err := c.Close(); err != nil {
		return nil, false, fmt.Errorf("read key %q: %w", key, guard.Plain(err))
	}
	return v, true, nil
}

// Lookup seeks with one iterator: each table's index and filter is looked up once, not once a key.
func (p pebbleReader) Lookup(keys [][]byte, visit func(i int, value []byte) error) (err error) {
	if err := p.guard.Err(); err != nil || len(keys) == 0 {
		return err
	}
	first, last := keys[0], keys[len(keys)-1]
	it, err := p.r.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: append(bytes.Clone(last), 0)})
	if err != nil {
		return fmt.Errorf("look up from %q: %w", first, guard.Plain(err))
	}
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("look up from %q: %w", first, guard.Plain(cerr))
		}
	}()
	for i, key := range keys {
		var v []byte
		var found bool
		if len(key) == 0 {
			v, found, err = p.Get(key) // to Pebble an empty prefix is none, and its checks of itself (-race) deny it altogether
		} else {
			v, found, err = seek(it, key)
		}
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if err := visit(i, v); err != nil {
			return ended(err)
		}
	}
	return nil
}

// seek finds a key, which is its own prefix.
func seek(it *pebble.Iterator, key []byte) (value []byte, found bool, err error) {
	found = it.SeekPrefixGE(key)
	if err := it.Error(); err != nil {
		return nil, false, fmt.Errorf("look up %q: %w", key, guard.Plain(err))
	}
	if !found || !bytes.Equal(it.Key(), key) {
		return nil, false, nil
	}
	if value, err = it.ValueAndErr(); err != nil {
		return nil, false, fmt.Errorf("look up %q: %w", key, guard.Plain(err))
	}
	return value, true, nil
}

// ended is what a Lookup or Scan returns after its visitor returned err.
func ended(err error) error {
	if err == ErrStop {
		return nil
	}
	return err
}

func (p pebbleReader) Scan(from, to []byte, visit func(key, value []byte) error) (err error) {
	if err := p.guard.Err(); err != nil {
		return err
	}
	if to != nil && bytes.Compare(from, to) >= 0 {
		return nil
	}
	if len(from) == 0 {
		from = nil // spares Pebble a seek
	}
	it, err := p.r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return fmt.Errorf("scan from %q: %w", from, guard.Plain(err))
	}
	defer func() {
		// Close repeats an error that stopped the iteration, and reports none of the visitor's.
		if cerr := it.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("scan from %q: %w", from, guard.Plain(cerr))
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("scan from %q: %w", from, guard.Plain(err))
		}
		if err := visit(it.Key(), v); err != nil {
			return ended(err)
		}
	}
	return nil
}

type pebbleStore struct {
	pebbleReader
	db      *pebble.DB
	fs      *roomFS
	through *through
}

func (s *pebbleStore) Batch() Batch { return s.batch(false) }

func (s *pebbleStore) batch(through bool) *pebbleBatch {
	b := s.db.NewIndexedBatch()
	return &pebbleBatch{pebbleReader{b, s.guard}, b, s, through}
}

func (s *pebbleStore) Through() Store { return throughStore{s} }

func (s *pebbleStore) View() View {
	snap := s.db.NewSnapshot()
	return &pebbleView{pebbleReader{snap, s.guard}, snap}
}

func (s *pebbleStore) Sync() error {
	if err := s.guard.Err(); err != nil {
		return err
	}
	return inTime(s.fs, s.guard, s.sync)
}

func (s *pebbleStore) sync() error {
	next, err := s.through.rotate()
	if err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	// An empty log record waits for a sync of the log, which covers everything written to it before.
	if err := s.db.LogData(nil, pebble.Sync); err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	if err := s.guard.Err(); err != nil {
		return err
	}
	if err := s.through.remove(next); err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	return nil
}

// Size counts tables only: up to a memtable's worth of recent writes is missing from it.
func (s *pebbleStore) Size(from, to []byte) (uint64, error) {
	if to == nil {
		to = bytes.Repeat([]byte{0xff}, 64)
	}
	if bytes.Compare(from, to) >= 0 {
		return 0, nil
	}
	n, err := s.db.EstimateDiskUsage(from, to)
	if err != nil {
		return 0, fmt.Errorf("size of %q to %q: %w", from, to, err)
	}
	return n, nil
}

// Close syncs what was written through, so that the next start has nothing to replay.
func (s *pebbleStore) Close() error {
	s.fs.end()
	err := s.guard.Err()
	if err == nil {
		err = s.Sync()
	}
	if cerr := s.closeDB(); cerr != nil {
		err = fmt.Errorf("close store: %w", cerr)
	}
	return err
}

func (s *pebbleStore) closeDB() error {
	if err := s.guard.Err(); err != nil && s.fs.final {
		return err
	}
	return inTime(s.fs, s.guard, s.db.Close)
}

type pebbleView struct {
	pebbleReader
	snap *pebble.Snapshot
}

func (v *pebbleView) Close() error { return v.snap.Close() }

type pebbleBatch struct {
	pebbleReader
	b       *pebble.Batch // nil after Commit or Discard
	store   *pebbleStore
	through bool // it is written through
}

func (b *pebbleBatch) Set(key, value []byte) error { return b.b.Set(key, value, nil) }
func (b *pebbleBatch) Delete(key []byte) error     { return b.b.Delete(key, nil) }

func (b *pebbleBatch) DeleteRange(from, to []byte) error {
	if to == nil {
		last, err := b.last()
		if err != nil {
			return err
		}
		to = append(last, 0)
	}
	if bytes.Compare(from, to) >= 0 {
		return nil
	}
	return b.b.DeleteRange(from, to, nil)
}

// last is the greatest key; empty if there is none.
func (b *pebbleBatch) last() (key []byte, err error) {
	it, err := b.b.NewIter(nil)
	if err != nil {
		return nil, fmt.Errorf("find last key: %w", err)
	}
	if it.Last() {
		key = bytes.Clone(it.Key())
	}
	if err := it.Close(); err != nil {
		return nil, fmt.Errorf("find last key: %w", err)
	}
	return key, nil
}

func (b *pebbleBatch) Commit() error {
	if err := b.guard.Err(); err != nil {
		return err
	}
	var full bool
	err := inTime(b.store.fs, b.guard, func() (err error) {
		full, err = b.put()
		return err
	})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if err := b.guard.Err(); err != nil {
		return err // the batch stays open: Pebble may still hold it
	}
	if full {
		err = b.store.Sync()
	}
	return errors.Join(err, b.close())
}

// put hands the batch to Pebble. full says that enough was written through to sync it.
func (b *pebbleBatch) put() (full bool, err error) {
	if !b.through || b.b.Empty() {
		return false, b.b.Commit(pebble.NoSync)
	}
	return b.store.through.commit(b.b)
}

func (b *pebbleBatch) Discard() {
	if b.b != nil && b.guard.Err() == nil {
		_ = b.close() // an uncommitted batch has nothing that could fail
	}
}

func (b *pebbleBatch) close() error {
	err := b.b.Close()
	b.b, b.r = nil, nil
	return err
}
