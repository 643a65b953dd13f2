package vfs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	direntHeader = 19       // struct linux_dirent64 up to d_name
	direntChunk  = 32 << 10 // room that each getdents64 call is given
	keepBuffer   = 1 << 20  // larger buffers (from huge directories) are not kept for the next one
)

// errDirents says that what getdents64 returned cannot be parsed.
var errDirents = errors.New("malformed directory entries")

// Entry is one entry of a directory. Err says that it is there but could not be looked at.
type Entry struct {
	Name string
	Info Info
	Err  error
}

// Lister reads directories, reusing its buffers. The zero Lister is ready. Not safe for concurrent use.
type Lister struct {
	raw     []byte
	refs    []dirent
	order   []int32
	entries []Entry
	stx     unix.Statx_t
}

// dirent is where an entry's NUL-terminated name lies in Lister.raw.
type dirent struct {
	ino      uint64
	from, to int32 // the name without its NUL
}

// List reads the directory open on dirfd, which must be at its start, and looks at every entry without following
// symlinks. The result is sorted by raw name and valid until the next call. Entries that vanish meanwhile are left
// out. Looking happens in inode order, because that is how they lie on the disk.
func (l *Lister) List(dirfd int) ([]Entry, error) {
	if err := l.read(dirfd); err != nil {
		return nil, err
	}
	slices.SortFunc(l.refs, func(a, b dirent) int {
		return bytes.Compare(l.raw[a.from:a.to], l.raw[b.from:b.to])
	})
	n := len(l.refs)
	if cap(l.order) < n || cap(l.order) > 4*n+4096 {
		l.order = make([]int32, n)
		l.entries = make([]Entry, n)
	}
	l.order, l.entries = l.order[:n], l.entries[:n]
	for i := range l.order {
		l.order[i] = int32(i)
	}
	slices.SortFunc(l.order, func(a, b int32) int {
		return cmp.Compare(l.refs[a].ino, l.refs[b].ino)
	})
	vanished := false
	for _, i := range l.order {
		e := &l.entries[i]
		e.Info, e.Err = l.stat(dirfd, l.refs[i])
		if e.Err == unix.ENOENT {
			vanished = true
			continue
		}
		e.Name = string(l.raw[l.refs[i].from:l.refs[i].to])
		if e.Err != nil {
			e.Err = &fs.PathError{Op: "statx", Path: e.Name, Err: e.Err}
		}
	}
	if vanished {
		l.entries = slices.DeleteFunc(l.entries, func(e Entry) bool { return e.Err == unix.ENOENT })
	}
	if cap(l.raw) > keepBuffer {
		l.raw, l.refs = nil, nil
	}
	return l.entries, nil
}

// read fills raw and refs with all entries but "." and "..".
func (l *Lister) read(dirfd int) error {
	l.raw, l.refs = l.raw[:0], l.refs[:0]
	for {
		l.raw = slices.Grow(l.raw, direntChunk)
		from := len(l.raw)
		n, err := unix.Getdents(dirfd, l.raw[from:cap(l.raw)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "getdents", Path: "directory", Err: err}
		}
		if n == 0 {
			return nil
		}
		l.raw = l.raw[:from+n]
		if l.refs, err = parseDirents(l.raw, from, l.refs); err != nil {
			return err
		}
	}
}

// parseDirents appends the entries in raw[from:] to refs.
func parseDirents(raw []byte, from int, refs []dirent) ([]dirent, error) {
	for from < len(raw) {
		rec := raw[from:]
		if len(rec) <= direntHeader {
			return refs, errDirents
		}
		size := int(binary.NativeEndian.Uint16(rec[16:]))
		if size <= direntHeader || size > len(rec) {
			return refs, errDirents
		}
		length := bytes.IndexByte(rec[direntHeader:size], 0)
		if length <= 0 {
			return refs, errDirents
		}
		start := from + direntHeader
		if name := raw[start : start+length]; string(name) != "." && string(name) != ".." {
			ino := binary.NativeEndian.Uint64(rec)
			refs = append(refs, dirent{ino: ino, from: int32(start), to: int32(start + length)})
		}
		from += size
	}
	return refs, nil
}

// stat looks at one entry. It calls statx itself because the name already lies in raw as the kernel wants it: the
// wrapper would copy each one.
func (l *Lister) stat(dirfd int, ref dirent) (Info, error) {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(dirfd), uintptr(unsafe.Pointer(&l.raw[ref.from])),
			flags, unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&l.stx)), 0)
		switch errno {
		case 0:
			return fromStatx(&l.stx), nil
		case unix.EINTR:
		default:
			return Info{}, errno
		}
	}
}

func fromStatx(st *unix.Statx_t) Info {
	in := Info{
		Mode:  uint32(st.Mode) & 0o7777,
		UID:   st.Uid,
		GID:   st.Gid,
		Size:  int64(st.Size),
		MTime: nanos(st.Mtime.Sec, int64(st.Mtime.Nsec)),
		CTime: nanos(st.Ctime.Sec, int64(st.Ctime.Nsec)),
		Ino:   st.Ino,
		Dev:   unix.Mkdev(st.Dev_major, st.Dev_minor),
		Nlink: st.Nlink,
	}
	in.setKind(uint32(st.Mode))
	return in
}
