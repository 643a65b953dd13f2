package watch

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// unnamed says whether name looks like what the kernel calls a file opened with O_TMPFILE: '#' and its inode number.
// Such a file keeps that name in events even after it was linked under a real one.
func unnamed(name string) bool {
	_, err := strconv.ParseUint(name[1:], 10, 64)
	return name[0] == '#' && err == nil
}

// linked remembers under which names the latest files appeared, because what is written to an O_TMPFILE after it was
// linked is reported under its unnamed name only. The zero linked is ready.
type linked struct {
	latest [64]struct {
		ino  uint64
		path string
	}
	next int
}

func (l *linked) add(ino uint64, path string) {
	slot := &l.latest[l.next]
	slot.ino, slot.path = ino, path
	l.next = (l.next + 1) % len(l.latest)
}

// hint adds a hint for the real name of an unnamed file; false if it has none that we know.
func (l *linked) hint(name string, mask uint64, out *batch) bool {
	ino, err := strconv.ParseUint(name[1:], 10, 64)
	if err != nil {
		return false
	}
	for i := range l.latest {
		if slot := &l.latest[i]; slot.path != "" && slot.ino == ino {
			kind := Settle
			if mask&(unix.FAN_CLOSE_WRITE|unix.FAN_ATTRIB) != 0 {
				kind = Look
			}
			out.add(kind, slot.path, "")
			return true
		}
	}
	return false
}
