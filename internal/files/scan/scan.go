// Package scan reads a directory tree as it is on the disk, never following a symlink and never leaving the root,
// and compares it with what was last placed there. See Walk and Compare.
//
// It proposes nothing and reads no file contents. Walk and Compare start Options.Workers goroutines each and wait
// for them; nothing outlives a call.
package scan

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// DefaultWorkers is how many directories are read at the same time unless told otherwise.
const DefaultWorkers = 2

// maxProblems bounds Stats.Problems; further ones are only counted.
const maxProblems = 1000

// ErrOtherFileSystem says that another file system is mounted on a directory, which was left alone.
var ErrOtherFileSystem = errors.New("another file system is mounted here")

// Entry is one directory entry as it is now.
type Entry struct {
	Name string
	Stat place.Stat
}

// Options of a walk. The zero Options skip nothing.
type Options struct {
	Ignore  func(rel string) bool // true: this path, and all beneath it, does not exist for us. Called concurrently
	Workers int                   // directories read at the same time; 0 is DefaultWorkers
}

// Stats is what a walk saw.
type Stats struct {
	Dirs, Files, Symlinks, Others uint64 // entries read by kind; the start directory counts as a Dir
	Bytes                         int64  // sum of the sizes of regular files
	Problems                      []Problem
	MoreProblems                  uint64 // problems beyond those kept in Problems
}

// Problem is a path that could not be read; what was known about it, and beneath it, stays as it was.
type Problem struct {
	Path string
	Err  error
}

// Walk reads every directory at and beneath from and gives it to visit, entries sorted by raw name, ignored ones
// left out. visit is never called concurrently but from different goroutines, a parent before its children and
// otherwise in no order; entries is valid during the call. A directory that cannot be read is a Problem, one that
// vanishes is skipped; Walk fails if visit does, if ctx ends or if from itself cannot be read.
func Walk(ctx context.Context, root int, from string, opts Options, visit func(dir string, entries []Entry) error) (Stats, error) {
	w, err := newWalk(root, from, opts)
	if err != nil {
		return Stats{}, err
	}
	var mu sync.Mutex
	w.readers = make([]reader, w.workers)
	err = w.run(ctx, func(id int, dir string) error {
		found, err := w.readers[id].read(w, dir)
		if err != nil {
			return w.unreadable(dir, err)
		}
		entries := w.readers[id].convert(found)
		mu.Lock()
		err = visit(dir, entries)
		mu.Unlock()
		if err != nil {
			return err
		}
		w.descend(dir, entries)
		return nil
	})
	return w.stats, err
}

// walk is the state that the workers of one Walk or Compare share.
type walk struct {
	root    int
	dev     uint64
	from    string
	opts    Options
	workers int
	readers []reader

	mu    sync.Mutex
	idle  sync.Cond
	stack []string // directories to read; last in, first out keeps it short
	busy  int      // workers in a directory
	err   error    // the first failure: everybody stops
	stats Stats
}

// reader is what one worker reuses from directory to directory.
type reader struct {
	list    vfs.Lister
	entries []Entry
}

func newWalk(root int, from string, opts Options) (*walk, error) {
	if err := vfs.CheckRel(from); err != nil {
		return nil, fmt.Errorf("scan: %w", err)
	}
	info, err := vfs.StatFd(root)
	if err != nil {
		return nil, fmt.Errorf("scan root: %w", err)
	}
	w := &walk{root: root, dev: info.Dev, from: from, opts: opts, workers: opts.Workers, stack: []string{from}}
	if w.workers <= 0 {
		w.workers = DefaultWorkers
	}
	w.idle.L = &w.mu
	w.stats.Dirs = 1
	return w, nil
}

// run lets the workers take directories off the stack until none is left and none can come.
func (w *walk) run(ctx context.Context, one func(worker int, dir string) error) error {
	stop := context.AfterFunc(ctx, func() { w.fail(ctx.Err()) })
	defer stop()
	var group sync.WaitGroup
	for id := range w.workers {
		group.Go(func() {
			for dir, ok := w.next(); ok; dir, ok = w.next() {
				err := one(id, dir)
				w.done(err)
			}
		})
	}
	group.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *walk) next() (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.stack) == 0 && w.busy > 0 && w.err == nil {
		w.idle.Wait()
	}
	if w.err != nil || len(w.stack) == 0 {
		return "", false
	}
	dir := w.stack[len(w.stack)-1]
	w.stack = w.stack[:len(w.stack)-1]
	w.busy++
	return dir, true
}

func (w *walk) done(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
	if err != nil && w.err == nil {
		w.err = err
	}
	if w.err != nil || w.busy == 0 {
		w.idle.Broadcast()
	}
}

func (w *walk) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.idle.Broadcast()
}

// descend counts a directory's entries and pushes its subdirectories, the first one on top.
func (w *walk) descend(dir string, entries []Entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pushed := false
	for i := len(entries) - 1; i >= 0; i-- {
		switch e := &entries[i]; e.Stat.Kind {
		case manifest.Dir:
			w.stats.Dirs++
			w.stack = append(w.stack, vfs.Join(dir, e.Name))
			pushed = true
		case manifest.File:
			w.stats.Files++
			w.stats.Bytes += e.Stat.Size
		case manifest.Symlink:
			w.stats.Symlinks++
		default:
			w.stats.Others++
		}
	}
	if pushed {
		w.idle.Broadcast()
	}
}

func (w *walk) problem(path string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.stats.Problems) < maxProblems {
		w.stats.Problems = append(w.stats.Problems, Problem{Path: path, Err: err})
	} else {
		w.stats.MoreProblems++
	}
}

// unreadable decides what an error of reading dir means to a Walk: the start directory is worth failing for, one
// that vanished is not worth a word.
func (w *walk) unreadable(dir string, err error) error {
	if dir == w.from {
		return fmt.Errorf("scan %q: %w", dir, err)
	}
	if !vfs.NoSuchDir(err) {
		w.problem(dir, err)
	}
	return nil
}

// read lists dir, opened beneath the root. The result is valid until the reader's next call.
func (r *reader) read(w *walk, dir string) ([]vfs.Entry, error) {
	fd, err := vfs.OpenBeneath(w.root, dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	info, err := vfs.StatFd(fd)
	if err != nil {
		return nil, err
	}
	if info.Dev != w.dev {
		return nil, ErrOtherFileSystem
	}
	found, err := r.list.List(fd)
	if err != nil {
		return nil, err
	}
	kept := found[:0]
	for i := range found {
		if w.ignored(dir, found[i].Name) {
			continue
		}
		if found[i].Err == nil && found[i].Info.Kind == vfs.Dir && found[i].Info.Dev != w.dev {
			found[i].Err = ErrOtherFileSystem
		}
		if found[i].Err != nil {
			w.problem(vfs.Join(dir, found[i].Name), found[i].Err)
		}
		kept = append(kept, found[i])
	}
	return kept, nil
}

func (w *walk) ignored(dir, name string) bool {
	return w.opts.Ignore != nil && w.opts.Ignore(vfs.Join(dir, name))
}

// convert drops entries that could not be looked at and gives the rest as Entry.
func (r *reader) convert(found []vfs.Entry) []Entry {
	r.entries = r.entries[:0]
	for i := range found {
		if found[i].Err == nil {
			r.entries = append(r.entries, Entry{Name: found[i].Name, Stat: place.StatOf(found[i].Info)})
		}
	}
	return r.entries
}
