package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// However a start comes out, who waits for it is told; one that is told to stop has a moment to do so.
func TestAwaitStart(t *testing.T) {
	refused := errors.New("refused")
	for name, c := range map[string]struct {
		after  time.Duration // that the start takes; 0: for ever
		err    error
		stop   time.Duration // when it is told to stop; 0: never
		lacks  error
		ends   time.Duration // when who waits is answered
		is     error
		up     bool
		logged string
	}{
		"up":                     {after: 3 * time.Second, ends: 3 * time.Second, up: true},
		"refused":                {after: 3 * time.Second, err: refused, ends: 3 * time.Second, is: refused},
		"long":                   {after: 12 * time.Second, ends: 12 * time.Second, up: true, logged: "still starting"},
		"waits for room":         {after: 7 * time.Second, lacks: syscall.ENOSPC, ends: 7 * time.Second, up: true, logged: "counting, which waits for room on the disk: no space left"},
		"lets go":                {after: 4*time.Second + 100*time.Millisecond, err: refused, stop: 4 * time.Second, ends: 4*time.Second + 100*time.Millisecond, logged: "told to stop"},
		"up when told":           {after: 4*time.Second + 100*time.Millisecond, stop: 4 * time.Second, ends: 4*time.Second + 100*time.Millisecond, up: true},
		"hangs":                  {stop: 4 * time.Second, ends: 4*time.Second + startGrace, logged: "at=counting for=4s"},
		"hangs for lack of room": {stop: 4 * time.Second, lacks: syscall.ENOSPC, ends: 4*time.Second + startGrace, logged: "no space left"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.stop > 0 {
				defer time.AfterFunc(c.stop, cancel).Stop()
			}
			var log bytes.Buffer
			s := &stages{log: slog.New(slog.NewTextHandler(&log, nil))}
			s.enter("counting")
			s.mayLack(func() error { return c.lacks })
			out := make(chan started, 1)
			if c.after > 0 {
				defer time.AfterFunc(c.after, func() {
					up := started{err: c.err}
					if c.err == nil {
						up.n = &node{}
					}
					out <- up
				}).Stop()
			}
			began := time.Now()
			n, err := s.await(ctx, out)
			if took := time.Since(began); took != c.ends || !errors.Is(err, c.is) || (err == nil) != (c.is == nil) || (n != nil) != c.up {
				t.Errorf("%s: %v, %v after %v", name, n != nil, err, took)
			}
			if !strings.Contains(log.String(), c.logged) || c.logged == "" && log.Len() > 0 {
				t.Errorf("%s: it says %s", name, &log)
			}
		})
	}
}
