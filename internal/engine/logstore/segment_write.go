package logstore

import (
	"fmt"
	"maps"
	"slices"
)

// write makes the batch in b durable: as the next frame of the current segment, or as the head of another.
func (s *segStore) write(b *builder) (base int64, err error) {
	about := b.about.encode(nil)
	room := align(int64(len(b.buf))) + markSize(about)
	if s.current == nil || s.at+room > s.current.size {
		if err := s.advance(b, markSize(about)); err != nil {
			return 0, err
		}
	}
	s.number++
	if s.at == 0 {
		s.current.first = s.number
	}
	h := header{
		length: uint32(len(b.buf)), census: uint32(len(s.prev)), sections: b.sections, store: s.salt,
		segment: s.current.seq, blocks: s.current.blocks(), offset: uint32(s.at), number: s.number, synced: s.number - 1,
	}
	if s.at == 0 {
		h.flags = flagHead
	}
	base = s.at
	frame := padded(b)
	h.put(frame)
	if err := s.current.file.WriteSync(frame, s.at); err != nil {
		return 0, fmt.Errorf("segment %s at %d: %w", s.current.name, s.at, err)
	}
	s.at += int64(len(frame))
	s.prev = append(s.prev[:0], about...)
	s.current.last = s.number
	return base, nil
}

// padded is the batch with zeros up to a whole number of blocks. The header's room is at its front.
func padded(b *builder) []byte {
	n := len(b.buf)
	end := int(align(int64(n)))
	b.buf = slices.Grow(b.buf, end-n)
	frame := b.buf[:end]
	clear(frame[n:])
	return frame
}

func markSize(about []byte) int64 { return align(int64(headerSize + len(about))) }

// advance begins another segment: the batch gets the state of every group in front.
func (s *segStore) advance(b *builder, mark int64) error {
	if err := s.mark(lazily); err != nil { // the last batch's witness, where it lasts as long as the batch
		return err
	}
	s.settle()
	var head builder
	head.reset(s.prev)
	s.describe(&head)
	need := align(int64(len(head.buf)+len(b.buf))) + mark
	if need > maxFrameSize {
		return fmt.Errorf("a batch of %d bytes is too large", len(b.buf))
	}
	seg, err := s.ring.take(need)
	if err != nil {
		return err
	}
	seg.seq = 1
	if s.current != nil {
		seg.seq = s.current.seq + 1
	}
	if s.before != nil {
		s.sealed = append(s.sealed, s.before)
	}
	s.before, s.current, s.at = s.current, seg, 0
	s.shift(b, &head)
	s.mover.plan(s)
	return nil
}

// shift puts the sections of head in front of those of b, and moves what is known of their places.
func (s *segStore) shift(b, head *builder) {
	by := len(head.buf) - b.start
	for i := range s.staged {
		s.staged[i].at += by
	}
	head.buf = append(head.buf, b.buf[b.start:]...)
	b.buf, b.start = head.buf, b.start+by
	b.sections += head.sections
}

// settle gives segments that hold nothing live back to the ring. The one before the current one stays: its head
// stands in for a current head that is found damaged.
func (s *segStore) settle() {
	kept := s.sealed[:0]
	for _, seg := range s.sealed {
		if seg.runs > 0 {
			kept = append(kept, seg)
			continue
		}
		s.ring.give(seg)
	}
	clear(s.sealed[len(kept):])
	s.sealed = kept
	s.ring.shrink(len(kept)/4 + s.opts.Reserve + 1)
}

// describe writes what a head says: whose it is, the segments with live entries, and every group as the batches before left it.
func (s *segStore) describe(head *builder) {
	var list []sealedSegment
	for _, seg := range s.files() {
		if seg.runs > 0 {
			list = append(list, sealedSegment{seg.seq, seg.first, seg.last})
		}
	}
	head.owner(s.owner)
	head.segments(list)
	for _, id := range slices.Sorted(maps.Keys(s.groups)) {
		if s.bad[id] != nil {
			continue
		}
		st := s.groups[id].state()
		head.state(id, &st)
	}
	for _, id := range slices.Sorted(maps.Keys(s.bad)) {
		head.state(id, &groupState{damaged: true})
	}
}

// mark says behind the last frame that it is durable. Idle's waits for no sync: the next frame says the same in its
// place, and until then it outlives the process.
func (s *segStore) mark(write func(f File, p []byte, off int64) error) error {
	about := s.prev
	if s.current != nil && s.at+markSize(about) > s.current.size {
		about = nil // then it says no more than what was synced
	}
	if s.current == nil || s.at+markSize(about) > s.current.size {
		return nil
	}
	frame := make([]byte, markSize(about))
	copy(frame[headerSize:], about)
	h := header{
		length: uint32(headerSize + len(about)), flags: flagMark, census: uint32(len(about)), store: s.salt,
		segment: s.current.seq, blocks: s.current.blocks(), offset: uint32(s.at), number: s.number, synced: s.number,
	}
	h.put(frame)
	if err := write(s.current.file, frame, s.at); err != nil {
		return s.fail(fmt.Errorf("write log: mark in segment %s: %w", s.current.name, err))
	}
	return nil
}

// lazily writes without waiting for the disk.
func lazily(f File, p []byte, off int64) error {
	_, err := f.WriteAt(p, off)
	return err
}

// Idle implements Store: it marks what is durable.
func (s *segStore) Idle() error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.mark(lazily)
}
