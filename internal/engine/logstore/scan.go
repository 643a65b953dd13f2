package logstore

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// found is a frame that a scan came upon: whole, or with a sound header alone.
type found struct {
	header
	at   int64
	body []byte
	bad  bool // the body does not check
}

// scan looks at every block of a segment for frames. It goes on after what is no frame: damage and torn writes are
// told apart by what stands behind them.
func scan(data []byte, salt uint64) (frames []found, err error) {
	for at := int64(0); at+headerSize <= int64(len(data)); {
		h, body, err := parseFrame(data[at:])
		if errors.Is(err, errNewLevel) && at == 0 {
			return nil, err
		}
		if err != nil && !errors.Is(err, errBadBody) || int64(h.offset) != at || salt != 0 && h.store != salt || h.synced+1 < h.number {
			at += blockSize
			continue
		}
		frames = append(frames, found{h, at, body, err != nil})
		if err != nil || h.flags&flagMark != 0 {
			at += blockSize
			continue
		}
		at += h.aligned()
	}
	return frames, nil
}

// of leaves the frames that belong to a segment: others are from an earlier use of the file.
func of(frames []found, seq uint64) []found {
	return slices.DeleteFunc(frames, func(f found) bool { return f.segment != seq })
}

// sections visits the sections of a frame that are sound, in order, and says whether all were.
func (f *found) each(visit func(section)) (all bool) {
	at := int(f.census)
	seen := uint32(0)
	all = true
	for at < len(f.body) {
		s, err := nextSection(f.body, at)
		if s.size == 0 {
			return false
		}
		if at += s.size; err != nil {
			all = false
			continue
		}
		seen++
		visit(s)
	}
	return all && seen == f.sections
}

// about is the frame's own census.
func (f *found) about() (c census) {
	f.each(func(s section) {
		if !onlyHeads(s.kind) {
			c = c.add(s.group)
		}
	})
	return c
}

// before is the census of the batch before the frame's own, or of the mark's.
func (f *found) before() census {
	c, err := decodeCensus(f.body[:f.census])
	if err != nil {
		return nil
	}
	return c
}

// examined is a file of the store before anything is known of the whole.
type examined struct {
	seg  *segment
	salt uint64
	head bool // its first frame is a whole head
}

// examineAll reads every file once to learn which segments there are. Leftovers are files that a crash left unfinished.
func examineAll(disk Disk, visit func(*examined)) (leftovers []string, err error) {
	names, err := disk.List()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, unfinished) {
			leftovers = append(leftovers, name)
			continue
		}
		slot, ok := slotOf(name)
		if !ok {
			return leftovers, fmt.Errorf("%s is no log segment: the directory is of another version, or not this store's", name)
		}
		x, err := examine(disk, name)
		if err != nil {
			return leftovers, fmt.Errorf("segment %s: %w", name, err)
		}
		x.seg.slot = slot
		visit(x)
	}
	return leftovers, nil
}

func examine(disk Disk, name string) (*examined, error) {
	f, err := disk.Open(name)
	if err != nil {
		return nil, err
	}
	x := &examined{seg: &segment{name: name, file: f}}
	data, err := readAll(f)
	x.seg.size = int64(len(data))
	var frames []found
	if err == nil {
		frames, err = scan(data, 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for i := range frames {
		if f := &frames[i]; !f.bad && f.segment > x.seg.seq {
			x.seg.seq, x.salt = f.segment, f.store
			x.head = f.at == 0 && f.flags&flagHead != 0
			x.seg.first = f.number
		}
		if f := &frames[i]; !f.bad && f.segment == x.seg.seq {
			x.seg.last = f.number
		}
	}
	return x, nil
}

func readAll(f File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return data, nil
}
