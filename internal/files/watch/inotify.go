package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

const (
	inoMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY |
		unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
	inoBuffer = 64 << 10
)

// errWatches says that the user's inotify watches are used up.
var errWatches = errors.New("inotify watches are used up: raise the sysctl fs.inotify.max_user_watches")

// inotifyWatcher has one watch on each directory.
type inotifyWatcher struct {
	cfg      *Config
	root     *vfs.Root
	queue    *queue
	cookies  *cookies
	barriers *barriers
	workID   int32

	reading   sync.Mutex // held by Read; guards what follows but overflows
	buf       []byte
	out       batch
	tree      watchTree
	list      vfs.Lister
	rootCheck time.Time
	gone      bool
	overflows atomic.Uint64
}

func openInotify(cfg *Config, barriers *barriers) (_ source, err error) {
	root, err := vfs.OpenRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	w := &inotifyWatcher{
		cfg: cfg, root: root, barriers: barriers, buf: make([]byte, inoBuffer), tree: newWatchTree(), rootCheck: cfg.Now(),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.cookies, err = openCookies(cfg.Work); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err == unix.EMFILE {
		return nil, fmt.Errorf("inotify instances are used up: raise the sysctl fs.inotify.max_user_instances: %w", err)
	}
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if w.queue, err = newQueue(fd); err != nil {
		return nil, err
	}
	if w.workID, err = w.watch(int(w.cookies.dir.Fd())); err != nil {
		return nil, fmt.Errorf("watch the work directory: %w", err)
	}
	if err := w.addTree("", nil); err != nil {
		return nil, err
	}
	return w, nil
}

// watch adds a watch on the directory fd, or finds the one that it has.
func (w *inotifyWatcher) watch(fd int) (int32, error) {
	id, err := w.cfg.addWatch(w.queue.fd, "/proc/self/fd/"+strconv.Itoa(fd), inoMask)
	switch {
	case err == unix.ENOSPC:
		return 0, errWatches
	case err != nil:
		return 0, os.NewSyscallError("inotify_add_watch", err)
	}
	return int32(id), nil
}

// unwatch removes watches; those of directories that are gone are so already.
func (w *inotifyWatcher) unwatch(ids []int32) {
	for _, id := range ids {
		unix.InotifyRmWatch(w.queue.fd, uint32(id))
	}
}

// addTree watches the directory rel and all beneath it. Each directory is listed after its watch was added, so
// whatever appears in it is either listed, and given to found, or makes an event. A rel that is no directory is fine.
func (w *inotifyWatcher) addTree(rel string, found func(path string, info vfs.Info)) error {
	for stack := []string{rel}; len(stack) > 0; {
		dir := stack[len(stack)-1]
		entries, err := w.addDir(dir)
		switch {
		case errors.Is(err, errWatches):
			return err
		case err != nil && dir == "":
			return fmt.Errorf("watch %s: %w", w.cfg.Root, err)
		case err != nil && !vfs.NoSuchDir(err):
			w.cfg.Log.Warn("directory cannot be watched", "root", w.cfg.Root, "path", dir, "error", err)
		}
		stack = stack[:len(stack)-1]
		for i := range entries {
			path := vfs.Join(dir, entries[i].Name)
			if entries[i].Err != nil || w.cfg.Ignore(path) {
				continue
			}
			if found != nil {
				found(path, entries[i].Info)
			}
			if entries[i].Info.Kind == vfs.Dir {
				stack = append(stack, path)
			}
		}
	}
	return nil
}

func (w *inotifyWatcher) addDir(rel string) ([]vfs.Entry, error) {
	fd, err := vfs.OpenBeneath(w.root.Fd(), rel)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	id, err := w.watch(fd)
	if err != nil {
		return nil, err
	}
	if id == w.workID {
		return nil, nil
	}
	if w.tree.set(rel, id) {
		w.out.add(Rescan, rel, "")
	}
	return w.list.List(fd)
}

func (w *inotifyWatcher) Read(ctx context.Context) ([]Event, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	for !w.gone {
		n, err := w.queue.read(ctx, w.cfg.rootCheckEvery, w.buf)
		if err != nil {
			return nil, fmt.Errorf("read inotify events: %w", err)
		}
		if err := w.process(w.buf[:n]); err != nil {
			return nil, err
		}
		if now := w.cfg.Now(); n == 0 || now.Sub(w.rootCheck) >= w.cfg.rootCheckEvery {
			w.checkRoot(now)
		}
		if len(w.out.events) > 0 {
			return w.out.take(), nil
		}
	}
	return nil, ErrGone
}

func (w *inotifyWatcher) process(buf []byte) error {
	for len(buf) > 0 {
		ev, rest, err := parseIno(buf)
		if err != nil || ev.mask&unix.IN_Q_OVERFLOW != 0 {
			err = w.lost(err)
		} else {
			err = w.event(&ev)
		}
		if err != nil {
			return err
		}
		buf = rest
	}
	return nil
}

// lost makes up for events that did not reach us, those of new directories among them.
func (w *inotifyWatcher) lost(why error) error {
	w.cfg.Log.Warn("inotify events lost: everything is compared again", "root", w.cfg.Root, "error", why)
	w.overflows.Add(1)
	old := w.tree
	w.tree = newWatchTree()
	if err := w.addTree("", nil); err != nil {
		return err
	}
	w.unwatch(w.tree.missing(&old))
	w.out.add(Rescan, "", "")
	for _, id := range w.barriers.waiting() {
		if err := w.cookies.place(id); err != nil {
			w.cfg.Log.Warn("a barrier is lost", "root", w.cfg.Root, "error", err)
		}
	}
	return nil
}

// event turns one event into hints. An error ends the watcher.
func (w *inotifyWatcher) event(ev *inoEvent) error {
	name := string(ev.name)
	if ev.wd == w.workID {
		if id, ok := w.cookies.id(name); ok && ev.mask&unix.IN_CREATE != 0 && w.barriers.done(id) {
			w.out.barrier(id)
		}
		return nil
	}
	dir, ok := w.tree.path(ev.wd)
	if !ok {
		return nil // of a watch that was removed; a Rescan has covered it
	}
	switch {
	case name == "":
		w.selfEvent(ev, dir)
	case w.cfg.Ignore(vfs.Join(dir, name)):
	case ev.mask&unix.IN_ISDIR != 0:
		return w.dirEvent(ev.mask, dir, name)
	default:
		w.fileEvent(ev.mask, dir, name)
	}
	return nil
}

// selfEvent is about a watched directory, not an entry in it.
func (w *inotifyWatcher) selfEvent(ev *inoEvent, dir string) {
	const left = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_UNMOUNT | unix.IN_IGNORED
	if dir == "" && ev.mask&left != 0 {
		w.checkRoot(w.cfg.Now())
		return
	}
	switch {
	case ev.mask&unix.IN_UNMOUNT != 0:
		w.out.add(Rescan, dir, "")
	case ev.mask&unix.IN_IGNORED != 0:
		w.tree.drop(dir)
	case ev.mask&unix.IN_ATTRIB != 0:
		w.out.add(Look, dir, "")
	}
}

// dirEvent is about the subdirectory name of dir. What is there now is watched, whatever the event says was done:
// later events may already have been overtaken by it.
func (w *inotifyWatcher) dirEvent(mask uint32, dir, name string) error {
	const left = unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	path := vfs.Join(dir, name)
	if mask&(left|unix.IN_CREATE) == 0 {
		w.out.add(Look, path, "")
		return nil
	}
	if mask&left != 0 {
		w.unwatch(w.tree.drop(path))
	}
	found := 0
	err := w.addTree(path, func(path string, info vfs.Info) {
		if found++; found <= maxFound && mask&left == 0 {
			kind := Look
			if info.Kind == vfs.File && info.Nlink == 1 {
				kind = Settle
			}
			w.out.add(kind, path, "")
		}
	})
	if err != nil {
		return err
	}
	kind := Look
	if mask&left != 0 || found > maxFound {
		// The new name of a directory appeared whole; and by the time somebody looks at a name that one left,
		// another may be there that hides what went.
		kind = Rescan
	}
	w.out.add(kind, path, "")
	return nil
}

// fileEvent is about the entry name of dir that is not a directory.
func (w *inotifyWatcher) fileEvent(mask uint32, dir, name string) {
	kind := Look
	switch {
	case mask&unix.IN_CREATE != 0:
		info, err := w.root.Stat(vfs.Join(dir, name))
		if err == nil && info.Kind == vfs.File && info.Nlink == 1 {
			kind = Settle
		}
	case mask&unix.IN_MODIFY != 0:
		kind = Settle
	}
	w.out.add(kind, dir, name)
}

func (w *inotifyWatcher) checkRoot(now time.Time) {
	w.rootCheck = now
	if err := w.root.Check(); err != nil && !w.gone {
		w.cfg.Log.Warn("watched root is gone", "root", w.cfg.Root, "error", err)
		w.gone = true
		w.out.gone()
	}
}

func (w *inotifyWatcher) cookie(id uint64) error { return w.cookies.place(id) }

func (w *inotifyWatcher) Overflows() uint64 { return w.overflows.Load() }

func (w *inotifyWatcher) Close() error {
	var errs []error
	if w.queue != nil {
		w.queue.end()
	}
	w.reading.Lock()
	defer w.reading.Unlock()
	if w.queue != nil {
		errs = append(errs, w.queue.close())
	}
	if w.cookies != nil {
		errs = append(errs, w.cookies.close())
	}
	return errors.Join(append(errs, w.root.Close())...)
}
