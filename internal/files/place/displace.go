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
	if err := w.toSwap(j, &pre); err != nil {
		w.discard(&pre)
		return j.fail("prepare", err)
	}
	w.p.at("hold", j.Path)
	h, why := w.p.hold(w.fd, j.name, cur)
	defer h.release()
	if why != "" {
		w.discard(&pre)
		return j.busy(why)
	}
	if w.p.lacking(lackExchange) {
		return w.replacePlain(j, &h, &pre)
	}
	w.begin()
	w.p.at("exchange", j.Path)
	err = unix.Renameat2(w.p.work, pre.name, w.fd, j.name, unix.RENAME_EXCHANGE)
	defer w.end(j)
	switch err {
	case nil:
		pre.placed()
		return w.displaced(j, &h, &pre)
	case unix.EINVAL, unix.ENOSYS:
		w.p.learn(lackExchange)
		return w.replacePlain(j, &h, &pre)
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

// displaced drops what came out of an exchange if it is what was held, unused and unchanged; otherwise it goes
// back.
func (w *worker) displaced(j *job, h *held, pre *prepared) Result {
	w.p.at("look", j.Path)
	why := w.p.still(h, pre.name)
	if why == "" {
		w.p.at("drop", j.Path)
		err := w.putAway(j, pre.name, h.info)
		if err == nil {
			if j.Want.Kind == manifest.Dir {
				w.madeDir(j, pre.info)
			}
			return j.result(Done, pre.info)
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
	if err == nil && !now.Exists() {
		return p.backToFree(dirfd, name, back, was.Kind)
	}
	h, why := p.hold(dirfd, name, fresh)
	defer h.release()
	if err != nil || why != "" {
		return p.keep(back, name) // somebody put yet another thing there, or edited ours: it stays
	}
	p.at("back", name)
	switch err := unix.Renameat2(p.work, back, dirfd, name, unix.RENAME_EXCHANGE); err {
	case nil:
	case unix.ENOENT:
		return p.backToFree(dirfd, name, back, was.Kind)
	default:
		return p.keep(back, name)
	}
	p.at("look back", name)
	if p.still(&h, back) != "" || remove(p.work, back, fresh.Kind) != nil {
		return p.keep(back, name)
	}
	return ""
}

// backToFree puts a displaced object back to a name that is free, or keeps it.
func (p *Placer) backToFree(dirfd int, name, from string, kind vfs.Kind) (kept string) {
	p.at("back to free", name)
	if p.renameNew(p.work, from, dirfd, name, kind) == nil {
		return ""
	}
	return p.keep(from, name)
}

// held is an object that is about to be taken out of its place, or was.
type held struct {
	fd     int // open on it with a lease if there are leases; -1 for what is not a file
	leased bool
	info   vfs.Info
}

func (h *held) release() {
	if h.fd >= 0 {
		closeFd(h.fd)
		h.fd = -1
	}
}

// hold makes sure that name still is was (a CTime of 0 is not compared) and that nobody has it open for
// writing, and sees to it that anybody who opens it for writing from now on waits until it is released. why is
// "" or says what is in the way. Without leases the second half is not known and not seen to.
func (p *Placer) hold(dirfd int, name string, was vfs.Info) (h held, why string) {
	const changed = "it was changed"
	h.fd = -1
	var err error
	if was.Kind != vfs.File {
		h.info, err = vfs.StatAt(dirfd, name)
	} else {
		if h.fd, h.leased, err = p.openQuiet(dirfd, name); err == unix.EAGAIN {
			return h, "somebody has it open for writing"
		}
		if err == nil {
			h.info, err = vfs.StatFd(h.fd)
		}
	}
	switch {
	case err != nil:
		return h, changed + ": " + err.Error()
	case !sameObject(h.info, was), was.CTime != 0 && was.Kind != vfs.Dir && was.CTime != h.info.CTime:
		return h, changed
	}
	return h, ""
}

// still says whether what came out of its place, to name in Work/place, is what is held, without change and
// without anybody waiting to write to it: "" if so.
func (p *Placer) still(h *held, name string) (why string) {
	if h.leased {
		lease, err := unix.FcntlInt(uintptr(h.fd), unix.F_GETLEASE, 0)
		if err != nil || lease != unix.F_RDLCK {
			return "somebody is opening it for writing"
		}
	}
	now, err := vfs.StatAt(p.work, name)
	if err != nil || !sameObject(now, h.info) {
		return "it was changed"
	}
	return ""
}

// openQuiet opens the file name and takes a read lease on it, which the kernel grants only if nobody has it
// open (or mapped) for writing, else the error is EAGAIN; as long as the descriptor is open, nobody can.
// leased is false where there are no leases. What we may not read is opened with O_PATH, and can have none.
func (p *Placer) openQuiet(dirfd int, name string) (fd int, leased bool, err error) {
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
		return fd, true, nil
	case unix.EAGAIN:
		closeFd(fd)
		return -1, false, err
	}
	p.learn(lackLease)
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
	w.p.at("hold", j.Path)
	h, why := w.p.hold(w.fd, j.name, cur)
	defer h.release()
	if why != "" {
		return j.busy(why)
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
	if why = w.p.still(&h, old); why == "" {
		w.p.at("drop", j.Path)
		err := w.putAway(&j, old, cur)
		if err == nil {
			return j.result(Done, vfs.Info{})
		}
		why = "it cannot be removed: " + err.Error()
	}
	return w.p.raced(&j, why, w.p.backToFree(w.fd, j.name, old, cur.Kind))
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
func (w *worker) replacePlain(j *job, h *held, pre *prepared) Result {
	if h.info.Kind == vfs.Dir || j.Want.Kind == manifest.Dir {
		return w.replaceAside(j, h, pre)
	}
	old := workName(prefixOld, j.seq)
	w.begin()
	defer w.end(j)
	w.p.at("second name", j.Path)
	err := unix.Linkat(w.fd, j.name, w.p.work, old, 0)
	if err == nil {
		if why := w.p.still(h, old); why != "" {
			w.drop(old, h.info.Kind)
			w.discard(pre)
			return j.busy(why)
		}
		w.p.at("rename over", j.Path)
		if err = unix.Renameat(pre.dirfd, pre.name, w.fd, j.name); err != nil {
			w.drop(old, h.info.Kind)
		}
	}
	if err != nil {
		w.discard(pre)
		return j.fail("rename into place", err)
	}
	pre.placed()
	w.p.at("look", j.Path)
	if why := w.p.still(h, old); why != "" {
		if err := unix.Renameat(w.p.work, old, w.fd, j.name); err != nil {
			return w.p.raced(j, why, w.p.keep(old, j.name))
		}
		return j.busy(why)
	}
	if err := w.putAway(j, old, h.info); err != nil {
		w.dropFailed(old, err)
	}
	return j.result(Done, pre.info)
}

// replaceAside is replacePlain where one of the two is a directory: the name is missing for a moment.
func (w *worker) replaceAside(j *job, h *held, pre *prepared) Result {
	old := workName(prefixOld, j.seq)
	w.begin()
	defer w.end(j)
	w.p.at("aside", j.Path)
	if err := unix.Renameat(w.fd, j.name, w.p.work, old); err != nil {
		w.discard(pre)
		return j.fail("move aside", err)
	}
	w.p.at("look", j.Path)
	why := w.p.still(h, old)
	if why == "" {
		if err := w.putAway(j, old, h.info); err != nil {
			why = "it cannot be removed: " + err.Error()
		}
	}
	if why != "" {
		w.discard(pre)
		return w.p.raced(j, why, w.p.backToFree(w.fd, j.name, old, h.info.Kind))
	}
	w.p.at("link", j.Path)
	if err := w.p.renameNew(pre.dirfd, pre.name, w.fd, j.name, pre.info.Kind); err != nil {
		w.discard(pre)
		if err == unix.EEXIST {
			return j.busy("somebody took the name")
		}
		return j.fail("rename into place", err)
	}
	pre.placed()
	if j.Want.Kind == manifest.Dir {
		w.madeDir(j, pre.info)
	}
	return j.result(Done, pre.info)
}
