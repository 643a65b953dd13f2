package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var errTruncated = errors.New("truncated or malformed")

// decoder reads varint-framed fields; the first error sticks and every later read returns zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errTruncated
	}
	d.b = nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // one encoding a value
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail()
		return 0
	}
	return uint32(v)
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// take returns the next n bytes, aliasing the input.
func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// bytes returns a length-prefixed field, aliasing the input.
func (d *decoder) bytes(limit int) []byte {
	n := d.uvarint()
	if n > uint64(limit) || n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) done() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.b))
	}
	return d.err
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// appendNode encodes n without its version.
//
//	kind, uvarint mode, uid, gid, 8 bytes mtime,
//	file: uvarint size, 32 bytes hash (only if size > 0) | symlink: uvarint length, target
func appendNode(b []byte, n *Node) []byte {
	b = append(b, byte(n.Kind))
	if n.Kind == Absent {
		return b
	}
	b = binary.AppendUvarint(b, uint64(n.Mode))
	b = binary.AppendUvarint(b, uint64(n.UID))
	b = binary.AppendUvarint(b, uint64(n.GID))
	b = binary.BigEndian.AppendUint64(b, uint64(n.MTime))
	switch n.Kind {
	case File:
		b = binary.AppendUvarint(b, uint64(n.Size))
		b = append(b, n.Hash[:]...)
	case Symlink:
		b = appendBytes(b, n.Target)
	}
	return b
}

func (d *decoder) node() (n Node) {
	n.Kind = Kind(d.byte())
	if n.Kind == Absent {
		return n
	}
	n.Mode = d.uint32()
	n.UID = d.uint32()
	n.GID = d.uint32()
	if t := d.take(8); t != nil {
		n.MTime = int64(binary.BigEndian.Uint64(t))
	}
	switch n.Kind {
	case File:
		size := d.uvarint()
		if size > 1<<62 {
			d.fail()
		}
		n.Size = int64(size)
		copy(n.Hash[:], d.take(len(n.Hash)))
	case Dir:
	case Symlink:
		n.Target = string(d.bytes(MaxPath))
	default:
		d.fail()
	}
	if d.err != nil {
		return Node{}
	}
	return n
}

// record is what is stored for a path: the node, and who wrote its content.
type record struct {
	Node
	author uint64
}

// appendRecord encodes r; coreLen is the length of the leading part that the tree digest covers.
func appendRecord(b []byte, r *record) []byte {
	b = appendNode(b, &r.Node)
	b = binary.AppendUvarint(b, r.author)
	return binary.AppendUvarint(b, r.Version)
}

// decodeRecord decodes a stored value; coreLen is the length of the part that the tree digest covers.
func decodeRecord(v []byte) (r record, coreLen int, err error) {
	d := decoder{b: v}
	r.Node = d.node()
	coreLen = len(v) - len(d.b)
	r.author = d.uvarint()
	r.Version = d.uvarint()
	if err := d.done(); err != nil {
		return record{}, 0, fmt.Errorf("stored entry: %w", err)
	}
	if r.Kind == Absent {
		return record{}, 0, fmt.Errorf("stored entry: %w", errTruncated)
	}
	return r, coreLen, nil
}
