package files

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// A file that is gone while its inode is in the tree at another path was moved, and counts for nothing. That is
// known only once its new place was looked at, which takes a while for a large tree: so deletions that
// would be too many are withheld, and stop the binding only when graceTime has passed without anything else to do.
const (
	graceTime = 3 * time.Second
	graceMost = 5 * time.Minute
)

// admit decides which findings may be proposed now. Deletions that would be too many are given back.
func (a *Agent) admit(found []finding) (admitted []finding, c counted) {
	c, ok := a.guard.admit(found)
	if ok {
		if c.n > 0 {
			a.board.unwithhold()
		}
		return found, c
	}
	a.guard.giveBack(c)
	var rest, lost []finding
	for i := range found {
		f := &found[i]
		if f.deletesFile() && !a.moved(f.change.Path, &f.old) {
			lost = append(lost, *f)
		} else {
			rest = append(rest, *f)
		}
	}
	if c, ok = a.guard.admitLost(int64(len(lost)), len(rest) > 0); ok {
		a.status.solved(aboutDeletions)
		a.board.unwithhold()
		return found, c
	}
	a.guard.giveBack(c)
	a.board.withhold(lost)
	a.release(lost, retryTime)
	a.status.problemHint(aboutDeletions, fmt.Errorf("deletions wait: they would be more than %d", a.guard.limit()),
		"they go on when the files turn up elsewhere; if not, the binding stops and asks")
	if a.guard.overdue(a.scanDue.busy() || a.board.othersPending()) {
		a.stop(stopDeletions, fmt.Sprintf("more than %d files would be deleted everywhere", a.guard.limit()),
			a.howToConfirm())
	}
	return rest, counted{}
}

// howToConfirm is the way out of a stop because of deletions.
func (a *Agent) howToConfirm() string {
	if a.cfg.Resume == "" {
		return "look whether that is meant; then confirm it"
	}
	return "look at " + a.cfg.Root + "; if that is meant: " + a.cfg.Resume
}

func (f *finding) deletesFile() bool {
	return f.old.Stat.Kind == manifest.File && f.change.Node.Kind == manifest.Absent
}

// moved says whether the file that was placed at path is at another one now.
func (a *Agent) moved(path string, was *record) bool {
	p, ok := a.table.whereIs(was.Hash)
	if !ok || p == path {
		return false
	}
	is, err := a.table.get(p)
	return err == nil && is.Stat.Kind == manifest.File && is.Stat.Ino == was.Stat.Ino && is.Hash == was.Hash
}

// lostBelow waits until of the files that a scan found gone no more than most are lost, the others having turned up
// elsewhere, or the loss is confirmed; false when neither comes.
func (a *Agent) lostBelow(ctx context.Context, most int64, gone []string) (bool, error) {
	a.scanDue.judge(true)
	defer a.scanDue.judge(false)
	again := time.NewTicker(retryTime)
	defer again.Stop()
	quiet := a.cfg.Now()
	for {
		lost, err := a.countLost(gone, most)
		if err != nil || lost <= most || a.guard.confirmed() {
			return err == nil, err
		}
		now := a.cfg.Now()
		if a.board.othersPending() {
			quiet = now
		}
		if now.Sub(quiet) >= graceTime {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-again.C:
		}
	}
}

// countLost counts up to one more than most.
func (a *Agent) countLost(gone []string, most int64) (lost int64, err error) {
	for _, path := range gone {
		rec, err := a.table.get(path)
		if err != nil {
			return 0, err
		}
		if rec.Stat.Kind == manifest.File && !a.moved(path, &rec) {
			if lost++; lost > most {
				break
			}
		}
	}
	return lost, nil
}
