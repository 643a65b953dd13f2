package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
)

// Keep stages a content that Options.Local finds at w.PathHint, or elsewhere, because that file is about to go. It is durable
// when Keep returns without an error, and then there is one more use to be released. there is false if no file is found;
// ErrDamaged says that the one found holds something else.
func (s *Store) Keep(w Want) (there bool, err error) {
	if s.opts.Local == nil {
		return false, nil
	}
	src, ok := s.opts.Local(w.Hash, w.PathHint)
	if !ok {
		return false, nil
	}
	if w.Size > SmallMax {
		err := s.copyLarge(s.ctx, w, src)
		return true, errors.Join(err, src.Close())
	}
	r := newVerifier(src, w.Hash, w.Size)
	defer r.Close()
	data := make([]byte, w.Size)
	if _, err := io.ReadFull(r, data); err != nil {
		return true, fmt.Errorf("keep %x: %w", w.Hash[:4], err)
	}
	if err := s.Put(w.Hash, data); err != nil {
		return true, err
	}
	return true, s.Sync()
}

// copyLarge stages a large content from src, if that holds it, and else fails with ErrDamaged. It takes no room where the file
// system lets files share blocks.
func (s *Store) copyLarge(ctx context.Context, w Want, src Source) error {
	g, err := s.openStaging(w.Hash, w.Size, "")
	if err != nil {
		return err
	}
	from, cloned := io.Reader(src), g.clone(src)
	if cloned {
		from = io.NewSectionReader(g.f, 0, w.Size)
	} else {
		err = g.reserve()
	}
	if err == nil {
		err = g.absorb(ctx, from, cloned)
	}
	if err != nil {
		err = g.full(fmt.Errorf("keep %x: %w", w.Hash[:4], err))
		return errors.Join(err, g.abandon(false))
	}
	if err = g.finish(); errors.Is(err, ErrChanged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// clone makes the part file share all that src has, if it is a file and the file system can.
func (g *staging) clone(src Source) bool {
	f, ok := src.(*os.File)
	if !ok || g.s.opts.Clone(g.f, f) != nil {
		return false
	}
	g.earlier = 0
	return true
}

// absorb takes the whole content from a reader, chunk by chunk; there: the part file has it already.
func (g *staging) absorb(ctx context.Context, from io.Reader, there bool) error {
	split := chunk.NewSplitter(io.LimitReader(from, g.size))
	for g.planned < g.size {
		data, err := split.Next()
		if err == nil {
			err = ctx.Err()
		}
		if err == io.EOF {
			return fmt.Errorf("%d of %d bytes: %w", g.planned, g.size, ErrDamaged)
		}
		if err != nil {
			return err
		}
		if there {
			g.feed(g.planned, data)
		} else if err := g.write(g.planned, data); err != nil {
			return err
		}
		g.remember(chunk.Recipe{{Hash: blake3.Sum256(data), Len: uint32(len(data))}}, nil)
		g.planned += int64(len(data))
	}
	return nil
}
