package content

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// chunkTable remembers where in placed files chunks were. It is a table of hints: whoever uses one verifies.
//
//	c + first 16 bytes of the chunk's hash → offset u64, length u32, path
//	p + path                               → first 16 bytes of the hash of each of its chunks
//
// A path that begins with goneMark is a name in WORK/gone.
type chunkTable struct{ store kv.Store }

const (
	keyPrefix = 16
	goneMark  = "\x00" // no path has it
)

type chunkHint struct {
	path   string
	offset int64
	length uint32
}

func chunkKey(h manifest.Hash) []byte { return append([]byte{'c'}, h[:keyPrefix]...) }
func pathKey(path string) []byte      { return append([]byte{'p'}, path...) }

func (t chunkTable) find(h manifest.Hash) (chunkHint, bool) {
	if t.store == nil {
		return chunkHint{}, false
	}
	v, ok, err := t.store.Get(chunkKey(h))
	if err != nil || !ok || len(v) < 12 { // a hint that cannot be read is no hint: the chunk is fetched
		return chunkHint{}, false
	}
	return chunkHint{string(v[12:]), int64(binary.LittleEndian.Uint64(v)), binary.LittleEndian.Uint32(v[8:])}, true
}

// knows says whether the path's chunks were recorded.
func (t chunkTable) knows(path string) bool {
	if t.store == nil {
		return false
	}
	_, ok, err := t.store.Get(pathKey(path))
	return err == nil && ok
}

func (t chunkTable) forgetChunk(h manifest.Hash) error {
	b := t.store.Batch()
	defer b.Discard()
	if err := b.Delete(chunkKey(h)); err != nil {
		return err
	}
	return b.Commit()
}

// replace makes the recipe, if any, what is known of the path, and what was known of it that of away; without a recipe it
// takes over what is known of back. "" is no path.
func (t chunkTable) replace(path string, recipe chunk.Recipe, away, back string) error {
	b := t.store.Batch()
	defer b.Discard()
	if err := movePath(b, path, away); err != nil {
		return err
	}
	switch {
	case len(recipe) > 0:
		if err := addPath(b, path, recipe); err != nil {
			return err
		}
	case back != "":
		if err := movePath(b, back, path); err != nil {
			return err
		}
	}
	return b.Commit()
}

// forget drops what is known of the path.
func (t chunkTable) forget(path string) error {
	if t.store == nil {
		return nil
	}
	return t.replace(path, nil, "", "")
}

// forgetGone drops what is known of files that lingered when an earlier process ended.
func (t chunkTable) forgetGone() error {
	if t.store == nil {
		return nil
	}
	var gone []string
	err := t.store.Scan(pathKey(goneMark), pathKey("\x01"), func(k, _ []byte) error {
		gone = append(gone, string(k[1:]))
		return nil
	})
	for _, path := range gone {
		err = errors.Join(err, t.forget(path))
	}
	return err
}

// movePath makes what is known of a path that of another one; "": of none.
func movePath(b kv.Batch, path, to string) error {
	known, ok, err := b.Get(pathKey(path))
	if err != nil || !ok {
		return err
	}
	known = bytes.Clone(known)
	if to != "" {
		if err := b.Set(pathKey(to), known); err != nil {
			return err
		}
	}
	for ; len(known) >= keyPrefix; known = known[keyPrefix:] {
		key := append([]byte{'c'}, known[:keyPrefix]...)
		v, ok, err := b.Get(key)
		if err != nil {
			return err
		}
		if !ok || len(v) < 12 || !bytes.Equal(v[12:], []byte(path)) {
			continue // another file has it too
		}
		if to == "" {
			err = b.Delete(key)
		} else {
			err = b.Set(key, append(bytes.Clone(v[:12]), to...))
		}
		if err != nil {
			return err
		}
	}
	return b.Delete(pathKey(path))
}

func addPath(b kv.Batch, path string, recipe chunk.Recipe) error {
	known := make([]byte, 0, len(recipe)*keyPrefix)
	value := append(make([]byte, 12), path...)
	var offset int64
	for _, c := range recipe {
		binary.LittleEndian.PutUint64(value, uint64(offset))
		binary.LittleEndian.PutUint32(value[8:], c.Len)
		if err := b.Set(chunkKey(c.Hash), value); err != nil {
			return err
		}
		known = append(known, c.Hash[:keyPrefix]...)
		offset += int64(c.Len)
	}
	return b.Set(pathKey(path), known)
}

// RecordPlaced notes that the large content h is now at path, so that its chunks are found when a later content
// shares them. A nil recipe means the one seen when h was staged, pushed or served, or what is known of the file that
// lingered and was staged as h; if there is none, nothing is noted. The old version's chunks are those of the file that
// lingers, if it does, else they are forgotten.
func (s *Store) RecordPlaced(path string, h manifest.Hash, recipe chunk.Recipe) error {
	if s.table.store == nil {
		return nil
	}
	away, back := s.movedChunks(path, h)
	if recipe == nil {
		recipe, _ = s.recipes.get(h)
	}
	if err := s.table.replace(path, recipe, away, back); err != nil {
		return fmt.Errorf("record the chunks of %q: %w", path, err)
	}
	return nil
}

// ForgetPlaced drops what is noted of a path that was removed or replaced by something else.
func (s *Store) ForgetPlaced(path string) error {
	return s.RecordPlaced(path, manifest.Hash{}, chunk.Recipe{})
}

// recipeCache remembers the recipes of contents lately moved, so that a second member or the chunk table does
// not need the content read again. The oldest go first.
type recipeCache struct {
	mu    sync.Mutex
	known map[manifest.Hash]chunk.Recipe
	order []manifest.Hash
	refs  int
}

const (
	cachedRefs = 128 << 10 // in all recipes: 4.5 MiB
	recipeRefs = 64 << 10  // in one: contents beyond about 16 GiB are not remembered
)

func (c *recipeCache) get(h manifest.Hash) (chunk.Recipe, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.known[h]
	return r, ok
}

func (c *recipeCache) put(h manifest.Hash, r chunk.Recipe) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, twice := c.known[h]; twice || len(r) > recipeRefs {
		return
	}
	c.known[h] = r
	c.order = append(c.order, h)
	for c.refs += len(r); c.refs > cachedRefs; {
		oldest := c.order[0]
		c.order = c.order[1:]
		c.refs -= len(c.known[oldest])
		delete(c.known, oldest)
	}
}

func (c *recipeCache) drop(h manifest.Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.order, h)
	if i < 0 {
		return
	}
	c.order = slices.Delete(c.order, i, i+1)
	c.refs -= len(c.known[h])
	delete(c.known, h)
}
