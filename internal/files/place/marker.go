package place

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

var (
	// ErrMarkerMissing says that a directory carries no root marker: it is not the binding it should be, or
	// its file system is not mounted.
	ErrMarkerMissing = errors.New("root marker is missing")
	// ErrMarkerForeign says that a directory carries the root marker of another group, or an unreadable one.
	ErrMarkerForeign = errors.New("root marker is of another group")
	// ErrNotDirectory says that a binding's path leads to something else than a directory.
	ErrNotDirectory = errors.New("not a directory")
)

const (
	markerFile = "root"
	markerMax  = 4 << 10
	markerText = "Lockstep keeps the directory above this one in step with other servers.\n" +
		"Without this file it stops doing so: do not remove or edit it.\n"
	markerGroup = "group "
)

func markerContent(group string) string { return markerText + markerGroup + group + "\n" }

// EnsureMarker makes root the binding of a group: directory .lockstep (0755) with the file root (0644), both
// with the mtime created and the same bytes, so that they are identical on all nodes. It is durable when it
// returns. A marker that is there is left but for mode and mtime.
func EnsureMarker(root, group string, created time.Time) error {
	if group == "" || strings.ContainsAny(group, "\n\x00") {
		return fmt.Errorf("mark %s: group id %q: %w", root, group, unix.EINVAL)
	}
	rootFd, err := openRoot(root)
	if err != nil {
		return err
	}
	defer closeFd(rootFd)
	if err := unix.Mkdirat(rootFd, manifest.Reserved, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("mark %s: mkdir %s: %w", root, manifest.Reserved, err)
	}
	dir, err := vfs.OpenBeneath(rootFd, manifest.Reserved)
	if err != nil {
		return fmt.Errorf("mark %s: %w", root, err)
	}
	defer closeFd(dir)
	if err := checkMarker(dir, root, group); errors.Is(err, ErrMarkerMissing) {
		err = writeMarker(dir, markerContent(group))
		if err != nil {
			return fmt.Errorf("mark %s: %w", root, err)
		}
	} else if err != nil {
		return err
	}
	if err := finishMarker(rootFd, dir, created.UnixNano()); err != nil {
		return fmt.Errorf("mark %s: %w", root, err)
	}
	return nil
}

// CheckMarker says whether root is the binding of the group: nil, or an error that wraps ErrMarkerMissing,
// ErrMarkerForeign, ErrNotDirectory or (root is not there) fs.ErrNotExist.
func CheckMarker(root, group string) error {
	dir, err := openMarkerDir(root)
	if err != nil {
		return err
	}
	defer closeFd(dir)
	return checkMarker(dir, root, group)
}

// RemoveMarker makes root, which c holds, a directory like any other: the root marker goes, and what lies beside it
// unless it was kept aside for the user.
func (c *Claim) RemoveMarker() error {
	root := c.root
	rootFd, err := openRoot(root)
	if err != nil {
		return err
	}
	defer closeFd(rootFd)
	before, err := vfs.StatFd(rootFd)
	if err != nil {
		return fmt.Errorf("unmark %s: %w", root, err)
	}
	dir, err := vfs.OpenBeneath(rootFd, manifest.Reserved)
	if err != nil {
		return fmt.Errorf("unmark %s: %w", root, err)
	}
	defer closeFd(dir)
	if !c.Current() {
		return fmt.Errorf("unmark %s: its root marker is another one than before", root)
	}
	if err := unix.Unlinkat(dir, markerFile, 0); err != nil {
		return fmt.Errorf("unmark %s: %w", root, err)
	}
	for _, name := range []string{"work/kept", "work"} {
		if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT && err != unix.ENOTEMPTY {
			return fmt.Errorf("unmark %s: remove %s: %w", root, name, err)
		}
	}
	if err := unix.Unlinkat(rootFd, manifest.Reserved, unix.AT_REMOVEDIR); err != nil && err != unix.ENOTEMPTY {
		return fmt.Errorf("unmark %s: %w", root, err)
	}
	return setMTime(rootFd, before.MTime) // the marker was not the user's change
}

func openRoot(root string) (int, error) {
	fd, err := openat(unix.AT_FDCWD, root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOTDIR:
		return -1, fmt.Errorf("%s: %w", root, ErrNotDirectory)
	}
	return -1, &fs.PathError{Op: "open", Path: root, Err: err}
}

func checkMarker(dir int, root, group string) error {
	f, _, err := vfs.OpenFileAt(dir, markerFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", root, ErrMarkerMissing)
	case errors.Is(err, vfs.ErrNotRegular):
		return fmt.Errorf("%s: %w: it is no file", root, ErrMarkerForeign)
	case err != nil:
		return fmt.Errorf("%s: %w", root, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, markerMax))
	switch {
	case err != nil:
		return fmt.Errorf("%s: read root marker: %w", root, err)
	case string(text) == markerContent(group):
		return nil
	}
	if _, other, ok := strings.Cut(string(text), "\n"+markerGroup); ok {
		return fmt.Errorf("%s: %w: %q", root, ErrMarkerForeign, strings.TrimSpace(other))
	}
	return fmt.Errorf("%s: %w: it cannot be read", root, ErrMarkerForeign)
}

// writeMarker creates the marker under another name first, so that no half of one is ever found.
func writeMarker(dir int, text string) error {
	const tmp = markerFile + ".new"
	if err := unix.Unlinkat(dir, tmp, 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %s: %w", tmp, err)
	}
	fd, err := openat(dir, tmp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	if err := unix.Renameat(dir, tmp, dir, markerFile); err != nil {
		return fmt.Errorf("rename %s: %w", tmp, err)
	}
	return nil
}

func finishMarker(rootFd, dir int, mtime int64) error {
	f, _, err := vfs.OpenFileAt(dir, markerFile)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, set := range []struct {
		fd   int
		mode uint32
	}{{int(f.Fd()), 0o644}, {dir, 0o755}} {
		if err := unix.Fchmod(set.fd, set.mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
		if err := setMTime(set.fd, mtime); err != nil {
			return fmt.Errorf("set mtime: %w", err)
		}
		if err := unix.Fsync(set.fd); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	if err := unix.Fsync(rootFd); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// Mount identifies what a path leads to, as long as this system runs: if it changes, something was mounted or
// unmounted, or the directory was replaced.
type Mount struct {
	ID       uint64 // of the mount
	Dev, Ino uint64
}

// MountID looks at the directory path.
func MountID(path string) (Mount, error) {
	var st unix.Statx_t
	const mask = unix.STATX_INO | unix.STATX_MNT_ID
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, mask, &st); err != nil {
		return Mount{}, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return Mount{ID: st.Mnt_id, Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}, nil
}

// WorkDir decides where the work area of the binding root is, and makes it: preferred (DATA/work/GROUP) if a
// file can be renamed from there into the binding, else ROOT/.lockstep/work. EnsureMarker comes first.
func WorkDir(preferred, root string) (string, error) {
	if err := os.MkdirAll(preferred, 0o700); err != nil {
		return "", fmt.Errorf("work directory: %w", err)
	}
	rootFd, err := openRoot(root)
	if err != nil {
		return "", err
	}
	defer closeFd(rootFd)
	dir, err := vfs.OpenBeneath(rootFd, manifest.Reserved)
	if vfs.NoSuchDir(err) {
		return "", fmt.Errorf("%s: %w", root, ErrMarkerMissing)
	}
	if err != nil {
		return "", fmt.Errorf("work directory of %s: %w", root, err)
	}
	defer closeFd(dir)
	before, err := vfs.StatFd(dir)
	if err != nil {
		return "", fmt.Errorf("work directory of %s: %w", root, err)
	}
	same, err := probeRename(preferred, dir)
	if err == nil && !same {
		if err = unix.Mkdirat(dir, "work", 0o700); err == unix.EEXIST {
			err = nil
		}
	}
	if err == nil {
		err = setMTime(dir, before.MTime)
	}
	if err != nil {
		return "", fmt.Errorf("work directory of %s: %w", root, err)
	}
	if same {
		return preferred, nil
	}
	return filepath.Join(root, manifest.Reserved, "work"), nil
}

// probeRename says whether a file can be renamed from the directory path into dir. Device numbers do not tell:
// bind mounts share them and renames between them fail; project quotas and subvolumes have rules of their own.
func probeRename(path string, dir int) (bool, error) {
	from, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", path, err)
	}
	defer closeFd(from)
	const name = "probe"
	fd, err := openat(from, name, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false, fmt.Errorf("create %s/%s: %w", path, name, err)
	}
	closeFd(fd)
	err = unix.Renameat(from, name, dir, name)
	if err == unix.EXDEV {
		return false, unix.Unlinkat(from, name, 0)
	}
	if err != nil {
		return false, fmt.Errorf("rename %s/%s into %s: %w", path, name, manifest.Reserved, err)
	}
	return true, unix.Unlinkat(dir, name, 0)
}
