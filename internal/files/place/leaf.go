package place

import (
	"io"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// bigFile is the size from which it pays to look for a name before preparing what may not be needed.
const bigFile = 64 << 10

// leaf brings a file or symlink to a path.
func (w *worker) leaf(j job) Result {
	if !j.have.Exists() {
		return w.create(&j)
	}
	cur, err := vfs.StatAt(w.fd, j.name)
	switch {
	case err != nil:
		return j.fail("look", err)
	case cur.Other || cur.Kind != vfs.Dir && cur != j.have || cur.Kind == vfs.Dir && !sameObject(cur, j.have):
		return w.adopt(&j, cur)
	case j.Have.Version != 0 && j.Have.Version == j.Want.Version:
		return j.result(Adopted, cur)
	case j.SameContent && cur.Kind == vfs.File && j.Want.Kind == manifest.File && cur.Size == j.Want.Size:
		return w.metadata(&j, cur)
	}
	return w.replace(&j, cur)
}

// create puts something where nothing is expected.
func (w *worker) create(j *job) Result {
	if j.Want.Size >= bigFile {
		if cur, err := vfs.StatAt(w.fd, j.name); err == nil && cur.Exists() {
			return w.adopt(j, cur)
		}
	}
	pre, err := w.prepare(j)
	if err == errNotHere {
		cur, err := vfs.StatAt(w.fd, j.name)
		if err == nil && cur.Exists() {
			return w.adopt(j, cur)
		}
		return Result{Code: Missing}
	}
	if err != nil {
		return j.fail("prepare", err)
	}
	defer pre.close()
	w.begin()
	w.p.at("link", j.Path)
	if err = w.publish(&pre, j.name); err == nil {
		pre.placed()
	}
	w.end(j)
	if err == nil {
		w.p.at("linked", j.Path)
		return j.result(Done, pre.info)
	}
	w.discard(&pre)
	if err != unix.EEXIST {
		return j.fail("link into place", err)
	}
	cur, err := vfs.StatAt(w.fd, j.name)
	if err != nil {
		return j.fail("look", err)
	}
	return w.adopt(j, cur)
}

// publish gives a prepared object its final name, if that is free.
func (w *worker) publish(pre *prepared, name string) error {
	if pre.name == "" {
		return linkFd(pre.fd, w.fd, name)
	}
	return w.p.renameNew(pre.dirfd, pre.name, w.fd, name, pre.info.Kind)
}

// adopt is for a path where something else than Have is found: fine if it is what is wanted, otherwise it is
// somebody's edit.
func (w *worker) adopt(j *job, cur vfs.Info) Result {
	if !cur.Exists() {
		return j.busy("it was removed")
	}
	if why := w.p.differs(cur, &j.Want); why != "" {
		return j.busy("there is another entry than expected (" + why + ")")
	}
	same := false
	var err error
	if cur.Kind == vfs.Symlink {
		var target string
		target, err = vfs.ReadlinkAt(w.fd, j.name)
		same = target == j.Want.Target
	} else {
		same, cur, err = w.holds(j, cur)
	}
	switch {
	case err != nil && vfs.NoSuchDir(err):
		return j.busy("it was removed")
	case err != nil:
		return j.fail("read what is there", err)
	case !same:
		return j.busy("there is other content than expected")
	}
	return j.result(Adopted, cur)
}

// holds says whether the file at j is still cur and has the wanted content.
func (w *worker) holds(j *job, cur vfs.Info) (bool, vfs.Info, error) {
	f, in, err := vfs.OpenFileAt(w.fd, j.name)
	if err != nil {
		return false, in, err
	}
	defer f.Close()
	if in != cur {
		return false, in, nil
	}
	h := blake3.New()
	if _, err := io.CopyBuffer(onlyWriter{h}, onlyReader{f}, w.buffer()); err != nil {
		return false, in, err
	}
	var sum manifest.Hash
	h.Sum(sum[:0])
	after, err := vfs.StatFd(int(f.Fd()))
	return err == nil && after == cur && sum == j.Want.Hash, cur, err
}

// onlyReader and onlyWriter keep io.CopyBuffer from bypassing the buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// differs says in what cur is not what want says, content apart: "" if in nothing.
func (p *Placer) differs(cur vfs.Info, want *manifest.Node) string {
	switch {
	case cur.Other || manifest.Kind(cur.Kind) != want.Kind:
		return "kind"
	case want.Kind == manifest.File && cur.Size != want.Size:
		return "size"
	case want.Kind != manifest.Symlink && !ModeAs(p.owner, want.Kind, cur.Mode, want.Mode):
		return "mode"
	case p.owner && (cur.UID != want.UID || cur.GID != want.GID):
		return "owner"
	case cur.MTime != want.MTime && !(p.lacking(lackNanos) && sameMTime(cur.MTime, want.MTime)):
		return "mtime"
	}
	return ""
}

// metadata gives the file cur, whose content is as wanted, its mode, owner and mtime, in place. While it does,
// a lease keeps writers out: one that opens the file meanwhile waits, and its write comes after.
func (w *worker) metadata(j *job, cur vfs.Info) Result {
	if w.p.differs(cur, &j.Want) == "" {
		return j.result(Adopted, cur)
	}
	w.p.at("hold", j.Path)
	h, why := w.p.hold(w.fd, j.name, cur)
	defer h.release()
	if why != "" {
		return j.busy(why)
	}
	w.p.at("metadata", j.Path)
	w.dir.in = append(w.dir.in, j.i)
	_, err := w.p.setMetadata(h.fd, h.info, &j.Want)
	in := h.info
	if err == nil {
		w.p.at("metadata written", j.Path)
		in, err = vfs.StatFd(h.fd)
	}
	if err != nil {
		return j.fail("set metadata", err)
	}
	if w.p.edited(in, &j.Want) { // what is ours is described, so that it is seen as an edit
		in.Mode, in.MTime, in.CTime = w.p.mode(&j.Want), j.Want.MTime, 0
		if w.p.owner {
			in.UID, in.GID = j.Want.UID, j.Want.GID
		}
	}
	w.p.at("metadata set", j.Path)
	if now, err := vfs.StatAt(w.fd, j.name); err != nil || now.Ino != in.Ino || in.Size != cur.Size {
		return j.busy("it was replaced or written to")
	}
	return j.result(Done, in)
}

// SetID are the bits with which a program runs as the owner or the group of its file.
const SetID = 0o6000

// ModeAs says whether an entry's mode is as wanted. Where owners are not set, files go without the SetID bits: they would
// run as somebody else than their author.
func ModeAs(owner bool, kind manifest.Kind, is, want uint32) bool {
	return is == want || !owner && kind == manifest.File && is == want&^SetID
}

// mode is what an entry gets that should be want.
func (p *Placer) mode(want *manifest.Node) uint32 {
	if !p.owner && want.Kind == manifest.File {
		return want.Mode &^ SetID
	}
	return want.Mode
}

// edited says whether somebody has changed the metadata in, which were just set to those of want.
func (p *Placer) edited(in vfs.Info, want *manifest.Node) bool {
	p.learnMTime(in, want)
	if !p.owner && in.Mode == want.Mode&^unix.S_ISGID {
		in.Mode = want.Mode // the kernel drops it for a group that is not ours
	}
	return p.differs(in, want) != ""
}

// setMetadata brings owner, then mode (a change of owner clears setuid), then mtime of what fd is open on from
// cur to want. It says whether anything had to be changed.
func (p *Placer) setMetadata(fd int, cur vfs.Info, want *manifest.Node) (changed bool, err error) {
	chown := cur.UID != want.UID || cur.GID != want.GID
	if chown && p.owner {
		if err := setOwner(fd, want.UID, want.GID); err != nil {
			return changed, err
		}
		changed = true
	} else if chown {
		p.ownersSkipped.Store(true)
	}
	if cur.Kind != vfs.Symlink && (!ModeAs(p.owner, want.Kind, cur.Mode, want.Mode) || changed && want.Mode&SetID != 0) {
		if err := setMode(fd, p.mode(want)); err != nil {
			return changed, err
		}
		changed = true
	}
	if cur.MTime != want.MTime {
		if err := setMTime(fd, want.MTime); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}
