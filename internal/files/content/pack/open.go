package pack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

const suffix = ".pack"

func fileName(seq uint32) string { return fmt.Sprintf("%08d%s", seq, suffix) }

// Open reads what is in dir, creating it if need be. What a crash left at the end of the newest file is cut
// off; a damaged record elsewhere is stepped over and counted.
func Open(dir string, opts Options) (*Log, error) {
	if opts.Rotate <= 0 {
		opts.Rotate = DefaultRotate
	}
	opts.Rotate = min(opts.Rotate, 1<<30)
	l := &Log{dir: dir, opts: opts, index: map[manifest.Hash]location{}, files: map[uint32]*file{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open packs: %w", err)
	}
	seqs, err := list(dir)
	if err != nil {
		return nil, fmt.Errorf("open packs: %w", err)
	}
	for i, seq := range seqs {
		if err := l.load(seq, i == len(seqs)-1); err != nil {
			return nil, errors.Join(fmt.Errorf("open packs: %w", err), l.Close())
		}
	}
	return l, nil
}

func list(dir string) ([]uint32, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var seqs []uint32
	for _, e := range names {
		digits, ok := strings.CutSuffix(e.Name(), suffix)
		seq, err := strconv.ParseUint(digits, 10, 32)
		if ok && err == nil && fileName(uint32(seq)) == e.Name() {
			seqs = append(seqs, uint32(seq))
		}
	}
	slices.Sort(seqs)
	return seqs, nil
}

func (l *Log) load(seq uint32, newest bool) error {
	f, err := os.OpenFile(filepath.Join(l.dir, fileName(seq)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p := &file{seq: seq, f: f}
	l.files[seq] = p
	l.nextSeq = seq + 1
	l.stats.Files++
	p.size, err = l.scan(p)
	if err != nil {
		return fmt.Errorf("scan %s: %w", f.Name(), err)
	}
	if newest {
		if err := f.Truncate(p.size); err != nil {
			return fmt.Errorf("cut off a torn end: %w", err)
		}
		l.active = p
	}
	p.recovered = p.size
	// The earlier process may have died before its sync: what is read here may be in the page cache only, and
	// staging it again counts on it.
	p.dirty = true
	l.dirty = append(l.dirty, p)
	l.newNames = true
	l.appended++
	l.stats.FileSize += p.size
	if p.live == 0 && !newest {
		return l.drop(p)
	}
	return nil
}

// scan indexes a file's records and returns where the last whole one ends.
func (l *Log) scan(p *file) (int64, error) {
	now := uint32(l.opts.Now().Unix())
	in := bufio.NewReaderSize(p.f, 1<<20)
	content := make([]byte, MaxContent)
	var at, end int64
	damagedAt := int64(-1) // start of what could not be read since the last whole record
	for {
		header, err := in.Peek(HeaderSize)
		if err == io.EOF {
			return end, nil
		}
		if err != nil {
			return 0, err
		}
		n, ok := headerLen(header)
		if !ok { // step through the damage until a header makes sense
			if damagedAt < 0 {
				damagedAt = at
			}
			if _, err := in.Discard(1); err != nil {
				return 0, err
			}
			at++
			continue
		}
		var head [HeaderSize]byte
		copy(head[:], header)
		if _, err := in.Discard(HeaderSize); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(in, content[:n]); err == io.EOF || err == io.ErrUnexpectedEOF {
			return end, nil
		} else if err != nil {
			return 0, err
		}
		if contentWhole(head[:], content[:n]) {
			if damagedAt >= 0 {
				l.stats.Damaged++
				damagedAt = -1
			}
			l.recover(p, manifest.Hash(head[4:36]), location{p.seq, uint32(at), uint32(n), now, 1})
			end = at + int64(HeaderSize+n)
		} else if damagedAt < 0 {
			damagedAt = at
		}
		at += int64(HeaderSize + n)
	}
}

func (l *Log) recover(p *file, h manifest.Hash, at location) {
	if _, twice := l.index[h]; twice {
		return
	}
	l.index[h] = at
	p.live++
	l.stats.Contents++
	l.stats.Bytes += int64(at.length)
}
