package content

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
)

// resultError turns a peer's result into an error; codeOK into nil.
func resultError(c code) error {
	switch c {
	case codeOK:
		return nil
	case codeChanged:
		return ErrChanged
	case codeFull:
		return fmt.Errorf("the member: %w", ErrNoSpace)
	case codeMissing:
		return errMissing
	}
	return fmt.Errorf("%w to store it; its log says why", ErrMember)
}

// A result is a code; with codeFull, what is needed, kept free and free may follow, as u64 each.
const resultMax = 1 + 3*8

// appendResult appends what err is to a peer.
func appendResult(dst []byte, err error) []byte {
	c := resultCode(err)
	dst = append(dst, byte(c))
	var room *RoomError
	if c == codeFull && errors.As(err, &room) {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(room.Need))
		dst = binary.LittleEndian.AppendUint64(dst, room.Reserve)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(room.Free))
	}
	return dst
}

// parseResult is a result's code, and the error that it is: nil for codeOK and codeGo.
func parseResult(body []byte) (c code, result error, err error) {
	switch {
	case len(body) == 1 && code(body[0]) == codeGo:
		return codeGo, nil, nil
	case len(body) == 1:
		return code(body[0]), resultError(code(body[0])), nil
	case len(body) == resultMax && code(body[0]) == codeFull:
		room := &RoomError{Need: int64(binary.LittleEndian.Uint64(body[1:])), Reserve: binary.LittleEndian.Uint64(body[9:]),
			Free: int64(binary.LittleEndian.Uint64(body[17:]))}
		if room.Need < 0 || int64(room.Reserve) < 0 || room.Free < 0 {
			break
		}
		return codeFull, room, nil
	}
	return 0, nil, fmt.Errorf("%w: result of %d bytes", errProtocol, len(body))
}

var errMissing = errors.New("the member does not have it")

func resultCode(err error) code {
	switch {
	case err == nil:
		return codeOK
	case isFull(err):
		return codeFull
	case errors.Is(err, ErrChanged):
		return codeChanged
	}
	return codeFailed
}

// sendLarge sends a large content's recipe and the chunks that the peer asks for. The caller has registered t
// and been told to go on. An error that ends only this transfer has been told to the peer.
func (c *session) sendLarge(ctx context.Context, t *transfer, w Want, src io.ReaderAt) error {
	err := c.sendSegments(ctx, t, w, src)
	if err == nil {
		return c.writeShort(kindEnd, t.id)
	}
	if c.reason() == nil && !errors.As(err, new(peerResult)) {
		err = errors.Join(err, c.writeShort(kindResult, t.id, appendResult(nil, err)...))
	}
	return err
}

// peerResult is a result with which the peer ended a transfer.
type peerResult struct{ error }

func (p peerResult) Unwrap() error { return p.error }

func (c *session) sendSegments(ctx context.Context, t *transfer, w Want, src io.ReaderAt) error {
	cutting, cancel := context.WithCancel(ctx)
	segments := make(chan segment, 1) // the next one is cut and hashed while this one moves
	var running sync.WaitGroup
	running.Go(func() { c.s.cut(cutting, w, src, segments) })
	defer running.Wait()
	defer cancel()
	out := sender{c: c, ctx: ctx, t: t, src: src, credit: credits}
	offset := int64(0)
	for seg := range segments {
		if seg.err != nil {
			return fmt.Errorf("read %x: %w", w.Hash[:4], seg.err)
		}
		if err := out.segment(offset, seg.refs); err != nil {
			return err
		}
		offset += seg.refs.Size()
	}
	return ctx.Err()
}

type segment struct {
	refs chunk.Recipe
	err  error
}

// cut names the chunks of a content, segment by segment, from the recipe if it is known. It closes out.
func (s *Store) cut(ctx context.Context, w Want, src io.ReaderAt, out chan<- segment) {
	defer close(out)
	send := func(seg segment) bool {
		select {
		case out <- seg:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if known, ok := s.recipes.get(w.Hash); ok {
		for refs := range slices.Chunk(known, segmentRefs) {
			if !send(segment{refs: refs}) {
				return
			}
		}
		return
	}
	split := chunk.NewSplitter(io.NewSectionReader(src, 0, w.Size))
	var whole chunk.Recipe
	for left := w.Size; left > 0; {
		refs, err := split.Segment(segmentRefs)
		if left -= refs.Size(); err == nil && left > 0 && len(refs) < segmentRefs {
			err = fmt.Errorf("%d of %d bytes: %w", w.Size-left, w.Size, ErrChanged)
		}
		if !send(segment{refs, err}) || err != nil {
			return
		}
		if len(whole) <= recipeRefs {
			whole = append(whole, refs...)
		}
	}
	if whole.Size() == w.Size {
		// If the file changed meanwhile it is the recipe of other bytes: who uses it finds out and drops it.
		s.recipes.put(w.Hash, whole)
	}
}

// sender is the state of one outgoing transfer.
type sender struct {
	c      *session
	ctx    context.Context
	t      *transfer
	src    io.ReaderAt
	credit int
}

func (o *sender) segment(offset int64, seg chunk.Recipe) error {
	frame := beginFrame(make([]byte, 0, frameHead+numberSize+len(seg)*refSize), kindRecipe, o.t.id)
	if err := o.c.write(finishFrame(appendRecipe(frame, seg))); err != nil {
		return err
	}
	want, err := o.awaitWant(len(seg))
	if err != nil {
		return err
	}
	for i, ref := range seg {
		if want[i/8]>>(i%8)&1 == 1 {
			if err := o.chunk(offset, ref); err != nil {
				return err
			}
		}
		offset += int64(ref.Len)
	}
	return nil
}

func (o *sender) awaitWant(n int) ([]byte, error) {
	for {
		m, err := o.c.await(o.ctx, o.t)
		if err != nil {
			return nil, err
		}
		if m.kind == kindWant {
			if len(m.body) != (n+7)/8 {
				return nil, fmt.Errorf("%w: bitmap of %d bytes for %d chunks", errProtocol, len(m.body), n)
			}
			return m.body, nil
		}
		if err := o.take(m); err != nil {
			return nil, err
		}
	}
}

// take handles what may come at any time.
func (o *sender) take(m message) error {
	switch {
	case m.kind == kindCredit:
		o.credit++
		return nil
	case m.kind == kindResult:
		_, result, err := parseResult(m.body)
		switch {
		case err != nil:
			return err
		case result != nil:
			return peerResult{result}
		}
	}
	o.c.giveBack(m.buf)
	return fmt.Errorf("%w: unexpected frame of kind %d", errProtocol, m.kind)
}

func (o *sender) chunk(offset int64, ref chunk.Ref) error {
	for o.credit == 0 {
		m, err := o.c.await(o.ctx, o.t)
		if err != nil {
			return err
		}
		if err := o.take(m); err != nil {
			return err
		}
	}
	o.credit--
	buf := o.c.s.buffers.Get().(*[]byte)
	defer o.c.giveBack(buf)
	frame := binary.LittleEndian.AppendUint64(beginFrame((*buf)[:0], kindChunk, o.t.id), uint64(offset))
	frame = frame[:chunkHead+int(ref.Len)]
	if n, err := o.src.ReadAt(frame[chunkHead:], offset); n < int(ref.Len) {
		if err == io.EOF {
			err = ErrChanged
		}
		return fmt.Errorf("read at %d: %w", offset, err)
	}
	if err := o.c.write(finishFrame(frame)); err != nil {
		return err
	}
	o.c.s.count(Traffic{Sent: int64(ref.Len)})
	return nil
}

// receiveLarge stages a large content that the peer sends. The part file survives an interruption; it survives
// a source that changed only if another may have the content still.
func (c *session) receiveLarge(ctx context.Context, t *transfer, w Want, othersHaveIt bool) error {
	g, err := c.s.beginStaging(w.Hash, w.Size, w.PathHint)
	if err != nil {
		return err
	}
	for {
		m, err := c.await(ctx, t)
		if err != nil {
			return errors.Join(err, g.abandon(true))
		}
		if m.kind == kindEnd {
			return g.finish()
		}
		if m.kind == kindResult {
			_, result, err := parseResult(m.body)
			if err = errors.Join(result, err); err == nil {
				err = errProtocol
			}
			return errors.Join(peerResult{err}, g.abandon(othersHaveIt || !errors.Is(err, ErrChanged)))
		}
		err = c.receiveFrame(g, t, m)
		c.giveBack(m.buf)
		if err != nil {
			return errors.Join(g.full(err), g.abandon(othersHaveIt || !errors.Is(err, ErrChanged)))
		}
	}
}

func (c *session) receiveFrame(g *staging, t *transfer, m message) error {
	switch {
	case m.kind == kindRecipe:
		seg, err := parseRecipe(m.body)
		if err != nil {
			return err
		}
		want, err := g.plan(seg)
		if err != nil {
			return err
		}
		return c.writeShort(kindWant, t.id, want...)
	case m.kind == kindChunk && len(m.body) > 8:
		if err := g.chunk(int64(binary.LittleEndian.Uint64(m.body)), m.body[8:]); err != nil {
			return err
		}
		return c.writeShort(kindCredit, t.id)
	}
	return fmt.Errorf("%w: unexpected frame of kind %d", errProtocol, m.kind)
}

// openLarge finds a large content for another member.
func (s *Store) openLarge(w Want) (Source, bool) {
	switch f, err := s.openStaged(w.Hash); {
	case err != nil:
		s.opts.Log.Warn("serve a staged content", "err", err)
	case f != nil:
		return f, true
	}
	if s.opts.Local == nil {
		return nil, false
	}
	return s.opts.Local(w.Hash, w.PathHint)
}

// appendSmall appends a small content's record for another member, who verifies it.
func (s *Store) appendSmall(dst []byte, w Want) ([]byte, bool) {
	if dst, ok := s.packs.AppendRecord(dst, w.Hash); ok {
		return dst, true
	}
	if s.opts.Local == nil {
		return dst, false
	}
	src, ok := s.opts.Local(w.Hash, w.PathHint)
	if !ok {
		return dst, false
	}
	out, err := appendSource(dst, w.Hash, w.Size, src)
	if err != nil {
		s.opts.Log.Debug("a placed file is not what was wanted", "hash", fmt.Sprintf("%x", w.Hash[:4]), "err", err)
		return dst, false
	}
	return out, true
}
