package files

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// An edit of this node that was committed, and whose record the process could not write any more before it was killed,
// looks like a new one at the next start. As long as it stands, see follows. When others have replaced it since, the log
// tells: it has the edit, and a change that somebody based on it, which nobody can do before it was accepted. So the record
// is written now as it would have been then, and what the others made of it takes its place without a conflict.
//
// What was made by such an edit and is gone since would come back, since nothing says that it was ever here. Its record is
// written as well, so that the scan finds that it is gone. And what was removed and made again would pass for a change of what
// was there before: the record of that goes.

// begin finds out, and at the first start of a binding records durably, what the group had committed before the binding
// proposed anything. The state includes that.
func (a *Agent) begin() error {
	v, known, err := a.cfg.Table.Get(metaKey(metaBegan))
	if err == nil && known && len(v) == 8 {
		a.began = binary.LittleEndian.Uint64(v)
		return nil
	}
	a.began = a.cfg.Log.Applied()
	b := a.cfg.Table.Batch()
	defer b.Discard()
	if err == nil {
		err = a.table.setNumber(b, metaBegan, a.began)
	}
	if err == nil {
		err = b.Commit()
	}
	if err == nil {
		err = a.cfg.Table.Sync()
	}
	if err != nil {
		return fmt.Errorf("record where the binding begins: %w", err)
	}
	return nil
}

// ownEdits finds edits of one node in the log. It is a pure function of the entries that are shown to it.
type ownEdits struct {
	author string
	// pending says whether an edit of the path at this version is not recorded.
	pending func(path string, version uint64) (bool, error)

	latest map[string]ownEdit // by path
	at     uint64             // the entry that is being shown
	others map[string]bool    // paths that others change in it
}

// ownEdit is the last edit of a path.
type ownEdit struct {
	version  uint64 // that the path had after it, if it was accepted
	node     manifest.Node
	replaced bool // somebody has based a change on that version
}

func newOwnEdits(author string, pending func(path string, version uint64) (bool, error)) *ownEdits {
	return &ownEdits{author: author, pending: pending, latest: map[string]ownEdit{}, others: map[string]bool{}}
}

// show takes the next batch; indexes never go down. Of two changes of a path in one entry only the machine knows which was
// accepted: such an edit is left out.
func (o *ownEdits) show(index uint64, b *manifest.Batch) error {
	if index != o.at {
		o.at = index
		clear(o.others)
	}
	for i := range b.Changes {
		c := &b.Changes[i]
		if b.Author != o.author {
			o.others[c.Path] = true
			o.showOthers(index, c)
			continue
		}
		before := o.latest[c.Path]
		delete(o.latest, c.Path)
		if o.others[c.Path] {
			continue
		}
		if c.Node.Kind == manifest.Dir && c.Base != 0 && before.node.Kind != manifest.Dir {
			continue // that it was made is not in the log, so it is recorded
		}
		pending, err := o.pending(c.Path, index)
		if err != nil {
			return err
		}
		if pending {
			o.latest[c.Path] = ownEdit{version: index, node: c.Node}
		}
	}
	return nil
}

// showOthers takes a change of somebody else. One of a directory's metadata takes nothing from who made the directory.
func (o *ownEdits) showOthers(index uint64, c *manifest.Change) {
	e, ok := o.latest[c.Path]
	switch {
	case !ok:
	case e.version == index, e.node.Kind == manifest.Dir && (c.Node.Kind != manifest.Dir || c.Base == 0):
		delete(o.latest, c.Path)
	case e.version == c.Base:
		e.replaced = true
		o.latest[c.Path] = e
	}
}

// replaced lists the files and links whose last edit others have replaced, in order.
func (o *ownEdits) replaced() (paths []string) {
	for path, e := range o.latest {
		if e.replaced && e.node.Kind != manifest.Dir {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// stands says whether what is in the manifest is what the edit has made. Of a directory others may have changed the metadata.
func (e *ownEdit) stands(at *standing) bool {
	if e.node.Kind == manifest.Dir || e.node.Kind == manifest.Absent {
		return at.Kind == e.node.Kind
	}
	return at.own && at.Version == e.version && at.Kind == e.node.Kind
}

// finishEdits records the edits that the process before this one could not record any more and that are still on the disk
// as they were proposed. Nothing is concluded after the system went down, when the disk may be of an earlier moment, and of
// what was committed before this binding began: what a node of this name knew then is not what this one knows.
func (a *Agent) finishEdits(ctx context.Context) error {
	r, ok := a.cfg.Log.(Replayer)
	if !ok || a.wentBack {
		return nil
	}
	found := newOwnEdits(a.cfg.Node, func(path string, version uint64) (bool, error) {
		rec, err := a.table.get(path)
		return rec.Version < version, err
	})
	if err := r.Replay(ctx, max(a.Floor(), a.began), a.cfg.Log.Applied(), func(index uint64, payload []byte) error {
		b, err := manifest.DecodeBatch(payload)
		if err != nil {
			return nil // another command
		}
		return found.show(index, &b)
	}); err != nil {
		return fmt.Errorf("look for edits that were not recorded: %w", err)
	}
	e := a.table.edit()
	defer e.discard()
	for _, path := range found.replaced() {
		if err := a.finishEdit(e, path, found.latest[path]); err != nil {
			return err
		}
	}
	if err := a.finishGone(e, found); err != nil {
		return err
	}
	return e.commit()
}

// finishGone records what this node has made, never recorded and not on its disk any more, as it stands in the manifest; and
// forgets what it has removed and what stands there no more, for it was not on its disk then.
func (a *Agent) finishGone(e *edits, found *ownEdits) error {
	paths := slices.Sorted(maps.Keys(found.latest))
	stand, err := a.standings(paths)
	if err != nil {
		return err
	}
	for _, path := range paths {
		at, edit := stand[path], found.latest[path]
		if !edit.stands(&at) {
			continue
		}
		rec, err := a.table.get(path)
		if err != nil {
			return err
		}
		if edit.node.Kind == manifest.Absent && rec.Version < edit.version {
			if err := a.setRecord(e, path, rec.Stat.Kind, record{}); err != nil {
				return err
			}
			continue
		}
		if rec.Stat.Kind != manifest.Absent {
			continue
		}
		in, err := a.root.Stat(path)
		if err != nil && !vfs.NoSuchDir(err) || in.Kind != vfs.Absent || in.Other {
			continue // what is there the scan looks at
		}
		n := &at.Node
		was := place.Stat{Kind: n.Kind, Mode: n.Mode, UID: n.UID, GID: n.GID, Size: n.Size, MTime: n.MTime} // equals nothing on the disk
		if err := a.setRecord(e, path, manifest.Absent, record{Placed: place.Placed{Version: n.Version, Stat: was}, Hash: contentOf(n)}); err != nil {
			return err
		}
	}
	return nil
}

// finishEdit records an edit if what is there is what it left. What cannot be read is left to the scan.
func (a *Agent) finishEdit(e *edits, path string, was ownEdit) error {
	rec, err := a.table.get(path)
	if err != nil {
		return err
	}
	in, err := a.root.Stat(path)
	if err != nil {
		a.log.Info("look at an edit that was not recorded", "path", path, "err", err)
		return nil
	}
	now := place.StatOf(in)
	if now.Kind == rec.Stat.Kind && scan.Same(now, rec.Stat) || now.Kind != was.node.Kind || !a.looksAs(&now, &was.node) {
		return nil
	}
	if now, ok := a.holds(path, now, &was.node); ok {
		return a.setRecord(e, path, rec.Stat.Kind, record{Placed: place.Placed{Version: was.version, Stat: now}, Hash: contentOf(&was.node)})
	}
	return nil
}
