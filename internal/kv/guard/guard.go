// Package guard turns what Pebble reports on the side (its logger's Fatalf, background errors, corruption
// found by a compaction) into one sticky error and one callback, so that a store on Pebble stops the node
// on the first sign of a failing disk and never goes on as if a lost write had succeeded.
//
// It knows nothing about keys or logs. It owns no goroutine; the callback runs on Pebble's, with Pebble's
// locks held: it must neither block nor call the database.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
)

// Guard belongs to one database. It is safe for concurrent use.
type Guard struct {
	log      *slog.Logger
	onError  func(error)
	onDamage func(path string, err error)
	err      atomic.Pointer[error]
	failed   chan struct{} // closed once err is set
}

// New makes a guard. A nil log discards. onError is told the first fatal error; without it a fatal error panics,
// because Pebble does not expect to go on after one. onDamage, if it is not nil, is told whenever a file is found altered:
// by a reader, who gets the error, too, or by a compaction, which makes it fatal.
func New(log *slog.Logger, onError func(error), onDamage func(path string, err error)) *Guard {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Guard{log: log, onError: onError, onDamage: onDamage, failed: make(chan struct{})}
}

// Err is the first fatal error: from then on the database must not be used and nothing that was not
// acknowledged before may be assumed about it.
func (g *Guard) Err() error {
	if p := g.err.Load(); p != nil {
		return *p
	}
	return nil
}

// Failed is closed at the first fatal error.
func (g *Guard) Failed() <-chan struct{} { return g.failed }

// Fail makes err the fatal error unless there is one already.
func (g *Guard) Fail(err error) {
	if !g.err.CompareAndSwap(nil, &err) {
		return
	}
	close(g.failed)
	g.log.Error("store failed", "error", err)
	if g.onError == nil {
		panic(err)
	}
	g.onError(err)
}

// Install makes the guard the logger and the listener of a database that is about to be opened.
func (g *Guard) Install(o *pebble.Options) {
	o.Logger = logger{g}
	o.EventListener = &pebble.EventListener{
		BackgroundError: g.background,
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			if g.onDamage != nil {
				g.onDamage(info.Path, Plain(info.Details))
			}
		},
	}
}

// ErrDamaged is of a file of a store that is not as it was written.
var ErrDamaged = errors.New("the file is damaged")

// Plain makes of what Pebble found wrong with a file an ErrDamaged that can be read: Pebble's has stack traces and the
// bytes. Any other error stays as it is.
func Plain(err error) error {
	if err == nil || errors.Is(err, ErrDamaged) || !pebble.IsCorruptionError(err) {
		return err
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return fmt.Errorf("%w: %s", ErrDamaged, text)
}

// background is called when a flush or a compaction failed. Pebble tries again later, which is right for a
// full disk and wrong for any other error: a second fsync may succeed although the first lost the pages.
func (g *Guard) background(err error) {
	err = fmt.Errorf("pebble: background: %w", Plain(err))
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		g.Fail(err)
		return
	}
	g.log.Debug("store out of space", "error", err) // whoever owns the disk says so
}

// logger is what Pebble writes to; its chatter is of use only to somebody who debugs the store.
type logger struct{ g *Guard }

func (l logger) Infof(format string, args ...any) {
	if l.g.log.Enabled(context.Background(), slog.LevelDebug) {
		l.g.log.Debug(fmt.Sprintf(format, args...))
	}
}

func (l logger) Errorf(format string, args ...any) {
	l.g.log.Error(fmt.Sprintf(format, args...))
}

// Fatalf must keep an error argument's chain, so that the owner can tell EIO from a full disk.
func (l logger) Fatalf(format string, args ...any) {
	for _, a := range args {
		if err, ok := a.(error); ok {
			l.g.Fail(fmt.Errorf("pebble: %w", Plain(err)))
			return
		}
	}
	l.g.Fail(fmt.Errorf("pebble: "+format, args...))
}
