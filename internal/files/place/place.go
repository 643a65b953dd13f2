// Package place brings the disk from what was last put there to what the manifest wants, so that no reader
// ever sees a missing, short or mixed file and no edit that raced is overwritten. See Placer.
package place

import (
	"context"
	"io"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Stat is what identifies an unchanged directory entry without reading it: if all of it is equal, so is
// the content. CTime catches rewrites that restore size and mtime.
type Stat struct {
	Kind         manifest.Kind // Absent: nothing there
	Mode         uint32
	UID, GID     uint32
	Size         int64
	MTime, CTime int64 // ns
	Ino, Dev     uint64
	Nlink        uint32
	Other        bool // device, socket, FIFO: skipped, and said so
}

// Placed is what we last put at a path, or found there and adopted: the node version and how it looked.
// Version 0 with a Stat: what is there has been preserved elsewhere (a conflict copy) and may be replaced.
type Placed struct {
	Version uint64
	Stat    Stat
}

// Contents finds bytes that a file should hold.
type Contents interface {
	// Small returns the whole content of a file of at most content.SmallMax bytes if it is on this node.
	Small(h manifest.Hash) ([]byte, bool)
	// Open returns the verified content from staging or from any placed file of this tree.
	Open(h manifest.Hash, size int64) (io.ReadCloser, bool, error)
	// TakeStaged returns the path of a complete staged file (same file system as the binding) that the
	// caller may rename away, if h was staged as a file of its own.
	TakeStaged(h manifest.Hash) (path string, ok bool)
}

// Task is one path to bring from Have to Want.
type Task struct {
	Path   string
	Want   manifest.Node // Kind Absent: nothing may be there
	Have   Placed        // zero: we never put anything there
	Inline []byte        // content if it came with the entry
}

type ResultCode uint8

const (
	Done    ResultCode = iota // the disk is as wanted; Placed describes it
	Adopted                   // it was already as wanted; Placed describes it
	Busy                      // what is there is not what Have says: a local edit goes first (look at it)
	Missing                   // content is not on this node yet: fetch Want.Hash, then retry
	Failed                    // Err says why; the rest goes on
)

type Result struct {
	Code   ResultCode
	Placed Placed
	Err    error
}

// Applier is the interface that the files agent uses; *Placer implements it.
type Applier interface {
	// Apply carries out tasks (any order in; the placer orders them: moves aside and deletions deepest
	// first, directories, files, then directory metadata) and returns one result a task, same order.
	Apply(ctx context.Context, tasks []Task, from Contents) []Result
}
