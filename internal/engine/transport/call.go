package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// callQueue is how many frames wait for the writer of a call connection before callers do.
const callQueue = 256

// Call asks a node and waits for the answer. The errors: an *api.Error is what the other side's handler
// said; ErrUnreachable means that nothing was sent; ErrLost and ctx's error leave the fate open. Many calls share
// one connection to a peer, which is closed after a minute without any. A call to this node itself is served
// without a connection.
func (t *Transport) Call(ctx context.Context, to uint64, method string, req []byte) ([]byte, error) {
	if len(req) > MaxCall || len(method) > maxMethod {
		return nil, fmt.Errorf("call %s: request of %d bytes: at most %d", method, len(req), MaxCall)
	}
	if to == t.self {
		resp, fail := t.answer(ctx, to, method, req)
		if fail != nil {
			return nil, fail
		}
		return resp, nil
	}
	p := t.peer(to)
	if p == nil {
		return nil, fmt.Errorf("call %s at node %016x: %w", method, to, ErrClosed)
	}
	resp, err := p.roundTrip(ctx, method, req)
	var said *api.Error
	if err != nil && !errors.As(err, &said) {
		err = fmt.Errorf("call %s at node %016x: %w", method, to, err)
	}
	return resp, err
}

func (p *peer) roundTrip(ctx context.Context, method string, req []byte) ([]byte, error) {
	for {
		cc, err := p.callConn(ctx)
		if err != nil {
			return nil, err
		}
		id, result, ok := cc.begin()
		if !ok {
			continue // it ended in between; nothing was sent
		}
		timeout := time.Duration(0)
		if deadline, ok := ctx.Deadline(); ok {
			timeout = max(time.Until(deadline), time.Microsecond)
		}
		select {
		case cc.q <- encodeRequest(id, timeout, method, req):
		case <-ctx.Done():
			cc.forget(id)
			return nil, ctx.Err()
		case <-cc.done:
			cc.forget(id)
			return nil, fmt.Errorf("%w: before the request was sent", ErrUnreachable)
		}
		select {
		case r := <-result:
			return r.resp, r.err
		case <-ctx.Done():
			if cc.forget(id) {
				cc.sendCancel(id)
			}
			return nil, ctx.Err()
		}
	}
}

// callDial is an attempt that several callers wait for.
type callDial struct {
	done chan struct{}
	cc   *callConn
	err  error
}

// callConn returns the live connection or makes one; callers that come meanwhile share the attempt.
func (p *peer) callConn(ctx context.Context) (*callConn, error) {
	p.callMu.Lock()
	if cc := p.call; cc != nil && !cc.ended() {
		p.callMu.Unlock()
		return cc, nil
	}
	d := p.dialer
	if d == nil {
		d = &callDial{done: make(chan struct{})}
		if !p.t.spawn(func() { p.dialCalls(d) }) {
			p.callMu.Unlock()
			return nil, ErrClosed
		}
		p.dialer = d
	}
	p.callMu.Unlock()
	select {
	case <-d.done:
		return d.cc, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, ctx.Err())
	}
}

// dialCalls is bound to the transport, not to the caller that happened to be first. It stays with the connection.
func (p *peer) dialCalls(d *callDial) {
	c, _, err := p.dial(p.t.ctx, serviceCall)
	p.callMu.Lock()
	p.dialer = nil
	if d.err = err; err == nil {
		d.cc = &callConn{conn: c, q: make(chan []byte, callQueue), pending: map[uint64]chan callResult{}, done: make(chan struct{}), used: time.Now()}
		p.call = d.cc
	}
	p.callMu.Unlock()
	close(d.done)
	if err == nil {
		d.cc.run(p.t.cfg.CallIdle)
	}
}

// loseCalls ends the connection for calls: the peer is known to be gone.
func (p *peer) loseCalls() {
	p.callMu.Lock()
	cc := p.call
	p.callMu.Unlock()
	if cc != nil {
		cc.end(errors.New("the peer is down"))
	}
}

type callResult struct {
	resp []byte
	err  error
}

// callConn is the calling end of a call connection.
type callConn struct {
	conn *conn
	q    chan []byte

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan callResult // nil once ended
	used    time.Time

	done chan struct{} // closed once ended
}

// run reads answers until the connection ends.
func (cc *callConn) run(idle time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := callWriter(cc.conn, cc.q, cc.done); err != nil {
			cc.end(err)
		}
	})
	wg.Go(func() { cc.watchIdle(idle) })
	br := bufio.NewReaderSize(cc.conn, 32<<10)
	for {
		f, err := readCall(br)
		if err == nil {
			err = cc.resolve(f)
		}
		if err != nil {
			cc.end(err)
			break
		}
	}
	wg.Wait()
}

func (cc *callConn) resolve(f callFrame) error {
	var r callResult
	switch f.kind {
	case callReply:
		r.resp = f.body
	case callFailure:
		if r.err = parseFailure(f.body); errors.Is(r.err, errFrame) {
			return r.err
		}
	default:
		return fmt.Errorf("%w: kind %d from the answering side", errFrame, f.kind)
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if result, ok := cc.pending[f.id]; ok { // else the caller gave up
		delete(cc.pending, f.id)
		result <- r
	}
	return nil
}

func (cc *callConn) begin() (id uint64, result chan callResult, ok bool) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.pending == nil {
		return 0, nil, false
	}
	cc.last++
	result = make(chan callResult, 1)
	cc.pending[cc.last] = result
	cc.used = time.Now()
	return cc.last, result, true
}

// forget reports whether the call was still open.
func (cc *callConn) forget(id uint64) bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	_, open := cc.pending[id]
	delete(cc.pending, id)
	return open
}

// sendCancel saves the other side work; it is not worth waiting for.
func (cc *callConn) sendCancel(id uint64) {
	select {
	case cc.q <- sealCall(newCallFrame(callCancel, id, 0)):
	default:
	}
}

func (cc *callConn) ended() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.pending == nil
}

// end fails what is open. Ending twice is harmless.
func (cc *callConn) end(err error) {
	cc.mu.Lock()
	open := cc.pending
	first := open != nil
	cc.pending = nil
	cc.mu.Unlock()
	if !first {
		return
	}
	for _, result := range open {
		result <- callResult{err: fmt.Errorf("%w: %w", ErrLost, err)}
	}
	close(cc.done)
	cc.conn.abort()
}

// watchIdle ends the connection when it was not used for a while.
func (cc *callConn) watchIdle(idle time.Duration) {
	ticker := time.NewTicker(max(idle/4, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-cc.done:
			return
		case <-ticker.C:
		}
		cc.mu.Lock()
		over := len(cc.pending) == 0 && time.Since(cc.used) > idle
		if over && cc.pending != nil {
			cc.pending = nil // from here on nobody begins a call on it
			close(cc.done)
			cc.conn.abort()
		}
		cc.mu.Unlock()
	}
}
