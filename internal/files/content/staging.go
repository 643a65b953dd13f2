package content

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// segmentRefs is how many chunks are named, asked for and moved at a time: about 64 MiB.
const segmentRefs = 256

// errProtocol: the peer sent what it must not send; the connection ends.
var errProtocol = fmt.Errorf("protocol violation: %w", ErrMember)

// staging assembles one large content in its part file, segment by segment. The part file is its own record of
// progress: after an interruption each chunk's place is read and compared with the recipe, so nothing has to be
// trusted that a crash may have reordered. Used by one goroutine.
type staging struct {
	s    *Store
	hash manifest.Hash
	size int64
	hint string // path whose old version may share chunks

	path    string
	f       *os.File
	earlier int64 // bytes that an interrupted attempt left: places to look at before asking
	owed    int64 // bytes of room that are kept for what is still to come

	planned int64        // end of the last segment
	expect  []piece      // asked for and not here yet, in order
	repeats []repeat     // chunks of this segment that occur in it before
	recipe  chunk.Recipe // of the whole content, unless it has too many chunks
	total   int

	seen    map[manifest.Hash]int64 // where chunks of earlier segments are
	hasher  *blake3.Hasher          // of the first `hashed` bytes
	hashed  int64
	scratch []byte

	basis  basis
	reused int64
}

type piece struct {
	offset int64
	ref    chunk.Ref
}

type repeat struct {
	piece
	from int64
}

// maxSeen bounds the memory of staging.seen and of a basis: the first 4 and 8 GiB of a content, roughly.
const (
	maxSeen  = 16 << 10
	maxBasis = 32 << 10
)

func (s *Store) beginStaging(h manifest.Hash, size int64, hint string) (*staging, error) {
	g, err := s.openStaging(h, size, hint)
	if err != nil {
		return nil, err
	}
	if err := g.reserve(); err != nil {
		return nil, errors.Join(fmt.Errorf("stage %x: %w", h[:4], err), g.abandon(false))
	}
	return g, nil
}

// openStaging is beginStaging without keeping room for what is to come.
func (s *Store) openStaging(h manifest.Hash, size int64, hint string) (*staging, error) {
	path := s.claimPart(h)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		s.unlockPart(path)
		return nil, fmt.Errorf("stage %x: %w", h[:4], err)
	}
	g := &staging{s: s, hash: h, size: size, hint: hint, path: path, f: f,
		seen: map[manifest.Hash]int64{}, hasher: blake3.New(), scratch: make([]byte, chunk.Max)}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stage %x: %w", h[:4], err), g.abandon(false))
	}
	g.earlier = min(info.Size(), size)
	return g, nil
}

// reserve keeps room for what the part file lacks.
func (g *staging) reserve() error {
	info, err := g.f.Stat()
	if err != nil {
		return err
	}
	need := g.size - min(allocated(info), g.size)
	if err := g.s.promise(need); err != nil {
		return err
	}
	g.owed = need
	return nil
}

// plan takes the next segment of the recipe, puts into place what can be found here, and returns a bitmap of
// the chunks that have to be sent, lowest bit first.
func (g *staging) plan(seg chunk.Recipe) ([]byte, error) {
	end, err := g.check(seg)
	if err != nil {
		return nil, err
	}
	if end > g.earlier {
		if err := g.f.Truncate(end); err != nil {
			return nil, fmt.Errorf("stage %x: %w", g.hash[:4], err)
		}
	}
	want := make([]byte, (len(seg)+7)/8)
	first := make(map[manifest.Hash]int64, len(seg)) // in this segment
	offset := g.planned
	for i, ref := range seg {
		p := piece{offset, ref}
		offset += int64(ref.Len)
		if from, ok := first[ref.Hash]; ok {
			g.repeats = append(g.repeats, repeat{p, from})
			continue
		}
		first[ref.Hash] = p.offset
		here, err := g.find(p)
		if err != nil {
			return nil, err
		}
		if !here {
			want[i/8] |= 1 << (i % 8)
			g.expect = append(g.expect, p)
		}
	}
	g.remember(seg, first)
	g.planned = end
	return want, g.settle()
}

func (g *staging) check(seg chunk.Recipe) (end int64, err error) {
	if len(g.expect) > 0 || len(seg) == 0 || len(seg) > segmentRefs {
		return 0, fmt.Errorf("%w: segment of %d chunks with %d awaited", errProtocol, len(seg), len(g.expect))
	}
	end = g.planned + seg.Size()
	for i, ref := range seg {
		last := end == g.size && i == len(seg)-1
		if ref.Len == 0 || ref.Len > chunk.Max || ref.Len < chunk.Min && !last {
			return 0, fmt.Errorf("%w: chunk of %d bytes", errProtocol, ref.Len)
		}
	}
	if end > g.size {
		return 0, fmt.Errorf("%w: recipe of %d bytes for a content of %d", errProtocol, end, g.size)
	}
	return end, nil
}

func (g *staging) remember(seg chunk.Recipe, first map[manifest.Hash]int64) {
	if g.total += len(seg); g.total <= recipeRefs {
		g.recipe = append(g.recipe, seg...)
	} else {
		g.recipe = nil
	}
	for h, at := range first {
		if len(g.seen) < maxSeen {
			g.seen[h] = at
		}
	}
}

// find puts a chunk into place from what this node has.
func (g *staging) find(p piece) (bool, error) {
	data := g.scratch[:p.ref.Len]
	if p.offset+int64(p.ref.Len) <= g.earlier && g.matches(g.f, p.offset, p.ref) {
		g.reused += int64(len(data))
		g.feed(p.offset, data)
		return true, nil
	}
	from, ok := g.seen[p.ref.Hash]
	if !ok || !g.matches(g.f, from, p.ref) {
		if !g.fromTable(p.ref) && !g.fromBasis(p.ref) {
			return false, nil
		}
	}
	g.reused += int64(len(data))
	return true, g.write(p.offset, data)
}

// matches reads a chunk into scratch and verifies it.
func (g *staging) matches(src io.ReaderAt, offset int64, ref chunk.Ref) bool {
	data := g.scratch[:ref.Len]
	n, err := src.ReadAt(data, offset)
	if n < len(data) || err != nil && err != io.EOF {
		return false
	}
	return blake3.Sum256(data) == ref.Hash
}

func (g *staging) write(offset int64, data []byte) error {
	// What is beyond the earlier attempt is a hole already.
	if offset < g.earlier || !zeroes(data) {
		if _, err := g.f.WriteAt(data, offset); err != nil {
			return fmt.Errorf("stage %x: %w", g.hash[:4], err)
		}
	}
	g.keep(int64(len(data)))
	g.feed(offset, data)
	return nil
}

func zeroes(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

// chunk takes the next chunk that was asked for.
func (g *staging) chunk(offset int64, data []byte) error {
	if len(g.expect) == 0 || g.expect[0].offset != offset || int(g.expect[0].ref.Len) != len(data) {
		return fmt.Errorf("%w: chunk at %d was not asked for", errProtocol, offset)
	}
	if blake3.Sum256(data) != g.expect[0].ref.Hash {
		return fmt.Errorf("stage %x: chunk at %d: %w", g.hash[:4], offset, ErrChanged)
	}
	g.expect = g.expect[1:]
	if err := g.write(offset, data); err != nil {
		return err
	}
	g.s.count(Traffic{Received: int64(len(data))})
	return g.settle()
}

// settle completes a segment once all that was asked for is here.
func (g *staging) settle() error {
	if len(g.expect) > 0 {
		return nil
	}
	for _, r := range g.repeats {
		if !g.matches(g.f, r.from, r.ref) {
			return fmt.Errorf("stage %x: chunk at %d: %w", g.hash[:4], r.from, ErrDamaged)
		}
		g.reused += int64(r.ref.Len)
		if err := g.write(r.offset, g.scratch[:r.ref.Len]); err != nil {
			return err
		}
	}
	g.repeats = g.repeats[:0]
	for g.hashed < g.planned {
		data := g.scratch[:min(int64(len(g.scratch)), g.planned-g.hashed)]
		if _, err := g.f.ReadAt(data, g.hashed); err != nil {
			return fmt.Errorf("stage %x: read back: %w", g.hash[:4], err)
		}
		g.feed(g.hashed, data)
	}
	// Begin writeback, so that the sync at the end finds little to do. Only a hint: errors show there.
	_ = unix.SyncFileRange(int(g.f.Fd()), 0, g.planned, unix.SYNC_FILE_RANGE_WRITE)
	return nil
}

// feed passes on to the whole content's hash what comes in order; settle reads back the rest.
func (g *staging) feed(offset int64, data []byte) {
	if offset == g.hashed {
		_, _ = g.hasher.Write(data) // documented never to fail
		g.hashed += int64(len(data))
	}
}

// finish verifies the whole, makes it durable and gives it its name.
func (g *staging) finish() error {
	var sum manifest.Hash
	g.hasher.Sum(sum[:0])
	if g.planned != g.size || len(g.expect) > 0 || sum != g.hash {
		return errors.Join(fmt.Errorf("stage %x: %w", g.hash[:4], ErrChanged), g.abandon(false))
	}
	if err := g.f.Truncate(g.size); err != nil {
		return g.unfinished(err, true)
	}
	if err := g.s.opts.Sync(g.f); err != nil {
		return g.unfinished(err, isFull(err) && g.uncached() == nil)
	}
	err := g.s.adopt(g.path, g.hash, g.size)
	if err == nil {
		err = g.s.nameLarge(g.hash)
	}
	if err != nil {
		return g.unfinished(err, true)
	}
	if g.recipe != nil {
		g.s.recipes.put(g.hash, g.recipe)
	}
	return g.release()
}

// unfinished ends a staging that came to its end and cannot be completed.
func (g *staging) unfinished(err error, keep bool) error {
	err = g.full(err) // while the room is kept that abandon gives back
	return errors.Join(fmt.Errorf("stage %x: %w", g.hash[:4], err), g.abandon(keep))
}

// uncached has what could not be synced read from the disk from now on. The kernel may have dropped it, tells of that once,
// and shows what memory still has: a later attempt would find it whole, sync nothing, and call it durable.
func (g *staging) uncached() error { return unix.Fadvise(int(g.f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// abandon ends an unfinished staging; keep leaves the part file for a later attempt.
func (g *staging) abandon(keep bool) error {
	var err error
	if !keep {
		err = os.Remove(g.path)
	}
	return errors.Join(err, g.release())
}

func (g *staging) release() error {
	g.keep(g.owed)
	g.s.count(Traffic{Reused: g.reused})
	err := errors.Join(g.f.Close(), g.basis.close())
	g.s.unlockPart(g.path)
	return err
}
