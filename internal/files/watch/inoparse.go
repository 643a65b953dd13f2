package watch

import (
	"bytes"
	"encoding/binary"
)

// inoHeaderLen is the size of struct inotify_event without its name.
const inoHeaderLen = 16

// inoEvent is one inotify event. name lies in the buffer that was parsed.
type inoEvent struct {
	wd   int32 // -1: the queue overflowed
	mask uint32
	name []byte // entry in the watched directory; empty: the directory itself
}

// parseIno cuts the first event off buf, which is not empty.
func parseIno(buf []byte) (ev inoEvent, rest []byte, err error) {
	if len(buf) < inoHeaderLen {
		return ev, nil, errMalformed
	}
	n := uint64(binary.NativeEndian.Uint32(buf[12:]))
	if n > uint64(len(buf)-inoHeaderLen) {
		return ev, nil, errMalformed
	}
	ev.wd = int32(binary.NativeEndian.Uint32(buf))
	ev.mask = binary.NativeEndian.Uint32(buf[4:])
	name := buf[inoHeaderLen : inoHeaderLen+n]
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	if bytes.IndexByte(name, '/') >= 0 {
		return ev, nil, errMalformed
	}
	ev.name = name
	return ev, buf[inoHeaderLen+n:], nil
}
