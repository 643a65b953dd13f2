package vfs

import (
	"errors"
	"io/fs"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRegular says that a name to be read is not (or no longer) a regular file.
var ErrNotRegular = errors.New("not a regular file")

// Kind of a directory entry; the values are those of manifest.Kind.
type Kind uint8

const (
	Absent Kind = iota // no such entry, or one with Info.Other set
	File
	Dir
	Symlink
)

// Info is how a directory entry looks without reading its content. The zero Info is an absent entry.
type Info struct {
	Kind         Kind
	Mode         uint32 // st_mode & 07777
	UID, GID     uint32
	Size         int64 // as the kernel says, for every kind
	MTime, CTime int64 // ns, the nearest that can be told (see nanos)
	Ino, Dev     uint64
	Nlink        uint32
	Other        bool // device, socket, FIFO: Kind is Absent
}

// Exists says whether there is an entry of any kind.
func (i Info) Exists() bool { return i.Kind != Absent || i.Other }

// StatAt looks at name in the directory dirfd without following a symlink or triggering an automount. A name
// that is not there is no error: it gives the zero Info. name "" is the directory itself.
func StatAt(dirfd int, name string) (Info, error) {
	if name == "" {
		return StatFd(dirfd)
	}
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	var st unix.Stat_t
	for {
		switch err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err {
		case nil:
			return FromStat(&st), nil
		case unix.EINTR:
		case unix.ENOENT:
			return Info{}, nil
		default:
			return Info{}, &fs.PathError{Op: "fstatat", Path: name, Err: err}
		}
	}
}

// StatFd looks at what fd is open on.
func StatFd(fd int) (Info, error) {
	var st unix.Stat_t
	for {
		switch err := unix.Fstat(fd, &st); err {
		case nil:
			return FromStat(&st), nil
		case unix.EINTR:
		default:
			return Info{}, &fs.PathError{Op: "fstat", Path: "descriptor", Err: err}
		}
	}
}

// FromStat converts what the kernel says.
func FromStat(st *unix.Stat_t) Info {
	in := Info{
		Mode:  st.Mode & 0o7777,
		UID:   st.Uid,
		GID:   st.Gid,
		Size:  st.Size,
		MTime: nanos(st.Mtim.Sec, int64(st.Mtim.Nsec)),
		CTime: nanos(st.Ctim.Sec, int64(st.Ctim.Nsec)),
		Ino:   st.Ino,
		Dev:   uint64(st.Dev),
		Nlink: uint32(st.Nlink),
	}
	in.setKind(st.Mode)
	return in
}

// nanos is a time in ns since 1970, 0 <= nsec < 1e9. Times before the year 1678 and after 2262 do not fit and become the
// nearest that does.
func nanos(sec, nsec int64) int64 {
	const whole = math.MaxInt64 / int64(time.Second)
	switch {
	case sec > whole || sec == whole && nsec > math.MaxInt64%int64(time.Second):
		return math.MaxInt64
	case sec < -whole:
		return math.MinInt64
	}
	return sec*int64(time.Second) + nsec
}

func (in *Info) setKind(mode uint32) {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		in.Kind = File
	case unix.S_IFDIR:
		in.Kind = Dir
	case unix.S_IFLNK:
		in.Kind = Symlink
	default:
		in.Other = true
	}
}
