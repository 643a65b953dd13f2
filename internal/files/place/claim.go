package place

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// ErrHeld says that another node keeps the directory: its root marker is locked.
var ErrHeld = errors.New("another node keeps this directory")

// Claim is the hold on a binding: as long as it is open, nobody else on this machine takes the directory up, whatever
// group it is for. It is a lock (flock) on the root marker, which ends with the process and is not inherited by what
// the process runs. On a file system without such locks a Claim holds nobody off, see Locked.
type Claim struct {
	root   string
	marker *os.File
	locked bool
}

// Take claims root, which must carry the root marker of the group. It fails like CheckMarker, or with an error that
// wraps ErrHeld.
func Take(root, group string) (*Claim, error) {
	c, err := lockMarker(root)
	if err != nil {
		return nil, err
	}
	// Whoever had the lock before may have removed or replaced the file before it let go.
	err = CheckMarker(root, group)
	if err == nil && !c.Current() {
		err = fmt.Errorf("%s: %w: its root marker was replaced just now", root, ErrHeld)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// TakeOver claims root for the group also if it carries another group's root marker, or one that cannot be read: that is
// replaced, unless somebody holds it. The directory must carry one.
func TakeOver(root, group string, created time.Time) (*Claim, error) {
	before, err := lockMarker(root)
	if err != nil {
		return nil, err
	}
	defer before.Close()
	if err := CheckMarker(root, group); errors.Is(err, ErrMarkerForeign) && before.Current() {
		err = replaceMarker(root, group)
		if err != nil {
			return nil, fmt.Errorf("mark %s: %w", root, err)
		}
	}
	if err := before.Close(); err != nil {
		return nil, err
	}
	if err := EnsureMarker(root, group, created); err != nil {
		return nil, err
	}
	return Take(root, group)
}

func replaceMarker(root, group string) error {
	dir, err := openMarkerDir(root)
	if err != nil {
		return err
	}
	defer closeFd(dir)
	return writeMarker(dir, markerContent(group))
}

// Locked says whether the claim holds others off: false where the file system knows no locks.
func (c *Claim) Locked() bool { return c.locked }

// Current says whether the root marker is still the file that is held.
func (c *Claim) Current() bool {
	held, err := c.marker.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(markerPath(c.root))
	return err == nil && os.SameFile(held, now)
}

// Close lets the directory go. Closing twice is no error.
func (c *Claim) Close() error {
	if err := c.marker.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("let %s go: %w", c.root, err)
	}
	return nil
}

func markerPath(root string) string { return filepath.Join(root, manifest.Reserved, markerFile) }

func openMarkerDir(root string) (int, error) {
	rootFd, err := openRoot(root)
	if err != nil {
		return -1, err
	}
	defer closeFd(rootFd)
	dir, err := vfs.OpenBeneath(rootFd, manifest.Reserved)
	if vfs.NoSuchDir(err) {
		return -1, fmt.Errorf("%s: %w", root, ErrMarkerMissing)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", root, err)
	}
	return dir, nil
}

// lockMarker locks whatever root marker there is.
func lockMarker(root string) (*Claim, error) {
	f, err := openMarker(root, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	err = flock(f, unix.LOCK_EX)
	if err == unix.EBADF { // NFS locks only what is open for writing
		if err := f.Close(); err != nil {
			return nil, err
		}
		if f, err = openMarker(root, unix.O_RDWR); err != nil {
			return nil, err
		}
		err = flock(f, unix.LOCK_EX)
	}
	switch err {
	case nil:
		return &Claim{root: root, marker: f, locked: true}, nil
	case unix.EWOULDBLOCK:
		err := heldBy(root, f)
		return nil, errors.Join(err, f.Close())
	case unix.EOPNOTSUPP, unix.ENOLCK, unix.ENOSYS, unix.EINVAL, unix.EBADF:
		return &Claim{root: root, marker: f}, nil
	}
	return nil, errors.Join(fmt.Errorf("%s: lock the root marker: %w", root, err), f.Close())
}

func openMarker(root string, mode int) (*os.File, error) {
	dir, err := openMarkerDir(root)
	if err != nil {
		return nil, err
	}
	defer closeFd(dir)
	fd, err := openat(dir, markerFile, mode|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return os.NewFile(uintptr(fd), markerPath(root)), nil
	case unix.ENOENT:
		return nil, fmt.Errorf("%s: %w", root, ErrMarkerMissing)
	case unix.ELOOP, unix.EISDIR, unix.ENXIO:
		return nil, fmt.Errorf("%s: %w: it is no file", root, ErrMarkerForeign)
	}
	return nil, fmt.Errorf("%s: open the root marker: %w", root, err)
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != unix.EINTR {
			return err
		}
	}
}

// Held says whether somebody keeps root: an error that wraps ErrHeld and names who, as far as that is known. It takes
// nothing and writes nothing; a directory that is no binding, or cannot be looked at, is not held.
func Held(root string) error {
	f, err := openMarker(root, unix.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	if flock(f, unix.LOCK_SH) == unix.EWOULDBLOCK {
		return heldBy(root, f)
	}
	return nil
}

// Marked says which group's root marker root carries, "" if it carries none; what cannot be read is of group "?".
func Marked(root string) string {
	f, err := openMarker(root, unix.O_RDONLY)
	if err != nil {
		if errors.Is(err, ErrMarkerForeign) {
			return "?"
		}
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, markerMax))
	group, ok := strings.CutPrefix(string(text), markerText+markerGroup)
	if err != nil || !ok {
		return "?"
	}
	return strings.TrimSuffix(group, "\n")
}

func heldBy(root string, f *os.File) error {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) == nil {
		if locks, err := os.Open("/proc/locks"); err == nil {
			defer locks.Close()
			if pid, ok := holder(locks, unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino); ok {
				return fmt.Errorf("%s: %w: process %d", root, ErrHeld, pid)
			}
		}
	}
	return fmt.Errorf("%s: %w", root, ErrHeld)
}

// holder finds who has locked a file in what /proc/locks says: N: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END,
// the device in hexadecimal. A process of another namespace has a PID of 0 or less, and is not known.
func holder(locks io.Reader, major, minor uint32, ino uint64) (pid int, ok bool) {
	want := fmt.Sprintf("%02x:%02x:%d", major, minor, ino)
	for s := bufio.NewScanner(locks); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 6 || f[1] != "FLOCK" || f[3] != "WRITE" || f[5] != want {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		return pid, err == nil && pid > 0
	}
	return 0, false
}
