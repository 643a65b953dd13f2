package files

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Content opens the content that the manifest names at path: from the file itself, from elsewhere in the binding,
// from what is staged, or, fetched, from another member. ok is false if it is nowhere now, for instance because the
// path has been changed everywhere since. What is read may still turn out to be something else, when the file is
// changed meanwhile: the reader has to hash it.
func (a *Agent) Content(ctx context.Context, path string, n *manifest.Node) (r io.ReadCloser, ok bool, err error) {
	if src, ok := a.openContent(n.Hash, path); ok {
		return src, true, nil
	}
	if r, ok, err := a.store.Open(n.Hash, n.Size); ok || err != nil {
		return r, ok, err
	}
	var nodes []uint64
	for _, p := range a.cfg.Peers.List() {
		if p.Up {
			nodes = append(nodes, p.ID)
		}
	}
	missing, err := a.store.Fetch(ctx, nodes, []content.Want{{Hash: n.Hash, Size: n.Size, PathHint: path}})
	if err != nil || len(missing) > 0 {
		a.log.Debug("a content is nowhere now", "path", path, "err", err)
		return nil, false, ctx.Err()
	}
	r, ok, err = a.store.Open(n.Hash, n.Size)
	if gone := errors.Join(a.store.Release(n.Hash), a.store.Drop(n.Hash)); err == nil && gone != nil {
		err = fmt.Errorf("release a fetched content: %w", gone)
		if ok {
			err = errors.Join(err, r.Close())
		}
	}
	if err != nil {
		return nil, false, err
	}
	return r, ok, nil
}
