package kv

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lockstep-sync/lockstep/internal/kv/guard"
)

// The through log is what Through adds to Pebble: batches that must outlive the process are written, with one
// write(2), to a file beside the database before they are committed. Pebble's own write-ahead log does not serve: it
// keeps up to 32 KiB in the process until somebody asks for a sync, and a "sync" that only writes would be recorded in
// the log's later chunks as a promise that what is before them is on the disk (format WALSyncChunks), so that after a
// power failure a torn tail would be taken for damage and the store would not open.
//
// Each batch carries a number, which it also sets in the database (throughKey). Whatever prefix of Pebble's log
// survives, the numbers above the one found there are exactly what is missing, and are applied again in order. The
// order in the file is the order of commits: one lock is held over both.
//
// A file is needed until a sync of the database that began after its last batch was committed. Sync therefore begins
// a new file first and removes the older ones afterwards.
type through struct {
	db    *pebble.DB
	fs    vfs.FS
	dir   string
	guard *guard.Guard

	mu      sync.Mutex
	seq     uint64   // of the last batch
	file    vfs.File // nil: none is open
	number  uint64   // of file, or of the one before the next
	oldest  uint64   // files from here to number may exist
	written int64    // bytes in file
	buf     []byte
}

const (
	throughName  = "through-"       // and a decimal number
	throughMagic = "LSTHRU\x00\x01" // at the beginning of each file; the last byte is the format's level
	throughHead  = 16               // of a frame: length u32, CRC32C of number and batch u32, number u64, little-endian
	throughMax   = 64 << 20         // bytes in a file before a commit waits for a sync
)

// throughKey holds the number of the last batch that was written through, 8 bytes little-endian.
var throughKey = []byte("through")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openThrough brings db to what was written through and leaves no file.
func openThrough(db *pebble.DB, fs vfs.FS, dir string, g *guard.Guard) (*through, error) {
	t := &through{db: db, fs: fs, dir: dir, guard: g}
	names, err := fs.List(dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var numbers []uint64
	for _, name := range names {
		if n, err := strconv.ParseUint(strings.TrimPrefix(name, throughName), 10, 64); err == nil && name == t.name(n) {
			numbers = append(numbers, n)
		}
	}
	if t.seq, err = t.recorded(); err != nil {
		return nil, err
	}
	if len(numbers) == 0 {
		return t, nil
	}
	slices.Sort(numbers)
	t.oldest, t.number = numbers[0], numbers[len(numbers)-1]
	for _, n := range numbers {
		whole, err := t.replay(n)
		if err != nil {
			return nil, fmt.Errorf("replay %s: %w", t.name(n), err)
		}
		if !whole {
			break // the end of what survived
		}
	}
	if err := db.LogData(nil, pebble.Sync); err != nil {
		return nil, fmt.Errorf("sync what was replayed: %w", err)
	}
	if err := t.remove(t.number + 1); err != nil {
		return nil, err
	}
	// Batches beyond a gap are void: they must not come back after the next power failure, when their numbers are
	// those of others.
	d, err := fs.OpenDir(dir)
	if err != nil {
		return nil, fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return nil, fmt.Errorf("sync %s: %w", dir, err)
	}
	return t, nil
}

func (t *through) name(n uint64) string { return throughName + strconv.FormatUint(n, 10) }

func (t *through) recorded() (uint64, error) {
	v, c, err := t.db.Get(throughKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read key %q: %w", throughKey, err)
	}
	defer c.Close()
	if len(v) != 8 {
		return 0, fmt.Errorf("key %q has %d bytes", throughKey, len(v))
	}
	return binary.LittleEndian.Uint64(v), nil
}

// replay commits what file n has above t.seq; whole says that it ends where its last batch does.
func (t *through) replay(n uint64) (whole bool, err error) {
	f, err := t.fs.Open(t.fs.PathJoin(t.dir, t.name(n)))
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	return readThrough(f, info.Size(), func(seq uint64, repr []byte) (bool, error) {
		if seq <= t.seq {
			return true, nil
		}
		if seq != t.seq+1 {
			return false, nil
		}
		b := t.db.NewBatch()
		defer b.Close()
		if err := b.SetRepr(slices.Clone(repr)); err != nil {
			return false, fmt.Errorf("batch %d: %w", seq, err)
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			return false, fmt.Errorf("batch %d: %w", seq, err)
		}
		t.seq = seq
		return true, nil
	})
}

// readThrough shows the frames of a file of this size, up to the first that is not whole or that visit does not want
// to go on after. The slice is valid only during the call.
func readThrough(r io.Reader, size int64, visit func(seq uint64, repr []byte) (more bool, err error)) (whole bool, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head := make([]byte, throughHead)
	magic := head[:len(throughMagic)]
	if ok, err := readFull(in, magic); !ok || err != nil {
		return false, err
	}
	if string(magic) != throughMagic {
		return false, nil
	}
	var buf []byte
	for size -= int64(len(magic)); size > 0; {
		if ok, err := readFull(in, head); !ok || err != nil {
			return false, err
		}
		size -= throughHead
		length := int64(binary.LittleEndian.Uint32(head))
		if length > size {
			return false, nil
		}
		buf = slices.Grow(buf[:0], int(length))[:length]
		if ok, err := readFull(in, buf); !ok || err != nil {
			return false, err
		}
		size -= length
		sum := crc32.Update(crc32.Checksum(head[8:], castagnoli), castagnoli, buf)
		if sum != binary.LittleEndian.Uint32(head[4:]) {
			return false, nil
		}
		if more, err := visit(binary.LittleEndian.Uint64(head[8:]), buf); !more || err != nil {
			return false, err
		}
	}
	return true, nil
}

// readFull is false at a premature end.
func readFull(r io.Reader, b []byte) (bool, error) {
	_, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return false, nil
	}
	return err == nil, err
}

// commit writes b to the file and commits it. full says that it is time for a sync.
func (t *through) commit(b *pebble.Batch) (full bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.guard.Err(); err != nil {
		return false, err
	}
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], t.seq+1)
	if err := b.Set(throughKey, number[:], nil); err != nil {
		return false, err
	}
	if err := t.append(b.Repr()); err != nil {
		// What reached the file is unknown: like a failed write of Pebble's log it ends the store.
		err = fmt.Errorf("write %s through: %w", t.dir, err)
		t.guard.Fail(err)
		return false, err
	}
	t.seq++
	if err := b.Commit(pebble.NoSync); err != nil {
		return false, err
	}
	return t.written >= throughMax, nil
}

func (t *through) append(repr []byte) error {
	if t.file == nil {
		f, err := t.fs.Create(t.fs.PathJoin(t.dir, t.name(t.number+1)), vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		t.file, t.written = f, 0
		if t.number++; t.oldest == 0 {
			t.oldest = t.number
		}
	}
	buf := t.buf[:0]
	if t.written == 0 {
		buf = append(buf, throughMagic...)
	}
	at := len(buf)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(repr)))
	buf = binary.LittleEndian.AppendUint32(buf, 0)
	buf = binary.LittleEndian.AppendUint64(buf, t.seq+1)
	buf = append(buf, repr...)
	binary.LittleEndian.PutUint32(buf[at+4:], crc32.Checksum(buf[at+8:], castagnoli))
	if t.buf = buf; cap(buf) > 1<<20 {
		t.buf = nil // a rare large batch
	}
	n, err := t.file.Write(buf)
	t.written += int64(n)
	return err
}

// rotate has the next batch begin a new file and returns its number: once what was committed before is durable, all
// files below may go.
func (t *through) rotate() (next uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != nil {
		f := t.file
		t.file = nil
		if err := f.Close(); err != nil {
			return 0, fmt.Errorf("close %s: %w", t.name(t.number), err)
		}
	}
	return t.number + 1, nil
}

// remove removes the files below next.
func (t *through) remove(next uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ; t.oldest != 0 && t.oldest < next; t.oldest++ {
		err := t.fs.Remove(t.fs.PathJoin(t.dir, t.name(t.oldest)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", t.name(t.oldest), err)
		}
	}
	if t.oldest > t.number {
		t.oldest = 0
	}
	return nil
}

// throughStore is a pebbleStore whose batches are written through.
type throughStore struct{ *pebbleStore }

func (s throughStore) Batch() Batch { return s.batch(true) }

func (s throughStore) Through() Store { return s }

func (s throughStore) Close() error { return errors.New("kv: close the store itself") }
