package watch

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// errMalformed says that the kernel sent what we cannot parse; the events of that read are lost.
var errMalformed = errors.New("malformed event")

// Sizes of struct fanotify_event_metadata, of fanotify_event_info_header and of fanotify_event_info_fid up to the
// file handle, and of struct file_handle up to its bytes.
const (
	fanMetaLen   = 24
	fanInfoLen   = 4
	fanFidLen    = fanInfoLen + 8
	fanHandleLen = 8
)

// fanEvent is one fanotify event. handle and name lie in the buffer that was parsed.
type fanEvent struct {
	mask   uint64
	pid    int32
	handle []byte // struct file_handle of the directory; nil: none was sent
	name   []byte // entry in it; empty or ".": the directory itself
}

// parseFan cuts the first event off buf, which is not empty.
func parseFan(buf []byte) (ev fanEvent, rest []byte, err error) {
	if len(buf) < fanMetaLen {
		return ev, nil, errMalformed
	}
	size := uint64(binary.NativeEndian.Uint32(buf))
	meta := uint64(binary.NativeEndian.Uint16(buf[6:]))
	if buf[4] != unix.FANOTIFY_METADATA_VERSION || meta < fanMetaLen || size < meta || size > uint64(len(buf)) {
		return ev, nil, errMalformed
	}
	ev.mask = binary.NativeEndian.Uint64(buf[8:])
	ev.pid = int32(binary.NativeEndian.Uint32(buf[20:]))
	for info := buf[meta:size]; len(info) > 0; {
		if len(info) < fanInfoLen {
			return ev, nil, errMalformed
		}
		n := int(binary.NativeEndian.Uint16(info[2:]))
		if n < fanInfoLen || n > len(info) {
			return ev, nil, errMalformed
		}
		switch info[0] {
		case unix.FAN_EVENT_INFO_TYPE_DFID, unix.FAN_EVENT_INFO_TYPE_DFID_NAME:
			if err := ev.parseDir(info[:n]); err != nil {
				return ev, nil, err
			}
		}
		info = info[n:]
	}
	return ev, buf[size:], nil
}

// parseDir reads a record that names a directory, and an entry in it.
func (ev *fanEvent) parseDir(info []byte) error {
	if len(info) < fanFidLen+fanHandleLen {
		return errMalformed
	}
	handle := info[fanFidLen:]
	n := uint64(binary.NativeEndian.Uint32(handle)) + fanHandleLen
	if n > uint64(len(handle)) {
		return errMalformed
	}
	ev.handle, ev.name = handle[:n], nil
	if info[0] == unix.FAN_EVENT_INFO_TYPE_DFID_NAME {
		name := handle[n:]
		end := bytes.IndexByte(name, 0)
		if end < 0 || bytes.IndexByte(name[:end], '/') >= 0 {
			return errMalformed
		}
		ev.name = name[:end]
	}
	return nil
}

// fileHandle turns the raw struct file_handle of an event into what the system call takes.
func fileHandle(raw []byte) unix.FileHandle {
	return unix.NewFileHandle(int32(binary.NativeEndian.Uint32(raw[4:])), raw[fanHandleLen:])
}

// rawHandle is the reverse of fileHandle.
func rawHandle(h unix.FileHandle) []byte {
	raw := binary.NativeEndian.AppendUint32(nil, uint32(h.Size()))
	raw = binary.NativeEndian.AppendUint32(raw, uint32(h.Type()))
	return append(raw, h.Bytes()...)
}
