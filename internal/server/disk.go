package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// dataDisk watches the room under the data directory and knows which nodes have none. It is the one place that says when a
// node counts as full:
//   - the log cannot make another segment (logstore.Store.Full), until its reserve is whole again; or
//   - a write of the state store waits for room (kv.PebbleOptions.OnFull); or
//   - less than floor is free on the file system of log or state, until half as much again is.
//
// What a full node does is said at core.Room. Nothing is configured: what counts is what is free.
type dataDisk struct {
	dirs   []string // each is looked at
	statfs func(dir string) (fileSystem, error)
	now    func() time.Time
	log    *slog.Logger
	logs   interface { // the log store
		Full() error
		Retry()
	}
	fail func(error) // a disk that cannot be used any more

	short atomic.Pointer[api.FullDisk] // why this node is full; nil: it is not, or only the log knows yet
	state atomic.Pointer[error]        // why a write of the state store waits; nil: none does
	free  atomic.Uint64                // bytes, on the fullest of dirs

	looking sync.Mutex // held by look

	mu    sync.Mutex
	peers atomic.Pointer[map[uint64]bool] // full ones; replaced under mu; nil: none
}

// fileSystem is what statfs tells.
type fileSystem struct {
	free, size uint64 // bytes
	readOnly   bool
	// noInodes: it counts inodes, and none is free. Some file systems say so falsely: it is believed only of a write
	// that has failed.
	noInodes bool
}

// What a disk may lack that is not bytes (api.FullDisk.Lacks).
const (
	lacksInodes = "inodes"
	lacksQuota  = "quota"
)

// lacks says what a write failed for on a file system; empty: bytes.
func (fs *fileSystem) lacks(err error) string {
	switch {
	case errors.Is(err, syscall.EDQUOT):
		return lacksQuota
	case errors.Is(err, syscall.ENOSPC) && fs.noInodes:
		return lacksInodes
	}
	return ""
}

const (
	// floorMax is what Pebble needs to go on when the log no longer grows: a flush of a memory table with its
	// write-ahead log (twice 4 MiB) and a compaction of the upper levels (some 20 MiB, given back afterwards). Files
	// are placed only as long as twice as much is free (place.reserveMax), so that they never take it.
	floorMax = 32 << 20
	// floorShare: of a small file system it is one part in so many, half of what placing leaves.
	floorShare = 200
	// startRoom must be free for a start: the state store writes what its write-ahead log holds, up to three memory
	// tables of 4 MiB, into tables before it is open.
	startRoom = 16 << 20
	// diskEvery is how often a file system is asked. The log notices by itself in less.
	diskEvery = 250 * time.Millisecond
	// retryEvery is how often the log tries to make a segment again.
	retryEvery = time.Second
)

// floor is how many bytes must be free of a file system of size bytes.
func floor(size uint64) uint64 { return min(size/floorShare, floorMax) }

func statfs(dir string) (fileSystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fileSystem{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	block := uint64(st.Bsize)
	return fileSystem{free: st.Bavail * block, size: st.Blocks * block, readOnly: st.Flags&unix.ST_RDONLY != 0,
		noInodes: st.Files > 0 && st.Ffree == 0}, nil
}

// Full implements engine.Room.
func (d *dataDisk) Full() bool {
	return d.short.Load() != nil || d.state.Load() != nil || d.logs.Full() != nil
}

// FullAt implements engine.Room.
func (d *dataDisk) FullAt(node uint64) bool {
	peers := d.peers.Load()
	return peers != nil && (*peers)[node]
}

// Scarce implements engine.Room.
func (d *dataDisk) Scarce() bool { return d.peers.Load() != nil || d.Full() }

// heard takes what a peer says of its disk, or that it is gone.
func (d *dataDisk) heard(node uint64, full bool) {
	if d.FullAt(node) == full {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := map[uint64]bool{}
	if peers := d.peers.Load(); peers != nil {
		next = maps.Clone(*peers)
	}
	if delete(next, node); full {
		next[node] = true
	}
	if len(next) == 0 {
		d.peers.Store(nil)
		return
	}
	d.peers.Store(&next)
}

// stateFull is told by the state store.
func (d *dataDisk) stateFull(err error) {
	if err == nil {
		d.state.Store(nil)
		return
	}
	d.state.Store(&err)
}

// watch looks after the disk until ctx ends.
func (d *dataDisk) watch(ctx context.Context) {
	t := time.NewTicker(diskEvery)
	defer t.Stop()
	var tried time.Time
	for {
		d.look()
		if now := d.now(); d.logs.Full() != nil && now.Sub(tried) >= retryEvery {
			tried = now
			d.logs.Retry()
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// look decides whether this node is full.
func (d *dataDisk) look() {
	d.looking.Lock()
	defer d.looking.Unlock()
	var least fileSystem
	var at string
	noInodes := false
	for i, dir := range d.dirs {
		fs, err := d.statfs(dir)
		switch {
		case err != nil:
			d.fail(err)
			return
		case fs.readOnly:
			d.fail(&unreadable{dir, syscall.EROFS})
			return
		case i == 0 || fs.free < least.free:
			least, at = fs, dir
		}
		noInodes = noInodes || fs.noInodes
	}
	least.noInodes = noInodes
	d.free.Store(least.free)
	before := d.short.Load()
	next := judge(least, before, d.logs.Full(), d.waiting())
	switch {
	case next == nil && before != nil:
		d.log.Info("the disk has room again: this node takes writes again", "data", before.Path, "free", least.free,
			"after", d.now().Sub(before.Since).Round(time.Millisecond))
	case next != nil && before == nil:
		next.Path, next.Since = filepath.Dir(at), d.now()
		d.log.Error("the disk is full: this node votes on but takes no writes until there is room",
			"data", next.Path, "free", next.Free, "needed", next.Needed, "why", next.Why)
	case next != nil:
		next.Path, next.Since = before.Path, before.Since
	}
	d.short.Store(next)
}

// lacking is why a write of the log or the state store waits, or nil. Both are open.
func (d *dataDisk) lacking() error {
	if err := d.waiting(); err != nil {
		return err
	}
	return d.logs.Full()
}

func (d *dataDisk) waiting() error {
	if err := d.state.Load(); err != nil {
		return *err
	}
	return nil
}

// judge is the decision: nil is room. before is the last one; log and state are why one of them has no room.
func judge(fs fileSystem, before *api.FullDisk, log, state error) *api.FullDisk {
	need := floor(fs.size)
	enough := need + need/2
	f := &api.FullDisk{Free: fs.free, Needed: enough}
	switch {
	case log != nil:
		f.Why, f.Needed, f.Lacks = "the log found no room for another segment: "+reason(log), max(enough, logReserve), fs.lacks(log)
	case state != nil:
		f.Why, f.Lacks = "the state store waits for room: "+reason(state), fs.lacks(state)
	case fs.free < need, before != nil && fs.free < enough:
		f.Why = fmt.Sprintf("less than %s is free", mebibytes(enough))
	default:
		return nil
	}
	return f
}

// logReserve is what the log's reserve takes.
const logReserve = logstore.DefaultReserve * logstore.DefaultSegmentBytes

// reason is the part of an error that the operating system gave.
func reason(err error) string {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no.Error()
	}
	return err.Error()
}

// report is why this node is full, nil if it is not.
func (d *dataDisk) report() *api.FullDisk {
	if d.short.Load() == nil && d.Full() {
		d.look()
	}
	return d.short.Load()
}

// noteFull has a group's replica say that its disk is full.
func (n *node) noteFull(r *report) {
	if f := n.disk.report(); f != nil {
		r.Why = strings.TrimPrefix(r.Why+"; the disk is full: "+describeFull(f), "; ")
	}
}

// describeFull is about one disk: where, and what it lacks.
func describeFull(f *api.FullDisk) string {
	switch {
	case f.Lacks == lacksInodes:
		return "no inodes are left under " + f.Path
	case f.Lacks == lacksQuota:
		return "the quota is used up under " + f.Path
	case f.Free >= f.Needed: // there are other limits than what statfs tells
		return fmt.Sprintf("the last write under %s found no room, although %s is free", f.Path, mebibytes(f.Free))
	}
	return fmt.Sprintf("%s has %s free and needs %s", f.Path, mebibytes(f.Free), mebibytes(f.Needed))
}

func fullWarning(p api.Node) api.Warning {
	return api.Warning{Name: "disk_full", Subject: p.Name, Since: p.Full.Since,
		Text: "it votes on but takes no writes: " + describeFull(p.Full) + " (" + p.Full.Why + ")",
		Hint: makeRoom(p.Full.Lacks) + " there; it goes on by itself, within seconds"}
}

// makeRoom is the way out of a lack.
func makeRoom(lacks string) string {
	switch lacks {
	case lacksInodes:
		return "remove files"
	case lacksQuota:
		return "raise the quota, or make room within it,"
	}
	return "make room"
}

// noRoom makes an error that the users see of engine.ErrFull; other errors it leaves alone.
func (n *node) noRoom(ctx context.Context, op, subject string, group uint64, err error) error {
	if !errors.Is(err, engine.ErrFull) {
		return err
	}
	e := &api.Error{Code: api.CodeFull, Op: op, Subject: subject, Why: "the disks of too many of its voters that are up are full; nothing was written",
		Hint: "make room; it goes on by itself, within seconds"}
	g, ok := n.ctl.state().Group(group)
	if !ok {
		return e
	}
	var full, down []string
	for i, is := range each(g.Members, func(m control.Member) word { return n.word(ctx, m.Node) }) {
		name := n.nameOf(g.Members[i].Node)
		if !is.up && g.Members[i].Role == control.RoleVoter {
			down = append(down, name)
		}
		if is.full != nil {
			full = append(full, name+":"+describeFull(is.full))
		}
	}
	if len(full) > 0 {
		e.Hint = "make room: " + strings.Join(full, "; ") + "; it goes on by itself, within seconds"
	}
	if len(down) > 0 {
		e.Hint += "; or start what is down: " + strings.Join(down, ", ")
	}
	return e
}

// word is what a node says of itself.
type word struct {
	up   bool
	full *api.FullDisk
}

func (n *node) word(ctx context.Context, node uint64) word {
	a, err := n.hello(ctx, node)
	return word{err == nil, a.Full}
}

// unreadable is a file system that went away or became read-only.
type unreadable struct {
	dir string
	err error
}

func (u *unreadable) Error() string { return u.dir + ": " + u.err.Error() }
func (u *unreadable) Unwrap() error { return u.err }

// storageError says what to do about a disk that could not be used as it must be.
func storageError(data string, err error) *api.Error {
	e := &api.Error{Code: api.CodeFailed, Op: "serve", Subject: data, Why: err.Error()}
	switch {
	case isFull(err):
		e.Code = api.CodeFull
		e.Hint = "make room on the file system of " + data + " (df -h " + data + " shows it), then start again"
		fs, ferr := statfs(data)
		switch need := max(logReserve, floor(fs.size)*3/2); {
		case fs.lacks(err) != "":
			e.Hint = makeRoom(fs.lacks(err)) + " on the file system of " + data + ": " + describeFull(&api.FullDisk{Path: data, Lacks: fs.lacks(err)}) + "; then start again"
		case ferr == nil && fs.free < need:
			e.Hint = fmt.Sprintf("make room on the file system of %s: %s free, %s needed; then start again", data, mebibytes(fs.free), mebibytes(need))
		}
	case errors.Is(err, syscall.EROFS):
		e.Hint = "the file system of " + data + " is read-only: the kernel does that after an error of the disk (see dmesg); check it with fsck, mount it read-write and start again, or move to another disk and join with --join TOKEN --replace"
	case errors.Is(err, syscall.EIO):
		e.Hint = "the disk under " + data + " fails (see dmesg, smartctl); replace it, then start again, or with an empty directory: --join TOKEN --replace"
	default:
		e.Hint = "see to the disk under " + data + ", then start again"
	}
	return e
}

// ofDisk says whether an error is one of the disk and not of what is on it.
func ofDisk(err error) bool {
	return isFull(err) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EIO)
}

// roomToStart refuses to open the stores without enough room: a start would wait for it in the middle.
func roomToStart(data string) error {
	fs, err := statfs(data)
	if err != nil {
		return startError(data, err)
	}
	if fs.readOnly {
		return storageError(data, &unreadable{data, syscall.EROFS})
	}
	if fs.free >= startRoom {
		return nil
	}
	e := storageError(data, syscall.ENOSPC)
	e.Hint = fmt.Sprintf("make room on the file system of %s: %s free, %s needed to start; then start again", data, mebibytes(fs.free), mebibytes(startRoom))
	return e
}

// startError makes an error of the disk one that says what to do; others, and nil, it leaves alone.
func startError(data string, err error) error {
	if err != nil && ofDisk(err) {
		return storageError(data, err)
	}
	return err
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// mebibytes is a size for people.
func mebibytes(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
