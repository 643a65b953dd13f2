package place

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

const (
	bufferSize = 256 << 10
	holeSize   = 4 << 10 // aligned blocks of this many zeros are not written
	smallSize  = 1 << 20 // no content above this size is asked for with Contents.Small
)

// Names in Work/place say what a crash leaves behind, see Recover.
const (
	prefixNew  = "new-"  // new-SEQ: prepared, never seen by anybody
	prefixSwap = "swap-" // swap-SEQ-INO: prepared if its inode is INO, else what it was exchanged with
	prefixBack = "back-" // back-SEQ-INO: displaced, on its way back; inode INO: ours, but it has been in place
	prefixOld  = "old-"  // old-SEQ: displaced
)

func workName(prefix string, seq uint64) string { return prefix + strconv.FormatUint(seq, 16) }

func workNameIno(prefix string, seq, ino uint64) string {
	return workName(prefix, seq) + "-" + strconv.FormatUint(ino, 16)
}

// prepared is an object with final content and metadata that nobody sees yet.
type prepared struct {
	fd     int      // open on it; O_PATH for symlinks and for files that can be executed
	dirfd  int      // with name: where it is
	name   string   // "": it has no name yet
	staged string   // the staged file that it is, to be given back if it is not used
	info   vfs.Info // how it looks
}

func (pre *prepared) close() {
	if pre.fd >= 0 {
		closeFd(pre.fd)
		pre.fd = -1
	}
}

// placed notes how the object looks now that it has its place: the ctime is new. If somebody changed it already
// it is described as it was placed, with no ctime, so that the edit is seen as one. One that leaves size, mode
// and owner alone and restores the mtime, all between the rename and here, is not.
func (pre *prepared) placed() {
	in, err := vfs.StatFd(pre.fd)
	if err != nil || !sameObject(in, pre.info) {
		pre.info.CTime = 0
		return
	}
	pre.info = in
}

// closeFd closes a descriptor that holds nothing unwritten, so that there is nothing an error could say.
func closeFd(fd int) { unix.Close(fd) }

// errNotHere says that the content of a file is not on this node.
var errNotHere = errors.New("content is not here")

// prepare makes the object that j wants.
func (w *worker) prepare(j *job) (prepared, error) {
	switch j.Want.Kind {
	case manifest.Dir:
		return w.prepareDir(j)
	case manifest.Symlink:
		return w.prepareSymlink(j)
	}
	c, err := w.content(j)
	if err != nil {
		return prepared{}, err
	}
	if c.staged != "" {
		if pre, err := w.prepareStaged(j, c.staged); err == nil {
			return pre, nil
		}
		if c, err = w.open(j); err != nil { // as good as not staged
			return prepared{}, err
		}
	}
	if c.r != nil {
		defer c.r.Close()
	}
	if err := w.room(j.Want.Size); err != nil {
		return prepared{}, err
	}
	pre, err := w.newFile(j)
	if err != nil {
		return prepared{}, err
	}
	w.p.at("write", j.Path)
	if err = w.fill(pre.fd, c, j.Want.Size); err == nil {
		err = w.finish(&pre, j)
	}
	if err != nil {
		w.discard(&pre)
		pre.close()
	}
	return pre, err
}

// room sees to it that there is room for n bytes.
func (w *worker) room(n int64) error {
	err := w.p.space.take(n)
	if err != nil && w.b.from.Yield(n) {
		err = w.p.space.take(n)
	}
	return err
}

// source is one of: the bytes, a staged file, a reader, nothing for an empty file.
type source struct {
	data   []byte
	staged string
	r      io.ReadCloser
}

// content finds what a file should hold, errNotHere if it is not on this node.
func (w *worker) content(j *job) (source, error) {
	size := j.Want.Size
	if size == 0 {
		return source{}, nil
	}
	if j.Inline != nil {
		if int64(len(j.Inline)) != size || blake3.Sum256(j.Inline) != j.Want.Hash {
			return source{}, fmt.Errorf("content in the entry is not that of hash %s", j.Want.Hash)
		}
		return source{data: j.Inline}, nil
	}
	if size <= smallSize {
		if data, ok := w.b.from.Small(j.Want.Hash); ok {
			if int64(len(data)) != size {
				return source{}, fmt.Errorf("stored content %s has %d bytes, not %d", j.Want.Hash, len(data), size)
			}
			return source{data: data}, nil
		}
	}
	if path, ok := w.b.from.TakeStaged(j.Want.Hash); ok {
		return source{staged: path}, nil
	}
	return w.open(j)
}

func (w *worker) open(j *job) (source, error) {
	r, ok, err := w.b.from.Open(j.Want.Hash, j.Want.Size)
	if err != nil {
		return source{}, fmt.Errorf("open content %s: %w", j.Want.Hash, err)
	}
	if !ok {
		return source{}, errNotHere
	}
	return source{r: r}, nil
}

// newFile creates an empty file without a name in the target directory, which makes its inode a neighbour of
// the others there and gives it their default ACL; or, if the file system cannot, one in Work.
func (w *worker) newFile(j *job) (prepared, error) {
	w.p.at("create", j.Path)
	mode := j.Want.Mode & 0o777
	if !w.p.lacking(lackTmpfile) {
		fd, err := openat(w.fd, ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, mode)
		if err != unix.EOPNOTSUPP && err != unix.EISDIR && err != unix.EINVAL {
			return prepared{fd: fd}, err
		}
		w.p.learn(lackTmpfile)
	}
	pre := prepared{dirfd: w.p.work, name: workName(prefixNew, j.seq)}
	var err error
	pre.fd, err = openat(pre.dirfd, pre.name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, mode)
	return pre, err
}

// fill writes a content of size bytes.
func (w *worker) fill(fd int, c source, size int64) error {
	if c.r == nil {
		return writeAt(fd, c.data, 0)
	}
	buf := w.buffer()
	hole := false
	for off := int64(0); off < size; {
		b := buf[:min(int64(len(buf)), size-off)]
		if _, err := io.ReadFull(c.r, b); err != nil {
			return fmt.Errorf("read content at %d of %d: %w", off, size, err)
		}
		var err error
		if hole, err = writeSparse(fd, b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	if hole {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

var zeros [holeSize]byte

// writeSparse writes b at off, a multiple of holeSize, and leaves out blocks of zeros. It says whether the last
// block was left out.
func writeSparse(fd int, b []byte, off int64) (hole bool, err error) {
	from := 0
	for at := 0; at < len(b); at += holeSize {
		end := min(at+holeSize, len(b))
		if hole = bytes.Equal(b[at:end], zeros[:end-at]); !hole {
			continue
		}
		if err := writeAt(fd, b[from:at], off+int64(from)); err != nil {
			return hole, err
		}
		from = end
	}
	return hole, writeAt(fd, b[from:], off+int64(from))
}

// finish gives a file its metadata and records how it looks.
func (w *worker) finish(pre *prepared, j *job) error {
	in, err := vfs.StatFd(pre.fd)
	if err != nil {
		return err
	}
	if in.Size != j.Want.Size {
		return fmt.Errorf("%d bytes written, %d wanted", in.Size, j.Want.Size)
	}
	w.p.at("finish", j.Path)
	if _, err := w.p.setMetadata(pre.fd, in, &j.Want); err != nil {
		return fmt.Errorf("set metadata: %w", err)
	}
	if j.Want.Mode&0o111 != 0 {
		// As long as somebody has it open for writing a program cannot be executed.
		fd, err := openat(unix.AT_FDCWD, procFd(pre.fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("reopen: %w", err)
		}
		closeFd(pre.fd)
		pre.fd = fd
	}
	return w.ready(pre, &j.Want)
}

// ready records how a prepared object looks.
func (w *worker) ready(pre *prepared, want *manifest.Node) (err error) {
	pre.info, err = vfs.StatFd(pre.fd)
	if err == nil {
		w.p.learnMTime(pre.info, want)
	}
	return err
}

// learnMTime takes note if the mtime that was just set has lost its nanoseconds.
func (p *Placer) learnMTime(in vfs.Info, want *manifest.Node) {
	if in.MTime != want.MTime && sameMTime(in.MTime, want.MTime) {
		p.learn(lackNanos)
	}
}

// prepareStaged takes a staged file as it is.
func (w *worker) prepareStaged(j *job, path string) (prepared, error) {
	w.p.at("take", j.Path)
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return prepared{}, fmt.Errorf("open staged file: %w", err)
	}
	pre := prepared{fd: fd, staged: path, dirfd: unix.AT_FDCWD, name: path}
	in, err := vfs.StatFd(fd)
	if err == nil && (in.Kind != vfs.File || in.Nlink != 1 || in.Dev != w.p.root.Dev()) {
		err = fmt.Errorf("staged file %s cannot be renamed into place", path)
	}
	if err == nil {
		err = w.finish(&pre, j)
	}
	if err != nil {
		w.giveBack(&pre)
		pre.close()
	}
	return pre, err
}

// giveBack lets a staged file that was not placed be read again, whatever mode it was to have.
func (w *worker) giveBack(pre *prepared) {
	if err := setMode(pre.fd, 0o600); err != nil {
		w.p.log.Warn("place: a staged file keeps its mode", "path", pre.staged, "err", err)
	}
}

// prepareSymlink makes a symlink in Work.
func (w *worker) prepareSymlink(j *job) (prepared, error) {
	w.p.at("create", j.Path)
	pre := prepared{dirfd: w.p.work, name: workName(prefixNew, j.seq)}
	if err := unix.Symlinkat(j.Want.Target, pre.dirfd, pre.name); err != nil {
		return pre, err
	}
	return w.finishNamed(pre, &j.Want, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
}

// prepareDir makes an empty directory in Work. Until its own turn comes its mode lets us put things into it.
func (w *worker) prepareDir(j *job) (prepared, error) {
	w.p.at("create", j.Path)
	pre := prepared{dirfd: w.p.work, name: workName(prefixNew, j.seq)}
	if err := unix.Mkdirat(pre.dirfd, pre.name, 0o700); err != nil {
		return pre, err
	}
	want := j.Want
	if !w.p.owner {
		want.Mode |= 0o700
	}
	return w.finishNamed(pre, &want, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
}

// finishNamed opens an object that was just made in Work and gives it its metadata.
func (w *worker) finishNamed(pre prepared, want *manifest.Node, flags int) (prepared, error) {
	kind := vfs.Kind(want.Kind)
	var err error
	if pre.fd, err = openat(pre.dirfd, pre.name, flags, 0); err != nil {
		w.drop(pre.name, kind)
		return pre, err
	}
	if pre.info, err = vfs.StatFd(pre.fd); err == nil {
		_, err = w.p.setMetadata(pre.fd, pre.info, want)
	}
	if err == nil {
		err = w.ready(&pre, want)
	}
	if err != nil {
		w.drop(pre.name, kind)
		pre.close()
	}
	return pre, err
}

// discard removes what was prepared and is not needed; a staged file goes back to where it was.
func (w *worker) discard(pre *prepared) {
	if pre.staged != "" {
		w.giveBack(pre)
	}
	switch {
	case pre.name == "" || pre.name == pre.staged:
	case pre.staged != "":
		if err := w.p.renameNew(pre.dirfd, pre.name, unix.AT_FDCWD, pre.staged, vfs.File); err != nil {
			w.drop(pre.name, vfs.File)
		}
	default:
		w.drop(pre.name, pre.info.Kind)
	}
}

// drop removes something of ours from Work/place.
func (w *worker) drop(name string, kind vfs.Kind) {
	if err := remove(w.p.work, name, kind); err != nil {
		w.dropFailed(name, err)
	}
}

func (w *worker) dropFailed(name string, err error) {
	w.p.log.Warn("place: cannot remove a temporary", "name", name, "work", w.p.workDir, "err", err)
}

// putAway removes an object that was displaced and is not needed. A file may go to Contents instead.
func (w *worker) putAway(j *job, name string, in vfs.Info) error {
	if in.Kind == vfs.File && in.Nlink == 1 && j.Held != (manifest.Hash{}) &&
		w.b.from.Retire(j.Held, in.Size, j.Path, filepath.Join(w.p.workDir, "place", name)) {
		return nil
	}
	return remove(w.p.work, name, in.Kind)
}

// buffer is the worker's, made when first needed.
func (w *worker) buffer() []byte {
	if w.buf == nil {
		w.buf = make([]byte, bufferSize)
	}
	return w.buf
}
