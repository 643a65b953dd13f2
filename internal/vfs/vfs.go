// Package vfs is the discipline for paths inside a tree that somebody else may change at any moment: every
// directory is opened beneath the root with openat2 (no symlink is followed, nothing leads out), and everything
// else happens to leaf names relative to such a descriptor. See Root.
//
// It is not an abstraction over operating systems or an in-memory file system, and it starts no goroutines.
// Paths are relative, '/'-separated raw bytes, cleaned; "" is the root itself. Linux 5.6 or newer.
package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openTries bounds retries of an openat2 that the kernel asks to repeat (a rename or mount raced).
const openTries = 16

// resolve is how every path beneath a root is walked.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// Split cuts rel into the directory and the last name. Split("a") is "", "a"; Split("") is "", "".
func Split(rel string) (dir, name string) {
	i := strings.LastIndexByte(rel, '/')
	if i < 0 {
		return "", rel
	}
	return rel[:i], rel[i+1:]
}

// Join is the reverse of Split.
func Join(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}

// CheckName says whether name can be one directory entry's: not empty, not "." or "..", no '/' and no NUL.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("name %q: %w", name, unix.EINVAL)
	}
	return nil
}

// CheckRel says whether rel is a cleaned relative path: "" or names, as CheckName wants them, with single '/'
// between them.
func CheckRel(rel string) error {
	for rest := rel; rest != ""; {
		name, tail, more := strings.Cut(rest, "/")
		if CheckName(name) != nil || more && tail == "" {
			return fmt.Errorf("path %q is not relative and clean: %w", rel, unix.EINVAL)
		}
		rest = tail
	}
	return nil
}

// OpenBeneath opens the directory rel beneath root, a directory descriptor, for reading. The caller closes it.
// Symlinks anywhere in rel give ELOOP (or ENOTDIR for the last name), attempts to leave the root EXDEV.
func OpenBeneath(root int, rel string) (int, error) {
	return openat2(root, rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
}

func openat2(root int, rel string, flags uint64) (int, error) {
	name := rel
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: flags, Resolve: resolve}
	for try := 1; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR && err != unix.EAGAIN || try == openTries {
			return -1, &fs.PathError{Op: "openat2", Path: rel, Err: err}
		}
	}
}

// OpenFileAt opens the regular file name of the directory dirfd for reading, never through a symlink and never
// waiting for the other end of a FIFO, and returns how it looked once it was open. The caller closes the file.
// Anything but a regular file gives an error that wraps ErrNotRegular.
func OpenFileAt(dirfd int, name string) (*os.File, Info, error) {
	if err := CheckName(name); err != nil {
		return nil, Info{}, err
	}
	// Look before opening: opening a device can have effects. The look after it is the one that counts.
	before, err := StatAt(dirfd, name)
	if err != nil {
		return nil, Info{}, err
	}
	if before.Kind == Absent && !before.Other {
		return nil, Info{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if before.Kind != File {
		return nil, before, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	fd, in, err := OpenFdAt(dirfd, name)
	if err != nil {
		return nil, in, err
	}
	// Non-blocking mode means nothing to a regular file, and kept on it would make os.File try the poller.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
		unix.Close(fd)
		return nil, in, &fs.PathError{Op: "fcntl", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), in, nil
}

// OpenFdAt opens the regular file name for reading and returns its descriptor, for a caller who has just seen that
// it is one, and how it looks now. What became another kind meanwhile is opened, but not returned.
func OpenFdAt(dirfd int, name string) (int, Info, error) {
	fd, err := openLeaf(dirfd, name)
	if err != nil {
		return -1, Info{}, err
	}
	in, err := StatFd(fd)
	if err == nil && in.Kind != File {
		err = &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if err != nil {
		unix.Close(fd)
		return -1, in, err
	}
	return fd, in, nil
}

func openLeaf(dirfd int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(dirfd, name, flags, 0)
		if err == nil {
			return fd, nil
		}
		if err == unix.ELOOP {
			err = ErrNotRegular
		}
		if err != unix.EINTR {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// ReadlinkAt returns the raw target of the symlink name in the directory dirfd.
func ReadlinkAt(dirfd int, name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err == unix.EINTR {
			size /= 4
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// NoSuchDir says whether err means that a directory is not there: missing, or in its place (or a parent's)
// something that is not a directory, a symlink for instance.
func NoSuchDir(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
