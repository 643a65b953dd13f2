package watch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

const (
	maxMine    = 1 << 16 // directories of ours whose paths are remembered
	maxForeign = 1 << 16 // directories remembered as none of ours
	// resolveTries bounds how often a directory that is renamed while we ask for its path is asked for again.
	resolveTries = 4
)

// whose says what a directory is to a watcher.
type whose uint8

const (
	mine    whose = iota // at or beneath the root and not ignored
	foreign              // anything else on the file system
	dead                 // it no longer exists, so whose it was cannot be said
	work                 // the work directory
)

// dirs maps file handles of directories to paths. What is remembered was true at a moment after all events processed
// so far; a rename makes it wrong, and its event, still to come, makes us forget.
type dirs struct {
	root    *vfs.Root
	ignored func(rel string) bool
	work    string // handle

	mine    map[string]string   // handle → path
	foreign map[string]struct{} // handles
	link    []byte              // scratch for readlink
}

func newDirs(root *vfs.Root, workHandle []byte, ignored func(string) bool) *dirs {
	return &dirs{
		root: root, ignored: ignored, work: string(workHandle),
		mine: map[string]string{}, foreign: map[string]struct{}{}, link: make([]byte, unix.PathMax),
	}
}

// find says whose the directory is, and if mine, its path. An error means that it could not be found out.
func (d *dirs) find(handle []byte) (string, whose, error) {
	if path, ok := d.mine[string(handle)]; ok {
		return path, mine, nil
	}
	if _, ok := d.foreign[string(handle)]; ok {
		return "", foreign, nil
	}
	if string(handle) == d.work {
		return "", work, nil
	}
	path, is, err := d.resolve(handle)
	switch {
	case err != nil:
		return "", foreign, err
	case is == mine:
		if len(d.mine) >= maxMine {
			d.mine = map[string]string{}
		}
		d.mine[string(handle)] = path
	case is == foreign:
		if len(d.foreign) >= maxForeign {
			d.foreign = map[string]struct{}{}
		}
		d.foreign[string(handle)] = struct{}{}
	}
	return path, is, nil
}

// moved forgets what the rename of one of our directories, or of one into our tree, can have made wrong.
func (d *dirs) moved() {
	d.mine = map[string]string{}
	d.foreign = map[string]struct{}{}
}

func (d *dirs) resolve(handle []byte) (path string, is whose, err error) {
	fd, err := d.open(handle)
	switch {
	case err == unix.ESTALE || err == unix.ENOENT:
		return "", dead, nil
	case err != nil:
		return "", foreign, os.NewSyscallError("open_by_handle_at", err)
	}
	defer unix.Close(fd)
	self, err := vfs.StatFd(fd)
	if err != nil {
		return "", foreign, err
	}
	for range resolveTries {
		path, is, err = d.path(fd)
		if err != nil || is != mine {
			return "", is, err
		}
		there, err := d.stat(path)
		if err != nil {
			return "", foreign, err
		}
		if there.Ino == self.Ino && there.Dev == self.Dev {
			if d.ignoredAbove(path) {
				return "", foreign, nil
			}
			return path, mine, nil
		}
	}
	// Removed, or renamed faster than we can look: its event or that of a directory above it is still to come.
	return "", dead, nil
}

// open opens a directory by its handle. The kernel says ENOMEM also when renames race with its search for the path.
func (d *dirs) open(handle []byte) (fd int, err error) {
	h := fileHandle(handle)
	for range resolveTries {
		fd, err = unix.OpenByHandleAt(d.root.Fd(), h, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if err != unix.ENOMEM && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// path asks the kernel where the directory fd is now.
func (d *dirs) path(fd int) (string, whose, error) {
	top, err := d.readlink(d.root.Fd())
	if err != nil {
		return "", foreign, err
	}
	full, err := d.readlink(fd)
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", foreign, nil // no path that a system call would take leads there
	}
	if err != nil {
		return "", foreign, err
	}
	rel, ok := beneath(top, full)
	if !ok {
		return "", foreign, nil
	}
	return rel, mine, nil
}

func (d *dirs) readlink(fd int) (string, error) {
	link := "/proc/self/fd/" + strconv.Itoa(fd)
	n, err := unix.Readlink(link, d.link)
	if err != nil {
		return "", fmt.Errorf("find a directory's path: readlink %s: %w", link, err)
	}
	return string(d.link[:n]), nil
}

// stat looks at the directory rel itself; one that is not there gives the zero Info.
func (d *dirs) stat(rel string) (vfs.Info, error) {
	fd, err := vfs.OpenBeneath(d.root.Fd(), rel)
	if vfs.NoSuchDir(err) {
		return vfs.Info{}, nil
	}
	if err != nil {
		return vfs.Info{}, err
	}
	defer unix.Close(fd)
	return vfs.StatFd(fd)
}

// ignoredAbove says whether the directory rel or one above it is ignored.
func (d *dirs) ignoredAbove(rel string) bool {
	for i := range len(rel) {
		if rel[i] == '/' && d.ignored(rel[:i]) {
			return true
		}
	}
	return rel != "" && d.ignored(rel)
}

// beneath cuts the directory top off the absolute path full.
func beneath(top, full string) (rel string, ok bool) {
	rel, ok = strings.CutPrefix(full, top)
	switch {
	case !ok:
		return "", false
	case rel == "" || top == "/":
		return rel, true
	}
	return strings.CutPrefix(rel, "/")
}

// handleOf asks for the handle of the directory fd as events will carry it.
func handleOf(fd int) ([]byte, error) {
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("the file system has no file handles: %w", err)
		}
		return nil, os.NewSyscallError("name_to_handle_at", err)
	}
	return rawHandle(h), nil
}
