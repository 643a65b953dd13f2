package place

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// removeDir removes an empty directory. The kernel checks that it is, so nothing is moved aside.
func (w *worker) removeDir(j job) Result {
	cur, err := vfs.StatAt(w.fd, j.name)
	switch {
	case err != nil:
		return j.fail("look", err)
	case !cur.Exists():
		return j.result(Adopted, vfs.Info{})
	case !sameObject(cur, j.have):
		return j.busy("another entry is where the directory was")
	}
	w.begin()
	w.p.at("rmdir", j.Path)
	err = remove(w.fd, j.name, vfs.Dir)
	w.end(&j)
	switch err {
	case nil:
		return j.result(Done, vfs.Info{})
	case unix.ENOENT:
		return j.result(Adopted, vfs.Info{})
	case unix.ENOTEMPTY:
		return j.busy("the directory is not empty" + w.sample(j.name))
	case unix.ENOTDIR:
		return j.busy("no longer a directory")
	}
	return j.fail("remove", err)
}

// sample names an entry of the directory name, for a message.
func (w *worker) sample(name string) string {
	fd, err := vfs.OpenBeneath(w.fd, name)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var l vfs.Lister
	entries, err := l.List(fd)
	if err != nil || len(entries) == 0 {
		return ""
	}
	return fmt.Sprintf(": %d entries, the first %q", len(entries), entries[0].Name)
}

// makeDir sees to it that a directory is there. Its metadata is set when everything in it is placed.
func (w *worker) makeDir(j job) Result {
	if j.name == "" {
		cur, err := vfs.StatFd(w.p.root.Fd())
		if err != nil {
			return j.fail("look", err)
		}
		return w.keepDir(&j, cur)
	}
	if !j.have.Exists() {
		return w.newDir(&j)
	}
	cur, err := vfs.StatAt(w.fd, j.name)
	switch {
	case err != nil:
		return j.fail("look", err)
	case !cur.Exists():
		return j.busy("it was removed")
	case cur.Kind == vfs.Dir:
		return w.keepDir(&j, cur)
	case cur != j.have || cur.Other:
		return j.busy("it was changed")
	}
	return w.replace(&j, cur)
}

// newDir creates a directory where nothing is expected.
func (w *worker) newDir(j *job) Result {
	pre, err := w.prepareDir(j)
	if err != nil {
		return j.fail("prepare", err)
	}
	defer pre.close()
	w.begin()
	w.p.at("link", j.Path)
	err = w.p.renameNew(w.p.work, pre.name, w.fd, j.name, vfs.Dir)
	w.end(j)
	if err == nil {
		w.madeDir(j, pre.info)
		return j.result(Done, vfs.Info{})
	}
	w.discard(&pre)
	if err != unix.EEXIST {
		return j.fail("rename into place", err)
	}
	cur, err := vfs.StatAt(w.fd, j.name)
	switch {
	case err != nil:
		return j.fail("look", err)
	case cur.Kind != vfs.Dir:
		return j.busy("there is something that is not a directory")
	}
	return w.keepDir(j, cur)
}

// keepDir takes the directory that is there. Metadata of directories never conflicts, except that a mode or
// owner which is neither what we put there nor what is wanted is somebody's edit, to be ordered first.
func (w *worker) keepDir(j *job, cur vfs.Info) Result {
	if j.have.Kind == vfs.Dir {
		if cur.Mode != j.have.Mode && cur.Mode != j.Want.Mode {
			return j.busy("the directory's mode was changed")
		}
		had := cur.UID == j.have.UID && cur.GID == j.have.GID
		if w.p.owner && !had && (cur.UID != j.Want.UID || cur.GID != j.Want.GID) {
			return j.busy("the directory's owner was changed")
		}
	}
	d := w.b.dirs[j.Path]
	d.pending, d.ino, d.dev = true, cur.Ino, cur.Dev
	return j.result(Adopted, vfs.Info{})
}

func (w *worker) madeDir(j *job, in vfs.Info) {
	d := w.b.dirs[j.Path]
	d.pending, d.made, d.ino, d.dev = true, true, in.Ino, in.Dev
}

// settleDirs gives directories their metadata, deepest first, after everything in them is placed: what their
// task wants, or else the mtime that they had before.
func (b *batch) settleDirs() []Touched {
	dirs := slices.DeleteFunc(b.all, func(d *dirState) bool { return !d.touched && !d.pending && len(d.in) == 0 })
	slices.SortFunc(dirs, func(x, y *dirState) int { return cmp.Compare(y.path, x.path) })
	var out []Touched
	for _, d := range dirs {
		after, err := b.settle(d)
		switch {
		case err != nil && (vfs.NoSuchDir(err) || err == errMoved):
			b.moved(d, err)
			continue
		case err != nil && d.pending:
			b.results[d.task] = Result{Code: Failed, Err: fmt.Errorf("place %q: metadata: %w", d.path, err)}
		case err != nil:
			d.foreign = true
		}
		if d.touched && (d.foreign || err != nil || !d.pending) {
			out = append(out, Touched{Path: d.path, Before: StatOf(d.before), After: StatOf(after), Foreign: d.foreign})
		}
	}
	return out
}

// settle sets the metadata of one directory and returns how it looks then.
func (b *batch) settle(d *dirState) (vfs.Info, error) {
	b.p.at("settle", d.path)
	fd, err := vfs.OpenBeneath(b.p.root.Fd(), d.path)
	if err != nil {
		return vfs.Info{}, err
	}
	defer unix.Close(fd)
	cur, err := vfs.StatFd(fd)
	if err != nil {
		return vfs.Info{}, err
	}
	if d.ino != 0 && (cur.Ino != d.ino || cur.Dev != d.dev) {
		return vfs.Info{}, errMoved
	}
	if d.touched && (cur.MTime != d.last.MTime || cur.CTime != d.last.CTime) {
		d.foreign = true
	}
	if !d.pending {
		if !d.touched || d.foreign || cur.MTime == d.before.MTime {
			return cur, nil
		}
		if err := setMTime(fd, d.before.MTime); err != nil {
			return cur, err
		}
		return vfs.StatFd(fd)
	}
	return b.settleWanted(d, fd, cur)
}

// settleWanted gives a directory what its task wants.
func (b *batch) settleWanted(d *dirState, fd int, cur vfs.Info) (vfs.Info, error) {
	t := &b.tasks[d.task]
	changed, err := b.p.setMetadata(fd, cur, &t.Want)
	if err == nil && changed {
		cur, err = vfs.StatFd(fd)
	}
	if err != nil {
		return cur, err
	}
	code := Adopted
	if changed || d.made || d.touched {
		code = Done
	}
	b.results[d.task] = Result{Code: code, Placed: Placed{Version: t.Want.Version, Stat: StatOf(cur)}}
	return cur, nil
}

// moved takes back what was said of tasks in a directory that is no longer at its path: what they placed is
// wherever the directory went.
func (b *batch) moved(d *dirState, err error) {
	busy := func(i int32) {
		if r := &b.results[i]; (r.Code == Done || r.Code == Adopted) && b.tasks[i].Want.Kind != manifest.Absent {
			*r = Result{Code: Busy, Err: fmt.Errorf("place %q: directory %q: %w", b.tasks[i].Path, d.path, err)}
		}
	}
	for _, i := range d.in {
		busy(i)
	}
	if d.pending {
		busy(d.task)
	}
}
