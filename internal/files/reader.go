package files

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// finding is a local change: a path that is not as placed, read in a stable state, claimed.
type finding struct {
	change manifest.Change
	old    record
	stat   place.Stat
	data   []byte // a small file's content
	unsure bool   // whether it is an edit at all: the manifest has to be asked, see consult
	young  bool   // has to be read once more, see young.go
}

// verdict of a look that found nothing to propose.
type verdict struct {
	again  time.Duration // > 0: look once more after that
	adopt  bool          // found as the manifest has it: record what is there
	record record
	had    manifest.Kind // what the record there was of
	place  bool          // let the placer bring the path to the manifest's state
	entry  bool          // an entry may have come and gone: the directory's times changed
	above  string        // a directory that has to be recorded before, see above.go
	young  bool          // has to be read once more, see young.go
}

// errUnstable says that a file changed while it was read.
var errUnstable = errors.New("changes while it is read")

// reader is what one look worker reuses.
type reader struct {
	a    *Agent
	hash *blake3.Hasher
	buf  []byte

	records map[string]record // of the paths of a batch that were not looked at yet
	dir     *vfs.Directory    // where the last look was; nil: none, or it does not exist
	parent  string            // path of dir
	stands  bool              // dir is known to, see waitsAbove; for as long as the descriptor is kept
	name    string            // of the path that is looked at, in dir
	idle    []string          // claimed paths at which nothing was found: looks at what is above them follow
}

func newReader(a *Agent) *reader {
	return &reader{a: a, hash: blake3.New(), buf: make([]byte, 256<<10)}
}

// begin prepares for looks at paths, which were just claimed: until they are let go, their records stay.
func (r *reader) begin(paths []string) error {
	clear(r.records)
	if len(paths) == 1 {
		return nil
	}
	if r.records == nil {
		r.records = make(map[string]record, looksBatch)
	}
	return r.a.table.getAll(paths, func(path string, rec record) { r.records[path] = rec })
}

func (r *reader) record(path string) (record, error) {
	if rec, ok := r.records[path]; ok {
		delete(r.records, path)
		return rec, nil
	}
	return r.a.table.get(path)
}

// openAt opens the directory of path, unless the last look was in it, and stats the entry. A directory that does
// not exist makes the entry absent. A descriptor is kept between looks at paths that were claimed before it was
// opened, and no longer: it would show a tree that was moved away.
func (r *reader) openAt(path string) (vfs.Info, error) {
	parent, name := vfs.Split(path)
	r.name = name
	if r.dir == nil || r.parent != parent {
		r.leave()
		d, err := r.a.root.OpenDir(parent)
		if vfs.NoSuchDir(err) {
			return vfs.Info{}, nil
		}
		if err != nil {
			return vfs.Info{}, err
		}
		r.dir, r.parent = d, parent
	}
	return vfs.StatAt(r.dir.Fd(), name)
}

// leave closes the directory of the last look.
func (r *reader) leave() {
	if r.dir != nil {
		r.dir.Close()
		r.dir, r.stands = nil, false
	}
}

// look compares one path, which is claimed, with its placed record.
func (r *reader) look(path string) (*finding, verdict, error) {
	rec, err := r.record(path)
	if err != nil {
		r.a.broken(err)
		return nil, verdict{}, err
	}
	filled := rec.Stat.Kind == manifest.Dir && r.a.board.fills(path) // before and after: it may have begun, or ended, meanwhile
	in, err := r.openAt(path)
	if err != nil {
		return nil, verdict{}, err
	}
	now := place.StatOf(in)
	if now.Other {
		return nil, verdict{}, errSkipped
	}
	if now.Kind == rec.Stat.Kind && scan.Same(now, rec.Stat) {
		// A directory that was moved away and back looks the same; its ctime and its parent's times do not.
		moved := now.Kind == manifest.Dir && now.CTime != rec.Stat.CTime
		return nil, verdict{entry: moved || now.Kind == manifest.Absent}, nil
	}
	if rec.Stat.Kind == manifest.Dir && onlyTimes(now, rec.Stat) && (filled || r.a.board.fills(path)) {
		return nil, verdict{}, nil
	}
	if rec.Stat.Kind == manifest.Dir && now.Kind != manifest.Dir {
		may := r.a.board.mayEnd(path, r.idle)
		if wait, err := r.childrenFirst(path); wait || !may || err != nil {
			return nil, verdict{}, err
		}
	}
	if rec.Stat.Kind == manifest.Absent && now.Kind != manifest.Absent {
		if dir, wait, err := r.waitsAbove(path); wait || err != nil {
			return nil, verdict{above: dir}, err
		}
	}
	f := &finding{change: manifest.Change{Path: path, Base: rec.Version}, old: rec, stat: now}
	if now.Kind == manifest.Absent {
		return r.absent(f)
	}
	if r.a.settles(path, &now) {
		return nil, verdict{again: settleTime}, nil
	}
	if v, err := r.tryDescribe(f); v.again > 0 || err != nil {
		return nil, v, err
	}
	return r.compare(f)
}

// onlyTimes says whether of a directory nothing changed but its times, as far as the manifest is concerned.
func onlyTimes(now, rec place.Stat) bool {
	return now.Kind == rec.Kind && now.Mode == rec.Mode && now.UID == rec.UID && now.GID == rec.GID
}

// tryDescribe is describe; the verdict is to look again if the entry changes meanwhile.
func (r *reader) tryDescribe(f *finding) (verdict, error) {
	err := r.describe(f)
	if errors.Is(err, errUnstable) || errors.Is(err, fs.ErrNotExist) {
		return verdict{again: settleTime}, nil
	}
	return verdict{}, err
}

// childrenFirst has everything that was placed directly in path, which is no directory any more, looked at
// before path itself: when the last of them is settled, path is looked at again.
func (r *reader) childrenFirst(path string) (wait bool, err error) {
	err = r.a.table.Children(path, func(name string, _ place.Placed) error {
		wait = true
		r.a.board.follow(path, manifest.Join(path, name))
		return nil
	})
	return wait, err
}

// absent decides about a path that is gone.
func (r *reader) absent(f *finding) (*finding, verdict, error) {
	if f.old.Stat.Kind == manifest.Absent {
		return nil, verdict{entry: true}, nil // never was here, or not for long
	}
	if f.old.Version == 0 {
		// What was here is kept elsewhere; the manifest says what comes.
		return nil, verdict{adopt: true, had: f.old.Stat.Kind, place: true, entry: true}, nil
	}
	return f, verdict{}, nil
}

// compare decides about what is there and not as recorded, as far as that can be done without the manifest.
func (r *reader) compare(f *finding) (*finding, verdict, error) {
	if f.stat.Kind != manifest.Dir && f.old.holds(&f.change.Node) {
		// Touched, linked, moved away and back, rewritten with the same bytes and times, or young when it was recorded.
		return nil, verdict{adopt: true, had: f.old.Stat.Kind, record: f.asFound(), entry: true, young: f.young}, nil
	}
	f.change.SameContent = f.change.Path == "" && sameAccess(&f.stat, &f.old.Stat)
	f.unsure = f.old.Version == 0 || !r.a.cfg.Owner
	return f, verdict{}, nil
}

// asFound records what is on the disk, with the version that stood there.
func (f *finding) asFound() record {
	return record{Placed: place.Placed{Version: f.old.Version, Stat: f.recorded()}, Hash: contentOf(&f.change.Node)}
}

// describe fills in the node of f, from a stable state, and its content if it is small.
func (r *reader) describe(f *finding) error {
	n := &f.change.Node
	*n = manifest.Node{Kind: f.stat.Kind, Mode: f.stat.Mode, UID: f.stat.UID, GID: f.stat.GID, MTime: f.stat.MTime}
	switch n.Kind {
	case manifest.File:
		return r.readFile(f)
	case manifest.Symlink:
		n.Mode = 0o777
		target, err := r.a.root.Readlink(f.change.Path)
		if err != nil {
			return err
		}
		n.Target = target
		in, err := r.a.root.Stat(f.change.Path)
		if err == nil && !scan.Same(place.StatOf(in), f.stat) {
			err = errUnstable
		}
		return err
	}
	return nil
}

func (r *reader) readFile(f *finding) error {
	began := r.a.cfg.Now()
	fd, in, err := vfs.OpenFdAt(r.dir.Fd(), r.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // read only: nothing to lose
	f.stat = place.StatOf(in)
	buf := r.buf
	if in.Size <= content.SmallMax {
		f.data = make([]byte, in.Size)
		buf = f.data
	}
	h, size, err := r.sum(fd, in.Size, buf)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	after, err := vfs.StatFd(fd)
	if err != nil {
		return err
	}
	if !scan.Same(place.StatOf(after), f.stat) || size != in.Size {
		return errUnstable
	}
	n := &f.change.Node
	n.Mode, n.UID, n.GID, n.MTime = f.stat.Mode, f.stat.UID, f.stat.GID, f.stat.MTime
	n.Size, n.Hash = size, h
	f.young = r.a.isYoung(&f.stat, began)
	return nil
}

// sum reads as many bytes as there should be, round and round in buf; a file that grew meanwhile does not look
// the same afterwards.
func (r *reader) sum(fd int, most int64, buf []byte) (h manifest.Hash, size int64, err error) {
	r.hash.Reset()
	for size < most {
		at := size % int64(len(buf))
		n, err := unix.Read(fd, buf[at:min(int64(len(buf)), at+most-size)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return h, size, err
		}
		if n == 0 {
			break
		}
		r.hash.Write(buf[at : at+int64(n)])
		size += int64(n)
	}
	r.hash.Sum(h[:0])
	return h, size, nil
}
