package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Item is a content to push: either Bytes, or Open and Size. Open may be called more than once.
type Item struct {
	Hash     manifest.Hash
	Size     int64
	PathHint string // where an older version may be on the member, or ""
	Bytes    []byte // small contents only; not modified, not kept
	Open     func() (Source, error)
	// Void says that nobody waits for a large content any more: if it is not offered yet it never is. nil: somebody does.
	Void func() bool
}

func (it *Item) size() int64 {
	if it.Open == nil {
		return int64(len(it.Bytes))
	}
	return it.Size
}

// PushError says which items of a Push failed while the others became durable.
type PushError struct {
	Failed map[int]error // by index in the items
}

func (e *PushError) Error() string {
	for i, err := range e.Failed {
		return fmt.Sprintf("%d contents were not pushed, number %d for one: %v", len(e.Failed), i, err)
	}
	return "no content failed"
}

// Pusher pushes contents to one member. Concurrent calls share its connection.
type Pusher struct{ peer peer }

// framesMax bounds the small contents not yet acknowledged to as many MiB.
const framesMax = 8

// Pusher returns a new one for a member. It dials when first used and again after a failure.
func (s *Store) Pusher(node uint64) *Pusher {
	return &Pusher{peer{s: s, node: node, slots: framesMax, handle: (*session).pushed}}
}

// Close ends the connection; calls that are running fail with ErrClosed, a later one dials again.
func (p *Pusher) Close() { p.peer.hangUp() }

// Push returns when all items are durable on the member, or void: nil. It returns a *PushError if some of them could not
// be pushed and the others were, with ErrChanged for a file that was modified meanwhile, ErrNoSpace, a *RoomError
// if it said how much, for what the member has no room for and ErrMember for what it could not store; and any other error if the connection failed, which leaves all in doubt.
func (p *Pusher) Push(ctx context.Context, items []Item) error {
	if len(items) == 0 {
		return nil
	}
	for {
		c, fresh, err := p.peer.acquire(ctx)
		if err != nil {
			return err
		}
		failed, err := p.push(ctx, c, items)
		c.unhold()
		if err == nil && len(failed) > 0 {
			return &PushError{failed}
		}
		if err == nil || fresh || ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return err
		}
		// The connection may have been dead before: once more on a new one. Staging twice is harmless.
	}
}

// push is one attempt on one session.
func (p *Pusher) push(ctx context.Context, c *session, items []Item) (map[int]error, error) {
	j := &pushJob{p: p, c: c, ctx: ctx, items: items, failed: map[int]error{}}
	var large []int
	for i := range items {
		if items[i].Open != nil && items[i].Size > SmallMax {
			large = append(large, i)
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	if len(large) > 0 {
		running.Go(func() { j.pushLarge(large) })
	}
	err := j.pushSmall()
	running.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && j.broken != nil {
		err = j.broken
	}
	if err != nil {
		return nil, fmt.Errorf("push to node %d: %w", p.peer.node, err)
	}
	return j.failed, nil
}

type pushJob struct {
	p     *Pusher
	c     *session
	ctx   context.Context
	items []Item

	mu     sync.Mutex
	failed map[int]error
	broken error // the connection's
}

func (j *pushJob) fail(i int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failed[i] = err
}

// sentFrame is a frame of small contents until it is acknowledged.
type sentFrame struct {
	items []int // of the job, in the frame's order
	job   *pushJob
	done  chan struct{}
}

// pushSmall sends the small items and waits for their acknowledgement.
func (j *pushJob) pushSmall() error {
	buf := j.p.peer.s.buffers.Get().(*[]byte)
	defer j.c.giveBack(buf)
	var sent []*sentFrame
	frame := beginFrame((*buf)[:0], kindSmall, 0)
	var inFrame []int
	flush := func() error {
		f, err := j.sendFrame(frame, inFrame)
		if f != nil {
			sent = append(sent, f)
		}
		frame, inFrame = beginFrame((*buf)[:0], kindSmall, 0), nil
		return err
	}
	for i := range j.items {
		it := &j.items[i]
		size := it.size()
		if size > SmallMax && it.Open != nil {
			continue
		}
		if size < 0 || size > SmallMax {
			j.fail(i, fmt.Errorf("small content of %d bytes", size))
			continue
		}
		if len(frame)+pack.HeaderSize+int(size) > frameHead+numberSize+recordsMax {
			if err := flush(); err != nil {
				return err
			}
		}
		grown, err := appendItem(frame, it)
		if err != nil {
			j.fail(i, err)
			continue
		}
		frame = grown
		inFrame = append(inFrame, i)
	}
	if len(inFrame) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	return j.awaitFrames(sent)
}

func (j *pushJob) awaitFrames(sent []*sentFrame) error {
	for _, f := range sent {
		if err := j.c.wait(j.ctx, f.done); err != nil {
			return err
		}
	}
	return nil
}

// sendFrame waits for the window, numbers the frame and sends it; frames go out in the order of their numbers.
func (j *pushJob) sendFrame(frame []byte, items []int) (*sentFrame, error) {
	if err := j.c.slot(j.ctx, j.c.smallSlots); err != nil {
		return nil, err
	}
	f := &sentFrame{items: items, job: j, done: make(chan struct{})}
	j.c.writing.Lock()
	defer j.c.writing.Unlock()
	if !j.c.awaitAck(f, frame) {
		return nil, j.c.reason()
	}
	if err := j.c.writeLocked(finishFrame(frame)); err != nil {
		return nil, err
	}
	j.c.s.count(Traffic{Sent: int64(len(frame) - len(items)*pack.HeaderSize)})
	return f, nil
}

// awaitAck registers a frame under the next number, unless the session has ended.
func (c *session) awaitAck(f *sentFrame, frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return false
	}
	c.lastFrame++
	setNumber(frame, c.lastFrame)
	c.frames[c.lastFrame] = f
	return true
}

func appendItem(dst []byte, it *Item) ([]byte, error) {
	if it.Open == nil {
		dst, body := appendHeader(dst, it.Hash, len(it.Bytes))
		copy(body, it.Bytes)
		return dst, nil
	}
	src, err := it.Open()
	if err != nil {
		return dst, err
	}
	return appendSource(dst, it.Hash, it.Size, src)
}

// appendHeader appends a record's header and room for the content, which is returned too.
func appendHeader(dst []byte, h manifest.Hash, size int) (grown, body []byte) {
	base := len(dst)
	dst = append(dst, make([]byte, pack.HeaderSize+size)...)
	pack.PutHeader(dst[base:], h, size)
	return dst, dst[base+pack.HeaderSize:]
}

// appendSource appends the record of a small content and closes its source; it must have just that size.
func appendSource(dst []byte, h manifest.Hash, size int64, src Source) ([]byte, error) {
	out, body := appendHeader(dst, h, int(size))
	_, err := io.ReadFull(src, body)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("shorter than %d bytes: %w", size, ErrChanged)
	}
	if err == nil {
		var more [1]byte
		if n, _ := src.Read(more[:]); n > 0 {
			err = fmt.Errorf("longer than %d bytes: %w", size, ErrChanged)
		}
	}
	if err = errors.Join(err, src.Close()); err != nil {
		return dst, err
	}
	return out, nil
}

// pushed handles what a member answers to a Pusher.
func (c *session) pushed(k kind, number uint64, body []byte) error {
	switch k {
	case kindAck:
		return c.acknowledged(number)
	case kindRefuse:
		why, indices, err := parseRefusal(body)
		if err != nil {
			return err
		}
		return c.refused(number, why, indices)
	}
	return fmt.Errorf("%w: frame kind %d to a pusher", errProtocol, k)
}

func (c *session) acknowledged(upTo uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if upTo > c.lastFrame {
		return fmt.Errorf("%w: frame %d acknowledged, %d sent", errProtocol, upTo, c.lastFrame)
	}
	for ; c.oldest <= upTo; c.oldest++ {
		f := c.frames[c.oldest]
		delete(c.frames, c.oldest)
		close(f.done)
		<-c.smallSlots
	}
	return nil
}

func (c *session) refused(number uint64, why code, indices []uint32) error {
	c.mu.Lock()
	f := c.frames[number]
	c.mu.Unlock()
	if f == nil || why == codeOK {
		return fmt.Errorf("%w: refusal of frame %d", errProtocol, number)
	}
	if len(indices) == 0 {
		for _, i := range f.items {
			f.job.fail(i, resultError(why))
		}
	}
	for _, i := range indices {
		if int(i) >= len(f.items) {
			return fmt.Errorf("%w: refusal of record %d of %d", errProtocol, i, len(f.items))
		}
		f.job.fail(f.items[i], resultError(why))
	}
	return nil
}

// pushLarge sends large items, a few at a time.
func (j *pushJob) pushLarge(items []int) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, i := range items {
		if err := j.c.slot(j.ctx, j.c.largeSlots); err != nil {
			j.lose(err)
			return
		}
		running.Go(func() {
			defer func() { <-j.c.largeSlots }()
			if err := j.c.pushOne(j.ctx, &j.items[i]); err != nil {
				j.fail(i, err)
				j.lose(j.c.reason())
			}
		})
	}
}

// lose notes why the job cannot go on, if reason is not nil.
func (j *pushJob) lose(reason error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = reason
	}
}

// pushOne offers one large content, sends what the member lacks and waits until it is durable there.
func (c *session) pushOne(ctx context.Context, it *Item) error {
	if len(it.PathHint) > hintMax {
		return fmt.Errorf("path hint of %d bytes", len(it.PathHint))
	}
	if it.Void != nil && it.Void() {
		return nil
	}
	w := Want{Hash: it.Hash, Size: it.Size, PathHint: it.PathHint}
	t, ok := c.begin(c.number())
	if !ok {
		return c.reason()
	}
	defer c.finish(t)
	if err := c.write(finishFrame(appendWant(beginFrame(nil, kindOffer, t.id), w))); err != nil {
		return err
	}
	if done, err := c.awaitResult(ctx, t); done || err != nil {
		return err
	}
	src, err := it.Open()
	if err != nil {
		return errors.Join(err, c.writeShort(kindResult, t.id, byte(codeFailed)))
	}
	err = c.sendLarge(ctx, t, w, src)
	err = errors.Join(err, src.Close())
	if err == nil {
		_, err = c.awaitResult(ctx, t)
	}
	if errors.Is(err, ErrChanged) {
		c.s.recipes.drop(it.Hash)
	}
	return err
}

// awaitResult returns true when the member has the content, false when it may be sent.
func (c *session) awaitResult(ctx context.Context, t *transfer) (bool, error) {
	for {
		m, err := c.await(ctx, t)
		if err != nil {
			return false, err
		}
		switch {
		case m.kind == kindCredit:
		case m.kind == kindResult:
			c, result, err := parseResult(m.body)
			if err != nil {
				return false, err
			}
			return c != codeGo, result
		default:
			c.giveBack(m.buf)
			return false, fmt.Errorf("%w: unexpected frame of kind %d", errProtocol, m.kind)
		}
	}
}
