package manifest

import (
	"encoding/binary"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
	"github.com/zeebo/blake3"
)

// digests of one directory. tree covers what the directory holds; state covers versions and authors too,
// so replicas with equal state digests have byte-equal entries below it.
type digests struct {
	tree, state [32]byte
}

// digester computes directory digests from memos where there are any. With a memo sink it stores what it
// computes; else it remembers it.
type digester struct {
	r    kv.Reader
	memo kv.Tx // nil: read only
	seen map[string]digests
	buf  []byte
	// tree and state hash one directory after the other.
	tree, state *blake3.Hasher
	// doubting: stored memos are not believed.
	doubting bool
}

func newDigester(r kv.Reader, memo kv.Tx) *digester {
	return &digester{r: r, memo: memo, seen: map[string]digests{}, tree: blake3.New(), state: blake3.New()}
}

// TreeDigest identifies what the manifest says the binding should hold: every path with its metadata and
// content, and nothing else. It uses the memos that are there and stores none.
func TreeDigest(r kv.Reader) (machine.Digest, error) {
	root, err := getRecord(r, []byte{tagRoot})
	if err != nil {
		return machine.Digest{}, err
	}
	d, err := newDigester(r, nil).dir("")
	if err != nil {
		return machine.Digest{}, err
	}
	return blake3.Sum256(append(appendNode(nil, &root.Node), d.tree[:]...)), nil
}

// DirDigest is the digest over what dir holds; its own metadata does not count.
func DirDigest(r kv.Reader, dir string) (machine.Digest, error) {
	d, err := newDigester(r, nil).dir(dir)
	return d.tree, err
}

// stateDigest covers everything that is replicated.
func stateDigest(r kv.Reader, g *digester) (machine.Digest, error) {
	d, err := g.dir("")
	if err != nil {
		return machine.Digest{}, err
	}
	b := d.state[:]
	// The counters hold the conflict log's chain and the number of authors, who are numbered in log order.
	for _, key := range [][]byte{{tagRoot}, {tagStats}, {tagPolicy}} {
		v, _, err := r.Get(key)
		if err != nil {
			return machine.Digest{}, err
		}
		b = appendBytes(b, v)
	}
	return blake3.Sum256(b), nil
}

// dir returns the digests of one directory's children.
func (g *digester) dir(dir string) (digests, error) {
	if d, ok, err := g.known(dir); ok || err != nil {
		return d, err
	}
	subdirs, err := g.subdirs(dir)
	if err != nil {
		return digests{}, err
	}
	below := make([]digests, len(subdirs))
	for i, name := range subdirs {
		if below[i], err = g.dir(Join(dir, name)); err != nil {
			return digests{}, err
		}
	}
	d, err := g.hash(dir, below)
	if err != nil {
		return digests{}, err
	}
	if g.memo == nil {
		g.seen[dir] = d
		return d, nil
	}
	return d, g.memo.Set(appendDigestKey(nil, dir), append(d.tree[:], d.state[:]...))
}

func (g *digester) known(dir string) (digests, bool, error) {
	if d, ok := g.seen[dir]; ok || g.doubting {
		return d, ok, nil
	}
	g.buf = appendDigestKey(g.buf[:0], dir)
	v, ok, err := g.r.Get(g.buf)
	if err != nil || !ok || len(v) != 64 {
		return digests{}, false, err
	}
	return digests{tree: [32]byte(v[:32]), state: [32]byte(v[32:])}, true, nil
}

// subdirs lists the names of dir's child directories, in order.
func (g *digester) subdirs(dir string) ([]string, error) {
	var names []string
	from, to := childRange(dir)
	err := g.r.Scan(from, to, func(key, value []byte) error {
		if len(value) > 0 && Kind(value[0]) == Dir {
			names = append(names, string(key[len(from):]))
		}
		return nil
	})
	return names, err
}

// hash digests dir's children; below holds the digests of its child directories, in order.
func (g *digester) hash(dir string, below []digests) (digests, error) {
	tree, state := g.tree, g.state
	tree.Reset()
	state.Reset()
	from, to := childRange(dir)
	buf := g.buf
	err := g.r.Scan(from, to, func(key, value []byte) error {
		rec, coreLen, err := decodeRecord(value)
		if err != nil {
			return err
		}
		name := key[len(from):]
		buf = binary.AppendUvarint(buf[:0], uint64(len(name)))
		buf = append(buf, name...)
		named := len(buf)
		buf = append(buf, value[:coreLen]...)
		if rec.Kind == Dir {
			buf = append(buf, below[0].tree[:]...)
		}
		tree.Write(buf)
		buf = append(buf[:named], value...)
		if rec.Kind == Dir {
			buf = append(buf, below[0].state[:]...)
			below = below[1:]
		}
		state.Write(buf)
		return nil
	})
	g.buf = buf
	if err != nil {
		return digests{}, err
	}
	var d digests
	tree.Sum(d.tree[:0])
	state.Sum(d.state[:0])
	return d, nil
}
