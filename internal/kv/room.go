package kv

import (
	"errors"
	"strings"
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

const (
	waitEvery  = 100 * time.Millisecond // how often a write that waits is tried again
	tablePause = time.Second            // between two attempts to write tables
)

// isFull says whether an error is a disk's that has no room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// roomFS is the file system under a store.
type roomFS struct {
	vfs.FS
	onFull func(error)   // told why there is no room, and nil once there is
	ended  chan struct{} // the store is being closed: nothing waits any more
	open   atomic.Bool   // the store is open: writes wait
	full   atomic.Bool
}

func newRoomFS(fs vfs.FS, onFull func(error)) *roomFS {
	if fs == nil {
		fs = vfs.Default
	}
	if onFull == nil {
		onFull = func(error) {}
	}
	return &roomFS{FS: fs, onFull: onFull, ended: make(chan struct{})}
}

// note takes the outcome of something that needed room.
func (r *roomFS) note(err error) {
	switch {
	case isFull(err):
		if !r.full.Swap(true) {
			r.onFull(err)
		}
	case err == nil && r.full.Load() && r.full.Swap(false):
		r.onFull(nil)
	}
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
	for {
		err := do()
		r.note(err)
		if !isFull(err) || !r.open.Load() || !r.pause(waitEvery) {
			return err
		}
	}
}

// isTable says whether a file is one that Pebble can do without: it begins again with another.
func isTable(name string) bool {
	return strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")
}

func (r *roomFS) Create(name string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	if isTable(name) {
		if r.full.Load() {
			r.pause(tablePause)
		}
		f, err = r.FS.Create(name, category)
		if r.note(err); err != nil {
			return nil, err
		}
		return &tableFile{f, r}, nil
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

// tableFile is a table that is being written.
type tableFile struct {
	vfs.File
	fs *roomFS
}

func (f *tableFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.fs.note(err)
	return n, err
}
