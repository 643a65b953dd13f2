package content

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
)

// Serve answers one connection that another member dialled, until it ends or ctx does; it closes conn. The
// error says why the connection ended: io.EOF at its core when the other side hung up.
func (s *Store) Serve(ctx context.Context, conn net.Conn) error {
	c := newSession(s, conn, 0)
	stop := context.AfterFunc(ctx, func() { c.end(ctx.Err()) })
	defer stop()
	k, body, buf, err := c.next()
	c.giveBack(buf)
	if err == nil {
		err = checkHello(k, body)
	}
	if err != nil {
		c.end(fmt.Errorf("content stream: %w", err))
		return c.reason()
	}
	transfers, cancel := context.WithCancel(ctx)
	v := &server{c: c, ctx: transfers, requests: make(chan request, requestsMax),
		moving: make(chan struct{}, transfersMax), wake: make(chan struct{}, 1)}
	c.running.Go(func() { c.beat(false) })
	c.running.Go(v.acknowledge)
	c.running.Go(v.answer)
	c.read(v.handle)
	cancel()
	c.running.Wait()
	return c.reason()
}

const (
	requestsMax = 4  // requests for small contents that may be unanswered
	waitingMax  = 64 // large contents a peer may have begun or asked for; transfersMax of them move
)

type server struct {
	c        *session
	ctx      context.Context
	requests chan request  // for small contents
	moving   chan struct{} // slots of large contents, either way
	wake     chan struct{} // something was appended

	mu       sync.Mutex
	received uint64 // number of the last small frame appended
	waiting  int    // large transfers begun and not ended
}

type request struct {
	number uint64
	body   []byte
}

func (v *server) handle(k kind, number uint64, body []byte) error {
	switch k {
	case kindSmall:
		return v.small(number, body)
	case kindOffer:
		return v.large(number, body, v.receive)
	case kindGetSmall:
		select {
		case v.requests <- request{number, body}:
			return nil
		default:
			return fmt.Errorf("%w: more than %d requests at a time", errProtocol, requestsMax)
		}
	case kindGetLarge:
		return v.large(number, body, v.send)
	}
	return fmt.Errorf("%w: frame kind %d to a server", errProtocol, k)
}

// small appends a frame of contents and lets acknowledge know.
func (v *server) small(number uint64, records []byte) error {
	if number != v.received+1 {
		return fmt.Errorf("%w: frame %d after %d", errProtocol, number, v.received)
	}
	var refused []uint32
	n := len(records)
	err := v.c.s.stage(records, func(i int) { refused = append(refused, uint32(i)) })
	switch {
	case errors.Is(err, pack.ErrMalformed):
		return fmt.Errorf("%w: %w", errProtocol, err)
	case err != nil:
		v.c.s.opts.Log.Error("stage pushed contents", "err", err)
		err = v.refuse(number, resultCode(err), nil)
	case len(refused) > 0:
		err = v.refuse(number, codeChanged, refused)
	}
	if err != nil {
		return err
	}
	v.c.s.count(Traffic{Received: int64(n)})
	v.mu.Lock()
	v.received = number
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default:
	}
	return nil
}

func (v *server) refuse(number uint64, why code, indices []uint32) error {
	return v.c.write(finishFrame(appendRefusal(beginFrame(nil, kindRefuse, number), why, indices)))
}

// acknowledge syncs what was appended and says so: one sync for all frames that came during the last one.
func (v *server) acknowledge() {
	for {
		select {
		case <-v.c.done:
			return
		case <-v.wake:
		}
		v.mu.Lock()
		upTo := v.received
		v.mu.Unlock()
		if err := v.c.s.Sync(); err != nil {
			// Nothing may be promised any more: the pusher learns it from the broken connection.
			v.c.s.opts.Log.Error("sync pushed contents", "err", err)
			v.c.end(fmt.Errorf("content stream: %w", err))
			return
		}
		if v.c.writeShort(kindAck, upTo) != nil {
			return // the session has ended
		}
	}
}

// large runs a large transfer in a goroutine of its own, once a slot is free. More may wait than move: a peer
// that gave one up may begin another before this side has noticed.
func (v *server) large(id uint64, body []byte, run func(t *transfer, w Want)) error {
	w, err := parseLarge(body)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiting == waitingMax {
		return fmt.Errorf("%w: more than %d large contents at a time", errProtocol, waitingMax)
	}
	t, ok := v.c.begin(id)
	if !ok {
		return fmt.Errorf("%w: transfer %d begun twice", errProtocol, id)
	}
	v.waiting++
	v.c.running.Go(func() {
		if v.c.slot(v.ctx, v.moving) == nil {
			run(t, w)
			<-v.moving
		}
		v.c.finish(t)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.waiting--
	})
	return nil
}

// receive takes an offered content and tells the peer when it is durable, or why not.
func (v *server) receive(t *transfer, w Want) {
	end, err := v.c.s.coming(v.ctx, w.Hash)
	if err != nil {
		return // the session ends
	}
	defer end()
	if v.c.s.reuse(v.ctx, w, true) {
		v.result(t, codeOK)
		return
	}
	v.result(t, codeGo)
	err = v.c.receiveLarge(v.ctx, t, w, false)
	if errors.Is(err, errProtocol) {
		v.c.end(fmt.Errorf("content stream: %w", err))
	} else if err != nil && v.c.reason() == nil {
		v.c.s.opts.Log.Warn("receive a large content", "hash", fmt.Sprintf("%x", w.Hash[:4]), "err", err)
	}
	_ = v.c.writeShort(kindResult, t.id, appendResult(nil, err)...) // as in result
}

// result tells the peer; a failure to has ended the session, which everyone sees.
func (v *server) result(t *transfer, r code) { _ = v.c.writeShort(kindResult, t.id, byte(r)) }

// send sends a content that the peer asked for.
func (v *server) send(t *transfer, w Want) {
	src, ok := v.c.s.openLarge(w)
	if !ok {
		v.result(t, codeMissing)
		return
	}
	err := errors.Join(v.c.sendLarge(v.ctx, t, w, src), src.Close())
	if errors.Is(err, ErrChanged) {
		v.c.s.recipes.drop(w.Hash)
	}
	if err != nil && v.c.reason() == nil {
		v.c.s.opts.Log.Warn("send a large content", "hash", fmt.Sprintf("%x", w.Hash[:4]), "err", err)
	}
}

// answer sends the small contents that are asked for, request by request.
func (v *server) answer() {
	buf := v.c.s.buffers.Get().(*[]byte)
	defer v.c.giveBack(buf)
	for {
		select {
		case <-v.c.done:
			return
		case r := <-v.requests:
			if err := v.answerOne(r, *buf); err != nil {
				v.c.end(fmt.Errorf("content stream: %w", err))
				return
			}
		}
	}
}

func (v *server) answerOne(r request, buf []byte) error {
	frame := beginFrame(buf[:0], kindFound, r.number)
	empty := len(frame)
	flush := func() error {
		v.c.s.count(Traffic{Sent: int64(len(frame) - empty)})
		err := v.c.write(finishFrame(frame))
		frame = beginFrame(buf[:0], kindFound, r.number)
		return err
	}
	for rest := r.body; len(rest) > 0; {
		w, next, err := parseWant(rest)
		if err == nil && w.Size > SmallMax {
			err = fmt.Errorf("%w: small content of %d bytes", errProtocol, w.Size)
		}
		if err != nil {
			return err
		}
		rest = next
		// The staged content may be longer than the peer believes.
		if len(frame)+pack.HeaderSize+SmallMax > empty+recordsMax {
			if err := flush(); err != nil {
				return err
			}
		}
		frame, _ = v.c.s.appendSmall(frame, w)
	}
	if len(frame) > empty {
		if err := flush(); err != nil {
			return err
		}
	}
	return v.c.writeShort(kindGot, r.number)
}
