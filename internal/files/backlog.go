package files

import (
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// epochsMany is how many epochs of placing may be open without a thought.
const epochsMany = 4096

// placingEpoch returns the epoch of what has to be placed for the state at index.
func (b *board) placingEpoch(index uint64) *epoch {
	if n := len(b.placing.open); n > 2*b.compacted+epochsMany { // a path that cannot be placed holds all after it
		b.placing.compact()
		b.compacted = len(b.placing.open)
	}
	ep := b.placing.current(index)
	if ep.left == 0 {
		ep.begun = b.now()
	}
	return ep
}

// names says whether a content is named by something that waits to be placed or that the placer has, or perhaps by what
// a walk has not come to yet.
func (b *board) names(h manifest.Hash) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.behind || b.walking || b.naming[h] != nil
}

// backlog is how many changes wait to be placed, the bytes of their files, and since when the oldest waits.
func (b *board) backlog() (changes int, bytes int64, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wants > 0 && len(b.placing.open) > 0 {
		since = b.placing.open[0].begun
	}
	return b.wants, b.wantsSize, since
}

// unplaced returns the wants whose contents came with entries and are not on disk yet, and the index up to which
// those that are not among them are on disk or staged.
func (b *board) unplaced() (index uint64, out []*want) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, st := range b.paths {
		for _, w := range []*want{st.want, st.placing} {
			if w != nil && w.Inline != nil {
				out = append(out, w)
			}
		}
	}
	if b.lost > b.placing.ended {
		return 0, out
	}
	return b.taken, out
}

// took says whether the contents that came with entries up to index are in wants or staged: all, or that some of
// the entry at index are not, which then has to stay in the log until everything is placed.
func (b *board) took(index uint64, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = max(b.taken, index)
	if !all {
		b.lost = max(b.lost, index)
	}
}

// withhold says that the paths are gone and that this is not to be proposed for now. To look at them again is to look at the
// directories above as well.
func (b *board) withhold(lost []finding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range lost {
		path, ok := lost[i].change.Path, true
		for ok && !b.withheld[path] {
			b.withheld[path] = true
			path, ok = manifest.Parent(path)
		}
	}
}

// unwithhold says that nothing is withheld any more.
func (b *board) unwithhold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.withheld) > 0 {
		b.withheld = map[string]bool{}
	}
}

// othersPending says whether anything that is not withheld is looked at or on its way into the log, or waits for that without
// a time.
func (b *board) othersPending() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for path := range b.flying {
		if !b.withheld[path] {
			return true
		}
	}
	return slices.ContainsFunc(b.looks, func(path string) bool { return !b.withheld[path] })
}

func (b *board) takenIndex() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}

// staged says that the contents of wants are staged: those that still wait need not hold them.
func (b *board) staged(wants []*want) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range wants {
		if st := b.paths[w.Path]; st != nil && st.want == w {
			b.inlineSize -= len(w.Inline)
			w.Inline = nil
		}
	}
}

// strand keeps the contents that came with entries to a path and give way to w, which was read from the manifest: of the
// events after them, which would say who has them now, some may have been dropped, or are still to come.
func (b *board) strand(w *want) {
	st := b.paths[w.Path]
	if st == nil {
		return
	}
	for _, old := range []*want{st.want, st.placing} {
		if old != nil && old.Inline != nil && old.index <= w.index && (w.Node.Kind != manifest.File || w.Node.Hash != old.Node.Hash) {
			b.stranded = append(b.stranded, old.Changed)
		}
	}
}

func (b *board) takeStranded() (out []manifest.Changed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out, b.stranded = b.stranded, nil
	return out
}

// lose says that contents which came with entries could not be staged: the log is needed until everything is placed.
func (b *board) lose() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost = max(b.lost, b.committed)
}
