package vfs

import (
	"container/list"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Root. The zero Options cache nothing.
type Options struct {
	// CacheDirs is how many directory descriptors are kept open for the next call, 0 none.
	CacheDirs int
	// CacheFor is how long a kept descriptor may be handed out. A directory that was renamed away (even out of
	// the root) meanwhile is still what the descriptor means, so this is the width of that race: keep it to
	// the length of one batch of work, tens of milliseconds.
	CacheFor time.Duration
	// Now is the clock for CacheFor; nil is time.Now.
	Now func() time.Time
}

// Root is a directory under which everything is done relative to descriptors opened beneath it. It keeps its
// meaning when the directory is renamed; Check tells. Safe for concurrent use.
type Root struct {
	path string
	fd   int
	info Info
	opts Options

	mu     sync.Mutex
	closed bool
	dirs   map[string]*list.Element // values *Directory
	lru    *list.List               // front: most recently used
}

// Directory is an open directory beneath a Root. Close it when done; its descriptor must not be used after that.
type Directory struct {
	root   *Root
	rel    string
	fd     int
	opened time.Time
	refs   int // under root.mu: users, plus one while it is in the cache
}

// OpenRoot opens the directory at path (whose own symlinks are followed: the operator chose it).
func OpenRoot(path string, opts Options) (*Root, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open root", Path: path, Err: err}
	}
	info, err := StatFd(fd)
	if err == nil {
		var probe int
		if probe, err = OpenBeneath(fd, ""); err == nil {
			unix.Close(probe)
		} else {
			err = fmt.Errorf("open beneath %s (needs Linux 5.6): %w", path, err)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Root{path: path, fd: fd, info: info, opts: opts, dirs: map[string]*list.Element{}, lru: list.New()}, nil
}

// Path is what OpenRoot was given.
func (r *Root) Path() string { return r.path }

// Fd is the root's descriptor, valid until Close.
func (r *Root) Fd() int { return r.fd }

// Dev is the device of the file system that the root is on.
func (r *Root) Dev() uint64 { return r.info.Dev }

// Check says whether the root's path still leads to the directory that was opened: an error means that it was
// removed, replaced or unmounted.
func (r *Root) Check() error {
	var st unix.Stat_t
	if err := unix.Stat(r.path, &st); err != nil {
		return &fs.PathError{Op: "stat root", Path: r.path, Err: err}
	}
	if in := FromStat(&st); in.Ino != r.info.Ino || in.Dev != r.info.Dev || in.Kind != Dir {
		return fmt.Errorf("root %s is another directory than the one opened: %w", r.path, unix.ESTALE)
	}
	return nil
}

// OpenDir opens the directory rel beneath the root, or hands out a descriptor of it opened less than
// Options.CacheFor ago.
func (r *Root) OpenDir(rel string) (*Directory, error) {
	if d := r.cached(rel); d != nil {
		return d, nil
	}
	opened := r.opts.Now()
	fd, err := OpenBeneath(r.fd, rel)
	if err != nil {
		return nil, err
	}
	d := &Directory{root: r, rel: rel, fd: fd, opened: opened, refs: 1}
	r.keep(d)
	return d, nil
}

func (r *Root) cached(rel string) *Directory {
	if r.opts.CacheDirs <= 0 {
		return nil
	}
	now := r.opts.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	el := r.dirs[rel]
	if el == nil {
		return nil
	}
	d := el.Value.(*Directory)
	if now.Sub(d.opened) >= r.opts.CacheFor {
		r.evict(el)
		return nil
	}
	r.lru.MoveToFront(el)
	d.refs++
	return d
}

func (r *Root) keep(d *Directory) {
	if r.opts.CacheDirs <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if old := r.dirs[d.rel]; old != nil {
		r.evict(old)
	}
	d.refs++
	r.dirs[d.rel] = r.lru.PushFront(d)
	for r.lru.Len() > r.opts.CacheDirs {
		r.evict(r.lru.Back())
	}
}

// evict removes one directory from the cache. r.mu is held.
func (r *Root) evict(el *list.Element) {
	d := r.lru.Remove(el).(*Directory)
	delete(r.dirs, d.rel)
	d.release()
}

// Forget closes kept descriptors of rel and everything beneath it: call it after renaming or removing rel.
func (r *Root) Forget(rel string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, el := range r.dirs {
		if rel == "" || name == rel || strings.HasPrefix(name, rel) && name[len(rel)] == '/' {
			r.evict(el)
		}
	}
}

// Stat looks at rel; an entry that is not there, or whose parent is not, gives the zero Info. A parent that is
// not a directory (a symlink, a file) counts as not there.
func (r *Root) Stat(rel string) (Info, error) {
	dir, name := Split(rel)
	d, err := r.OpenDir(dir)
	if err != nil {
		if NoSuchDir(err) {
			return Info{}, nil
		}
		return Info{}, err
	}
	defer d.Close()
	return StatAt(d.fd, name)
}

// Open opens the regular file rel for reading: see OpenFileAt.
func (r *Root) Open(rel string) (*os.File, Info, error) {
	dir, name := Split(rel)
	d, err := r.OpenDir(dir)
	if err != nil {
		return nil, Info{}, err
	}
	defer d.Close()
	return OpenFileAt(d.fd, name)
}

// Readlink returns the raw target of the symlink rel.
func (r *Root) Readlink(rel string) (string, error) {
	dir, name := Split(rel)
	d, err := r.OpenDir(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return ReadlinkAt(d.fd, name)
}

// Close closes the root and every kept descriptor. Directories in use stay valid until they are closed.
func (r *Root) Close() error {
	r.Forget("")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if err := unix.Close(r.fd); err != nil {
		return &fs.PathError{Op: "close root", Path: r.path, Err: err}
	}
	return nil
}

// Fd is the directory's descriptor for *at calls, open for reading.
func (d *Directory) Fd() int { return d.fd }

// Rel is the path it was opened under.
func (d *Directory) Rel() string { return d.rel }

// Close gives the directory back.
func (d *Directory) Close() {
	d.root.mu.Lock()
	defer d.root.mu.Unlock()
	d.release()
}

// release drops one use. root.mu is held.
func (d *Directory) release() {
	if d.refs--; d.refs == 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}
