package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// What the placer is about to do is announced in the placed table before, and the records of what it did replace the
// announcement, in one batch. So whenever the process dies, everything that it changed on the disk is either recorded
// or announced (I8), and the next start tells which of the announced paths it had brought to what was wanted.
// Without that they would look like edits of this node, against versions that others have replaced since.

const metaPlacing = "placing" // the announcement

var errAnnouncement = errors.New("announcement of placements is malformed")

// announced is what a path was about to be.
type announced struct {
	path string
	want manifest.Node
}

func metaKey(name string) []byte { return append([]byte{tagMeta}, name...) }

// announce says what Apply is about to do.
func (a *Agent) announce(tasks []place.Task) error {
	var v []byte
	for i := range tasks {
		v = appendAnnounced(v, announced{tasks[i].Path, tasks[i].Want})
	}
	b := a.cfg.Table.Batch()
	defer b.Discard()
	err := b.Set(metaKey(metaPlacing), v)
	if err == nil {
		err = b.Commit()
	}
	if err != nil {
		return fmt.Errorf("announce what is to be placed: %w", err)
	}
	return nil
}

// settleAnnouncement is part of the batch that records what became of it.
func (e *edits) settleAnnouncement() error { return e.b.Delete(metaKey(metaPlacing)) }

func (t table) dropAnnouncement() error {
	e := t.edit()
	defer e.discard()
	if err := e.settleAnnouncement(); err != nil {
		return err
	}
	return e.commit()
}

// appendAnnounced appends path, node (as a placed record) and link target, each with its length before.
func appendAnnounced(b []byte, p announced) []byte {
	n := &p.want
	rec := record{Hash: n.Hash, Placed: place.Placed{Version: n.Version, Stat: place.Stat{
		Kind: n.Kind, Mode: n.Mode, UID: n.UID, GID: n.GID, Size: n.Size, MTime: n.MTime,
	}}}
	for _, part := range [][]byte{[]byte(p.path), encodeRecord(nil, &rec), []byte(n.Target)} {
		b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
	}
	return b
}

func decodeAnnounced(b []byte) (list []announced, err error) {
	part := func() (p []byte) {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			err = errAnnouncement
			return nil
		}
		p, b = b[used:used+int(n)], b[used+int(n):]
		return p
	}
	for len(b) > 0 {
		path, node, target := part(), part(), part()
		if err != nil {
			return nil, err
		}
		rec, err := decodeRecord(node)
		if err != nil {
			return nil, errAnnouncement
		}
		n := rec.node()
		n.Version, n.Target = rec.Version, string(target)
		list = append(list, announced{string(path), n})
	}
	return list, nil
}

// finishPlacing records what the process before this one had placed and could not record any more.
func (a *Agent) finishPlacing(ctx context.Context) error {
	v, ok, err := a.cfg.Table.Get(metaKey(metaPlacing))
	if err != nil || !ok {
		return err
	}
	list, err := decodeAnnounced(v)
	if err != nil {
		return err
	}
	e := a.table.edit()
	defer e.discard()
	wanted := make(map[string]bool, len(list))
	for _, p := range list {
		wanted[p.path] = true
	}
	above := map[string]bool{}
	for _, p := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.finishOne(e, p); err != nil {
			return err
		}
		if dir, ok := manifest.Parent(p.path); ok && !wanted[dir] && !above[dir] {
			above[dir] = true
			if err := a.finishDir(e, dir); err != nil {
				return err
			}
		}
	}
	if err := e.settleAnnouncement(); err != nil {
		return err
	}
	return e.commit()
}

// finishOne records an announced path if what is there is what was wanted. Whatever else is there is an edit or was
// not replaced yet. A path that cannot be read is left to the scan.
func (a *Agent) finishOne(e *edits, p announced) error {
	rec, err := a.table.get(p.path)
	if err != nil {
		return err
	}
	in, err := a.root.Stat(p.path)
	if err != nil {
		a.log.Info("look at what was about to be placed", "path", p.path, "err", err)
		return nil
	}
	now := place.StatOf(in)
	if now.Kind == rec.Stat.Kind && scan.Same(now, rec.Stat) || !a.mayBePlaced(&now, &rec, &p.want) {
		return nil
	}
	if now, ok := a.holds(p.path, now, &p.want); ok {
		done := record{Placed: place.Placed{Version: p.want.Version, Stat: now}, Hash: contentOf(&p.want)}
		return a.setRecord(e, p.path, rec.Stat.Kind, done)
	}
	return nil
}

// mayBePlaced says whether now is what the placer leaves of a path whose record was rec and that should become want.
// Metadata of what has its content already is set field by field; of a directory the mtime is last of all.
func (a *Agent) mayBePlaced(now *place.Stat, rec *record, want *manifest.Node) bool {
	if now.Other || now.Kind != want.Kind || now.Kind == manifest.File && now.Size != want.Size {
		return false
	}
	if now.Kind == manifest.Absent || a.looksAs(now, want) {
		return true
	}
	old := &rec.Stat
	if old.Kind != now.Kind || now.Kind == manifest.File && rec.Hash != want.Hash {
		return now.Kind == manifest.Dir && now.Mode == want.Mode
	}
	if a.cfg.Owner && (now.UID != want.UID && now.UID != old.UID || now.GID != want.GID && now.GID != old.GID) {
		return false
	}
	if !place.ModeAs(a.cfg.Owner, want.Kind, now.Mode, want.Mode) && now.Mode != old.Mode {
		return false
	}
	return now.Kind == manifest.Dir || now.MTime == want.MTime || now.MTime == old.MTime
}

// holds compares contents, and returns how the entry looked while it had that one.
func (a *Agent) holds(path string, now place.Stat, want *manifest.Node) (place.Stat, bool) {
	switch want.Kind {
	case manifest.Symlink:
		target, err := a.root.Readlink(path)
		return now, err == nil && target == want.Target
	case manifest.File:
		h, in, err := a.hashFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !vfs.NoSuchDir(err) {
			a.log.Info("read what was about to be placed", "path", path, "err", err)
		}
		return now, err == nil && h == want.Hash && scan.Same(place.StatOf(in), now)
	}
	return now, true
}

// finishDir has a directory in which something was placed keep its version if only its mtime is another: the process
// died before it was put back. The first walk sets it.
func (a *Agent) finishDir(e *edits, dir string) error {
	rec, err := a.table.get(dir)
	if err != nil || rec.Stat.Kind != manifest.Dir {
		return err
	}
	in, err := a.root.Stat(dir)
	if err != nil {
		a.log.Info("look at a directory in which something was placed", "path", dir, "err", err)
		return nil
	}
	now := place.StatOf(in)
	if then := rec.Stat; scan.Same(now, then) {
		return nil
	} else if then.MTime = now.MTime; now.Kind != manifest.Dir || !scan.Same(now, then) {
		return nil
	}
	rec.Stat = now
	return e.set(dir, rec)
}
