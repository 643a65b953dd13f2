package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

const (
	fanMask = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO | unix.FAN_MODIFY |
		unix.FAN_CLOSE_WRITE | unix.FAN_ATTRIB | unix.FAN_DELETE_SELF | unix.FAN_MOVE_SELF | unix.FAN_ONDIR
	// quietMask is what writing to a file makes; FAN_MARK_IGNORE_SURV with it is of Linux 6.0.
	quietMask = unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE | unix.FAN_ATTRIB | unix.FAN_EVENT_ON_CHILD
	// fanBuffer takes about a thousand events.
	fanBuffer = 64 << 10
	// staleFor is how long after an event of a directory that no longer exists the removal of one of ours is taken
	// for the reason; the two are microseconds apart in the queue.
	staleFor = 10 * time.Second
)

// fanotifyWatcher has one mark on the whole file system and drops what is not ours.
type fanotifyWatcher struct {
	cfg      *Config
	root     *vfs.Root
	queue    *queue
	dirs     *dirs
	cookies  *cookies
	barriers *barriers
	top      string // the root's file handle
	above    string // that of the directory that the root is in
	self     int32  // events of this process are dropped; 0 none

	reading   sync.Mutex // held by Read; guards what follows but overflows
	buf       []byte
	out       batch
	linked    linked
	staleAt   time.Time // last event of a directory that no longer exists
	ownMove   bool      // this process renamed a directory of ours; where to is still to come
	rootCheck time.Time
	gone      bool
	overflows atomic.Uint64
}

func openFanotify(cfg *Config, barriers *barriers) (_ source, err error) {
	root, err := vfs.OpenRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	w := &fanotifyWatcher{cfg: cfg, root: root, barriers: barriers, buf: make([]byte, fanBuffer), rootCheck: cfg.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if !cfg.OwnEvents {
		w.self = int32(os.Getpid())
	}
	if w.cookies, err = openCookies(cfg.Work); err != nil {
		return nil, err
	}
	workHandle, err := w.workHandle()
	if err != nil {
		return nil, err
	}
	w.dirs = newDirs(root, workHandle, cfg.Ignore)
	if err := w.mark(); err != nil {
		return nil, err
	}
	// The kernel may take a mark and still not let handles be opened (no CAP_DAC_READ_SEARCH, an overlay).
	handle, err := handleOf(root.Fd())
	if err != nil {
		return nil, err
	}
	above, err := w.aboveHandle()
	if err != nil {
		return nil, err
	}
	w.top, w.above = string(handle), string(above)
	if path, is, err := w.dirs.find(handle); err != nil {
		return nil, err
	} else if is != mine || path != "" {
		return nil, fmt.Errorf("the root's file handle does not lead back to it: %w", unix.ESTALE)
	}
	return w, nil
}

func (w *fanotifyWatcher) workHandle() ([]byte, error) {
	fd := int(w.cookies.dir.Fd())
	info, err := vfs.StatFd(fd)
	if err != nil {
		return nil, err
	}
	if info.Dev != w.root.Dev() {
		return nil, fmt.Errorf("work directory %s is on another file system than %s: %w", w.cfg.Work, w.cfg.Root, unix.EXDEV)
	}
	return handleOf(fd)
}

// aboveHandle: the removal of the root is only reported by the directory it is in, because we hold it open.
func (w *fanotifyWatcher) aboveHandle() ([]byte, error) {
	fd, err := unix.Openat(w.root.Fd(), "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open what the root is in: %w", err)
	}
	defer unix.Close(fd)
	info, err := vfs.StatFd(fd)
	if err != nil || info.Dev != w.root.Dev() {
		return nil, err // the root of the file system: there is nothing above it that we hear of
	}
	return handleOf(fd)
}

func (w *fanotifyWatcher) mark() error {
	flags := uint(unix.FAN_CLASS_NOTIF | unix.FAN_REPORT_DFID_NAME | unix.FAN_NONBLOCK | unix.FAN_CLOEXEC)
	if !w.cfg.boundedQueue {
		flags |= unix.FAN_UNLIMITED_QUEUE
	}
	fd, err := unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	switch {
	case err == unix.EPERM:
		return fmt.Errorf("watching a whole file system is for root (CAP_SYS_ADMIN) only: %w", err)
	case err != nil:
		return os.NewSyscallError("fanotify_init", err)
	}
	if w.queue, err = newQueue(fd); err != nil {
		return err
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, fanMask, w.root.Fd(), "."); err != nil {
		return fmt.Errorf("mark the file system of %s: %w", w.cfg.Root, os.NewSyscallError("fanotify_mark", err))
	}
	for _, dir := range w.cfg.Quiet {
		err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_IGNORE_SURV|unix.FAN_MARK_ONLYDIR, quietMask, unix.AT_FDCWD, dir)
		if err != nil { // events that nobody wants are dropped when they are read, which is dearer and nothing else
			w.cfg.Log.Debug("events not silenced", "dir", dir, "err", err)
		}
	}
	return nil
}

func (w *fanotifyWatcher) Read(ctx context.Context) ([]Event, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	for !w.gone {
		n, err := w.queue.read(ctx, w.cfg.rootCheckEvery, w.buf)
		if err != nil {
			return nil, fmt.Errorf("read fanotify events: %w", err)
		}
		w.process(w.buf[:n])
		if now := w.cfg.Now(); n == 0 || now.Sub(w.rootCheck) >= w.cfg.rootCheckEvery {
			w.checkRoot(now)
		}
		if len(w.out.events) > 0 {
			return w.out.take(), nil
		}
	}
	return nil, ErrGone
}

func (w *fanotifyWatcher) process(buf []byte) {
	for len(buf) > 0 {
		ev, rest, err := parseFan(buf)
		if err == nil {
			err = w.event(&ev)
		}
		if err != nil {
			w.cfg.Log.Warn("fanotify events lost: everything is compared again", "root", w.cfg.Root, "error", err)
			w.lost()
		}
		buf = rest
	}
}

// lost makes up for events that did not reach us.
func (w *fanotifyWatcher) lost() {
	w.overflows.Add(1)
	w.dirs.moved()
	w.out.add(Rescan, "", "")
	for _, id := range w.barriers.waiting() {
		if err := w.cookies.place(id); err != nil {
			w.cfg.Log.Warn("a barrier is lost", "root", w.cfg.Root, "error", err)
		}
	}
}

// event turns one event into hints. An error means that it could not be told whose it is.
func (w *fanotifyWatcher) event(ev *fanEvent) error {
	if ev.mask&unix.FAN_Q_OVERFLOW != 0 {
		w.cfg.Log.Warn("fanotify queue overflowed: everything is compared again", "root", w.cfg.Root)
		w.lost()
		return nil
	}
	self := len(ev.name) == 0 || string(ev.name) == "."
	if ev.handle == nil || self && ev.mask&unix.FAN_ATTRIB == 0 && string(ev.handle) != w.top {
		return nil // of what a directory says about its own end, only the root's matters
	}
	dir, is, err := w.dirs.find(ev.handle)
	switch {
	case err != nil:
		return err
	case is == dead:
		if !self {
			w.staleAt = w.cfg.Now()
		}
		return nil
	case is == work:
		w.workEvent(ev)
		return nil
	case is != mine:
		if ev.mask&unix.FAN_ONDIR != 0 && ev.mask&unix.FAN_DELETE != 0 && string(ev.handle) == w.above {
			w.checkRoot(w.cfg.Now())
		}
		return nil
	}
	own := w.self != 0 && ev.pid == w.self
	name := string(ev.name)
	switch {
	case self:
		w.selfEvent(ev.mask, dir, own)
	case ev.mask&unix.FAN_ONDIR != 0:
		w.dirEvent(ev.mask, dir, name, own)
	case !own && !w.cfg.Ignore(vfs.Join(dir, name)):
		w.fileEvent(ev.mask, dir, name)
	}
	return nil
}

func (w *fanotifyWatcher) workEvent(ev *fanEvent) {
	if ev.mask&unix.FAN_ONDIR != 0 {
		w.ownMove = false // moved aside: nothing is left under the old name
		return
	}
	if id, ok := w.cookies.id(string(ev.name)); ok && ev.mask&unix.FAN_CREATE != 0 && w.barriers.done(id) {
		w.out.barrier(id)
	}
}

// selfEvent is about a directory, not an entry in it.
func (w *fanotifyWatcher) selfEvent(mask uint64, dir string, own bool) {
	if dir == "" && mask&(unix.FAN_DELETE_SELF|unix.FAN_MOVE_SELF) != 0 {
		w.checkRoot(w.cfg.Now())
	}
	if !own && mask&unix.FAN_ATTRIB != 0 {
		w.out.add(Look, dir, "")
	}
}

// dirEvent is about the subdirectory name of dir.
func (w *fanotifyWatcher) dirEvent(mask uint64, dir, name string, own bool) {
	moved := mask&(unix.FAN_MOVED_FROM|unix.FAN_MOVED_TO) != 0
	if moved {
		w.dirs.moved()
	}
	if w.cfg.Ignore(vfs.Join(dir, name)) {
		return
	}
	if own {
		w.ownDirEvent(mask, dir, name)
		return
	}
	kind := Look
	switch {
	case moved:
		// Both names: the new one appeared whole, and by the time somebody looks at the old one, another directory
		// may be there that hides what went.
		kind = Rescan
	case mask&unix.FAN_DELETE == 0:
	case mask&unix.FAN_CREATE != 0:
		// Merged into the place of an earlier event, so ahead of events of what was in the directory, which may
		// turn out to be lost.
		kind = Rescan
	case w.hides(dir, name):
		kind = Rescan
	}
	w.out.add(kind, dir, name)
}

// hides says whether after the removal of a directory looking at its name may not show all that went: another
// directory is there now, or events of what was in it could not be told from those of strangers.
func (w *fanotifyWatcher) hides(dir, name string) bool {
	if !w.staleAt.IsZero() && w.cfg.Now().Sub(w.staleAt) < staleFor {
		return true
	}
	info, err := w.look(dir, name)
	return err != nil || info.Kind == vfs.Dir
}

// ownDirEvent is about what this process did. A rename makes the paths wrong under which hints about others' changes
// in the directory may just have gone out.
func (w *fanotifyWatcher) ownDirEvent(mask uint64, dir, name string) {
	if mask&unix.FAN_MOVED_FROM != 0 {
		w.ownMove = true
	}
	if mask&unix.FAN_MOVED_TO != 0 && w.ownMove {
		w.ownMove = false
		w.out.add(Rescan, dir, name)
	}
}

// fileEvent is about the entry name of dir that is not a directory.
func (w *fanotifyWatcher) fileEvent(mask uint64, dir, name string) {
	const final = unix.FAN_CLOSE_WRITE | unix.FAN_MOVED_TO | unix.FAN_MOVED_FROM | unix.FAN_DELETE
	const entry = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO
	if mask&entry == 0 && unnamed(name) {
		if w.linked.hint(name, mask, &w.out) {
			return
		}
		if info, err := w.look(dir, name); err == nil && !info.Exists() {
			return // an O_TMPFILE without a name yet
		}
	}
	kind := Look
	switch {
	case mask&final != 0:
	case mask&unix.FAN_CREATE != 0:
		kind = w.created(dir, name)
	case mask&unix.FAN_MODIFY != 0:
		kind = Settle
	}
	w.out.add(kind, dir, name)
}

// created says whether a new entry is complete as it is. A regular file with one link is most likely being written;
// other kinds, and new links of old files, are not, and nothing more will come for them.
func (w *fanotifyWatcher) created(dir, name string) Kind {
	info, err := w.look(dir, name)
	if err != nil || info.Kind != vfs.File || info.Nlink > 1 {
		return Look
	}
	w.linked.add(info.Ino, vfs.Join(dir, name))
	return Settle
}

func (w *fanotifyWatcher) look(dir, name string) (vfs.Info, error) {
	return w.root.Stat(vfs.Join(dir, name))
}

func (w *fanotifyWatcher) checkRoot(now time.Time) {
	w.rootCheck = now
	if err := w.root.Check(); err != nil && !w.gone {
		w.cfg.Log.Warn("watched root is gone", "root", w.cfg.Root, "error", err)
		w.gone = true
		w.out.gone()
	}
}

func (w *fanotifyWatcher) cookie(id uint64) error { return w.cookies.place(id) }

func (w *fanotifyWatcher) Overflows() uint64 { return w.overflows.Load() }

func (w *fanotifyWatcher) Close() error {
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
