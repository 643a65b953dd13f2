package content

import (
	"bytes"
	"errors"
	"io"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// basis is the placed file that a staging takes chunks from, and where they are in it.
type basis struct {
	path   string
	src    Source
	cut    bool // chunks is filled, or will not be
	chunks map[manifest.Hash]int64
}

func (b *basis) close() error {
	if b.src == nil {
		return nil
	}
	err := b.src.Close()
	b.src = nil
	return err
}

// open makes src the file at path, keeping the one that is open if it is the same.
func (g *staging) open(path string) bool {
	if g.basis.src != nil && g.basis.path == path {
		return true
	}
	if err := g.basis.close(); err != nil {
		g.s.opts.Log.Warn("close a file read for its chunks", "path", g.basis.path, "err", err)
	}
	src, ok := g.s.openAt(path)
	if ok {
		g.basis.path, g.basis.src = path, src
	}
	return ok
}

// fromTable reads a chunk into scratch from where the table says that it was placed; a wrong entry goes.
func (g *staging) fromTable(ref chunk.Ref) bool {
	at, ok := g.s.table.find(ref.Hash)
	if !ok {
		return false
	}
	if at.length == ref.Len && g.open(at.path) && g.matches(g.basis.src, at.offset, ref) {
		return true
	}
	if err := g.s.table.forgetChunk(ref.Hash); err != nil {
		g.s.opts.Log.Warn("drop a stale chunk hint", "path", at.path, "err", err)
	}
	return false
}

// fromBasis reads a chunk into scratch from the old version at the content's own path, which is cut into its
// chunks when first needed, unless the table knows them.
func (g *staging) fromBasis(ref chunk.Ref) bool {
	if g.hint == "" || g.s.opts.OpenPath == nil {
		return false
	}
	if !g.basis.cut {
		g.basis.cut = true
		if err := g.cutBasis(); err != nil {
			g.s.opts.Log.Warn("look for chunks in the old version", "path", g.hint, "err", err)
		}
	}
	offset, ok := g.basis.chunks[ref.Hash]
	return ok && g.open(g.hint) && g.matches(g.basis.src, offset, ref)
}

func (g *staging) cutBasis() error {
	if g.s.table.knows(g.hint) {
		return nil
	}
	src, ok := g.s.opts.OpenPath(g.hint)
	if !ok {
		return nil
	}
	chunks, err := chunksOf(src)
	g.basis.chunks = chunks
	return errors.Join(err, src.Close())
}

// chunksOf says where the chunks of src are, as far as it can be read.
func chunksOf(src io.Reader) (map[manifest.Hash]int64, error) {
	var start [chunk.Min]byte
	n, err := io.ReadFull(src, start[:])
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, nil // too short to share a chunk
	}
	if err != nil {
		return nil, err
	}
	chunks := map[manifest.Hash]int64{}
	split := chunk.NewSplitter(io.MultiReader(bytes.NewReader(start[:n]), src))
	for offset := int64(0); len(chunks) < maxBasis; {
		data, err := split.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return chunks, err
		}
		chunks[blake3.Sum256(data)] = offset
		offset += int64(len(data))
	}
	return chunks, nil
}
