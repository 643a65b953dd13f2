package place

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// The calls here repeat what a signal interrupted and leave the errno bare, for callers that decide on it.

func openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// writeAt writes all of b at off.
func writeAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// setMTime sets the mtime (Unix ns) of what fd is open on, which may be O_PATH, and leaves the atime.
func setMTime(fd int, mtime int64) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(mtime)}
	return unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
}

// setOwner changes owner and group of what fd is open on, which may be O_PATH.
func setOwner(fd int, uid, gid uint32) error {
	return unix.Fchownat(fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH)
}

// procFd is a path that leads to what fd is open on, whatever names it has.
func procFd(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// setMode changes the mode of what fd is open on; O_PATH descriptors go through /proc.
func setMode(fd int, mode uint32) error {
	err := unix.Fchmod(fd, mode)
	if err == unix.EBADF {
		return unix.Fchmodat(unix.AT_FDCWD, procFd(fd), mode, 0)
	}
	return err
}

// linkFd gives what fd is open on a name. Only the privileged (on older kernels) may do it by the descriptor
// alone; everybody may through /proc.
func linkFd(fd, dirfd int, name string) error {
	err := unix.Linkat(fd, "", dirfd, name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT || err == unix.EPERM {
		return unix.Linkat(unix.AT_FDCWD, procFd(fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
	}
	return err
}

// remove unlinks name, or removes the empty directory name.
func remove(dirfd int, name string, kind vfs.Kind) error {
	flags := 0
	if kind == vfs.Dir {
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(dirfd, name, flags)
	if err == unix.EEXIST && kind == vfs.Dir {
		err = unix.ENOTEMPTY // POSIX leaves the choice to the file system
	}
	return err
}

// sameObject says whether a and b are the same entry with nothing changed but its ctime and link count, which
// a rename changes. A directory's size and times follow its entries and do not count.
func sameObject(a, b vfs.Info) bool {
	if a.Kind != b.Kind || a.Ino != b.Ino || a.Dev != b.Dev || a.Other || b.Other {
		return false
	}
	if a.Kind == vfs.Dir {
		return true
	}
	return a.Size == b.Size && a.MTime == b.MTime && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID
}

// sameMTime says whether a file system that was asked for want may answer got: some keep whole seconds.
func sameMTime(got, want int64) bool {
	return got == want || got%1e9 == 0 && got <= want && want-got < 1e9
}
