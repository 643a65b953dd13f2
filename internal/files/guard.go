package files

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/place"
)

const (
	deletionsFree   = 100              // so many are never suspicious
	deletionsWindow = 10 * time.Second // counted within
)

// ErrReopen is what Run fails with when the binding's directory came back as another one, or was stopped and
// is in order again: close the agent and open it anew.
var ErrReopen = errors.New("the binding has to be opened anew")

// stopReason says which guard stopped the binding.
type stopReason uint8

const (
	running stopReason = iota
	stopGone
	stopDeletions
)

// guard watches for what must not spread: a root that vanished, and deletions of too much at once.
type guard struct {
	now   func() time.Time
	files atomic.Int64 // in the placed table
	mount place.Mount

	turning sync.Mutex // held while the binding is stopped or goes on: who comes second finds the first's work done
	mu      sync.Mutex
	reason  stopReason
	since   time.Time // start of the window
	count   int64     // deletions in it that were decided or are on their way
	base    int64     // files at its start
	allowed bool      // confirmed: the window's deletions are meant
	over    time.Time // since when too many are withheld; zero: they are not
	again   time.Time // when they came again last
	busy    time.Time // when something else was admitted last
}

// limit is how many deletions within a window are too many.
func limit(files int64) int64 { return max(deletionsFree, files/2) }

// counted is deletions that were admitted, to be given back if nothing came of them.
type counted struct {
	n      int64
	window time.Time
}

// began says whether a file came after the window of deletions had begun that it would be counted in.
func (g *guard) began(s *place.Stat) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.windowOver(g.now()) {
		return false
	}
	born := s.CTime
	if born == 0 { // recorded so that it is read again
		born = s.MTime
	}
	return born >= g.since.UnixNano()
}

// windowOver says whether the next deletion begins another window. What is withheld comes again every second and holds its.
func (g *guard) windowOver(now time.Time) bool {
	return now.Sub(g.since) > deletionsWindow && now.Sub(g.again) > deletionsWindow
}

// admitLost counts n deletions; ok is false when they are too many. others says that there is something else to propose.
func (g *guard) admitLost(n int64, others bool) (c counted, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if others {
		g.busy = g.now()
	}
	if n == 0 {
		return c, true
	}
	c.n, ok = n, g.addLocked(n)
	c.window = g.since
	if ok {
		g.over = time.Time{}
	} else {
		g.again = g.now()
		if g.over.IsZero() {
			g.over = g.again
		}
	}
	return c, ok
}

// overdue says whether what is withheld has been for graceTime with nothing else to do, or for graceMost; others says that
// something else is looked at, scanned or on its way into the log now.
func (g *guard) overdue(others bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, quiet := g.now(), g.over
	if others {
		g.busy = now
	}
	if g.busy.After(quiet) {
		quiet = g.busy
	}
	return now.Sub(quiet) >= graceTime || now.Sub(g.over) >= graceMost
}

// lapsed says, once, that what was withheld does not come again: it is there again, or the binding has stopped for it.
func (g *guard) lapsed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.again.IsZero() || g.now().Sub(g.again) <= deletionsWindow {
		return false
	}
	g.again = time.Time{}
	return true
}

// limit is how many deletions are not too many in this window.
func (g *guard) limit() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return limit(g.base)
}

// giveBack takes away what was counted for a proposal that failed: its deletions come again.
func (g *guard) giveBack(c counted) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.n > 0 && g.since.Equal(c.window) {
		g.count -= c.n
	}
}

func (g *guard) addLocked(n int64) bool {
	now := g.now()
	if g.windowOver(now) {
		g.since, g.count, g.base, g.allowed, g.over = now, 0, g.files.Load(), false, time.Time{}
	}
	g.count += n
	if g.allowed {
		g.since = now
		return true
	}
	return g.count <= limit(g.base)
}

func (g *guard) deletions() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count
}

// stop halts the binding and says why, unless the deletions that are the reason were confirmed since they were judged.
func (a *Agent) stop(why stopReason, what, hint string) {
	a.guard.turning.Lock()
	defer a.guard.turning.Unlock()
	if !a.guard.halt(why) {
		return
	}
	a.board.stop()
	a.status.setMode("stopped", what)
	a.status.problemHint(aboutBinding, errors.New(what), hint)
	a.log.Error("binding stopped", "path", a.cfg.Root, "why", what)
}

func (g *guard) halt(why stopReason) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reason != running || why == stopDeletions && g.allowed {
		return false
	}
	g.reason = why
	return true
}

// Confirm says that the deletions that stopped the binding are meant: it goes on, and what is gone is
// deleted everywhere. It fails if the binding is not stopped for that.
func (a *Agent) Confirm() error {
	a.guard.turning.Lock()
	defer a.guard.turning.Unlock()
	if !a.guard.allow() {
		return errors.New("no deletions wait to be confirmed")
	}
	a.status.solved(aboutBinding)
	a.status.solved(aboutDeletions)
	a.status.setMode("live", "")
	a.board.resume()
	a.rescanAll()
	return nil
}

func (g *guard) allow() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reason != stopDeletions {
		return false
	}
	g.reason, g.allowed, g.since, g.count, g.over = running, true, g.now(), 0, time.Time{}
	return true
}

// confirmed says whether what is gone now is meant to be.
func (g *guard) confirmed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.allowed
}

// checkRoot looks whether the root is still the binding.
func (a *Agent) checkRoot() {
	err := place.CheckMarker(a.cfg.Root, a.cfg.GroupID)
	if err == nil {
		var now place.Mount
		if now, err = place.MountID(a.cfg.Root); err == nil && now != a.guard.mount {
			err = errors.New("another directory or file system is there than before")
		}
	}
	a.guard.mu.Lock()
	reason := a.guard.reason
	a.guard.mu.Unlock()
	switch {
	case err != nil && reason == running:
		a.stop(stopGone, fmt.Sprintf("the directory is not the binding any more: %v", err), "mount or restore it; it goes on by itself")
	case reason == stopGone && place.CheckMarker(a.cfg.Root, a.cfg.GroupID) == nil:
		a.fail(ErrReopen)
	case err == nil && reason == running && !a.claim.Current(): // its marker was copied back: that is to be held
		a.fail(ErrReopen)
	}
}
