// Package chunk cuts contents at places that their bytes decide, so that an insertion moves the cuts near it
// and no others, and two versions of a large file share most of their chunks.
//
// The method is FastCDC (Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data
// Deduplication", USENIX ATC 2016): a gear rolling hash over the last 64 bytes, no look at the first Min bytes
// of a chunk, and normalised chunking: a stricter mask before the wanted size, a looser one after it.
//
// Cut points are part of what is remembered on disk and compared between members: the table, the masks and the
// sizes never change without a new wire version. It is pure: no goroutine, no clock, no file of its own.
package chunk

import (
	"io"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

const (
	Min = 64 << 10  // no chunk is shorter, except the last of a content
	Avg = 256 << 10 // where the mask changes; about the mean length
	Max = 1 << 20   // no chunk is longer
)

// The hash's high bits have seen the most bytes, so the masks sit there: two bits more than log2(Avg) before
// Avg, two fewer after it (normalisation level 2 of the paper).
const (
	maskStrict = (1<<20 - 1) << 44
	maskLoose  = (1<<16 - 1) << 48
)

// Seed of the gear table: the ASCII bytes of "Lockstep". The table is the first 256 outputs of splitmix64
// (Steele, Lea, Flood 2014) from it.
const Seed = 0x4c6f636b73746570

var gear = gearTable() // read only

func gearTable() (table [256]uint64) {
	state := uint64(Seed)
	for i := range table {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		table[i] = z ^ z>>31
	}
	return table
}

// Ref names one chunk of a content.
type Ref struct {
	Hash manifest.Hash // BLAKE3-256 of the chunk
	Len  uint32        // 1 … Max
}

// Recipe is a content as its chunks in order.
type Recipe []Ref

// Size is the content's length in bytes.
func (r Recipe) Size() int64 {
	var n int64
	for _, c := range r {
		n += int64(c.Len)
	}
	return n
}

// Cut returns the length of the first chunk of data, which must hold at least Max bytes or all that is left of
// the content. It is 0 only for empty data.
func Cut(data []byte) int {
	if len(data) <= Min {
		return len(data)
	}
	data = data[:min(len(data), Max)]
	table := &gear
	var fp uint64
	strict := data[:min(len(data), Avg)]
	for i := Min; i < len(strict); i++ {
		fp = fp<<1 + table[strict[i]]
		if fp&maskStrict == 0 {
			return i + 1
		}
	}
	for i := len(strict); i < len(data); i++ {
		fp = fp<<1 + table[data[i]]
		if fp&maskLoose == 0 {
			return i + 1
		}
	}
	return len(data)
}

// Splitter reads a content and yields its chunks. It holds one buffer of 4 × Max.
type Splitter struct {
	src        io.Reader
	buf        []byte
	start, end int // unread part of buf
	err        error
}

// NewSplitter starts at the reader's current position.
func NewSplitter(src io.Reader) *Splitter {
	return &Splitter{src: src, buf: make([]byte, 4*Max)}
}

// Next returns the next chunk, valid until the next call, or io.EOF after the last one, or the reader's error.
func (s *Splitter) Next() ([]byte, error) {
	if s.end-s.start < Max && s.err == nil {
		s.fill()
	}
	if s.err != nil && s.err != io.EOF {
		return nil, s.err
	}
	n := Cut(s.buf[s.start:s.end])
	if n == 0 {
		return nil, io.EOF
	}
	s.start += n
	return s.buf[s.start-n : s.start], nil
}

func (s *Splitter) fill() {
	s.end = copy(s.buf, s.buf[s.start:s.end])
	s.start = 0
	for empty := 0; s.end < len(s.buf) && s.err == nil; {
		n, err := s.src.Read(s.buf[s.end:])
		s.end += n
		s.err = err
		if n > 0 || err != nil {
			empty = 0
		} else if empty++; empty == 100 {
			s.err = io.ErrNoProgress
		}
	}
}

// Segment returns the next chunks' names, at most limit of them and none at the end of the content.
func (s *Splitter) Segment(limit int) (Recipe, error) {
	refs := make(Recipe, 0, limit)
	for len(refs) < limit {
		data, err := s.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		refs = append(refs, Ref{Hash: blake3.Sum256(data), Len: uint32(len(data))})
	}
	return refs, nil
}
