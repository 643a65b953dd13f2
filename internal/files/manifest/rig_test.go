package manifest

import (
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

var testTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC).UnixNano()

const stamp = "20260304-050607"

// rig is a machine on a store, with everything it ever told.
type rig struct {
	t      testing.TB
	store  kv.Store
	m      *Machine
	index  uint64
	events []Changed
}

func newRig(t testing.TB, p Policy) *rig {
	r := &rig{t: t, store: kv.NewMemory(), index: 10}
	r.m = New(Config{Policy: p, Changed: func(_ uint64, cs []Changed) { r.events = append(r.events, cs...) }})
	return r
}

// apply is one entry with one command.
func (r *rig) apply(author string, changes ...Change) []Outcome {
	r.t.Helper()
	return r.entry(Batch{Author: author, Changes: changes})[0]
}

// entry applies several commands under one index.
func (r *rig) entry(batches ...Batch) (outs [][]Outcome) {
	r.t.Helper()
	r.index++
	tx := r.store.Batch()
	for _, b := range batches {
		res, err := r.m.Apply(tx, machine.Command{Index: r.index, Time: testTime, Payload: EncodeBatch(b)})
		if err != nil {
			r.t.Fatal(err)
		}
		o, err := DecodeOutcomes(res)
		if err != nil {
			r.t.Fatal(err)
		}
		outs = append(outs, o)
	}
	if err := tx.Commit(); err != nil {
		r.t.Fatal(err)
	}
	r.m.Committed(r.index)
	return outs
}

func (r *rig) get(path string) Node {
	r.t.Helper()
	n, _, err := Get(r.store, path)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// tree is every path with its node.
func tree(t testing.TB, r kv.Reader) map[string]Node {
	t.Helper()
	out := map[string]Node{}
	err := Walk(r, "", "", func(p string, n Node) error { out[p] = n; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func file(content string) Node { return fileAt(content, 1000) }

func fileAt(content string, mtime int64) Node {
	return Node{Kind: File, Mode: 0o644, UID: 7, GID: 8, MTime: mtime, Size: int64(len(content)), Hash: blake3.Sum256([]byte(content))}
}

func dir() Node                  { return Node{Kind: Dir, Mode: 0o755, UID: 7, GID: 8, MTime: 1000} }
func symlink(target string) Node { return Node{Kind: Symlink, Mode: 0o777, Target: target} }

func put(path string, base uint64, n Node) Change { return Change{Path: path, Base: base, Node: n} }
func del(path string, base uint64) Change         { return Change{Path: path, Base: base} }
