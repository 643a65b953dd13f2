package files

import (
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// What is in a directory is proposed only while the directory stands (I12): it is recorded, and not on its way to be
// something else or nothing; and that goes on its way only when nothing beneath it is recorded or has been claimed. Else
// the group might get the two in another order than they were done in: it would make the directory once more for what
// was in it, or keep the one aside for the other, though only one has ever changed anything.
//
// Whoever claims looks at the other afterwards, under one lock: of a directory and something in it, one waits.

// mayEnd says whether dir, which is claimed and no directory any more, may be proposed as what it is. If not, something
// beneath it is on its way, other than what is idle: that is looked at once more, and dir after it.
func (b *board) mayEnd(dir string, idle []string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	may := true
	for path := range b.flying {
		if beneath(path, dir) && !slices.Contains(idle, path) {
			b.followLocked(b.paths[dir], path)
			may = false
		}
	}
	if may {
		b.ending[dir] = struct{}{}
	}
	return may
}

// stands says whether dir, if it is recorded as a directory after this call, stays one as long as path, which is claimed
// and in it, is; and whether path has to wait for that at all.
func (b *board) stands(dir, path string) (stands, needed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ends := b.ending[dir]
	return !ends, !b.paths[path].alone
}

// waitAbove ends the look at path without an outcome, until one at dir, which it is in, has ended.
func (b *board) waitAbove(path, dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.paths[path]
	st.claim, st.above = free, dir
	delete(b.flying, path)
	st.keepDue()
	above := b.state(dir)
	if above.waiting == nil {
		above.waiting = map[string]struct{}{}
	}
	above.waiting[path] = struct{}{}
	if above.claim != looked {
		b.hintLocked(dir, time.Time{})
	}
}

// waitNoMore ends what waitAbove began, as path is looked at.
func (b *board) waitNoMore(path string, st *pathState) {
	if st.above != "" {
		delete(b.paths[st.above].waiting, path)
		st.above = ""
	}
}

// letFollow has looked at what waited for the look that has ended with st.
func (b *board) letFollow(st *pathState) {
	waiting := st.waiting
	st.waiting = nil
	for path := range waiting {
		below := b.paths[path]
		below.above = ""
		b.queueLook(path, below)
	}
}

// standAlone says that path, which is claimed, will not be recorded, whatever is in it: nothing waits for it.
func (b *board) standAlone(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for below := range b.paths[path].waiting {
		b.paths[below].alone = true
	}
}

// waitsAbove says whether what was found at path, which is claimed and was not there before, has to wait for the directory
// that it is in, and for which one.
func (r *reader) waitsAbove(path string) (dir string, wait bool, err error) {
	dir, ok := manifest.Parent(path)
	if !ok || dir == "" || r.stands || r.a.cfg.ReadOnly || r.a.cfg.Ignore(dir) {
		return "", false, nil
	}
	stands, needed := r.a.board.stands(dir, path)
	if !needed {
		return "", false, nil
	}
	if stands {
		rec, err := r.a.table.get(dir)
		if err != nil {
			r.a.broken(err)
			return "", false, err
		}
		stands = rec.Stat.Kind == manifest.Dir
		r.stands = stands
	}
	return dir, !stands, nil
}
