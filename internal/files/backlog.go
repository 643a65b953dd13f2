package files

import (
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// placingEpoch returns the epoch of what has to be placed for the state at index.
func (b *board) placingEpoch(index uint64) *epoch {
	ep := b.placing.current(index)
	if ep.left == 0 {
		ep.begun = b.now()
	}
	return ep
}

// names says whether a content is named by something that waits to be placed.
func (b *board) names(h manifest.Hash) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.behind {
		return true // perhaps
	}
	for _, st := range b.paths {
		if st.want != nil && st.want.Node.Hash == h {
			return true
		}
	}
	return false
}

// backlog is how many paths wait to be placed, the bytes of their files, and since when the oldest waits.
func (b *board) backlog() (paths int, bytes int64, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, st := range b.paths {
		if st.want != nil || st.claim == placed {
			paths++
		}
	}
	if paths > 0 && len(b.placing.open) > 0 {
		since = b.placing.open[0].begun
	}
	return paths, b.behindSize, since
}

// unplaced returns the contents that came with entries and are not on disk yet.
func (b *board) unplaced() (out []manifest.Changed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, st := range b.paths {
		if st.want != nil && st.want.Inline != nil {
			out = append(out, st.want.Changed)
		}
	}
	return out
}
