package kv_test

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// smallDisk is a file system in memory with a size. What does not fit is written as far as it does.
type smallDisk struct {
	vfs.FS
	mu    sync.Mutex
	files map[string]int
	size  int
	short int   // writes that did not fit
	syncs error // what a sync returns
}

func newSmallDisk(size int) *smallDisk {
	return &smallDisk{FS: vfs.NewMem(), files: map[string]int{}, size: size}
}

func (d *smallDisk) resize(size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = size
}

func (d *smallDisk) used() (n int) {
	for size := range maps.Values(d.files) {
		n += size
	}
	return n
}

// take gives a file up to n bytes.
func (d *smallDisk) take(name string, n int) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fits := max(0, min(n, d.size-d.used()))
	d.files[name] += fits
	if fits < n {
		d.short++
		return fits, syscall.ENOSPC
	}
	return n, nil
}

func (d *smallDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if _, err := d.take(name, 1); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name, c)
	return &smallFile{f, d, name}, err
}

func (d *smallDisk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(from, to, c)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[to] = d.files[from] // and what is written is counted again, which does no harm here
	delete(d.files, from)
	return &smallFile{f, d, to}, err
}

func (d *smallDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[to] = d.files[from]
	delete(d.files, from)
	return d.FS.Rename(from, to)
}

func (d *smallDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return d.FS.Remove(name)
}

type smallFile struct {
	vfs.File
	d    *smallDisk
	name string
}

func (f *smallFile) Write(p []byte) (int, error) {
	n, full := f.d.take(f.name, len(p))
	m, err := f.File.Write(p[:n])
	return m, errors.Join(full, err)
}

func (f *smallFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.syncs != nil {
		return f.d.syncs
	}
	return f.File.Sync()
}

func (f *smallFile) SyncData() error { return f.Sync() }

// A store on a full disk waits. It loses nothing, does not fail, tells once that it is full, and goes on when there is
// room.
func TestPebbleWaitsForRoom(t *testing.T) {
	d := newSmallDisk(1 << 20)
	var told atomic.Int64 // up with each full, down with each end of it
	o := kv.PebbleOptions{FS: d, MemTableBytes: 64 << 10, OnError: func(err error) { t.Errorf("it failed: %v", err) },
		OnFull: func(err error) {
			if err == nil {
				told.Add(-1)
			} else {
				told.Add(1)
			}
		}}
	s := openPebble(t, "db", o)
	const batches = 400
	var done atomic.Int64
	written := make(chan error, 1)
	go func() {
		defer close(written)
		for i := range batches {
			b := s.Batch()
			if err := errors.Join(b.Set(fmt.Appendf(nil, "%04d", i), incompressible(10_000, uint64(i))), b.Commit()); err != nil {
				written <- err
				return
			}
			done.Add(1)
		}
		written <- s.Sync()
	}()
	eventually(t, "the disk is full", func() bool { return told.Load() == 1 })
	eventually(t, "it tries again and again", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.short > 3
	})
	stuck := done.Load()
	if stuck == 0 || stuck == batches {
		t.Fatalf("%d of %d batches were written on a disk a quarter of their size", stuck, batches)
	}
	if _, found, err := s.Get(fmt.Appendf(nil, "%04d", stuck-1)); !found || err != nil {
		t.Errorf("what was committed cannot be read: %v %v", found, err)
	}
	d.resize(64 << 20)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	eventually(t, "it tells of the room", func() bool { return told.Load() == 0 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openPebble(t, "db", o)
	defer s.Close()
	n := 0
	if err := s.Scan(nil, nil, func(_, v []byte) error { n++; return nil }); err != nil || n != batches {
		t.Errorf("%d of %d after opening it again: %v", n, batches, err)
	}
}

// Opening waits for nothing: who starts a node is told.
func TestPebbleOpensOnFullDisk(t *testing.T) {
	d := newSmallDisk(10)
	if _, err := kv.OpenPebble("db", kv.PebbleOptions{FS: d}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("open: %v", err)
	}
	d.resize(1 << 20)
	s := openPebble(t, "db", kv.PebbleOptions{FS: d})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A sync that fails is final, even if it says that the disk is full: what it was for may be lost.
func TestPebbleNeverRepeatsASync(t *testing.T) {
	d := newSmallDisk(1 << 20)
	failed := make(chan error, 16)
	s := openPebble(t, "db", kv.PebbleOptions{FS: d, OnError: func(err error) { failed <- err }})
	countUp(t, s, 1)
	d.mu.Lock()
	d.syncs = syscall.ENOSPC
	d.mu.Unlock()
	go func() { _ = s.Sync() }() // it need not return
	if err := <-failed; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("told %v", err)
	}
	if err := s.Sync(); err == nil {
		t.Error("a sync after one that failed says that all is well")
	}
}

func incompressible(n int, seed uint64) []byte {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return b
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
