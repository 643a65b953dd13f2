package files

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// record is what the placed table says of a path: what was last put there, or found there and adopted, with
// its content's hash (files).
type record struct {
	place.Placed
	Hash  manifest.Hash // contentOf what it is a record of
	After uint64        // files: checkpoints begun before this was recorded; one that came later made the content durable
}

// contentOf tells one content of a file from another, and of a link one target from another. Zero for the rest, and for links
// that were recorded before theirs was.
func contentOf(n *manifest.Node) manifest.Hash {
	if n.Kind == manifest.Symlink && n.Target != "" {
		return blake3.Sum256([]byte(n.Target))
	}
	return n.Hash
}

// holds says whether n is what the record is of: kind, metadata, content.
func (r *record) holds(n *manifest.Node) bool {
	is, was := *n, r.node()
	is.Target = ""
	return is.Equal(was) && (n.Kind != manifest.Symlink || r.Hash == contentOf(n))
}

// node is the record as the manifest would say it, but for a link's target.
func (r *record) node() manifest.Node {
	s := &r.Stat
	n := manifest.Node{Kind: s.Kind, Mode: s.Mode, UID: s.UID, GID: s.GID, MTime: s.MTime}
	if s.Kind == manifest.File {
		n.Size, n.Hash = s.Size, r.Hash
	}
	return n
}

// Keys of the placed table:
//
//	p KEY           a record; KEY as manifest.AppendKey, so that it is walked alongside the manifest
//	h HASH16        a path that holds this content: a hint for renames, copies and other members
//	m NAME          positions and marks of this binding (checkpoint.go)
const (
	tagPlaced = 'p'
	tagHash   = 'h'
	tagMeta   = 'm'
)

const hashPrefix = 16

var errRecord = errors.New("placed record is malformed")

// table is the placed table. It is local to the node and never part of a snapshot. Safe for concurrent use.
type table struct {
	store kv.Store
}

func placedKey(b []byte, path string) []byte { return manifest.AppendKey(append(b, tagPlaced), path) }

func hashKey(h manifest.Hash) []byte { return append([]byte{tagHash}, h[:hashPrefix]...) }

func encodeRecord(b []byte, r *record) []byte {
	s := &r.Stat
	flags := byte(s.Kind)
	if s.Other {
		flags |= 0x80
	}
	b = binary.AppendUvarint(b, r.Version)
	b = append(b, flags)
	for _, v := range []uint64{uint64(s.Mode), uint64(s.UID), uint64(s.GID), uint64(s.Size), s.Ino, s.Dev, uint64(s.Nlink)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(s.MTime))
	b = binary.AppendVarint(b, s.CTime-s.MTime)
	if s.Kind == manifest.File {
		b = append(binary.AppendUvarint(b, r.After), r.Hash[:]...)
	} else if s.Kind == manifest.Symlink && r.Hash != (manifest.Hash{}) {
		b = append(b, r.Hash[:]...)
	}
	return b
}

func decodeRecord(b []byte) (r record, err error) {
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err = errRecord
			return 0
		}
		b = b[n:]
		return v
	}
	s := &r.Stat
	r.Version = next()
	if len(b) == 0 {
		return record{}, errRecord
	}
	s.Kind, s.Other = manifest.Kind(b[0]&0x7f), b[0]&0x80 != 0
	b = b[1:]
	s.Mode, s.UID, s.GID = uint32(next()), uint32(next()), uint32(next())
	s.Size, s.Ino, s.Dev, s.Nlink = int64(next()), next(), next(), uint32(next())
	if err != nil || len(b) < 8 {
		return record{}, errRecord
	}
	s.MTime = int64(binary.LittleEndian.Uint64(b))
	delta, n := binary.Varint(b[8:])
	if n <= 0 {
		return record{}, errRecord
	}
	s.CTime = s.MTime + delta
	if b = b[8+n:]; s.Kind == manifest.File {
		if r.After = next(); err != nil || len(b) != len(r.Hash) {
			return record{}, errRecord
		}
		copy(r.Hash[:], b)
	} else if s.Kind == manifest.Symlink && len(b) == len(r.Hash) {
		copy(r.Hash[:], b)
	} else if len(b) > 0 {
		return record{}, errRecord
	}
	return r, nil
}

// get returns the record of path, the zero one if there is none.
func (t table) get(path string) (record, error) {
	v, ok, err := t.store.Get(placedKey(make([]byte, 0, 128), path))
	if err != nil || !ok {
		return record{}, err
	}
	r, err := decodeRecord(v)
	if err != nil {
		return record{}, fmt.Errorf("placed record of %q: %w", path, err)
	}
	return r, nil
}

// getAll calls visit for each of paths with its record, the zero one if there is none.
func (t table) getAll(paths []string, visit func(path string, r record)) error {
	keys := make([][]byte, len(paths))
	for i, p := range paths {
		keys[i] = placedKey(make([]byte, 0, len(p)+4), p)
	}
	return kv.Each(t.store, keys, func(i int, v []byte) (err error) {
		var r record
		if v != nil {
			if r, err = decodeRecord(v); err != nil {
				return fmt.Errorf("placed record of %q: %w", paths[i], err)
			}
		}
		visit(paths[i], r)
		return nil
	})
}

// Children implements scan.Placed.
func (t table) Children(dir string, fn func(name string, p place.Placed) error) error {
	from := manifest.AppendChildrenKey([]byte{tagPlaced}, dir)
	to := bytes.Clone(from)
	to[len(to)-1] = 1
	return t.store.Scan(from, to, func(k, v []byte) error {
		r, err := decodeRecord(v)
		if err != nil {
			return fmt.Errorf("placed record in %q: %w", dir, err)
		}
		return fn(string(k[len(from):]), r.Placed)
	})
}

// walk visits all records whose key (manifest.AppendKey) is from or higher, in the manifest's order.
func (t table) walk(r kv.Reader, from []byte, fn func(key []byte, path string, rec record) error) error {
	return r.Scan(append([]byte{tagPlaced}, from...), []byte{tagPlaced + 1}, func(k, v []byte) error {
		path, ok := manifest.KeyPath(k[1:])
		if !ok {
			return fmt.Errorf("placed key %x: %w", k, errRecord)
		}
		rec, err := decodeRecord(v)
		if err != nil {
			return fmt.Errorf("placed record of %q: %w", path, err)
		}
		return fn(k[1:], path, rec)
	})
}

// whereIs returns a path that is believed to hold the content.
func (t table) whereIs(h manifest.Hash) (string, bool) {
	v, ok, err := t.store.Get(hashKey(h))
	if err != nil || !ok { // a hint that cannot be read is no hint
		return "", false
	}
	return string(v), true
}

// edits collects changes of the table that take effect together.
type edits struct {
	b   kv.Batch
	key []byte
	val []byte
}

func (t table) edit() *edits { return &edits{b: t.store.Batch()} }

// set records r at path. A zero Stat removes the record.
func (e *edits) set(path string, r record) error {
	e.key = placedKey(e.key[:0], path)
	if r.Stat.Kind == manifest.Absent && !r.Stat.Other {
		return e.b.Delete(e.key)
	}
	e.val = encodeRecord(e.val[:0], &r)
	if err := e.b.Set(e.key, e.val); err != nil {
		return err
	}
	if r.Stat.Kind != manifest.File || r.Stat.Size == 0 {
		return nil
	}
	return e.b.Set(hashKey(r.Hash), []byte(path))
}

func (e *edits) commit() error {
	if err := e.b.Commit(); err != nil {
		return fmt.Errorf("record what was placed: %w", err)
	}
	return nil
}

func (e *edits) discard() { e.b.Discard() }

// number reads a position kept under name; 0 if there is none.
func (t table) number(name string) (uint64, error) {
	v, ok, err := t.store.Get(append([]byte{tagMeta}, name...))
	if err != nil || !ok || len(v) != 8 {
		return 0, err
	}
	return binary.LittleEndian.Uint64(v), nil
}

func (t table) setNumber(b kv.Tx, name string, v uint64) error {
	return b.Set(append([]byte{tagMeta}, name...), binary.LittleEndian.AppendUint64(nil, v))
}
