package kv

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A full disk. To Pebble an error of its write-ahead log or its manifest is the end, and it repeats a failed flush at
// once, for ever. Neither suits a disk that is full, which passes, and nothing is lost while a write waits: the raft log
// has what the state lacks. So between Pebble and the file system
//   - a write, or the making of a file, that Pebble could not take back waits until it succeeds;
//   - a table (flush, compaction) fails, which gives its space back, and the next one begins after a pause;
//   - a sync that fails is never repeated, whatever it says: it is an error like any other.
//
// While the store is being opened, only tables wait, of which Open makes some if the write-ahead log is to be replayed:
// whoever opens a store sees to it that there is room for that.
//
// The disk counts as full while a write waits, and from a table that failed until a whole one is on the disk: that a part
// of one could be written shows nothing. A table that nobody repeats, as happens to some compactions, counts for tableLapse.
//
// A store with PebbleOptions.NoWait does nothing of this: the first lack of room is its end. Pebble does not learn of it,
// since it would repeat a failed flush for ever, and panic with its locks held at a log that takes no more: what it was
// doing stops where it is, and who called the store is answered all the same (inTime).

const (
	waitEvery  = 100 * time.Millisecond // how often a write that waits is tried again
	tablePause = time.Second            // between two attempts to write tables
	tableLapse = 10 * time.Second       // how long a table that failed counts if no other is begun
)

// isFull says whether an error is a disk's that has no room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// roomFS is the file system under a store.
type roomFS struct {
	vfs.FS
	onFull func(error)   // told why there is no room, and nil once there is; mu is held
	final  bool          // nothing waits, and the first lack of room is the end, of which onFull is told
	ended  chan struct{} // the store is being closed: nothing waits any more
	open   atomic.Bool   // the store is open: writes wait
	full   atomic.Bool   // changed under mu

	mu      sync.Mutex
	waiting int         // writes that wait
	lacking bool        // a table failed, and no whole one was written since
	tables  int         // being written
	lapse   *time.Timer // nil: no table has failed yet
}

func newRoomFS(fs vfs.FS, final bool, onFull func(error)) *roomFS {
	if fs == nil {
		fs = vfs.Default
	}
	if onFull == nil {
		onFull = func(error) {}
	}
	return &roomFS{FS: fs, final: final, onFull: onFull, ended: make(chan struct{})}
}

// change does what changes whether the disk counts as full, and tells of it; err is why it does.
func (r *roomFS) change(err error, do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
	switch full := r.waiting > 0 || r.lacking; {
	case full == r.full.Swap(full):
	case full:
		r.onFull(err)
	default:
		r.onFull(nil)
	}
}

// end ends all waiting: the store is being closed. What waited keeps the disk full.
func (r *roomFS) end() {
	close(r.ended)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lapse != nil {
		r.lapse.Stop()
	}
}

// refuse ends a store that does not wait; it never returns.
func (r *roomFS) refuse(err error) {
	r.onFull(err)
	select {}
}

// pause waits; false: the store is being closed.
func (r *roomFS) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ended:
		return false
	}
}

// insist repeats what fails for lack of room.
func (r *roomFS) insist(do func() error) error {
	err := do()
	if isFull(err) && r.final {
		r.refuse(err)
	}
	if !isFull(err) || !r.open.Load() {
		return err
	}
	r.change(err, func() { r.waiting++ })
	for r.pause(waitEvery) {
		if err = do(); !isFull(err) {
			r.change(nil, func() { r.waiting-- })
			return err
		}
	}
	return err
}

// noteTable takes the outcome of a step on the way to a table; done: it is the last one.
func (r *roomFS) noteTable(err error, done bool) {
	switch {
	case isFull(err) && r.final:
		r.refuse(err)
	case isFull(err):
		r.change(err, func() {
			r.lacking = true
			if r.lapse == nil {
				r.lapse = time.AfterFunc(tableLapse, r.lapsed)
			}
			r.lapse.Reset(tableLapse)
		})
	case err == nil && done && r.full.Load():
		r.change(nil, func() { r.lacking = false })
	}
}

// lapsed is called when no table has failed for a while.
func (r *roomFS) lapsed() {
	r.change(nil, func() {
		if r.tables > 0 {
			r.lapse.Reset(tableLapse)
			return
		}
		r.lacking = false
	})
}

// isTable says whether a file is one that Pebble can do without: it begins again with another.
func isTable(name string) bool {
	return strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")
}

func (r *roomFS) Create(name string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	if isTable(name) {
		return r.createTable(name, category)
	}
	err = r.insist(func() error {
		f, err = r.FS.Create(name, category)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &roomFile{f, r}, nil
}

func (r *roomFS) createTable(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if r.full.Load() {
		r.pause(tablePause)
	}
	f, err := r.FS.Create(name, category)
	if r.noteTable(err, false); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tables++
	return &tableFile{File: f, fs: r}, nil
}

func (r *roomFS) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = r.insist(func() error {
		f, err = r.FS.ReuseForWrite(from, to, category)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &roomFile{f, r}, nil
}

func (r *roomFS) Rename(from, to string) error {
	return r.insist(func() error { return r.FS.Rename(from, to) })
}

func (r *roomFS) Link(from, to string) error {
	return r.insist(func() error { return r.FS.Link(from, to) })
}

func (r *roomFS) Unwrap() vfs.FS { return r.FS }

// roomFile is a file whose writes wait.
type roomFile struct {
	vfs.File
	fs *roomFS
}

func (f *roomFile) Write(p []byte) (n int, err error) {
	err = f.fs.insist(func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	return n, err
}

// tableFile is a table that is being written. Pebble syncs it when it is whole, and may when it is given up.
type tableFile struct {
	vfs.File
	fs     *roomFS
	failed bool // a write; it will not be whole
}

func (f *tableFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.failed = f.failed || err != nil
	f.fs.noteTable(err, false)
	return n, err
}

func (f *tableFile) Sync() error     { return f.synced(f.File.Sync()) }
func (f *tableFile) SyncData() error { return f.synced(f.File.SyncData()) }

func (f *tableFile) synced(err error) error {
	f.fs.noteTable(err, !f.failed)
	return err
}

func (f *tableFile) Close() error {
	f.fs.mu.Lock()
	f.fs.tables--
	f.fs.mu.Unlock()
	return f.File.Close()
}
