package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lockstep-sync/lockstep/api"
)

// What one peer's calls may occupy at a time; more are answered unavailable.
const (
	maxOpenCalls = 4096
	maxOpenBytes = 256 << 20
)

// callServer is the answering end of a call connection.
type callServer struct {
	t    *Transport
	from uint64
	conn *conn
	q    chan []byte
	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex
	open  map[uint64]context.CancelFunc
	bytes int
}

// serveCalls answers on c until it ends, and returns when all handlers have.
func (t *Transport) serveCalls(p *peer, c *conn) {
	s := &callServer{t: t, from: p.node, conn: c, q: make(chan []byte, callQueue), done: make(chan struct{}), open: map[uint64]context.CancelFunc{}}
	ctx, cancel := context.WithCancel(t.ctx)
	s.wg.Go(func() {
		if err := callWriter(c, s.q, s.done); err != nil {
			s.end() // the reader finds out why
		}
	})
	err := s.read(ctx)
	s.end()
	cancel()
	s.wg.Wait()
	if errors.Is(err, errFrame) {
		p.sentGarbage("call", err)
	}
}

func (s *callServer) end() {
	s.once.Do(func() {
		close(s.done)
		s.conn.abort()
	})
}

func (s *callServer) read(ctx context.Context) error {
	br := bufio.NewReaderSize(s.conn, 32<<10)
	for {
		f, err := readCall(br)
		if err != nil {
			return err
		}
		switch f.kind {
		case callRequest:
			err = s.request(ctx, f)
		case callCancel:
			s.cancel(f.id)
		default:
			err = fmt.Errorf("%w: kind %d from the calling side", errFrame, f.kind)
		}
		if err != nil {
			return err
		}
	}
}

func (s *callServer) request(ctx context.Context, f callFrame) error {
	timeout, method, req, err := parseRequest(f.body)
	if err != nil {
		return err
	}
	lost := ctx
	cancel := context.CancelFunc(nil)
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	if err := s.admit(f, cancel); err != nil {
		cancel()
		var full *api.Error
		if errors.As(err, &full) {
			return s.send(encodeFailure(f.id, full))
		}
		return err
	}
	s.wg.Go(func() {
		defer cancel()
		resp, fail := s.t.answer(ctx, s.from, method, req)
		s.leave(f)
		if lost.Err() != nil {
			return // the handler was interrupted by the end of this process: to the caller, the fate is open
		}
		// An error of send means that nobody waits for the answer any more.
		if fail != nil {
			_ = s.send(encodeFailure(f.id, fail))
		} else {
			_ = s.send(encodeReply(f.id, resp))
		}
	})
	return nil
}

func (s *callServer) send(frame []byte) error {
	select {
	case s.q <- frame:
		return nil
	case <-s.done:
		return io.ErrClosedPipe
	}
}

func (s *callServer) admit(f callFrame, cancel context.CancelFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.open[f.id]; taken {
		return fmt.Errorf("%w: two calls with id %d", errFrame, f.id)
	}
	if len(s.open) >= maxOpenCalls || len(s.open) > 0 && s.bytes+len(f.body) > maxOpenBytes {
		return &api.Error{Code: api.CodeUnavailable, Why: fmt.Sprintf("too many open calls (%d)", len(s.open)), Hint: "retry"}
	}
	s.open[f.id] = cancel
	s.bytes += len(f.body)
	return nil
}

func (s *callServer) leave(f callFrame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, f.id)
	s.bytes -= len(f.body)
}

func (s *callServer) cancel(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel, ok := s.open[id]; ok {
		cancel()
	}
}

// answer runs the handler and makes what went wrong presentable.
func (t *Transport) answer(ctx context.Context, from uint64, method string, req []byte) ([]byte, *api.Error) {
	h, ok := t.calls[method]
	if !ok {
		return nil, &api.Error{Code: api.CodeNotFound, Op: "call", Subject: method, Why: "this node does not know the method",
			Hint: "are all nodes of the same version?"}
	}
	resp, err := h(ctx, from, req)
	var said *api.Error
	switch {
	case err == nil && len(resp) > MaxCall:
		return nil, &api.Error{Code: api.CodeFailed, Op: "call", Subject: method, Why: fmt.Sprintf("answer of %d bytes: at most %d", len(resp), MaxCall)}
	case err == nil:
		return resp, nil
	case errors.As(err, &said):
		return nil, said
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, &api.Error{Code: api.CodeUnavailable, Op: "call", Subject: method, Why: err.Error()}
	}
	return nil, &api.Error{Code: api.CodeFailed, Op: "call", Subject: method, Why: err.Error()}
}
