// Package watch tells which names of a directory tree may have changed: fanotify on the whole file system,
// else inotify, else polling. An event is a hint to look at a name, never a log.
package watch

import "context"

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
	Rescan              // events were lost or Path is a directory that appeared whole: scan the subtree
	Barrier             // everything that happened before Barrier(ID) was called has been delivered
	Gone                // the root itself vanished or was unmounted
)

// Watcher delivers hints in order. *fanotifyWatcher, *inotifyWatcher and *pollWatcher implement it.
type Watcher interface {
	// Mode is "fanotify", "inotify" or "poll"; why says why not a better one (empty for fanotify).
	Mode() (mode, why string)
	// Read blocks for at least one event and returns a batch, duplicates of one path merged.
	Read(ctx context.Context) ([]Event, error)
	// Barrier makes the kernel queue a cookie behind all earlier events; Read returns it as Event{Barrier}.
	Barrier() (id uint64, err error)
	// Overflows counts lost-event incidents so far.
	Overflows() uint64
	Close() error
}
