package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

const (
	batchChanges = 2048
	batchBytes   = 8 << 20 // with contents; a batch in bulk costs each member one sync of its packs
	batchesMax   = 4       // in flight; for large contents see flights.go
	looksBatch   = 32      // paths of one directory that one reader takes at a time
	inlineMax    = 16 << 10
	inlineBatch  = 256 << 10 // bytes of content that ride in one entry
	inlineQueue  = 2         // with more proposals waiting, contents are staged
	retryTime    = time.Second
	retries      = 5 // of a batch, with longer and longer pauses; then its paths are looked at again
)

// errSkipped says that an entry is of a kind that is not kept.
var errSkipped = errors.New("not kept: a device, socket or FIFO")

// lookLoop looks at paths until the end.
func (a *Agent) lookLoop() {
	r := newReader(a)
	for {
		paths := a.board.takeLooks(looksBatch)
		if paths == nil {
			return
		}
		found := a.lookAtAll(r, paths)
		if len(found) == 0 {
			continue
		}
		select {
		case a.results <- found:
		case <-a.ctx.Done():
			return
		}
	}
}

// lookAtAll looks at claimed paths of one directory.
func (a *Agent) lookAtAll(r *reader, paths []string) (found []finding) {
	defer r.leave()
	if err := r.begin(paths); err != nil {
		a.broken(err)
		return nil
	}
	for _, path := range paths {
		found = a.lookAt(r, path, found)
	}
	return found
}

// lookAt looks at a claimed path and, if an entry may have come or gone, at its directory, whose times changed
// with it.
func (a *Agent) lookAt(r *reader, path string, found []finding) []finding {
	if a.cfg.Ignore(path) {
		a.board.lookDone(path, time.Time{})
		return found
	}
	f, v, err := r.look(path)
	if err != nil {
		if errors.Is(err, errSkipped) {
			found = a.lookAbove(r, path, found) // its directory's times are kept
		}
		a.lookFailed(path, err)
		return found
	}
	a.status.solved(path)
	if f == nil || f.change.Node.Kind != manifest.File {
		a.status.staged(path) // what could not be is gone
	}
	if v.above != "" {
		a.board.waitAbove(path, v.above)
		return found
	}
	if f == nil {
		if v.entry {
			r.idle = append(r.idle, path)
			found = a.lookAbove(r, path, found)
			r.idle = r.idle[:len(r.idle)-1]
		}
		a.settleLook(path, v)
		return found
	}
	if a.cfg.ReadOnly {
		a.revertEdit(f)
		return found
	}
	found = append(found, *f)
	// Even what has the same inode may have been moved away and back.
	return a.lookAbove(r, path, found)
}

// lookAbove looks at the directory of path, which is claimed.
func (a *Agent) lookAbove(r *reader, path string, found []finding) []finding {
	if dir, ok := manifest.Parent(path); ok && a.board.alsoLook(path, dir) {
		r.leave() // dir was claimed just now
		return a.lookAt(r, dir, found)
	}
	return found
}

func (a *Agent) lookFailed(path string, err error) {
	if errors.Is(err, vfs.ErrNotRegular) || vfs.NoSuchDir(err) || errors.Is(err, fs.ErrNotExist) {
		a.board.lookDone(path, a.cfg.Now().Add(settleTime)) // it changes under our eyes
		return
	}
	a.status.problem(path, err)
	a.board.standAlone(path)
	a.board.lookDone(path, time.Time{}) // a problem that is said: nobody has to wait for it
	if !errors.Is(err, errSkipped) {
		a.lookLater(path, a.cfg.Now().Add(time.Minute))
	}
}

// settleLook ends a look that leads to no proposal.
func (a *Agent) settleLook(path string, v verdict) {
	if v.adopt {
		if err := a.recordOne(path, v.had, v.record); err != nil {
			a.broken(err)
		}
		if v.place {
			a.rechecks.add(path, 0)
			a.board.nudge()
		}
	}
	if v.again > 0 {
		a.board.lookDone(path, a.cfg.Now().Add(v.again))
		return
	}
	a.lookEnds(path, v.young)
}

func (a *Agent) recordOne(path string, had manifest.Kind, r record) error {
	e := a.table.edit()
	defer e.discard()
	if err := a.setRecord(e, path, had, r); err != nil {
		return err
	}
	return e.commit()
}

// setRecord sets the record of a claimed path, whose old one is of an entry of kind had, and keeps the guard's
// count.
func (a *Agent) setRecord(e *edits, path string, had manifest.Kind, r record) error {
	if had == manifest.File {
		a.guard.files.Add(-1)
	}
	if r.Stat.Kind == manifest.File {
		a.guard.files.Add(1)
		r.After = a.checkpoints.Load()
	}
	return e.set(path, r)
}

// propose stages contents, proposes the changes and settles their outcomes. While that fails the batch is kept: to
// read its files again and again would cost more than what they may have become meanwhile.
func (a *Agent) propose(ctx context.Context, found []finding) {
	defer a.status.pending.Add(-int64(len(found)))
	found, err := a.consult(found)
	if err != nil {
		a.broken(err)
		return
	}
	found, deletions, err := a.admit(found)
	if err != nil {
		a.broken(err)
		return
	}
	for try := 0; ; try++ {
		if found, err = a.proposeOnce(ctx, found); err == nil {
			return
		}
		if ctx.Err() == nil {
			a.waits(err)
		}
		if try == 0 && ctx.Err() == nil {
			a.log.Warn("propose", "group", a.cfg.GroupID, "err", err)
		}
		if try == retries || !a.pause(ctx, retryTime<<min(try, 2)) {
			a.guard.giveBack(deletions)
			a.release(found, retryTime)
			return
		}
	}
}

// waits says in the status why changes are not committed, and what to do about it.
func (a *Agent) waits(err error) {
	var known *api.Error
	hint := ""
	if errors.As(err, &known) {
		hint = known.Hint
	}
	a.status.problemHint(aboutProposed, fmt.Errorf("changes of this node wait: %w", err), hint)
}

// pause waits; false if ctx ended first.
func (a *Agent) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// proposeOnce does it once. With an error it returns what is still to be proposed.
func (a *Agent) proposeOnce(ctx context.Context, found []finding) ([]finding, error) {
	found, lacking, err := a.ship(ctx, found)
	if err != nil || len(found) == 0 {
		return found, err
	}
	b := manifest.Batch{Author: a.cfg.Node, Changes: make([]manifest.Change, len(found))}
	for i := range found {
		b.Changes[i] = found[i].change
	}
	index, result, err := a.cfg.Log.Propose(ctx, manifest.EncodeBatch(b), lacking)
	if err != nil {
		return found, err
	}
	outs, err := manifest.DecodeOutcomes(result)
	if err == nil && len(outs) != len(found) {
		err = fmt.Errorf("%d outcomes for %d changes", len(outs), len(found))
	}
	if err != nil {
		return found, err
	}
	a.status.solved(aboutProposed)
	if err := a.settle(index, found, outs); err != nil {
		a.broken(err)
	}
	return nil, nil
}

// release gives back findings that were not proposed; they are looked at again.
func (a *Agent) release(found []finding, after time.Duration) {
	at := a.cfg.Now().Add(after)
	for i := range found {
		a.board.lookDone(found[i].change.Path, at)
	}
}

// settle records what became of the changes and lets the paths go.
func (a *Agent) settle(index uint64, found []finding, outs []manifest.Outcome) error {
	e := a.table.edit()
	defer e.discard()
	for i := range found {
		f, o := &found[i], outs[i]
		rec := record{Placed: place.Placed{Version: o.Version, Stat: f.recorded()}, Hash: contentOf(&f.change.Node)}
		switch o.Code {
		case manifest.Accepted, manifest.Same:
			if f.change.Node.Kind == manifest.Absent {
				rec = record{}
				a.board.settleGone(f.change.Path, index)
			}
		case manifest.Conflicted, manifest.Superseded:
			// I3: what is here is kept elsewhere, or was nothing; the manifest's state may take its place.
			rec.Version = 0
			a.rechecks.add(f.change.Path, index)
		case manifest.Refused:
			a.status.problem(f.change.Path, errRefused)
			a.board.standAlone(f.change.Path)
			continue
		}
		if err := a.setRecord(e, f.change.Path, f.old.Stat.Kind, rec); err != nil {
			return err
		}
	}
	if err := e.commit(); err != nil {
		return err
	}
	for i := range found {
		f, o := &found[i], outs[i]
		a.status.staged(f.change.Path)
		if o.Code == manifest.Same && f.change.Node.Kind == manifest.Absent {
			continue
		}
		a.status.proposed(o.Code)
	}
	a.letGo(found)
	a.board.nudge()
	return nil
}

var errRefused = errors.New("the group refuses the name")

// letGo ends the looks, and has the directories looked at whose last child may have gone with them.
func (a *Agent) letGo(found []finding) {
	for i := range found {
		path := found[i].change.Path
		if dir, ok := manifest.Parent(path); ok && found[i].change.Node.Kind == manifest.Absent {
			a.board.follow(path, dir)
		}
		a.lookEnds(path, found[i].young)
	}
}
