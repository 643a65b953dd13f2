package files

import (
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// A file that is about to be replaced or removed may be the only place where the content is that another path is to have:
// mostly a conflict's loser and its copy. That path goes first. If it cannot be placed, or the two wait for each other, the
// content is staged; if there is no room for that, the file stays as it is.

const (
	// keepTries is how often a file waits for the paths that need its content before that is staged instead.
	keepTries = 3
	unsure    = 100 * time.Millisecond // how long it waits when nobody can tell yet
)

// laying is a want with what the placer is told.
type laying struct {
	*want
	task place.Task
	held manifest.Hash // content of the file that is there
	kept error         // why that could not be staged
}

// replaces says whether the file that is there gives way to something without its content.
func (l *laying) replaces() bool {
	return replaces(&l.task.Have.Stat, l.held, &l.Node)
}

// replaces says whether n at the path of a file that looks as s and holds h would drop h.
func replaces(s *place.Stat, h manifest.Hash, n *manifest.Node) bool {
	return s.Kind == manifest.File && s.Size > 0 && (n.Kind != manifest.File || n.Hash != h)
}

// lastCopies splits todo into what may be placed and what has to wait, because it holds contents that are needed elsewhere.
func (a *Agent) lastCopies(todo []laying) (free, held []laying, err error) {
	holders := map[manifest.Hash]int{}
	for i := range todo {
		if l := &todo[i]; l.replaces() {
			holders[l.held] = i
		}
	}
	if len(holders) == 0 {
		return todo, nil, nil
	}
	needed, committed, behind := a.board.needed(holders)
	if err := a.dropPlaced(needed); err != nil {
		return nil, nil, err
	}
	if err := a.pointAt(todo, holders, needed); err != nil {
		return nil, nil, err
	}
	for i := range todo {
		l := &todo[i]
		// What is newer than all events was read from the manifest: the path that needs the content comes with them.
		maybe := behind || l.Node.Version > committed && l.tries < keepTries
		if _, certain := needed[l.held]; l.replaces() && (maybe || certain) && !a.spares(l, certain && !maybe) {
			held = append(held, *l)
		} else {
			free = append(free, *l)
		}
	}
	return free, held, nil
}

// needed returns which of the contents are named by paths that are to be placed and do not bring them along, with one such
// path each or more, the index up to which events have come, and whether there may be other such paths: events were dropped,
// and the walk that makes up for them has not asked for what needs them.
func (b *board) needed(contents map[manifest.Hash]int) (paths map[manifest.Hash][]string, committed uint64, maybe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	paths = map[manifest.Hash][]string{}
	for h := range contents {
		if named := b.naming.paths(h); len(named) > 0 {
			paths[h] = named
		}
	}
	unasked := b.walking && !b.asked
	b.urged = b.urged || unasked
	return paths, b.committed, b.behind || unasked
}

// dropPlaced removes contents that are needed by paths only that hold them: their metadata is to change. It does not ask for
// very many paths.
func (a *Agent) dropPlaced(needed map[manifest.Hash][]string) error {
	for h, paths := range needed {
		lacking := len(paths) > namedMost
		for _, path := range paths[:min(len(paths), namedMost)] {
			rec, err := a.table.get(path)
			if err != nil {
				return err
			}
			// A path that is to have h, not at once, but after something else, needs it too.
			lacking = lacking || rec.Stat.Kind != manifest.File || rec.Hash != h || a.board.passes(path, h)
		}
		if !lacking {
			delete(needed, h)
		}
	}
	return nil
}

// passes says whether path, which holds h, is about to have something else before it is to have h again.
func (b *board) passes(path string, h manifest.Hash) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.paths[path]
	return st != nil && st.placing != nil && (st.placing.Node.Kind != manifest.File || st.placing.Node.Hash != h)
}

// pointAt has the contents that are needed looked for in the files that are about to be replaced.
func (a *Agent) pointAt(todo []laying, holders map[manifest.Hash]int, needed map[manifest.Hash][]string) error {
	if len(needed) == 0 {
		return nil
	}
	e := a.table.edit()
	defer e.discard()
	for h := range needed {
		if err := e.b.Set(hashKey(h), []byte(todo[holders[h]].Path)); err != nil {
			return err
		}
	}
	return e.commit()
}

// spares says whether the file of l can be replaced although its content is needed: it is staged too, or the file is not
// what its record says, which is the placer's business. stage: it is staged now, if l has waited long enough.
func (a *Agent) spares(l *laying, stage bool) bool {
	if staged, err := a.relies(l.held); staged {
		l.kept = err
		return err == nil
	}
	if !stage || l.tries < keepTries {
		src, ok := a.openContent(l.held, l.Path)
		if ok {
			src.Close()
		}
		return !ok
	}
	there, err := a.store.Keep(content.Want{Hash: l.held, Size: l.task.Have.Stat.Size, PathHint: l.Path})
	if errors.Is(err, content.ErrDamaged) {
		return true // nothing is lost with it
	}
	l.kept = err
	return err == nil || !there
}

// holdBack puts files back that were not replaced.
func (a *Agent) holdBack(held []laying) {
	for i := range held {
		l := &held[i]
		at := a.backoff(l.tries)
		if l.kept != nil {
			err := fmt.Errorf("stays as it was: its content is needed for another path: %w", l.kept)
			a.status.unplaced(l.Path, err, "make room; it goes on by itself")
		} else {
			at = a.cfg.Now().Add(unsure)
		}
		a.board.placeAgain(l.want, false, at)
	}
}

// mustAsk says whether a file waits for haveAsked.
func (b *board) mustAsk() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.urged
}

// haveAsked says that the walk has asked for all paths that lack what it drops.
func (b *board) haveAsked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = true
}
