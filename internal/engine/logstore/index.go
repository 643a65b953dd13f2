package logstore

import (
	"slices"
	"sort"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// index is what is known about a group's log without reading it: bounds, terms, sizes and recent entries.
type index struct {
	start, startTerm uint64 // the log starts after this position
	last             uint64 // == start: the log is empty
	terms            []termRun
	sizes            sizes
	cache            tail
}

// termRun says that entries from index on have this term. Terms never decrease along a log, so there are
// about as many runs as there were elections.
type termRun struct{ index, term uint64 }

// reset makes the log empty.
func (x *index) reset(start, term uint64) {
	x.start, x.startTerm, x.last = start, term, start
	x.terms = x.terms[:0]
	x.sizes = sizes{origin: start + 1}
	x.cache.reset(start + 1)
}

func (x *index) append(i, term uint64, bytes int) {
	if x.last == x.start || x.terms[len(x.terms)-1].term != term {
		x.terms = append(x.terms, termRun{i, term})
	}
	x.last = i
	x.sizes.append(i, uint64(bytes))
}

// truncate drops everything above i, which is at least start.
func (x *index) truncate(i uint64) {
	if i >= x.last {
		return
	}
	x.sizes.truncate(i)
	x.cache.truncate(i)
	x.last = i
	n := len(x.terms)
	for n > 0 && x.terms[n-1].index > i {
		n--
	}
	x.terms = x.terms[:n]
}

// compact moves the start to i, which is in the log.
func (x *index) compact(i uint64) {
	x.startTerm = x.mustTerm(i)
	x.start = i
	n := 0
	for n+1 < len(x.terms) && x.terms[n+1].index <= i+1 {
		n++
	}
	if x.last == x.start {
		n = len(x.terms)
	}
	x.terms = slices.Delete(x.terms, 0, n)
	x.sizes.compact(i)
	x.cache.compact(i)
}

func (x *index) term(i uint64) (uint64, error) {
	switch {
	case i < x.start:
		return 0, raft.ErrCompacted
	case i > x.last:
		return 0, raft.ErrUnavailable
	}
	return x.mustTerm(i), nil
}

func (x *index) mustTerm(i uint64) uint64 {
	if i == x.start {
		return x.startTerm
	}
	n := sort.Search(len(x.terms), func(k int) bool { return x.terms[k].index > i })
	return x.terms[n-1].term
}

// check says whether entries lo ≤ index < hi can be read, in raft.MemoryStorage's words.
func (x *index) check(lo, hi uint64) error {
	if lo <= x.start {
		return raft.ErrCompacted
	}
	if hi > x.last+1 || x.last == x.start {
		return raft.ErrUnavailable
	}
	return nil
}

// sizes knows about how many bytes lie between two indexes: exactly at the borders of blocks of entries,
// interpolated within.
type sizes struct {
	origin uint64   // first index of block 0
	starts []uint64 // offset of each block's first entry
	end    uint64   // offset behind the last entry
	last   uint64   // last index; meaningless without blocks
}

const sizeBlock = 64

func (s *sizes) append(i, bytes uint64) {
	if (i-s.origin)/sizeBlock == uint64(len(s.starts)) {
		s.starts = append(s.starts, s.end)
	}
	s.end += bytes
	s.last = i
}

// offset of index i, which is at most last+1.
func (s *sizes) offset(i uint64) uint64 {
	if len(s.starts) == 0 || i > s.last {
		return s.end
	}
	i = max(i, s.origin)
	b := (i - s.origin) / sizeBlock
	from, to := s.starts[b], s.end
	n := s.last + 1 - (s.origin + b*sizeBlock)
	if b+1 < uint64(len(s.starts)) {
		to, n = s.starts[b+1], sizeBlock
	}
	return from + (to-from)*((i-s.origin)%sizeBlock)/n
}

func (s *sizes) truncate(i uint64) {
	s.end = s.offset(i + 1)
	if i < s.origin {
		s.starts = s.starts[:0]
	} else {
		s.starts = s.starts[:min(uint64(len(s.starts)), (i-s.origin)/sizeBlock+1)]
	}
	s.last = i
}

func (s *sizes) compact(i uint64) {
	n := min((i+1-s.origin)/sizeBlock, uint64(len(s.starts)))
	s.starts = slices.Delete(s.starts, 0, int(n))
	s.origin += n * sizeBlock
	if len(s.starts) == 0 {
		s.origin = i + 1
	}
}

// tail caches a log's newest entries, from first to the end without a gap.
type tail struct {
	first uint64
	ents  []*raftpb.Entry
	bytes int
}

// entryOverhead is about what an entry takes in memory beside its data.
const entryOverhead = 160

func cost(e *raftpb.Entry) int { return len(e.Data) + entryOverhead }

func (c *tail) reset(first uint64) {
	clear(c.ents)
	*c = tail{first: first, ents: c.ents[:0]}
}

func (c *tail) append(e *raftpb.Entry) {
	c.ents = append(c.ents, e)
	c.bytes += cost(e)
}

// evict drops the oldest entries until at most limit bytes are left.
func (c *tail) evict(limit int) {
	n := 0
	for n < len(c.ents) && c.bytes > limit {
		c.bytes -= cost(c.ents[n])
		n++
	}
	c.drop(n)
}

func (c *tail) compact(i uint64) {
	n := 0
	for n < len(c.ents) && c.first+uint64(n) <= i {
		c.bytes -= cost(c.ents[n])
		n++
	}
	c.drop(n)
	c.first = max(c.first, i+1)
}

func (c *tail) drop(n int) {
	clear(c.ents[:n])
	c.ents = c.ents[n:]
	c.first += uint64(n)
}

func (c *tail) truncate(i uint64) {
	if i < c.first {
		c.reset(i + 1)
		return
	}
	keep := i + 1 - c.first
	for _, e := range c.ents[keep:] {
		c.bytes -= cost(e)
	}
	clear(c.ents[keep:])
	c.ents = c.ents[:keep]
}

// take appends entries from index lo on to out until hi or until size, which counts what out holds already,
// would go above limit; the first entry of all is always taken.
func (c *tail) take(out []*raftpb.Entry, lo, hi, size, limit uint64) []*raftpb.Entry {
	from := c.ents[lo-c.first : hi-c.first]
	n := 0
	for ; n < len(from); n++ {
		size += entrySize(from[n])
		if size > limit && len(out)+n > 0 {
			break
		}
	}
	return append(slices.Grow(out, n), from[:n]...)
}
