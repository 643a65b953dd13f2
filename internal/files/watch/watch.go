// Package watch tells which names of a directory tree may have changed: fanotify on the whole file system,
// else inotify, else polling. An event is a hint to look at a name, never a log. See Open.
//
// It reads no file contents and decides nothing about what changed. It starts no goroutines: the kernel's queue is
// the buffer, and all work happens in the caller's Read.
//
// What no hint comes for, so that a slow rescan is still needed: writes through a shared mapping before the file is
// closed, and changes of a file made through a hard link outside the tree.
package watch

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Event is one hint.
type Event struct {
	Kind Kind
	Path string // relative to the root, '/'-separated raw bytes; "" is the root itself
	ID   uint64 // Barrier: what Barrier returned
}

type Kind uint8

const (
	Look    Kind = iota // look at Path now
	Settle              // Path is probably still being written: look when it settles (a later Look comes, or not)
	Rescan              // compare all at and beneath Path: events were lost, or a directory appeared there whole, or one went
	Barrier             // everything that happened before Barrier(ID) was called has been delivered
	Gone                // the root itself vanished, was moved or unmounted; the last event before ErrGone
)

// Watcher delivers hints in order. Read is for one caller at a time, the rest may be called concurrently.
type Watcher interface {
	// Mode is "fanotify", "inotify" or "poll"; why says why not a better one (empty for fanotify). It can change:
	// inotify that runs out of watches falls to polling.
	Mode() (mode, why string)
	// Read blocks for at least one event and returns a batch, duplicates of one path merged to the strongest kind
	// (Rescan, Look, Settle) at the place of the first. It fails with ctx's error, with an error that wraps
	// os.ErrClosed after Close, or with ErrGone after Gone was delivered. The batch is the caller's.
	Read(ctx context.Context) ([]Event, error)
	// Barrier makes the kernel queue a cookie behind all earlier events; Read returns it as Event{Barrier}. It
	// survives lost events: then the Rescan comes first. When polling it makes Read do a pass at once.
	Barrier() (id uint64, err error)
	// Overflows counts lost-event incidents so far.
	Overflows() uint64
	// Close unblocks Read. The second Close does nothing.
	Close() error
}

// Mode is how a tree is watched.
type Mode string

const (
	Fanotify Mode = "fanotify" // one mark on the whole file system; needs root
	Inotify  Mode = "inotify"  // one watch a directory
	Poll     Mode = "poll"     // a walk every Config.PollEvery
)

// DefaultPollEvery is the pause between two polling passes unless told otherwise.
const DefaultPollEvery = 10 * time.Second

// rootCheckEvery is how often we look whether the root is still where it was: not every end makes an event, a lazy
// unmount for instance.
const rootCheckEvery = 5 * time.Second

// ErrGone is what Read fails with once the root has gone: open a new watcher when it is back.
var ErrGone = errors.New("watched root is gone")

// Config of a Watcher. Root and Work are required.
type Config struct {
	// Root is the directory to watch. What is mounted beneath it is not watched by fanotify.
	Root string
	// Work is an existing directory on the same mount in which cookie files are made for a moment. Nothing in it
	// is hinted at, even if it lies beneath Root.
	Work string
	// Quiet are directories outside of Root, or in Work, to whose files this process writes much: from Linux 6.0 on
	// the kernel then makes no events of that.
	Quiet []string
	// Ignore says which paths do not exist for us; what is beneath an ignored directory is not asked for. It is
	// called from Read and Open and must always give the same answer: reopen the watcher when rules change.
	Ignore func(rel string) bool
	// Force allows one mode only; "" is the best that works.
	Force Mode
	// OwnEvents keeps the hints for what this process itself does, which fanotify drops otherwise. Inotify and
	// polling cannot tell and never drop them.
	OwnEvents bool
	// PollEvery is the pause between two passes when polling; 0 is DefaultPollEvery.
	PollEvery time.Duration
	// Now and Tick are the clock; nil is the real one. Tick is time.NewTicker, cut down to its channel and Stop.
	Now  func() time.Time
	Tick func(every time.Duration) (c <-chan time.Time, stop func())
	// Log gets warnings about what cannot be watched; nil drops them.
	Log *slog.Logger

	rootCheckEvery time.Duration                                       // tests: instead of rootCheckEvery
	boundedQueue   bool                                                // tests: fanotify with the kernel's default queue bound
	addWatch       func(fd int, path string, mask uint32) (int, error) // tests: inotify_add_watch
}
