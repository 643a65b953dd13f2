package place

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// batch is one Apply: its tasks, grouped by the directory they are in.
type batch struct {
	p       *Placer
	tasks   []Task
	results []Result
	from    Contents
	seq     uint64 // task i uses seq+i in its names in Work/place

	dirs map[string]*dirState // every parent of a task and every directory wanted
	all  []*dirState          // in the order met

	first    []int32 // tasks whose content may be at a path that another task changes
	removals []int32 // directories to remove
	makes    []int32 // directories to make or keep
}

// dirState is one directory within a batch. One worker at a time uses it.
type dirState struct {
	path    string
	task    int32   // the task that wants this directory, -1 none
	pending bool    // that task is done but for the metadata
	made    bool    // it was created in this batch
	gone    []int32 // tasks in it that want a leaf absent
	leaves  []int32 // tasks in it that want a leaf present
	in      []int32 // tasks in it that changed something: see batch.moved

	ino, dev uint64   // what it must still be when it is opened again; ino 0: not known yet
	before   vfs.Info // when it was first opened
	last     vfs.Info // after our last change in it
	touched  bool
	foreign  bool // somebody else changed it between our looks
}

func newBatch(p *Placer, tasks []Task, results []Result, from Contents) *batch {
	b := &batch{p: p, tasks: tasks, results: results, from: from, seq: p.seq, dirs: map[string]*dirState{}}
	var last *dirState
	for i := range tasks {
		t := &tasks[i]
		if !manifest.ValidPath(t.Path) || t.Path == "" && t.Want.Kind != manifest.Dir || t.Want.Kind > manifest.Symlink {
			results[i] = Result{Code: Failed, Err: fmt.Errorf("place %q: not a path or kind to place: %w", t.Path, unix.EINVAL)}
			continue
		}
		parent, _ := vfs.Split(t.Path)
		if last == nil || last.path != parent {
			last = b.dir(parent)
		}
		b.sort(int32(i), t, last)
	}
	byPath := func(x, y int32) int { return cmp.Compare(tasks[x].Path, tasks[y].Path) }
	slices.SortFunc(b.makes, byPath)
	slices.SortFunc(b.removals, func(x, y int32) int { return byPath(y, x) })
	return b
}

// sort puts task i, in the directory d, where its turn is.
func (b *batch) sort(i int32, t *Task, d *dirState) {
	switch {
	case t.Want.Kind == manifest.Dir:
		b.dir(t.Path).task = i
		b.makes = append(b.makes, i)
	case t.Want.Kind == manifest.Absent && t.Have.Stat.Kind == manifest.Dir:
		b.removals = append(b.removals, i)
	case t.Want.Kind == manifest.Absent:
		d.gone = append(d.gone, i)
	case t.From != "":
		b.first = append(b.first, i)
	default:
		d.leaves = append(d.leaves, i)
	}
}

func (b *batch) dir(path string) *dirState {
	d := b.dirs[path]
	if d == nil {
		d = &dirState{path: path, task: -1}
		b.dirs[path] = d
		b.all = append(b.all, d)
	}
	return d
}

// run carries the batch out. Sorted paths put a directory before what is in it.
func (b *batch) run(ctx context.Context) []Touched {
	b.sequence(ctx, b.first, (*worker).leaf)
	b.parallel(ctx, func(d *dirState) []int32 { return d.gone }, (*worker).delete)
	b.sequence(ctx, b.removals, (*worker).removeDir)
	b.sequence(ctx, b.makes, (*worker).makeDir)
	b.parallel(ctx, func(d *dirState) []int32 { return d.leaves }, (*worker).leaf)
	return b.settleDirs()
}

// step brings one job's path where it should be; the worker is in its directory.
type step func(*worker, job) Result

func (b *batch) sequence(ctx context.Context, tasks []int32, do step) {
	w := worker{b: b, p: b.p}
	defer w.leave()
	for _, i := range tasks {
		w.one(ctx, i, do)
	}
}

// parallel works on the directories that have tasks of one sort, each by one worker, and waits for all.
func (b *batch) parallel(ctx context.Context, of func(*dirState) []int32, do step) {
	var dirs []*dirState
	for _, d := range b.all {
		if len(of(d)) > 0 {
			dirs = append(dirs, d)
		}
	}
	var next atomic.Int64
	work := func() {
		w := worker{b: b, p: b.p}
		defer w.leave()
		for n := next.Add(1) - 1; n < int64(len(dirs)); n = next.Add(1) - 1 {
			for _, i := range of(dirs[n]) {
				w.one(ctx, i, do)
			}
		}
	}
	var wg sync.WaitGroup
	for range min(b.p.workers, len(dirs)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// job is one task on its way.
type job struct {
	*Task
	i    int32
	seq  uint64
	name string   // last name of the path
	have vfs.Info // Have.Stat
}

func (j *job) errorf(op string, err error) error {
	return fmt.Errorf("place %q: %s: %w", j.Path, op, err)
}

func (j *job) fail(op string, err error) Result { return Result{Code: Failed, Err: j.errorf(op, err)} }

func (j *job) busy(why string) Result {
	return Result{Code: Busy, Err: fmt.Errorf("place %q: %s", j.Path, why)}
}

func (j *job) result(code ResultCode, in vfs.Info) Result {
	return Result{Code: code, Placed: Placed{Version: j.Want.Version, Stat: StatOf(in)}}
}

// worker carries out jobs, one after another, and keeps the directory of the last one open.
type worker struct {
	b   *batch
	p   *Placer
	dir *dirState // nil: none open
	fd  int       // descriptor of dir
	buf []byte    // for copying and hashing
}

func (w *worker) one(ctx context.Context, i int32, do step) {
	t := &w.b.tasks[i]
	parent, name := vfs.Split(t.Path)
	j := job{Task: t, i: i, seq: w.b.seq + uint64(i), name: name, have: t.Have.Stat.Info()}
	r := &w.b.results[i]
	if err := ctx.Err(); err != nil {
		*r = j.fail("wait for its turn", err)
		return
	}
	d := w.dir
	if d == nil || d.path != parent {
		d = w.b.dirs[parent]
	}
	if name == "" { // the root itself is in no directory
		*r = do(w, j)
		return
	}
	if err := w.enter(d); err != nil {
		*r = w.noParent(d, &j, err)
		return
	}
	*r = do(w, j)
}

// errMoved says that a directory is not the one that was worked in before.
var errMoved = errors.New("the directory was replaced by another one")

// noParent is the result of a job whose directory d cannot be entered.
func (w *worker) noParent(d *dirState, j *job, err error) Result {
	if !vfs.NoSuchDir(err) && err != errMoved {
		return j.fail("open its directory", err)
	}
	if j.Want.Kind == manifest.Absent {
		return j.result(Adopted, vfs.Info{})
	}
	if d.task >= 0 && w.b.results[d.task].Code == Failed {
		return j.fail("make its directory", w.b.results[d.task].Err)
	}
	return Result{Code: Busy, Err: j.errorf("open its directory", err)}
}

// enter makes d the directory that the worker is in.
func (w *worker) enter(d *dirState) error {
	if w.dir == d {
		return nil
	}
	w.leave()
	w.p.at("enter", d.path)
	fd, err := vfs.OpenBeneath(w.p.root.Fd(), d.path)
	if err != nil {
		return err
	}
	in, err := vfs.StatFd(fd)
	if err == nil && d.ino != 0 && (in.Ino != d.ino || in.Dev != d.dev) {
		err = errMoved
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	w.dir, w.fd = d, fd
	if d.before.Ino == 0 {
		d.ino, d.dev, d.before, d.last = in.Ino, in.Dev, in, in
	}
	return nil
}

func (w *worker) leave() {
	if w.dir != nil {
		unix.Close(w.fd)
		w.dir = nil
	}
}

// begin is called just before an entry of the directory changes, end just after: what differs between an end
// and the next begin was somebody else.
func (w *worker) begin() {
	in, err := vfs.StatFd(w.fd)
	if err != nil || in.CTime != w.dir.last.CTime || in.MTime != w.dir.last.MTime {
		w.dir.foreign = true
	}
}

func (w *worker) end(j *job) {
	in, err := vfs.StatFd(w.fd)
	if err != nil {
		w.dir.foreign = true
	}
	w.dir.last = in
	w.dir.touched = true
	w.dir.in = append(w.dir.in, j.i)
}
