package place

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// The intent file says, before a batch displaces anything, to which path the names in Work/place belong. It is
// overwritten by the next batch that needs one. It is not synced: a killed process leaves it whole, and after
// a power failure that lost it, what was displaced is kept without being put back.
//
//	magic (8 bytes) | CRC-32 (IEEE) of the body, 4 bytes little endian | length of the body, 4 bytes | body
//	body: for each task uvarint number, kind byte, uvarint mode, uvarint size, varint mtime, uvarint length, path
const (
	intentName   = "intent"
	intentMagic  = "lspl\x00\x00\x00\x01"
	intentHeader = len(intentMagic) + 8
	intentMax    = 1<<31 - 1
)

// intended is what was about to be put at a path.
type intended struct {
	path  string
	kind  manifest.Kind
	mode  uint32
	size  int64
	mtime int64
}

var errIntent = errors.New("malformed intent file")

// displaces says whether a task may move something out of its place.
func (t *Task) displaces() bool {
	switch t.Have.Stat.Kind {
	case manifest.Absent:
		return false
	case manifest.Dir: // removed only where it lies
		return t.Want.Kind == manifest.File || t.Want.Kind == manifest.Symlink
	}
	return !(t.SameContent && t.Have.Stat.Kind == t.Want.Kind)
}

// writeIntent records what the batch may displace.
func (p *Placer) writeIntent(b *batch) error {
	var buf []byte
	for i := range b.tasks {
		t := &b.tasks[i]
		if b.results[i].Err != nil || !t.displaces() {
			continue
		}
		if buf == nil {
			buf = make([]byte, intentHeader, intentHeader+len(b.tasks)*(len(t.Path)+32))
		}
		buf = appendIntent(buf, b.seq+uint64(i), intended{t.Path, t.Want.Kind, p.mode(&t.Want), t.Want.Size, t.Want.MTime})
	}
	if buf == nil {
		return nil
	}
	if len(buf) > intentMax {
		return fmt.Errorf("place: a batch of %d tasks is too large", len(b.tasks))
	}
	sealIntent(buf)
	if err := writeAt(p.intent, buf, 0); err != nil {
		return fmt.Errorf("place: write %s/place/%s: %w", p.workDir, intentName, err)
	}
	return nil
}

func appendIntent(buf []byte, seq uint64, in intended) []byte {
	buf = binary.AppendUvarint(buf, seq)
	buf = append(buf, byte(in.kind))
	buf = binary.AppendUvarint(buf, uint64(in.mode))
	buf = binary.AppendUvarint(buf, uint64(in.size))
	buf = binary.AppendVarint(buf, in.mtime)
	buf = binary.AppendUvarint(buf, uint64(len(in.path)))
	return append(buf, in.path...)
}

// sealIntent fills in the header, for which buf has room at its start.
func sealIntent(buf []byte) {
	body := buf[intentHeader:]
	copy(buf, intentMagic)
	binary.LittleEndian.PutUint32(buf[len(intentMagic):], crc32.ChecksumIEEE(body))
	binary.LittleEndian.PutUint32(buf[len(intentMagic)+4:], uint32(len(body)))
}

// parseIntent reads what writeIntent wrote; what follows the body is left from an earlier, longer one.
func parseIntent(buf []byte) (map[uint64]intended, error) {
	if len(buf) < intentHeader || string(buf[:len(intentMagic)]) != intentMagic {
		return nil, errIntent
	}
	sum := binary.LittleEndian.Uint32(buf[len(intentMagic):])
	n := int64(binary.LittleEndian.Uint32(buf[len(intentMagic)+4:]))
	body := buf[intentHeader:]
	if n > int64(len(body)) || crc32.ChecksumIEEE(body[:n]) != sum {
		return nil, errIntent
	}
	out := map[uint64]intended{}
	for r := (intentReader{b: body[:n]}); len(r.b) > 0; {
		seq, in := r.next()
		if r.bad || !manifest.ValidPath(in.path) {
			return nil, errIntent
		}
		out[seq] = in
	}
	return out, nil
}

type intentReader struct {
	b   []byte
	bad bool
}

func (r *intentReader) next() (seq uint64, in intended) {
	seq = r.uvarint()
	in.kind = manifest.Kind(r.bytes(1)[0])
	in.mode = uint32(r.uvarint())
	in.size = int64(r.uvarint())
	mtime, n := binary.Varint(r.b)
	r.advance(n)
	in.mtime = mtime
	in.path = string(r.bytes(r.uvarint()))
	return seq, in
}

func (r *intentReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.advance(n)
	return v
}

func (r *intentReader) advance(n int) {
	if n <= 0 {
		r.bad, n = true, len(r.b)
	}
	r.b = r.b[n:]
}

// bytes returns the next n, or zeros (of at least one byte) if there are not so many.
func (r *intentReader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return []byte{0}
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// readIntent returns what the last batch was about to do, nothing if that cannot be read.
func (p *Placer) readIntent() (map[uint64]intended, error) {
	fd, err := openat(p.work, intentName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", intentName, err)
	}
	f := os.NewFile(uintptr(fd), intentName)
	defer f.Close()
	buf, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", intentName, err)
	}
	if len(buf) == 0 {
		return nil, nil
	}
	out, err := parseIntent(buf)
	if err != nil {
		p.log.Warn("place: displaced files cannot be put back", "work", p.workDir, "err", err)
		return nil, nil
	}
	return out, nil
}

// fresh is how the object with inode ino looked when it was put in place, as far as the intent knows.
func (in intended) fresh(ino uint64, now vfs.Info) vfs.Info {
	now.Kind, now.Ino, now.CTime = vfs.Kind(in.kind), ino, 0
	if now.Kind == vfs.File {
		now.Mode, now.Size = in.mode, in.size
	}
	if !sameMTime(now.MTime, in.mtime) {
		now.MTime = in.mtime
	}
	return now
}
