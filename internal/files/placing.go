package files

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
)

const (
	// One Apply has up to placeMax paths: 2,048 of them fill 100,000 files of 5 KB a tenth faster than 512, since the
	// workers wait less for the last one, and records are written less often.
	placeMax   = 2048
	placeBytes = 1 << 30 // of files in one Apply, but for the last: contents that have to be fetched wait for each other
	backoffMax = 30 * time.Second
)

// rechecks are paths to be brought to what the manifest says once the state includes an index: their change
// lost or was superseded, and no event will tell what stands.
type rechecks struct {
	mu   sync.Mutex
	list []recheck
}

type recheck struct {
	path  string
	index uint64
}

func (r *rechecks) add(path string, index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, recheck{path, index})
}

// ready removes and returns those that the state at applied can answer.
func (r *rechecks) ready(applied uint64) (out []recheck) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.list[:0]
	for _, c := range r.list {
		if c.index <= applied {
			out = append(out, c)
		} else {
			kept = append(kept, c)
		}
	}
	r.list = kept
	return out
}

// placeLoop brings the disk to what the manifest wants.
func (a *Agent) placeLoop(ctx context.Context) {
	var w *walk
	for a.board.waitPlace(w != nil) {
		if err := a.answerRechecks(); err != nil {
			a.broken(err)
			return
		}
		if w == nil {
			w = a.beginWalk()
		}
		wants := a.board.takeWants(placeMax)
		if len(wants) > 0 {
			if err := a.place(ctx, wants); err != nil {
				a.broken(err)
				return
			}
			continue
		}
		if w == nil {
			continue
		}
		done, err := w.step()
		if err != nil {
			a.broken(err)
			return
		}
		if done {
			a.board.endWalk(w.hold)
			w = nil
		}
	}
}

func (a *Agent) answerRechecks() error {
	committed := a.board.committedIndex()
	ready := a.rechecks.ready(committed)
	if len(ready) == 0 {
		return nil
	}
	v, err := a.cfg.Log.View()
	if err != nil {
		return err
	}
	defer v.Close()
	for _, c := range ready {
		n, _, err := manifest.Get(v, c.path)
		if err != nil {
			return err
		}
		a.board.want(committed, manifest.Changed{Path: c.path, Node: n})
	}
	a.keepStranded()
	return nil
}

// place carries out what was claimed. An error means that the placed table failed.
func (a *Agent) place(ctx context.Context, wants []*want) error {
	todo, err := a.toPlace(wants)
	for err == nil && len(todo) > 0 {
		var free []laying
		if free, todo, err = a.lastCopies(todo); err != nil {
			return err
		}
		if len(free) == 0 {
			a.holdBack(todo)
			return nil
		}
		if err = a.secure(free); err == nil {
			err = a.apply(ctx, free)
		}
	}
	return err
}

// toPlace looks up what is there, and ends the wants with which nothing is to be done.
func (a *Agent) toPlace(wants []*want) ([]laying, error) {
	todo := make([]laying, 0, len(wants))
	for _, w := range wants {
		rec, err := a.table.get(w.Path)
		if err != nil {
			return nil, err
		}
		// A record newer than what is wanted is of a change of this node: its event comes, or has come.
		if rec.Version > w.index || a.asWanted(&rec, &w.Node) || a.board.outlived(w.Path, &w.Node) {
			a.status.placed(w.Path)
			a.board.placeDone(w)
			continue
		}
		same := rec.Stat.Kind == manifest.File && w.Node.Kind == manifest.File && rec.Hash == w.Node.Hash
		t := place.Task{Path: w.Path, Want: w.Node, Have: rec.Placed, Inline: w.Inline, Held: rec.Hash, SameContent: same, From: w.From}
		todo = append(todo, laying{want: w, task: t, held: rec.Hash})
	}
	return todo, nil
}

// apply places todo, fetches what is missing for that, and records the outcome.
func (a *Agent) apply(ctx context.Context, todo []laying) error {
	tasks := make([]place.Task, len(todo))
	for i := range todo {
		tasks[i] = todo[i].task
	}
	if err := a.announce(tasks); err != nil {
		return err
	}
	results, touched := a.placer.Apply(ctx, tasks, a.store)
	if again := a.fetch(ctx, tasks, results); len(again) > 0 {
		more := make([]place.Task, len(again))
		for k, i := range again {
			more[k] = tasks[i]
		}
		late, alsoTouched := a.placer.Apply(ctx, more, a.store)
		for k, i := range again {
			results[i] = late[k]
		}
		touched = append(touched, alsoTouched...)
	}
	if err := a.recordPlaced(tasks, results); err != nil {
		return err
	}
	for i := range todo {
		a.placedOne(ctx, todo[i].want, &results[i])
	}
	a.lookTouched(touched)
	return nil
}

// asWanted says whether the placed record shows that nothing is to be done.
func (a *Agent) asWanted(rec *record, n *manifest.Node) bool {
	if n.Kind == manifest.Absent {
		return rec.Stat.Kind == manifest.Absent
	}
	return rec.Version == n.Version && rec.Version != 0 && a.looksAs(&rec.Stat, n)
}

// looksAs compares metadata. Versions are entry indexes, so one entry can leave two nodes of one version.
func (a *Agent) looksAs(s *place.Stat, n *manifest.Node) bool {
	if s.Kind != n.Kind || s.MTime != n.MTime || n.Kind == manifest.File && s.Size != n.Size {
		return false
	}
	if n.Kind != manifest.Symlink && !place.ModeAs(a.cfg.Owner, n.Kind, s.Mode, n.Mode) {
		return false
	}
	return !a.cfg.Owner || s.UID == n.UID && s.GID == n.GID
}

// fetch gets the contents that were missing from other members and returns the tasks to try again.
func (a *Agent) fetch(ctx context.Context, tasks []place.Task, results []place.Result) (again []int) {
	var wants []content.Want
	for i := range results {
		if results[i].Code == place.Missing {
			n := &tasks[i].Want
			wants = append(wants, content.Want{Hash: n.Hash, Size: n.Size, PathHint: tasks[i].Path})
			again = append(again, i)
		}
	}
	if len(wants) == 0 {
		return nil
	}
	var nodes []uint64
	for _, p := range a.cfg.Peers.List() {
		if p.Up {
			nodes = append(nodes, p.ID)
		}
	}
	missing, err := a.store.Fetch(ctx, nodes, wants)
	if err != nil && ctx.Err() == nil {
		a.log.Info("fetch contents", "missing", len(missing), "err", err)
	}
	if len(missing) == 0 {
		return again
	}
	lacking := make(map[manifest.Hash]bool, len(missing))
	for _, w := range missing {
		lacking[w.Hash] = true
	}
	var failed *content.FetchError
	errors.As(err, &failed)
	kept := again[:0]
	for _, i := range again {
		h := tasks[i].Want.Hash
		if !lacking[h] {
			kept = append(kept, i)
		} else if failed != nil && failed.NoRoom[h] != nil {
			results[i] = place.Result{Code: place.Failed, Err: failed.NoRoom[h]}
		}
	}
	return kept
}

// recordPlaced records what is on disk now, in the batch that ends the announcement. Contents staged for it are spent.
func (a *Agent) recordPlaced(tasks []place.Task, results []place.Result) error {
	e := a.table.edit()
	defer e.discard()
	var release []manifest.Hash
	var at []string
	for i := range results {
		r, t := &results[i], &tasks[i]
		if r.Code != place.Done && r.Code != place.Adopted {
			continue
		}
		rec := record{Placed: r.Placed, Hash: contentOf(&t.Want)}
		rec.Version = t.Want.Version
		if a.raced(&rec.Stat, &t.Want) {
			a.lookSoon(t.Path)
		}
		if dir, ok := manifest.Parent(t.Path); ok && leftThere(t, r) {
			a.lookSoon(dir)
		}
		if t.Want.Kind == manifest.Absent {
			rec = record{}
		}
		if err := a.setRecord(e, t.Path, t.Have.Stat.Kind, rec); err != nil {
			return err
		}
		// A change of metadata came without its content: what is staged of that is for another path.
		if t.Want.Kind == manifest.File && t.Inline == nil && t.Want.Size > 0 && !t.SameContent {
			release, at = append(release, t.Want.Hash), append(at, t.Path)
		}
		if err := a.recordChunks(t); err != nil {
			a.log.Warn("chunk table", "err", err) // only hints
		}
	}
	if err := e.settleAnnouncement(); err != nil {
		return err
	}
	if err := e.commit(); err != nil {
		return err
	}
	if err := a.store.Release(release...); err != nil {
		a.log.Warn("release staged contents", "err", err)
	}
	for i, h := range release {
		a.unsynced.add(at[i], h)
	}
	return nil
}

// leftThere says whether the placer left, at the path of t, what somebody else may have put there: with its record made
// of that, a look at the path tells nothing any more, and the directory's times may have changed.
func leftThere(t *place.Task, r *place.Result) bool {
	now := &r.Placed.Stat
	if now.Kind == manifest.Dir {
		return t.Have.Stat.Kind == manifest.Dir // it keeps directories, whichever they are
	}
	return r.Code == place.Adopted && now.Kind != manifest.Absent && !scan.Same(*now, t.Have.Stat)
}

// raced says whether somebody changed what was just placed. Of a directory only its metadata would tell, so
// the record keeps what was wanted and the next look sees the change.
func (a *Agent) raced(s *place.Stat, want *manifest.Node) bool {
	if want.Kind != manifest.Dir {
		return want.Kind != manifest.Absent && s.CTime == 0
	}
	if a.looksAs(s, want) {
		return false
	}
	s.Mode, s.MTime = want.Mode, want.MTime
	if a.cfg.Owner {
		s.UID, s.GID = want.UID, want.GID
	}
	return true
}

func (a *Agent) recordChunks(t *place.Task) error {
	if t.Want.Kind == manifest.File && t.Want.Size > content.SmallMax {
		return a.store.RecordPlaced(t.Path, t.Want.Hash, nil)
	}
	if t.Have.Stat.Kind == manifest.File && t.Have.Stat.Size > content.SmallMax {
		return a.store.ForgetPlaced(t.Path)
	}
	return nil
}

// placedOne decides how a path goes on.
func (a *Agent) placedOne(ctx context.Context, w *want, r *place.Result) {
	if r.Kept != "" {
		a.log.Warn("kept aside what could not stay", "path", w.Path, "kept", r.Kept)
	}
	switch r.Code {
	case place.Done, place.Adopted:
		a.status.solved(w.Path)
		a.status.placed(w.Path)
		if r.Code == place.Done && w.Node.Size > 0 {
			a.status.solved(aboutSpace)
		}
		a.board.placeDone(w)
		return
	case place.Busy:
		if w.tries > 4 && r.Err != nil {
			a.status.unplaced(w.Path, fmt.Errorf("cannot be replaced: %w", r.Err), "")
		}
		a.board.placeAgain(w, true, a.backoff(w.tries))
		return
	case place.Missing:
		r.Err = errMissing
	}
	if ctx.Err() == nil {
		hint := ""
		if errors.Is(r.Err, unix.ENOSPC) || errors.Is(r.Err, unix.EDQUOT) {
			hint = "make room; it goes on by itself"
			r.Err = a.store.GiveUp(r.Err)
			a.status.problemHint(aboutSpace, r.Err, hint)
		}
		a.status.unplaced(w.Path, r.Err, hint)
	}
	a.board.placeAgain(w, false, a.backoff(w.tries))
}

var errMissing = errors.New("no member that is up has the content")

// backoff is when to try again after so many tries.
func (a *Agent) backoff(tries int) time.Time {
	return a.cfg.Now().Add(min(10*time.Millisecond<<min(tries, 12), backoffMax))
}

// lookTouched has a look at directories in which something was placed. The placer puts their times back, and
// if somebody changed them just then, and that is already on its way into the log, only a look tells.
func (a *Agent) lookTouched(touched []place.Touched) {
	for i := range touched {
		a.lookSoon(touched[i].Path)
	}
}
