package content

import (
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
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
	r := newVerifier(src, w.Hash, w.Size)
	defer r.Close()
	if w.Size > SmallMax {
		return true, s.keepLarge(w.Hash, w.Size, r)
	}
	data := make([]byte, w.Size)
	if _, err := io.ReadFull(r, data); err != nil {
		return true, fmt.Errorf("keep %x: %w", w.Hash[:4], err)
	}
	if err := s.Put(w.Hash, data); err != nil {
		return true, err
	}
	return true, s.Sync()
}

func (s *Store) keepLarge(h manifest.Hash, size int64, r io.Reader) error {
	g, err := s.beginStaging(h, size, "")
	if err != nil {
		return err
	}
	for g.planned < size && err == nil {
		data := g.scratch[:min(int64(len(g.scratch)), size-g.planned)]
		if _, err = io.ReadFull(r, data); err == nil {
			if err = g.write(g.planned, data); err == nil {
				g.planned += int64(len(data))
			}
		}
	}
	if err != nil {
		err = g.full(fmt.Errorf("keep %x: %w", h[:4], err))
		return errors.Join(err, g.abandon(false))
	}
	return g.finish()
}
