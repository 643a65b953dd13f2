package pack

import (
	"errors"
	"os"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Get returns the content, whole and right, or false.
func (l *Log) Get(h manifest.Hash) ([]byte, bool) {
	record, ok := l.AppendRecord(nil, h)
	if !ok {
		return nil, false
	}
	return record[HeaderSize:], true
}

// AppendRecord appends the content's record to dst, or returns dst as it was and false.
func (l *Log) AppendRecord(dst []byte, h manifest.Hash) ([]byte, bool) {
	for {
		l.mu.Lock()
		at, ok := l.index[h]
		f := l.files[at.file]
		l.mu.Unlock()
		if !ok {
			return dst, false
		}
		base := len(dst)
		n := HeaderSize + int(at.length)
		dst = grow(dst, n)
		record := dst[base:]
		_, err := f.f.ReadAt(record, int64(at.offset))
		if err == nil && l.whole(f, at, h, record) {
			return dst, true
		}
		dst = dst[:base]
		if !errors.Is(err, os.ErrClosed) {
			l.forget(h, at)
			return dst, false
		}
		// Its file was dropped after the look at the index: look again, it may have been staged anew.
	}
}

func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst[:len(dst)+n]
	}
	return append(dst, make([]byte, n)...)
}

func (l *Log) whole(f *file, at location, h manifest.Hash, record []byte) bool {
	got, content, rest, err := Record(record)
	if err != nil || got != h || len(rest) != 0 {
		return false
	}
	if int64(at.offset) < f.recovered {
		return blake3.Sum256(content) == h
	}
	_, ok := headerLen(record)
	return ok && contentWhole(record, content)
}

// forget drops a damaged content, unless it has been staged anew since.
func (l *Log) forget(h manifest.Hash, at location) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, ok := l.index[h]
	if !ok || now.file != at.file || now.offset != at.offset {
		return
	}
	l.stats.Damaged++
	// The file stays until its other contents go; an error to unlink it would come again at Expire.
	_ = l.remove(h, now)
}

// Release says that each of the contents is needed once less than before. None goes before Drop.
func (l *Log) Release(hashes ...manifest.Hash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range hashes {
		if at, ok := l.index[h]; ok && at.uses > 0 {
			at.uses--
			l.index[h] = at
		}
	}
}

// Drop lets those of the contents go that were released as often as staged, and a full file with its last one.
func (l *Log) Drop(hashes ...manifest.Hash) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, h := range hashes {
		if at, ok := l.index[h]; ok && at.uses == 0 {
			errs = append(errs, l.remove(h, at))
		}
	}
	return errors.Join(errs...)
}

// Expire drops contents that were last staged at or before the given time and that needed says false of. It
// also gives back the disk space of an active file that holds nothing any more. needed is called without locks.
func (l *Log) Expire(before time.Time, needed func(manifest.Hash) bool) error {
	limit := uint32(max(before.Unix(), 0))
	var old []manifest.Hash
	l.mu.Lock()
	for h, at := range l.index {
		if at.staged <= limit {
			old = append(old, h)
		}
	}
	l.mu.Unlock()
	var errs []error
	for _, h := range old {
		if needed(h) {
			continue
		}
		l.mu.Lock()
		if at, ok := l.index[h]; ok && at.staged <= limit {
			errs = append(errs, l.remove(h, at))
		}
		l.mu.Unlock()
	}
	l.appending.Lock()
	defer l.appending.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.active; f != nil && f.live == 0 && f.size > 0 {
		l.active = nil
		errs = append(errs, l.drop(f))
	}
	return errors.Join(errs...)
}

// remove takes a content out of the index; mu is held.
func (l *Log) remove(h manifest.Hash, at location) error {
	delete(l.index, h)
	if len(l.index) == 0 {
		l.index = map[manifest.Hash]location{} // a map keeps its largest size
	}
	l.stats.Contents--
	l.stats.Bytes -= int64(at.length)
	f := l.files[at.file]
	f.live--
	if f.live > 0 || f == l.active {
		return nil
	}
	return l.drop(f)
}

// drop deletes a file without contents; mu is held. Readers that hold it see os.ErrClosed.
func (l *Log) drop(f *file) error {
	delete(l.files, f.seq)
	l.stats.Files--
	l.stats.FileSize -= f.size
	return errors.Join(os.Remove(f.f.Name()), f.f.Close())
}
