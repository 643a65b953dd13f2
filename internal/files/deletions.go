package files

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// A file that is gone while its inode is in the tree at another path was moved, and counts for nothing; nor does one that
// was not there when the deletions began that it would be counted with, such as a program's temporary file. Where a file
// went is known only once its new place was looked at, which takes a while for a large tree: so deletions that would be
// too many are withheld, and stop the binding only when graceTime has passed without anything else to do.
const (
	graceTime = 3 * time.Second
	graceMost = 5 * time.Minute
)

// admit decides which findings may be proposed now. Deletions that would be too many are given back.
func (a *Agent) admit(found []finding) (admitted []finding, c counted, err error) {
	lost := a.lost(found)
	c, ok := a.guard.admitLost(int64(len(lost)), len(lost) < len(found))
	if !ok {
		a.guard.giveBack(c)
		if lost, err = a.nowhere(lost); err != nil {
			return nil, counted{}, err
		}
		c, ok = a.guard.admitLost(int64(len(lost)), len(lost) < len(found))
	}
	if ok {
		if c.n > 0 {
			a.status.solved(aboutDeletions)
			a.board.unwithhold()
		}
		return found, c, nil
	}
	a.guard.giveBack(c)
	a.withhold(lost)
	return without(found, lost), counted{}, nil
}

// withhold gives back deletions that are too many, and stops the binding if there is nothing else to wait for.
func (a *Agent) withhold(lost []*finding) {
	back := make([]finding, len(lost))
	for i, f := range lost {
		back[i] = *f
	}
	a.board.withhold(back)
	a.release(back, retryTime)
	a.status.problemHint(aboutDeletions, fmt.Errorf("deletions wait: they would be more than %d", a.guard.limit()),
		"they go on when the files turn up elsewhere; if not, the binding stops and asks")
	if a.guard.overdue(a.scanDue.busy() || a.board.othersPending()) {
		a.stop(stopDeletions, fmt.Sprintf("more than %d files would be deleted everywhere", a.guard.limit()),
			a.howToConfirm())
	}
}

// forgetWithheld ends what is said of deletions that wait once there are none: the files are back at their paths, which
// admits nothing, or the binding has stopped, which says so itself.
func (a *Agent) forgetWithheld() {
	if a.guard.lapsed() {
		a.status.solved(aboutDeletions)
		a.board.unwithhold()
	}
}

// without are the findings that are not among lost, which are of them and in their order.
func without(found []finding, lost []*finding) []finding {
	rest := make([]finding, 0, len(found)-len(lost))
	for i := range found {
		if len(lost) > 0 && lost[0] == &found[i] {
			lost = lost[1:]
			continue
		}
		rest = append(rest, found[i])
	}
	return rest
}

// lost are the findings that delete a file which counts and, as far as can be told at once, is nowhere else.
func (a *Agent) lost(found []finding) (lost []*finding) {
	here := map[inode]bool{}
	for i := range found {
		if f := &found[i]; f.stat.Kind == manifest.File {
			here[inodeOf(&f.stat)] = true
		}
	}
	for i := range found {
		f := &found[i]
		if f.deletesFile() && !a.guard.began(&f.old.Stat) && !here[inodeOf(&f.old.Stat)] && !a.moved(f.change.Path, &f.old) {
			lost = append(lost, f)
		}
	}
	return lost
}

// inode names a file on this system, as long as it is there.
type inode struct{ dev, ino uint64 }

func inodeOf(s *place.Stat) inode { return inode{s.Dev, s.Ino} }

// nowhere are those of lost whose file is recorded at no other path; it reads all records.
func (a *Agent) nowhere(lost []*finding) (gone []*finding, err error) {
	left := lostFiles{}
	for _, f := range lost {
		left.add(&f.old)
	}
	if err := a.dropMoved(left); err != nil {
		return nil, err
	}
	for _, f := range lost {
		// One that is back where it was is no other path's: it is looked at again.
		if left.has(&f.old) || a.isAt(f.change.Path, inodeOf(&f.old.Stat)) {
			gone = append(gone, f)
		}
	}
	return gone, nil
}

// lostFiles are files that are gone from a path, and how many paths they are gone from. Of a million that is 50 MB.
type lostFiles map[fileID]int

// fileID names a file with its content: an inode that is free may be given to another file. The content is told by the
// beginning of its hash.
type fileID struct {
	inode
	content uint64
}

func fileIDOf(rec *record) fileID { return fileID{inodeOf(&rec.Stat), beginning(rec.Hash)} }

func (l lostFiles) add(rec *record) { l[fileIDOf(rec)]++ }

func (l lostFiles) has(rec *record) bool { return l[fileIDOf(rec)] > 0 }

// dropMoved removes those that are recorded, and there, at a path. Contents alone do not tell, since many files can have one;
// and of the names of one file each is recorded, and if all went, none was moved to another.
func (a *Agent) dropMoved(lost lostFiles) error {
	return a.table.walk(a.table.store, nil, func(_ []byte, path string, rec record) error {
		if rec.Stat.Kind == manifest.File && lost.has(&rec) && a.isAt(path, inodeOf(&rec.Stat)) {
			delete(lost, fileIDOf(&rec))
		}
		return nil
	})
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

// moved says whether the file that was placed at path is at another one now, as far as the content leads there.
func (a *Agent) moved(path string, was *record) bool {
	p, ok := a.table.whereIs(was.Hash)
	if !ok || p == path {
		return false
	}
	is, err := a.table.get(p)
	return err == nil && is.Stat.Kind == manifest.File && fileIDOf(&is) == fileIDOf(was) && a.isAt(p, inodeOf(&was.Stat))
}

func (a *Agent) isAt(path string, n inode) bool {
	in, err := a.root.Stat(path)
	now := place.StatOf(in)
	return err == nil && inodeOf(&now) == n
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

// isFile says whether there is a file at path again.
func (a *Agent) isFile(path string) bool {
	in, err := a.root.Stat(path)
	return err == nil && place.StatOf(in).Kind == manifest.File
}

// countLost counts those that are lost, exactly if they are more than most.
func (a *Agent) countLost(gone []string, most int64) (n int64, err error) {
	lost := lostFiles{}
	for _, path := range gone {
		rec, err := a.table.get(path)
		if err != nil {
			return 0, err
		}
		if rec.Stat.Kind == manifest.File && !a.isFile(path) {
			lost.add(&rec)
			n++
		}
	}
	if n <= most {
		return n, nil
	}
	if err := a.dropMoved(lost); err != nil {
		return 0, err
	}
	n = 0
	for _, paths := range lost {
		n += int64(paths)
	}
	return n, nil
}
