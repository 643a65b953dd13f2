package manifest

import (
	"encoding/binary"
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Get returns the entry at path; found is false if there is none. The root directory ("") is found once a
// change has set its metadata.
func Get(r kv.Reader, path string) (n Node, found bool, err error) {
	rec, err := getRecord(r, appendNodeKey(make([]byte, 0, len(path)+4), path))
	if err != nil {
		return Node{}, false, fmt.Errorf("manifest: get %q: %w", path, err)
	}
	return rec.Node, rec.Kind != Absent, nil
}

// RootClaimed says whether the root's metadata was set, and whether its mode and owner are those of a directory that
// somebody bound.
func RootClaimed(r kv.Reader) (set, claimed bool, err error) {
	rec, err := getRecord(r, appendNodeKey(nil, ""))
	if err != nil {
		return false, false, fmt.Errorf("manifest: root: %w", err)
	}
	return rec.Kind != Absent, rec.author != unclaimed, nil
}

// GetAll calls visit for each of paths, in any order, with the entry there, of Kind Absent if there is none, and
// whether its content came from node. It costs less than a Get for each.
func GetAll(r kv.Reader, node string, paths []string, visit func(path string, n Node, by bool)) error {
	id, known, err := numberOf(r, node)
	if err == nil {
		err = lookup(r, paths, func(path string, rec record) { visit(path, rec.Node, known && rec.author == id) })
	}
	if err != nil {
		return fmt.Errorf("manifest: get %d paths: %w", len(paths), err)
	}
	return nil
}

// numberOf is the number under which a node's name stands in records; false: it has written nothing yet.
func numberOf(r kv.Reader, node string) (id uint64, ok bool, err error) {
	v, ok, err := r.Get(authorNameKey(node))
	if err != nil || !ok {
		return 0, false, err
	}
	id, n := binary.Uvarint(v)
	if n <= 0 {
		return 0, false, fmt.Errorf("author %q: %w", node, errTruncated)
	}
	return id, true, nil
}

// lookup calls visit for each path, with the zero record if nothing stands there.
func lookup(r kv.Reader, paths []string, visit func(path string, rec record)) error {
	keys := make([][]byte, len(paths))
	for i, p := range paths {
		keys[i] = appendNodeKey(make([]byte, 0, len(p)+4), p)
	}
	return kv.Each(r, keys, func(i int, value []byte) (err error) {
		var rec record
		if value != nil {
			if rec, _, err = decodeRecord(value); err != nil {
				return fmt.Errorf("%q: %w", paths[i], err)
			}
		}
		visit(paths[i], rec)
		return nil
	})
}

// List visits the direct children of dir in bytewise order of their names. An error from visit ends it and
// is returned, except kv.ErrStop.
func List(r kv.Reader, dir string, visit func(name string, n Node) error) error {
	from, to := childRange(dir)
	return r.Scan(from, to, func(key, value []byte) error {
		rec, _, err := decodeRecord(value)
		if err != nil {
			return fmt.Errorf("manifest: list %q: %w", dir, err)
		}
		return visit(string(key[len(from):]), rec.Node)
	})
}

// Walk visits everything below dir: every directory before its children, the children of one directory
// together. To go on after an interruption, call it again with the last path as after; "" starts at the
// beginning. An error from visit ends it and is returned, except kv.ErrStop.
func Walk(r kv.Reader, dir, after string, visit func(path string, n Node) error) error {
	from, to := subtree(dir)
	if after != "" {
		from = append(appendNodeKey(nil, after), 0)
	}
	return r.Scan(from, to, func(key, value []byte) error {
		path, ok := nodePath(key)
		if !ok {
			return fmt.Errorf("manifest: walk %q: key %x: %w", dir, key, errTruncated)
		}
		rec, _, err := decodeRecord(value)
		if err != nil {
			return fmt.Errorf("manifest: walk %q: %w", path, err)
		}
		return visit(path, rec.Node)
	})
}

// ReadStats returns the manifest's counters.
func ReadStats(r kv.Reader) (Stats, error) {
	c, err := readCounters(r)
	if err != nil {
		return Stats{}, fmt.Errorf("manifest: %w", err)
	}
	return c.Stats, nil
}

// ReadPolicy returns the conflict policy in force; initial is what the machine was configured with.
func ReadPolicy(r kv.Reader, initial Policy) (Policy, error) {
	p, err := readPolicy(r, initial)
	if err != nil {
		return Policy{}, fmt.Errorf("manifest: %w", err)
	}
	return p, nil
}

// Conflicts visits the conflict log, oldest first. An error from visit ends it and is returned, except
// kv.ErrStop.
func Conflicts(r kv.Reader, visit func(Conflict) error) error {
	return r.Scan([]byte{tagConflict}, []byte{tagConflict + 1}, func(_, value []byte) error {
		c, _, err := decodeConflict(value)
		if err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		return visit(c)
	})
}

func getRecord(r kv.Reader, key []byte) (record, error) {
	v, ok, err := r.Get(key)
	if err != nil || !ok {
		return record{}, err
	}
	rec, _, err := decodeRecord(v)
	return rec, err
}

func readPolicy(r kv.Reader, initial Policy) (Policy, error) {
	v, ok, err := r.Get([]byte{tagPolicy})
	if err != nil || !ok {
		return initial, err
	}
	return ParsePolicy(string(v))
}

// counters are kept incrementally; authors is how many numbers have been given out.
type counters struct {
	Stats
	authors uint64
	chain   chain // of the newest conflict record
}

// count adds (by = +1) or takes away (by = -1) one node.
func (c *counters) count(n *Node, by int64) {
	switch n.Kind {
	case File:
		c.Files += uint64(by)
		c.Bytes += uint64(by * n.Size)
	case Dir:
		c.Dirs += uint64(by)
	case Symlink:
		c.Symlinks += uint64(by)
	}
}

func (c *counters) encode() []byte {
	b := make([]byte, 0, 48)
	for _, v := range []uint64{c.Files, c.Bytes, c.Dirs, c.Symlinks, c.Conflicts, c.authors} {
		b = binary.AppendUvarint(b, v)
	}
	return append(b, c.chain[:]...)
}

func readCounters(r kv.Reader) (counters, error) {
	v, ok, err := r.Get([]byte{tagStats})
	if err != nil || !ok {
		return counters{}, err
	}
	d := decoder{b: v}
	var c counters
	for _, p := range []*uint64{&c.Files, &c.Bytes, &c.Dirs, &c.Symlinks, &c.Conflicts, &c.authors} {
		*p = d.uvarint()
	}
	copy(c.chain[:], d.take(len(c.chain)))
	if err := d.done(); err != nil {
		return counters{}, fmt.Errorf("counters: %w", err)
	}
	return c, nil
}
