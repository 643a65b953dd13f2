// Package place brings the disk from what was last put there to what the manifest wants, so that no reader
// ever sees a missing, short or mixed file and no edit that raced is overwritten. See Placer, and DESIGN.md
// beside this file for what is and what is not protected.
//
// It decides nothing about versions and knows no network: the caller says what is wanted and what it last
// knew to be there. It owns no goroutines between calls; Apply starts a few workers and waits for them.
package place

import (
	"io"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
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

// StatOf converts what vfs says of an entry.
func StatOf(in vfs.Info) Stat {
	return Stat{
		Kind: manifest.Kind(in.Kind), Mode: in.Mode, UID: in.UID, GID: in.GID, Size: in.Size,
		MTime: in.MTime, CTime: in.CTime, Ino: in.Ino, Dev: in.Dev, Nlink: in.Nlink, Other: in.Other,
	}
}

// Info is the reverse of StatOf.
func (s Stat) Info() vfs.Info {
	return vfs.Info{
		Kind: vfs.Kind(s.Kind), Mode: s.Mode, UID: s.UID, GID: s.GID, Size: s.Size,
		MTime: s.MTime, CTime: s.CTime, Ino: s.Ino, Dev: s.Dev, Nlink: s.Nlink, Other: s.Other,
	}
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
	// Retire takes over the file at an absolute path, which was at `path` in the binding and is believed to hold h: it may
	// be of use for a while. false: it is still there, and the caller's to remove.
	Retire(h manifest.Hash, size int64, path, file string) bool
	// Yield makes n bytes of room if it can by removing what was retired, and says whether anything was.
	Yield(n int64) bool
}

// Task is one path to bring from Have to Want. A batch has at most one task a path.
type Task struct {
	Path   string
	Want   manifest.Node // Kind Absent: nothing may be there
	Have   Placed        // zero: we never put anything there
	Inline []byte        // content if it came with the entry; checked against Want.Hash
	Held   manifest.Hash // content of the file that Have describes, as far as known

	// SameContent says that the file which Have.Stat describes holds the content of Want.Hash: only metadata
	// is set, in place, and nothing at all if that is as wanted too. For the author of a change Have.Stat is
	// how the file looked when it was read.
	SameContent bool
	// From is manifest.Changed.From: a task that has it is carried out before all others of the batch, as
	// its content may only be at From.
	From string
}

type ResultCode uint8

const (
	Done    ResultCode = iota // the disk is as wanted; Placed describes it
	Adopted                   // it was already as wanted; Placed describes it
	Busy                      // what is there is not what Have says: a local edit goes first (look at it); Err says what
	Missing                   // content is not on this node yet: fetch Want.Hash, then retry
	Failed                    // Err says why; the rest goes on
)

func (c ResultCode) String() string {
	switch c {
	case Done:
		return "done"
	case Adopted:
		return "adopted"
	case Busy:
		return "busy"
	case Missing:
		return "missing"
	case Failed:
		return "failed"
	}
	return "invalid"
}

// Result of one task.
type Result struct {
	Code ResultCode
	// Placed describes what was put or found there. If somebody wrote to it before it could be described, its
	// CTime is 0, so that it equals no entry on disk and the edit is seen as one.
	Placed Placed
	Err    error // Busy and Failed: wraps the errno, if there was one
	// Kept is where (absolute path, in Work/kept) somebody's bytes are that could neither stay nor be put
	// back in place, because yet another edit raced. Busy only; "" mostly.
	Kept string
}

// Touched is a directory whose entries were changed and which had no task of its own that succeeded, or one
// that somebody else changed at the same time (Foreign). If Before is what the placed record of Path says and
// Foreign is false, After replaces it there. Otherwise the directory has to be looked at.
type Touched struct {
	Path    string
	Before  Stat // before the first change of this batch
	After   Stat // its mtime is that of Before unless Foreign
	Foreign bool // as far as two looks around each of our own changes can tell
}
