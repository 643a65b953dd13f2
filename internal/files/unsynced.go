package files

import (
	"errors"
	"fmt"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// What was placed is in the kernel's memory only until the next syncfs. A power failure takes it, seldom from one member alone,
// while the file that held the same content and was replaced afterwards may be gone for good: mostly a conflict's loser, whose
// name went to the winner just after its copy was made, on all members at once. So a file gives way only when its content is
// durable elsewhere on this member: in the log, staged, or placed before a syncfs that is over.

// unsynced is what a power failure would take from a binding, and what is staged against that. Safe for concurrent use.
type unsynced struct {
	syncing sync.Mutex // one syncfs at a time; taken before mu
	failed  error      // of the first that failed: the kernel may have dropped what it could not write, and says so once

	mu     sync.Mutex
	synced bool              // once since the start: the process before this one may have placed anything
	placed map[uint64]string // beginnings of contents placed since the last syncfs began, with their path; "": several
	before map[uint64]string // the same of before the one that is under way
	spent  map[manifest.Hash]bool
	// spent are staged contents that were placed since the last syncfs began and may be dropped after the next; true: or
	// because of which a file gave way, which may be dropped only when nothing that waits to be placed names them any more.
}

// add says that the content was placed at path, and not out of an entry of the log.
func (u *unsynced) add(path string, h manifest.Hash) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.placed == nil {
		u.placed = map[uint64]string{}
	}
	if other, ok := u.placed[beginning(h)]; ok && other != path {
		path = ""
	}
	u.placed[beginning(h)] = path
	u.spend(h, false)
}

func (u *unsynced) spend(h manifest.Hash, relied bool) {
	if u.spent == nil {
		u.spent = map[manifest.Hash]bool{}
	}
	u.spent[h] = u.spent[h] || relied
}

// rely keeps a staged content from being dropped as long as a path that waits needs it.
func (u *unsynced) rely(h manifest.Hash) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.spend(h, true)
}

// elsewhere says whether a path other than this one may have been given the content since the last syncfs.
func (u *unsynced) elsewhere(path string, h manifest.Hash) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.synced {
		return true
	}
	for _, m := range []map[uint64]string{u.placed, u.before} {
		if p, ok := m[beginning(h)]; ok && p != path {
			return true
		}
	}
	return false
}

// keeps says whether a staged content is not to be dropped before the next syncfs.
func (u *unsynced) keeps(h manifest.Hash) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.spent[h]
	return ok
}

// idle says that no content waits for a syncfs to be dropped.
func (u *unsynced) idle() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, relied := range u.spent {
		if !relied {
			return false
		}
	}
	return true
}

// sync calls syncfs, and drop with the contents that are not needed any more after it; named says whether something that
// waits to be placed names a content. After a failed one no later call succeeds.
func (u *unsynced) sync(syncfs func() error, named func(manifest.Hash) bool, drop func(...manifest.Hash)) error {
	u.syncing.Lock()
	defer u.syncing.Unlock()
	if u.failed != nil {
		return u.failed
	}
	u.mu.Lock()
	was := u.spent
	u.before, u.placed, u.spent = u.placed, nil, nil
	u.mu.Unlock()
	if u.failed = syncfs(); u.failed != nil {
		return u.failed
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.synced, u.before = true, nil
	var over []manifest.Hash
	for h, relied := range was {
		if relied && named(h) {
			u.spend(h, true)
		} else if _, again := u.spent[h]; !again {
			over = append(over, h)
		}
	}
	drop(over...) // under mu: who relies on a content from now on sees that it is gone
	return nil
}

// syncPlaced makes what was placed durable and lets go what was staged for it. If that fails, the binding is verified when it
// is opened again: what was placed since the last checkpoint may be gone, although it can still be read.
func (a *Agent) syncPlaced() error {
	err := a.unsynced.sync(func() error { return a.cfg.syncfs(a.root.Fd()) }, a.board.names, func(over ...manifest.Hash) {
		if err := a.store.Drop(over...); err != nil {
			a.log.Warn("drop staged contents", "err", err)
		}
	})
	if err != nil {
		return errors.Join(fmt.Errorf("syncfs: %w", err), a.markBoot(bootUnknown))
	}
	return nil
}

// relies says whether a content is staged, durably and for as long as a path that waits needs it.
func (a *Agent) relies(h manifest.Hash) (bool, error) {
	a.unsynced.rely(h) // before it is looked for
	if !a.store.Has(h) {
		return false, nil
	}
	return true, a.store.Sync()
}

// secure makes durable what was placed, if one of the files that are about to give way may be all that a power failure
// would leave of its content. An error means that the disk failed.
func (a *Agent) secure(todo []laying) error {
	for i := range todo {
		l := &todo[i]
		if !l.replaces() || !a.unsynced.elsewhere(l.Path, l.held) {
			continue
		}
		if staged, err := a.relies(l.held); staged && err == nil {
			continue
		}
		return a.syncPlaced() // for the rest, too
	}
	return nil
}
