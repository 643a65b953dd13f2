package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// segment is a file of the ring. Its fields belong to the writing goroutine; readers use file alone, and only
// while a log's cold lock keeps the runs that point here.
type segment struct {
	name string
	slot uint64
	file File
	size int64

	seq         uint64 // 0: nothing in it counts
	first, last uint64 // numbers of its batches
	runs        int    // runs of live entries in it
	bytes       int64  // what they take
}

func (s *segment) blocks() uint32 { return uint32(s.size / blockSize) }

func segmentName(slot uint64) string { return fmt.Sprintf("%08d.seg", slot) }

// slotOf is the inverse of segmentName.
func slotOf(name string) (slot uint64, ok bool) {
	if _, err := fmt.Sscanf(name, "%d.seg", &slot); err != nil || segmentName(slot) != name {
		return 0, false
	}
	return slot, true
}

// ring hands out segments to write into. One goroutine of its own makes new ones and deletes those that are too
// many, so that the writer waits for neither; take, give and stop are called by the writing goroutine alone.
//
// Spare segments are written already, so they take no new space: they are the reserve when the disk is full. The
// disk counts as full from the first segment that cannot be made until the reserve is whole again, however the room
// for it comes: what a round has made is not asked for again by the next.
type ring struct {
	disk    Disk
	size    int64
	reserve int // spares to keep ready
	giveUp  <-chan struct{}
	onError func(error)
	log     *slog.Logger

	spares []*segment

	full atomic.Pointer[error] // why the last segment could not be made; changed under mu

	mu     sync.Mutex
	slots  uint64 // the highest slot in use
	asked  int    // segments to be made in this round
	short  int    // while full: segments that the reserve lacks, not counting made
	waits  bool   // take found no room
	made   []*segment
	extra  []*segment
	wake   chan struct{}
	rests  chan chan struct{}
	closed bool
	done   sync.WaitGroup
}

func newRing(o *Options, onError func(error)) *ring {
	return &ring{disk: o.Disk, size: o.SegmentBytes, reserve: o.Reserve, giveUp: o.GiveUp, onError: onError, log: o.Log,
		wake: make(chan struct{}, 1), rests: make(chan chan struct{})}
}

func (r *ring) start() { r.done.Go(r.run) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// collect takes what the goroutine has made.
func (r *ring) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collectLocked()
}

func (r *ring) collectLocked() {
	r.spares = append(r.spares, r.made...)
	r.made = nil
}

// stock asks for spares that are missing, unless the disk is full: then retry does.
func (r *ring) stock() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collectLocked()
	missing := r.reserve - len(r.spares)
	if r.full.Load() != nil {
		r.lacks(missing)
		r.asked = min(r.asked, r.short)
		return
	}
	if missing > r.asked {
		r.asked = missing
		signal(r.wake)
	}
}

// lacks notes what is missing while the disk is full. At least one segment is, which shows that there is room; if take
// waits, what it makes itself shows it, and a reserve that is whole must not take the room. mu is held.
func (r *ring) lacks(missing int) {
	least := 1
	if r.waits {
		least = 0
	}
	r.short = max(least, missing)
}

// roomEvery is how often a writer that has used the reserve up looks whether there is room.
const roomEvery = 100 * time.Millisecond

// take returns a segment of at least size bytes. Without a spare it makes one, not written before: its syncs are
// slower, but nobody waits until it is filled. If the disk has no room for that either, the reserve is used up: take
// waits until there is, or until it is told to give up. Nothing is lost by that: to its replicas it is a slow disk.
func (r *ring) take(size int64) (*segment, error) {
	for {
		s, err := r.next(size)
		if !isFull(err) {
			r.setWaits(false)
			r.stock()
			return s, err
		}
		r.setWaits(true)
		r.noRoom(err)
		again := time.NewTimer(roomEvery)
		select {
		case <-again.C:
		case <-r.giveUp:
			again.Stop()
			return nil, err
		}
	}
}

// next is a spare of at least size bytes, or else one that is made now.
func (r *ring) next(size int64) (*segment, error) {
	r.collect()
	if i := slices.IndexFunc(r.spares, func(s *segment) bool { return s.size >= size }); i >= 0 {
		s := r.spares[i]
		r.spares = slices.Delete(r.spares, i, i+1)
		return s, nil
	}
	r.stock()
	return r.make(r.nextSlot(), max(size, r.size), false)
}

func (r *ring) setWaits(waits bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waits = waits
}

// give returns a segment in which nothing counts any more.
func (r *ring) give(s *segment) {
	s.seq, s.first, s.last, s.runs, s.bytes = 0, 0, 0, 0, 0
	r.spares = append(r.spares, s)
}

// shrink gives spares beyond keep to the goroutine, which deletes them.
func (r *ring) shrink(keep int) {
	keep = max(keep, r.reserve)
	if len(r.spares) <= keep {
		return
	}
	r.mu.Lock()
	r.extra = append(r.extra, r.spares[keep:]...)
	r.mu.Unlock()
	clear(r.spares[keep:])
	r.spares = r.spares[:keep]
	signal(r.wake)
}

// space is nil, or why no segment could be made.
func (r *ring) space() error {
	if err := r.full.Load(); err != nil {
		return *err
	}
	return nil
}

// retry has the disk tried again after it was full. Any goroutine may call it.
func (r *ring) retry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full.Load() != nil && r.asked == 0 {
		r.asked = r.short
		signal(r.wake)
	}
}

func (r *ring) nextSlot() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots++
	return r.slots
}

func (r *ring) make(slot uint64, size int64, written bool) (*segment, error) {
	name := segmentName(slot)
	f, err := r.disk.Create(name, size, written)
	if err != nil {
		return nil, fmt.Errorf("make segment %s: %w", name, err)
	}
	return &segment{name: name, slot: slot, file: f, size: size}, nil
}

func (r *ring) run() {
	for {
		var rested chan struct{}
		select {
		case <-r.wake:
		case rested = <-r.rests:
		}
		if closed := r.work(); closed {
			return
		}
		if rested != nil {
			close(rested)
		}
	}
}

// rest returns when the goroutine has done all that it was asked for.
func (r *ring) rest() {
	rested := make(chan struct{})
	r.rests <- rested
	<-rested
}

// work does what was asked for, and says whether the ring is closed.
func (r *ring) work() (closed bool) {
	for {
		r.mu.Lock()
		extra, want, closed := r.extra, r.asked > 0, r.closed
		r.extra = nil
		r.mu.Unlock()
		if closed {
			return true
		}
		for _, s := range extra {
			r.drop(s)
		}
		if !want {
			return false
		}
		s, err := r.make(r.nextSlot(), r.size, true)
		r.deliver(s, err)
	}
}

func (r *ring) deliver(s *segment, err error) {
	if err != nil {
		r.noRoom(err)
		if !isFull(err) && r.onError != nil {
			r.onError(err)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = max(0, r.asked-1)
	r.made = append(r.made, s)
	if r.full.Load() == nil {
		return
	}
	if r.short = max(0, r.short-1); r.short == 0 && !r.waits {
		r.full.Store(nil)
		r.log.Info("the log has room again: its reserve is whole")
	}
}

// noRoom ends a round: what it has not made is made when retry asks for it.
func (r *ring) noRoom(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full.Load() == nil {
		r.lacks(r.asked)
		r.log.Warn("no new log segment: what is written goes into the reserve", "err", err)
	}
	r.asked = 0
	r.full.Store(&err)
}

// isFull says whether an error is a disk's that has no room, which is the one that may pass.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (r *ring) drop(s *segment) {
	if err := errors.Join(s.file.Close(), r.disk.Remove(s.name)); err != nil {
		r.log.Warn("a log segment that is not needed stays", "segment", s.name, "err", err)
	}
}

// stop ends the goroutine and closes the spares.
func (r *ring) stop() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	signal(r.wake)
	r.done.Wait()
	r.collect()
	var errs []error
	for _, s := range append(r.spares, r.extra...) {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}
