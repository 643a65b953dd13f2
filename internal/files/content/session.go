package content

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// session is one connection, in the roles of both sides. Its reader hands frames to whoever awaits them and
// never blocks on them: all that may be in flight is bounded by what the protocol lets the peer send.
type session struct {
	s    *Store
	conn net.Conn
	in   *bufio.Reader

	writing sync.Mutex
	spoke   bool // something was written since the last beat; guarded by writing

	mu        sync.Mutex
	transfers map[uint64]*transfer
	frames    map[uint64]*sentFrame // small frames not yet acknowledged
	oldest    uint64                // number of the first of them
	gets      map[uint64]chan struct{}
	last      uint64 // number last given to a transfer or request
	lastFrame uint64 // and to a frame of small contents
	users     int    // calls that hold the session
	idleSince time.Time
	ended     error

	smallSlots chan struct{} // small frames, or requests for small contents, that are unanswered
	largeSlots chan struct{} // large contents that this side has begun or asked for

	done    chan struct{} // closed when ended is set
	running sync.WaitGroup
}

// transfer is one large content on its way, at either end.
type transfer struct {
	id uint64
	in chan message
}

type message struct {
	kind kind
	body []byte  // after the id
	buf  *[]byte // to give back, if the body is in a pooled buffer
}

// credits is how many chunks a sender may have on the way; queued is what a transfer's queue must hold then.
const (
	credits = 4
	queued  = 2*credits + 4
	// transfersMax is how many large contents travel at a time on a connection, each way.
	transfersMax = 2
)

func newSession(s *Store, conn net.Conn, smallSlots int) *session {
	c := &session{
		smallSlots: make(chan struct{}, smallSlots), largeSlots: make(chan struct{}, transfersMax),
		s: s, conn: conn, transfers: map[uint64]*transfer{}, frames: map[uint64]*sentFrame{},
		gets: map[uint64]chan struct{}{}, oldest: 1, idleSince: time.Now(), done: make(chan struct{}),
	}
	c.in = bufio.NewReaderSize(stallReader{c}, 64<<10)
	return c
}

// stallReader fails when nothing at all arrives for the stall time.
type stallReader struct{ c *session }

func (r stallReader) Read(p []byte) (int, error) {
	if err := r.c.conn.SetReadDeadline(time.Now().Add(r.c.s.opts.Stall)); err != nil {
		return 0, err
	}
	return r.c.conn.Read(p)
}

// end closes the connection and wakes all who wait; the first reason counts.
func (c *session) end(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return
	}
	c.ended = reason
	// The connection is given up: there is nobody to tell that closing it failed.
	_ = c.conn.Close()
	close(c.done)
}

func (c *session) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// write sends one finished frame. The peer has the stall time for each 64 KiB.
func (c *session) write(frame []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.writeLocked(frame)
}

func (c *session) writeLocked(frame []byte) error {
	c.spoke = true
	for len(frame) > 0 {
		n := min(len(frame), 64<<10)
		err := c.conn.SetWriteDeadline(time.Now().Add(c.s.opts.Stall))
		if err == nil {
			_, err = c.conn.Write(frame[:n])
		}
		if err != nil {
			c.end(fmt.Errorf("content stream: write: %w", err))
			return c.reason()
		}
		frame = frame[n:]
	}
	return nil
}

func (c *session) writeShort(k kind, number uint64, body ...byte) error {
	var space [frameHead + numberSize + 64]byte
	return c.write(finishFrame(append(beginFrame(space[:0], k, number), body...)))
}

// beat tells the peer now and then that this side lives, and ends a dialled session that nobody uses.
func (c *session) beat(dialled bool) {
	tick := time.NewTicker(c.s.opts.Stall / 4)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		if dialled && c.unused() {
			c.end(errIdle)
			return
		}
		if !c.writing.TryLock() {
			continue // a frame is on its way
		}
		if !c.spoke {
			// A failure has ended the session, which the next turn sees.
			_ = c.writeLocked([]byte{0, 0, 0, 0, byte(kindPing)})
		}
		c.spoke = false
		c.writing.Unlock()
	}
}

var errIdle = errors.New("content stream: closed for want of use")

func (c *session) unused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.users == 0 && time.Since(c.idleSince) > c.s.opts.Idle
}

// hold keeps the session from being closed as idle; false if it has ended.
func (c *session) hold() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return false
	}
	c.users++
	return true
}

func (c *session) unhold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users--
	c.idleSince = time.Now()
}

// next reads one frame. Bodies of records and chunks are in a pooled buffer that the receiver gives back.
func (c *session) next() (k kind, body []byte, buf *[]byte, err error) {
	head, err := c.in.Peek(frameHead)
	if err != nil {
		return 0, nil, nil, err
	}
	k, n, err := parseHead(head)
	if err != nil {
		return 0, nil, nil, err
	}
	if _, err := c.in.Discard(frameHead); err != nil {
		return 0, nil, nil, err
	}
	switch k {
	case kindSmall, kindFound, kindChunk:
		buf = c.s.buffers.Get().(*[]byte)
		body = (*buf)[:n]
	default:
		body = make([]byte, n)
	}
	if _, err := io.ReadFull(c.in, body); err != nil {
		c.giveBack(buf)
		return 0, nil, nil, err
	}
	return k, body, buf, nil
}

func (c *session) giveBack(buf *[]byte) {
	if buf != nil {
		c.s.buffers.Put(buf)
	}
}

// read hands frames to their receivers until the connection ends; handle takes those that are not of a
// transfer, and the buffer with them only until it returns.
func (c *session) read(handle func(k kind, number uint64, body []byte) error) {
	for {
		k, body, buf, err := c.next()
		if err != nil {
			c.end(fmt.Errorf("content stream: read: %w", err))
			return
		}
		if k == kindPing {
			continue
		}
		if k == kindHello {
			c.end(fmt.Errorf("content stream: %w: second hello", errProtocol))
			return
		}
		number, body := binary.LittleEndian.Uint64(body), body[numberSize:]
		switch k {
		case kindRecipe, kindChunk, kindEnd, kindWant, kindCredit, kindResult:
			err = c.deliver(number, message{k, body, buf})
		default:
			err = handle(k, number, body)
			c.giveBack(buf)
		}
		if err != nil {
			c.end(fmt.Errorf("content stream: %w", err))
			return
		}
	}
}

func (c *session) deliver(id uint64, m message) error {
	c.mu.Lock()
	t := c.transfers[id]
	c.mu.Unlock()
	if t == nil { // it has ended here and the peer does not know yet
		c.giveBack(m.buf)
		return nil
	}
	select {
	case t.in <- m:
		return nil
	default:
		c.giveBack(m.buf)
		return fmt.Errorf("%w: more frames than were allowed", errProtocol)
	}
}

// number gives the next number of this side.
func (c *session) number() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	return c.last
}

// begin registers a transfer; false if the id is in use or the session has ended.
func (c *session) begin(id uint64) (*transfer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transfers[id] != nil || c.ended != nil {
		return nil, false
	}
	t := &transfer{id, make(chan message, queued)}
	c.transfers[id] = t
	return t, true
}

// finish forgets the transfer and gives back what was queued.
func (c *session) finish(t *transfer) {
	c.mu.Lock()
	delete(c.transfers, t.id)
	c.mu.Unlock()
	for {
		select {
		case m := <-t.in:
			c.giveBack(m.buf)
		default:
			return
		}
	}
}

// slot takes one of the slots, unless the session or ctx ends first.
func (c *session) slot(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-c.done:
		return c.reason()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait returns when ch is closed, or with an error if the session or ctx ends first.
func (c *session) wait(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-c.done:
		return c.reason()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await returns the transfer's next frame.
func (c *session) await(ctx context.Context, t *transfer) (message, error) {
	select {
	case m := <-t.in:
		return m, nil
	default:
	}
	select {
	case m := <-t.in:
		return m, nil
	case <-c.done:
		return message{}, c.reason()
	case <-ctx.Done():
		return message{}, ctx.Err()
	}
}
