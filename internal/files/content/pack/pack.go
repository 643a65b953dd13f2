// Package pack keeps many small contents in a few append-only files: one write for a whole batch, one
// fdatasync for all who wait, one unlink for thousands of contents that are no longer needed.
//
// It is a waiting room, not an archive: contents leave when they were released as often as they were staged, or
// when they expire, and a file goes with its last content. It does not compact: one content that stays keeps
// its file.
//
// The index is in memory (about 100 bytes a content) and is rebuilt by scanning the files. Damage never yields
// wrong bytes: each read checks the CRC-32C of what this process wrote and the BLAKE3 of what an earlier one
// wrote; what fails is forgotten, counted, and can be staged again.
//
// It starts no goroutine. All methods may be called concurrently.
package pack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// DefaultRotate is the size at which a new file is begun.
const DefaultRotate = 64 << 20

// ErrClosed is returned after Close.
var ErrClosed = errors.New("packs are closed")

// Options of Open.
type Options struct {
	Rotate int64            // bytes; 0: DefaultRotate; at most 1 GiB
	Now    func() time.Time // required
}

// Stats is what the packs hold.
type Stats struct {
	Contents int   // that can be read
	Bytes    int64 // of those contents
	Files    int
	FileSize int64  // bytes of all files, released contents included
	Damaged  uint64 // contents or regions found unreadable since Open
	Syncs    uint64 // fdatasync rounds since Open
	Unsynced uint64 // appends that are not known to be durable
}

// Log is a directory of pack files, owned by one process.
type Log struct {
	dir  string
	opts Options

	appending sync.Mutex // one writer at a time; taken before mu
	active    *file      // changed with appending and mu held
	nextSeq   uint32

	mu       sync.Mutex // the fields below, held for moments only
	index    map[manifest.Hash]location
	files    map[uint32]*file
	dirty    []*file // appended to since the last sync began
	newNames bool    // files were created since the last sync began
	appended uint64  // appends so far
	synced   uint64  // those known to be durable
	stats    Stats
	failed   error // set by the first failed sync; nothing is promised after it

	syncing sync.Mutex // one sync at a time; those who wait for it are mostly served by the next; taken before mu
}

type file struct {
	seq       uint32
	f         *os.File
	size      int64
	live      int   // contents in the index
	recovered int64 // below this offset an earlier process wrote
	dirty     bool
}

type location struct {
	file   uint32
	offset uint32 // of the record
	length uint32 // of the content
	staged uint32 // last time, Unix seconds
	uses   uint8  // stagings not yet released, saturating
}

type entry struct {
	hash   manifest.Hash
	offset uint32
	length uint32
}

// Has says whether the content can be read.
func (l *Log) Has(h manifest.Hash) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.index[h]
	return ok
}

// touch counts one more staging of a content that is already here.
func (l *Log) touch(h manifest.Hash, now uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.index[h]
	if !ok {
		return false
	}
	at.staged = now
	if at.uses < 255 {
		at.uses++
	}
	l.index[h] = at
	return true
}

// Append stages the records in buf with one write. Contents that are here already are not written again; the
// others are verified against their hash first, and refused is called with the number of each record that does
// not match. It uses buf as its working space. What was appended is durable after Sync.
func (l *Log) Append(buf []byte, refused func(i int)) error {
	now := uint32(l.opts.Now().Unix())
	kept, entries, err := l.prepare(buf, now, refused)
	if err != nil || len(kept) == 0 {
		return err
	}
	l.appending.Lock()
	defer l.appending.Unlock()
	if l.active == nil || l.active.size > 0 && l.active.size+int64(len(kept)) > l.opts.Rotate {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if err := l.usable(); err != nil {
		return err
	}
	base := l.active.size
	if _, err := l.active.f.WriteAt(kept, base); err != nil {
		if cut := l.active.f.Truncate(base); cut != nil {
			l.fail(fmt.Errorf("pack %s: cut off a failed write: %w", l.active.f.Name(), cut))
		}
		return fmt.Errorf("pack %s: append %d bytes: %w", l.active.f.Name(), len(kept), err)
	}
	l.publish(base, int64(len(kept)), entries, now)
	return nil
}

// prepare leaves in the front of buf the sealed records that have to be written, and returns their places in it.
func (l *Log) prepare(buf []byte, now uint32, refused func(int)) ([]byte, []entry, error) {
	var entries []entry
	kept := 0
	for i, rest := 0, buf; len(rest) > 0; i++ {
		h, content, next, err := Record(rest)
		if err != nil {
			return nil, nil, err
		}
		n := HeaderSize + len(content)
		switch {
		case l.touch(h, now):
		case blake3.Sum256(content) != h:
			refused(i)
		default:
			record := buf[kept : kept+n]
			if &record[0] != &rest[0] {
				copy(record, rest[:n])
			}
			seal(record)
			entries = append(entries, entry{h, uint32(kept), uint32(len(content))})
			kept += n
		}
		rest = next
	}
	return buf[:kept], entries, nil
}

func (l *Log) publish(base, n int64, entries []entry, now uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.active
	for _, e := range entries {
		if at, twice := l.index[e.hash]; twice {
			at.uses = min(at.uses, 254) + 1
			l.index[e.hash] = at
			continue
		}
		l.index[e.hash] = location{f.seq, uint32(base) + e.offset, e.length, now, 1}
		f.live++
		l.stats.Contents++
		l.stats.Bytes += int64(e.length)
	}
	f.size += n
	l.stats.FileSize += n
	l.appended++
	if !f.dirty {
		f.dirty = true
		l.dirty = append(l.dirty, f)
	}
}

// rotate begins a new file; appending is held.
func (l *Log) rotate() error {
	path := filepath.Join(l.dir, fileName(l.nextSeq))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("begin a pack: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return errors.Join(l.failed, f.Close(), os.Remove(path))
	}
	old := l.active
	l.active = &file{seq: l.nextSeq, f: f}
	l.nextSeq++
	l.files[l.active.seq] = l.active
	l.stats.Files++
	l.newNames = true
	if old != nil && old.live == 0 {
		return l.drop(old)
	}
	return nil
}

// Sync returns when everything that was appended before the call is durable. Concurrent callers share one
// fdatasync. After a failed one no later call succeeds: the kernel may have dropped the pages.
func (l *Log) Sync() error {
	l.mu.Lock()
	target := l.appended
	l.mu.Unlock()
	return l.syncUpTo(target)
}

func (l *Log) syncUpTo(target uint64) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	// The sync that was waited for may have failed, and has emptied the list of what to sync.
	if l.failed != nil || l.synced >= target {
		defer l.mu.Unlock()
		return l.failed
	}
	upTo, dirty, names := l.appended, l.dirty, l.newNames
	l.dirty, l.newNames = nil, false
	for _, f := range dirty {
		f.dirty = false
	}
	l.stats.Syncs++
	l.mu.Unlock()
	if err := l.flush(dirty, names); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	l.synced = upTo
	l.mu.Unlock()
	return nil
}

func (l *Log) flush(dirty []*file, names bool) error {
	for _, f := range dirty {
		// A file that was dropped meanwhile holds nothing that anyone needs.
		if err := Fdatasync(f.f); err != nil && !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
	if !names {
		return nil
	}
	return SyncDir(l.dir)
}

// Fdatasync makes the file's bytes and length durable.
func Fdatasync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Fdatasync(int(fd)) }); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), os.ErrClosed)
	}
	if failed != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), failed)
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close() // read only: nothing to lose
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}

func (l *Log) usable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
	}
	return err
}

// Stats returns what the packs hold now.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats
	st.Unsynced = l.appended - l.synced
	return st
}

// Close closes the files without syncing them. No other method may be running.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.f.Close())
	}
	l.files, l.index, l.failed = nil, nil, ErrClosed
	return errors.Join(errs...)
}
