package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

func TestCalls(t *testing.T) {
	f := newFarm(t, 1)
	register := func(tr *Transport) {
		tr.HandleCalls("echo", func(_ context.Context, from uint64, req []byte) ([]byte, error) {
			return fmt.Appendf(nil, "%d:%s", from, req), nil
		})
		tr.HandleCalls("typed", func(context.Context, uint64, []byte) ([]byte, error) {
			return nil, fmt.Errorf("wrapped: %w", &api.Error{Code: api.CodeConflict, Op: "bind", Subject: "/srv", Why: "taken", Hint: "another"})
		})
		tr.HandleCalls("plain", func(context.Context, uint64, []byte) ([]byte, error) { return nil, errors.New("disk on fire") })
		tr.HandleCalls("big", func(_ context.Context, _ uint64, req []byte) ([]byte, error) { return bytes.Repeat(req, 1<<20), nil })
		tr.HandleCalls("deadline", func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
			d, ok := ctx.Deadline()
			return fmt.Appendf(nil, "%v %v", ok, time.Until(d) > time.Hour/2), nil
		})
	}
	a, _ := f.node(1, nil, register), f.node(2, nil, register)
	for _, to := range []uint64{1, 2} { // itself, and over the wire
		t.Run(fmt.Sprint("to ", to), func(t *testing.T) {
			resp, err := a.Call(t.Context(), to, "echo", []byte("hi"))
			if err != nil || string(resp) != "1:hi" {
				t.Errorf("%q %v", resp, err)
			}
			_, err = a.Call(t.Context(), to, "typed", nil)
			var typed *api.Error
			if !errors.As(err, &typed) || *typed != (api.Error{Code: api.CodeConflict, Op: "bind", Subject: "/srv", Why: "taken", Hint: "another"}) {
				t.Errorf("typed error came as %#v", err)
			}
			_, err = a.Call(t.Context(), to, "plain", nil)
			if !errors.As(err, &typed) || typed.Code != api.CodeFailed || typed.Why != "disk on fire" {
				t.Errorf("plain error came as %#v", err)
			}
			_, err = a.Call(t.Context(), to, "nope", nil)
			if !errors.As(err, &typed) || typed.Code != api.CodeNotFound || typed.Subject != "nope" {
				t.Errorf("unknown method: %#v", err)
			}
			resp, err = a.Call(t.Context(), to, "big", []byte("abcd"))
			if err != nil || len(resp) != 4<<20 {
				t.Errorf("%d bytes, %v", len(resp), err)
			}
			if _, err = a.Call(t.Context(), to, "big", []byte("0123456789abcdefg")); !errors.As(err, &typed) || !strings.Contains(typed.Why, "at most") {
				t.Errorf("too big an answer: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if resp, err = a.Call(ctx, to, "deadline", nil); err != nil || string(resp) != "true true" {
				t.Errorf("deadline: %q %v", resp, err)
			}
		})
	}
	if _, err := a.Call(t.Context(), 2, "echo", make([]byte, MaxCall+1)); err == nil {
		t.Error("too big a request was taken")
	}
	if _, err := a.Call(t.Context(), 7, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("unknown node: %v", err)
	}
	f.setAddr(8, "127.0.0.1:1")
	if _, err := a.Call(t.Context(), 8, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody listens: %v", err)
	}
	a.wantEvent(event{8, false, Refused})
}

func TestCallsAreConcurrent(t *testing.T) {
	f := newFarm(t, 1)
	const n = 500
	var all sync.WaitGroup
	all.Add(n)
	a, _ := f.node(1, nil, nil), f.node(2, nil, func(tr *Transport) {
		tr.HandleCalls("meet", func(_ context.Context, _ uint64, req []byte) ([]byte, error) {
			all.Done()
			all.Wait() // none returns before all are there
			return req, nil
		})
	})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			text := fmt.Sprint(i)
			if resp, err := a.Call(t.Context(), 2, "meet", []byte(text)); err != nil || string(resp) != text {
				t.Errorf("%q %v, want %q", resp, err, text)
			}
		})
	}
	wg.Wait()
}

func TestCallCancellation(t *testing.T) {
	f := newFarm(t, 1)
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	a, b := f.node(1, nil, nil), f.node(2, nil, func(tr *Transport) {
		tr.HandleCalls("hang", func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		})
		tr.HandleCalls("echo", func(_ context.Context, _ uint64, req []byte) ([]byte, error) { return req, nil })
	})
	hang := func(ctx context.Context) chan error {
		result := make(chan error, 1)
		go func() {
			_, err := a.Call(ctx, 2, "hang", nil)
			result <- err
		}()
		select {
		case <-began:
		case err := <-result:
			t.Fatalf("the call did not begin: %v", err)
		}
		return result
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := hang(ctx)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("caller got %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("handler got %v", err)
	}
	// The connection survives that.
	if resp, err := a.Call(t.Context(), 2, "echo", []byte("x")); err != nil || string(resp) != "x" {
		t.Errorf("%q %v", resp, err)
	}
	// The loss of the connection ends both sides.
	result = hang(t.Context())
	b.stop()
	if err := <-ended; err == nil {
		t.Error("handler went on")
	}
	if err := <-result; !errors.Is(err, ErrLost) {
		t.Errorf("caller got %v", err)
	}
	// And so does the own end.
	c := f.node(2, nil, func(tr *Transport) {
		tr.HandleCalls("hang", func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		})
	})
	result = hang(t.Context())
	a.stop()
	if err := <-result; !errors.Is(err, ErrLost) {
		t.Errorf("caller got %v", err)
	}
	<-ended
	if _, err := a.Call(t.Context(), 2, "hang", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	c.stop()
}

func TestIdleCallConnection(t *testing.T) {
	f := newFarm(t, 1)
	a, _ := f.node(1, func(c *Config) { c.CallIdle = 5 * time.Millisecond }, nil), f.node(2, nil, func(tr *Transport) {
		tr.HandleCalls("echo", func(_ context.Context, _ uint64, req []byte) ([]byte, error) { return req, nil })
	})
	for range 3 {
		if _, err := a.Call(t.Context(), 2, "echo", nil); err != nil {
			t.Fatal(err)
		}
		until(t, "the idle connection is closed", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.socks) == 0
		})
	}
}
