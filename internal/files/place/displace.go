package place

import (
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// replace exchanges cur, which looks as Have says, for what is wanted, and looks at what came out.
func (w *worker) replace(j *job, cur vfs.Info) Result {
	if cur.Kind == vfs.Dir {
		if found := w.sample(j.name); found != "" {
			return j.busy("the directory is not empty" + found)
		}
	}
	pre, err := w.prepare(j)
	if err == errNotHere {
		return Result{Code: Missing}
	}
	if err != nil {
		return j.fail("prepare", err)
	}
	defer pre.close()
	if w.p.lacking(lackExchange) {
		return w.replacePlain(j, cur, &pre)
	}
	if err := w.toSwap(j, &pre); err != nil {
		w.discard(&pre)
		return j.fail("prepare", err)
	}
	w.begin()
	w.p.at("exchange", j.Path)
	err = unix.Renameat2(w.p.work, pre.name, w.fd, j.name, unix.RENAME_EXCHANGE)
	defer w.end(j)
	switch err {
	case nil:
		return w.displaced(j, cur, &pre)
	case unix.EINVAL, unix.ENOSYS:
		w.p.learn(lackExchange)
		return w.replacePlain(j, cur, &pre)
	}
	w.discard(&pre)
	if err == unix.ENOENT {
		return j.busy("it was removed")
	}
	return j.fail("exchange", err)
}

// toSwap gives a prepared object the name in Work that tells, after a crash, whether it was exchanged.
func (w *worker) toSwap(j *job, pre *prepared) error {
	name := workNameIno(prefixSwap, j.seq, pre.info.Ino)
	var err error
	if pre.name == "" {
		err = linkFd(pre.fd, w.p.work, name)
	} else {
		err = unix.Renameat(pre.dirfd, pre.name, w.p.work, name)
	}
	if err == nil {
		pre.dirfd, pre.name = w.p.work, name
	}
	return err
}

// displaced drops what came out of an exchange if it is cur, unused and unchanged; otherwise it goes back.
func (w *worker) displaced(j *job, cur vfs.Info, pre *prepared) Result {
	w.p.at("look", j.Path)
	why := w.p.changed(pre.name, cur)
	if why == "" {
		w.p.at("drop", j.Path)
		err := remove(w.p.work, pre.name, cur.Kind)
		if err == nil {
			if j.Want.Kind == manifest.Dir {
				w.madeDir(j, pre.info)
			}
			return w.describe(j, pre)
		}
		why = "what was there cannot be removed: " + err.Error()
	}
	pre.close() // our own descriptor would look like a writer's
	kept := w.p.putBack(w.fd, j.name, j.seq, pre.info)
	return w.p.raced(j, why, kept)
}

// raced is the result for a job whose object changed while it was being replaced.
func (p *Placer) raced(j *job, why, kept string) Result {
	r := j.busy(why)
	if kept != "" {
		r.Kept = kept
		r.Err = fmt.Errorf("%w; it could not be put back and is kept as %s", r.Err, kept)
	}
	return r
}

// putBack undoes an exchange: what came out (swap-SEQ-INO in Work/place) goes back to name in dirfd, and fresh,
// which was put there, is dropped if nobody changed it. Whatever is neither is kept, and kept says where.
func (p *Placer) putBack(dirfd int, name string, seq uint64, fresh vfs.Info) (kept string) {
	swap, back := workNameIno(prefixSwap, seq, fresh.Ino), workNameIno(prefixBack, seq, fresh.Ino)
	// From here on an object of ours under this name is one that others may have changed.
	p.at("to back", name)
	if err := unix.Renameat(p.work, swap, p.work, back); err != nil {
		return filepath.Join(p.workDir, "place", swap)
	}
	return p.bringBack(dirfd, name, back, fresh)
}

// bringBack is putBack from where the object has its name back-SEQ-INO.
func (p *Placer) bringBack(dirfd int, name, back string, fresh vfs.Info) (kept string) {
	was, err := vfs.StatAt(p.work, back)
	if err != nil {
		return filepath.Join(p.workDir, "place", back)
	}
	p.at("before back", name)
	now, err := vfs.StatAt(dirfd, name)
	if err != nil || now.Exists() && !sameObject(now, fresh) {
		return p.keep(back, name) // somebody put yet another thing there, or edited ours: it stays
	}
	p.at("back", name)
	err = unix.ENOENT
	if now.Exists() {
		err = unix.Renameat2(p.work, back, dirfd, name, unix.RENAME_EXCHANGE)
	}
	if err == unix.ENOENT {
		err = p.renameNew(p.work, back, dirfd, name, was.Kind)
		if err == nil {
			return ""
		}
	}
	if err != nil {
		return p.keep(back, name)
	}
	p.at("look back", name)
	return p.dropFresh(back, name, fresh)
}

// dropFresh removes what we had put in place and took out again, unless somebody changed it there.
func (p *Placer) dropFresh(back, name string, fresh vfs.Info) (kept string) {
	if p.changed(back, fresh) == "" && remove(p.work, back, fresh.Kind) == nil {
		return ""
	}
	return p.keep(back, name)
}

// changed says how the displaced object name in Work/place differs from what it was expected to be: "" not at
// all. The order matters: first nobody must have it open for writing, then it must look the same.
func (p *Placer) changed(name string, was vfs.Info) string {
	if was.Kind != vfs.File {
		now, err := vfs.StatAt(p.work, name)
		if err != nil || !sameObject(now, was) {
			return "it was changed"
		}
		return ""
	}
	fd, writers, err := p.openQuiet(p.work, name)
	if err != nil {
		return "it was changed: " + err.Error()
	}
	defer closeFd(fd)
	if writers {
		return "somebody has it open for writing"
	}
	now, err := vfs.StatFd(fd)
	if err != nil || !sameObject(now, was) {
		return "it was changed"
	}
	return ""
}

// openQuiet opens the file name and takes a read lease on it, which the kernel grants only if nobody has it
// open (or mapped) for writing; as long as the descriptor is open, nobody can. Where there are no leases
// writers is false. What we may not read is opened with O_PATH, and can have no lease.
func (p *Placer) openQuiet(dirfd int, name string) (fd int, writers bool, err error) {
	fd, err = openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == unix.EACCES {
		p.learn(lackLease)
		fd, err = openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return fd, false, err
	}
	if err != nil {
		return -1, false, err
	}
	switch _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err {
	case nil:
	case unix.EAGAIN:
		return fd, true, nil
	default:
		p.learn(lackLease)
	}
	return fd, false, nil
}

// keep moves a displaced object to Work/kept, under the last name it had or that with a number, and returns
// where it is. If even that fails it stays where it is.
func (p *Placer) keep(from, name string) string {
	p.at("keep", name)
	in, err := vfs.StatAt(p.work, from)
	if err != nil {
		return filepath.Join(p.workDir, "place", from)
	}
	base := name[:min(len(name), 240)]
	to := base
	for n := 1; ; n++ {
		err = p.renameNew(p.work, from, p.kept, to, in.Kind)
		if err != unix.EEXIST {
			break
		}
		to = base + "." + strconv.Itoa(n)
	}
	if err != nil {
		return filepath.Join(p.workDir, "place", from)
	}
	return filepath.Join(p.workDir, "kept", to)
}

// delete brings a file or symlink to absence: aside, a look, and away.
func (w *worker) delete(j job) Result {
	cur, err := vfs.StatAt(w.fd, j.name)
	switch {
	case err != nil:
		return j.fail("look", err)
	case !cur.Exists():
		return j.result(Adopted, vfs.Info{})
	case cur != j.have || cur.Other:
		return j.busy("there is another entry than expected")
	}
	old := workName(prefixOld, j.seq)
	w.begin()
	defer w.end(&j)
	w.p.at("aside", j.Path)
	switch err := unix.Renameat(w.fd, j.name, w.p.work, old); err {
	case nil:
	case unix.ENOENT:
		return j.result(Adopted, vfs.Info{})
	default:
		return j.fail("move aside", err)
	}
	w.p.at("look", j.Path)
	why := w.p.changed(old, cur)
	if why == "" {
		w.p.at("drop", j.Path)
		if err := remove(w.p.work, old, cur.Kind); err == nil {
			return j.result(Done, vfs.Info{})
		} else {
			why = "it cannot be removed: " + err.Error()
		}
	}
	return w.p.raced(&j, why, w.p.returnAside(w.fd, j.name, old))
}

// returnAside puts back what was moved aside, or keeps it if its name is taken.
func (p *Placer) returnAside(dirfd int, name, old string) (kept string) {
	p.at("back", name)
	in, err := vfs.StatAt(p.work, old)
	if err == nil {
		err = p.renameNew(p.work, old, dirfd, name, in.Kind)
	}
	if err == nil {
		return ""
	}
	return p.keep(old, name)
}

// renameNew renames without clobbering: EEXIST if to is taken.
func (p *Placer) renameNew(fromfd int, from string, tofd int, to string, kind vfs.Kind) error {
	if !p.lacking(lackNoClob) {
		err := unix.Renameat2(fromfd, from, tofd, to, unix.RENAME_NOREPLACE)
		if err != unix.EINVAL && err != unix.ENOSYS {
			return err
		}
		p.learn(lackNoClob)
	}
	if kind == vfs.Dir {
		if in, err := vfs.StatAt(tofd, to); err != nil || in.Exists() {
			return unix.EEXIST
		}
		return unix.Renameat(fromfd, from, tofd, to)
	}
	if err := unix.Linkat(fromfd, from, tofd, to, 0); err != nil {
		return err
	}
	return unix.Unlinkat(fromfd, from, 0)
}

// replacePlain is replace where names cannot be exchanged. What is there gets a second name in Work, then the
// new object is renamed over the first. A thing renamed onto the path between the two is lost: see lackText.
func (w *worker) replacePlain(j *job, cur vfs.Info, pre *prepared) Result {
	if pre.name == "" {
		if err := w.toSwap(j, pre); err != nil {
			return j.fail("prepare", err)
		}
	}
	if cur.Kind == vfs.Dir || j.Want.Kind == manifest.Dir {
		return w.replaceAside(j, cur, pre)
	}
	old := workName(prefixOld, j.seq)
	w.begin()
	defer w.end(j)
	w.p.at("second name", j.Path)
	if err := unix.Linkat(w.fd, j.name, w.p.work, old, 0); err != nil {
		w.discard(pre)
		if err == unix.ENOENT {
			return j.busy("it was removed")
		}
		return j.fail("link aside", err)
	}
	if why := w.p.changed(old, cur); why != "" {
		w.drop(old, cur.Kind)
		w.discard(pre)
		return j.busy(why)
	}
	w.p.at("rename over", j.Path)
	if err := unix.Renameat(pre.dirfd, pre.name, w.fd, j.name); err != nil {
		w.drop(old, cur.Kind)
		w.discard(pre)
		return j.fail("rename into place", err)
	}
	w.p.at("look", j.Path)
	if why := w.p.changed(old, cur); why != "" {
		if err := unix.Renameat(w.p.work, old, w.fd, j.name); err != nil {
			return w.p.raced(j, why, w.p.keep(old, j.name))
		}
		return j.busy(why)
	}
	w.drop(old, cur.Kind)
	return w.describe(j, pre)
}

// replaceAside is replacePlain where one of the two is a directory: the name is missing for a moment.
func (w *worker) replaceAside(j *job, cur vfs.Info, pre *prepared) Result {
	old := workName(prefixOld, j.seq)
	w.begin()
	defer w.end(j)
	w.p.at("aside", j.Path)
	if err := unix.Renameat(w.fd, j.name, w.p.work, old); err != nil {
		w.discard(pre)
		return j.fail("move aside", err)
	}
	w.p.at("look", j.Path)
	why := w.p.changed(old, cur)
	if why == "" {
		if err := remove(w.p.work, old, cur.Kind); err != nil {
			why = "it cannot be removed: " + err.Error()
		}
	}
	if why != "" {
		w.discard(pre)
		return w.p.raced(j, why, w.p.returnAside(w.fd, j.name, old))
	}
	w.p.at("link", j.Path)
	if err := w.p.renameNew(pre.dirfd, pre.name, w.fd, j.name, pre.info.Kind); err != nil {
		w.discard(pre)
		return j.fail("rename into place", err)
	}
	if j.Want.Kind == manifest.Dir {
		w.madeDir(j, pre.info)
	}
	return w.describe(j, pre)
}
