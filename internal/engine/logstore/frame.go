package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// A frame is one batch as it lies in a segment: the unit of a sync. docs/en/formats/log.md describes it.

const (
	blockSize  = 4096 // frames start at multiples of it: no block that holds acknowledged data is written again
	headerSize = 64

	frameMagic   = "LSL" // followed by formatLevel
	formatLevel  = 2     // 1 was a database of another kind
	maxFrameSize = 1 << 31
)

const (
	flagHead = 1 << iota // first of its segment: begins with the state of every group
	flagMark             // no batch: says only what was synced
)

var (
	errNoFrame  = errors.New("no frame")            // nothing that looks like a header
	errBadBody  = errors.New("body does not check") // the header is sound
	errNewLevel = errors.New("written by a newer version")
)

// header is what stands in front of a frame.
type header struct {
	length   uint32 // of header and body
	flags    uint8
	blocks   uint32 // of the segment, as long as it was made: 24 bits
	census   uint32 // bytes of the census that the body begins with
	sections uint32
	store    uint64 // random, the same in every frame of a store
	segment  uint64 // sequence number of the segment
	offset   uint32 // in the segment
	number   uint64 // of the batch; a mark has that of the newest batch
	synced   uint64 // batches up to this number were durable when this was written
}

func (h *header) aligned() int64 { return align(int64(h.length)) }

func align(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// put writes the header in front of a body that is complete, with the checksums of both.
func (h *header) put(frame []byte) {
	copy(frame, frameMagic)
	frame[3] = formatLevel
	le := binary.LittleEndian
	le.PutUint32(frame[4:], h.length)
	le.PutUint32(frame[8:], uint32(h.flags)|h.blocks<<8)
	le.PutUint32(frame[12:], h.census)
	le.PutUint32(frame[16:], h.sections)
	le.PutUint32(frame[20:], h.offset)
	le.PutUint64(frame[24:], h.store)
	le.PutUint64(frame[32:], h.segment)
	le.PutUint64(frame[40:], h.number)
	le.PutUint64(frame[48:], h.synced)
	le.PutUint32(frame[56:], crcOf(frame[headerSize:h.length]))
	le.PutUint32(frame[60:], crcOf(frame[:60]))
}

// parseFrame reads the frame at the start of b, which may be longer. With errBadBody the header is good and the
// body is not; with another error there is no frame.
func parseFrame(b []byte) (h header, body []byte, err error) {
	if len(b) < headerSize || string(b[:3]) != frameMagic {
		return h, nil, errNoFrame
	}
	le := binary.LittleEndian
	if le.Uint32(b[60:]) != crcOf(b[:60]) {
		return h, nil, errNoFrame
	}
	if b[3] != formatLevel {
		return h, nil, fmt.Errorf("format level %d, not %d: %w", b[3], formatLevel, errNewLevel)
	}
	h = header{
		length: le.Uint32(b[4:]), flags: b[8], blocks: le.Uint32(b[8:]) >> 8, census: le.Uint32(b[12:]), sections: le.Uint32(b[16:]), offset: le.Uint32(b[20:]),
		store: le.Uint64(b[24:]), segment: le.Uint64(b[32:]), number: le.Uint64(b[40:]), synced: le.Uint64(b[48:]),
	}
	if h.length < headerSize || uint64(h.length) > uint64(len(b)) || h.census > h.length-headerSize {
		return h, nil, errNoFrame
	}
	body = b[headerSize:h.length]
	if le.Uint32(b[56:]) != crcOf(body) {
		return h, body, errBadBody
	}
	return h, body, nil
}

// A census lists the groups that a batch says something about and in how many sections. Every frame carries the
// census of the batch before it: so one frame that is lost says whom it would have concerned.
type census []censusItem

type censusItem struct{ group, sections uint64 }

func (c census) add(group uint64) census {
	if n := len(c); n > 0 && c[n-1].group == group {
		c[n-1].sections++
		return c
	}
	return append(c, censusItem{group, 1})
}

// encode sorts and merges.
func (c census) encode(b []byte) []byte {
	slices.SortFunc(c, func(x, y censusItem) int {
		switch {
		case x.group < y.group:
			return -1
		case x.group > y.group:
			return 1
		}
		return 0
	})
	n := 0
	for i := range c {
		if n > 0 && c[n-1].group == c[i].group {
			c[n-1].sections += c[i].sections
			continue
		}
		c[n] = c[i]
		n++
	}
	for _, i := range c[:n] {
		b = binary.AppendUvarint(binary.AppendUvarint(b, i.group), i.sections)
	}
	return b
}

func decodeCensus(b []byte) (c census, err error) {
	for len(b) > 0 {
		var i censusItem
		if b, err = takeUvarints(b, &i.group, &i.sections); err != nil {
			return nil, err
		}
		c = append(c, i)
	}
	return c, nil
}

// builder collects the sections of one batch. Its buffer begins with room for the header and the census, so that
// the one copy of an entry's data is the one that is written.
type builder struct {
	buf      []byte
	start    int // where sections begin
	sections uint32
	about    census
	entries  int // in all sections
	payload  int // bytes that entries account for by themselves
}

// reset begins a batch behind the census of the one before.
func (b *builder) reset(prev []byte) {
	if cap(b.buf) > 4<<20 {
		b.buf = nil
	}
	b.buf = append(append(b.buf[:0], make([]byte, headerSize)...), prev...)
	b.start, b.sections, b.about, b.entries, b.payload = len(b.buf), 0, b.about[:0], 0, 0
}

func (b *builder) empty() bool { return b.sections == 0 }

// open begins a section and returns where.
func (b *builder) open(kind byte, group uint64) int {
	at := len(b.buf)
	b.buf = append(b.buf, make([]byte, sectionHead)...)
	b.buf = binary.AppendUvarint(append(b.buf, kind), group)
	return at
}

// close ends the section that was opened at.
func (b *builder) close(at int, group uint64) {
	le := binary.LittleEndian
	le.PutUint32(b.buf[at+4:], uint32(len(b.buf)-at-sectionHead))
	le.PutUint32(b.buf[at:], crcOf(b.buf[at+4:]))
	b.sections++
	if group != 0 {
		b.about = b.about.add(group)
	}
}

func (b *builder) numbers(vs ...uint64) {
	for _, v := range vs {
		b.buf = binary.AppendUvarint(b.buf, v)
	}
}

func (b *builder) bytes(p []byte) {
	b.buf = append(binary.AppendUvarint(b.buf, uint64(len(p))), p...)
}
