package logstore

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Defaults of Options.
const (
	DefaultSegmentBytes = 8 << 20
	DefaultReserve      = 4
	// DefaultGroupCacheBytes and DefaultCacheBytes are enough for followers that are a second behind.
	DefaultGroupCacheBytes = 4 << 20
	DefaultCacheBytes      = 16 << 20
)

// Options tunes OpenSegments; the zero value of what is not required is right for a node.
type Options struct {
	Disk Disk   // required; the store closes it
	Salt uint64 // required: random, for a store that is new
	// Owner is whose store it is to be; that of another is refused with a ForeignError. Zero: whoever's it is.
	Owner Owner
	Log   *slog.Logger // nil: silent
	// OnError is told of an error of the disk that no call of the store's could return. After any error but
	// that of a full disk every call fails.
	OnError func(error)
	// GiveUp, when closed, ends the wait of a Write for which there is no room, not even in the reserve: it fails.
	// nil: a Write waits until there is room.
	GiveUp <-chan struct{}

	SegmentBytes    int64 // of one segment; 0: DefaultSegmentBytes
	Reserve         int   // segments kept ready; 0: DefaultReserve
	GroupCacheBytes int   // recent entries of one group in memory; 0: DefaultGroupCacheBytes
	CacheBytes      int   // recent entries of all groups in memory; 0: DefaultCacheBytes

	// InStep has every call wait for what it asked of the store's goroutine, so that equal calls leave equal bytes
	// on the disk. A simulator wants that; whoever serves somebody does not.
	InStep bool
}

func (o *Options) defaults() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	o.SegmentBytes = align(o.SegmentBytes)
	if o.Reserve == 0 {
		o.Reserve = DefaultReserve
	}
	if o.GroupCacheBytes == 0 {
		o.GroupCacheBytes = DefaultGroupCacheBytes
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
}

// segStore keeps all logs in a ring of segments. Its fields belong to the one goroutine that writes, except
// groups and bad, which mu guards for Log and Groups.
type segStore struct {
	opts  Options
	ring  *ring
	salt  uint64
	owner Owner

	failMu sync.Mutex
	failed error // sticky

	current *segment
	before  *segment // the one written before current: it is there until current's head is no longer needed alone
	sealed  []*segment
	at      int64  // where the next frame goes
	number  uint64 // of the newest batch
	prev    []byte // its census, encoded

	b       builder
	pending pending
	dirty   map[uint64]*segLog // configuration changed since it was last staged
	touched []*segLog          // of the Write at hand
	staged  []stagedRun        // of the Write at hand
	cached  int                // bytes in all tails
	mover   mover

	mu     sync.RWMutex
	groups map[uint64]*segLog
	bad    map[uint64]error // damaged groups; those of them that were condemned are among groups as well
}

// pending are statements that wait for no sync of their own: they ride in front of the next batch.
type pending struct {
	buf      []byte
	sections uint32
	about    census
	released []release
}

// release is what a segment no longer has to keep once the batch that says so is durable.
type release struct {
	seg   *segment
	runs  int
	bytes int64
}

// stagedRun is a section with entries in the batch at hand.
type stagedRun struct {
	log         *segLog
	first, last uint64
	at, size    int // of the section, in the builder
	write       int // its place among the writes; -1: moved
}

// Open opens the logs in a directory of the operating system; o.Disk is ignored.
func Open(path string, o Options) (Store, error) {
	d, err := OpenDisk(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	o.Disk = d
	return OpenSegments(o)
}

// OpenSegments opens the logs on a disk, or makes an empty store. It reads everything that is retained: a group
// whose log is not as it was acknowledged answers Log with ErrDamaged.
func OpenSegments(o Options) (Store, error) {
	o.defaults()
	s := &segStore{opts: o, groups: map[uint64]*segLog{}, bad: map[uint64]error{}, dirty: map[uint64]*segLog{}}
	s.ring = newRing(&s.opts, s.failLate)
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), o.Disk.Close())
	}
	s.ring.start()
	s.ring.stock()
	s.rest()
	return s, nil
}

// rest is the end of every call that may have asked something of the goroutine.
func (s *segStore) rest() {
	if s.opts.InStep {
		s.ring.rest()
	}
}

// failLate is for errors that come up beside the writing goroutine.
func (s *segStore) failLate(err error) {
	s.fail(err)
	if s.opts.OnError != nil {
		s.opts.OnError(err)
	}
}

func (s *segStore) usable() error {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	return s.failed
}

func (s *segStore) fail(err error) error {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	return err
}

func (s *segStore) Log(group uint64) (Log, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.bad[group]; err != nil {
		return nil, true, fmt.Errorf("open log of group %d: %w", group, err)
	}
	l, ok := s.groups[group]
	if !ok {
		return nil, false, nil
	}
	return l, true, nil
}

func (s *segStore) Groups() ([]uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(func(yield func(uint64) bool) {
		for g := range maps.Keys(s.groups) {
			if !yield(g) {
				return
			}
		}
		for g := range maps.Keys(s.bad) {
			if s.groups[g] == nil && !yield(g) {
				return
			}
		}
	}), nil
}

// Condemn keeps the group's entries where they are, so that what is under way comes to its end; heads say that it is
// damaged.
func (s *segStore) Condemn(group uint64, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups[group] != nil && s.bad[group] == nil {
		s.bad[group] = why
	}
}

// Full says why no space could be had for another segment, or nil.
func (s *segStore) Full() error { return s.ring.space() }

// Retry has the disk tried again, off the caller's way.
func (s *segStore) Retry() { s.ring.retry() }

// begin starts a batch with what waited.
func (s *segStore) begin() {
	b := &s.b
	b.reset(s.prev)
	b.buf = append(b.buf, s.pending.buf...)
	b.sections = s.pending.sections
	b.about = append(b.about, s.pending.about...)
	s.staged = s.staged[:0]
}

// commit makes the batch durable and carries out what had to wait for that. It returns where the builder's
// buffer begins in the current segment.
func (s *segStore) commit() (base int64, err error) {
	base, err = s.write(&s.b)
	if err != nil {
		return 0, err
	}
	for _, r := range s.pending.released {
		r.seg.runs -= r.runs
		r.seg.bytes -= r.bytes
	}
	p := &s.pending
	*p = pending{buf: p.buf[:0], about: p.about[:0], released: p.released[:0]}
	return base, nil
}

func (s *segStore) Create(group uint64, snap *raftpb.SnapshotMetadata) (Log, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if _, found, _ := s.Log(group); found {
		return nil, fmt.Errorf("create log of group %d: it exists", group)
	}
	defer s.rest()
	l := newSegLog(s, group)
	s.begin()
	err := l.stageCreate(&s.b, snap)
	if err == nil {
		_, err = s.commit()
	}
	if err != nil {
		return nil, s.fail(fmt.Errorf("create log of group %d: %w", group, err))
	}
	l.publishReset(snap)
	l.saved, l.savedIndex = l.stagedConf, snap.GetIndex()
	s.mu.Lock()
	s.groups[group] = l
	s.mu.Unlock()
	return l, nil
}

func (s *segStore) Write(writes []Write) error {
	if err := s.usable(); err != nil {
		return err
	}
	defer s.rest()
	if err := s.writeAll(writes); err != nil {
		return s.fail(fmt.Errorf("write log: %w", err))
	}
	s.evict()
	return nil
}

func (s *segStore) writeAll(writes []Write) error {
	s.begin()
	s.touched = s.touched[:0]
	if err := s.stageConfs(); err != nil { // before a snapshot that replaces one
		return err
	}
	for i := range writes {
		l, ok := s.groups[writes[i].Group]
		if !ok {
			return fmt.Errorf("group %d has no log", writes[i].Group)
		}
		l.beginStaging()
		if err := l.stage(&s.b, i, &writes[i]); err != nil {
			return fmt.Errorf("group %d: %w", l.group, err)
		}
	}
	defer func() {
		for _, l := range s.touched {
			l.staged.active = false
		}
	}()
	if s.b.empty() {
		return nil
	}
	s.mover.stage(s)
	base, err := s.commit()
	if err != nil {
		return err
	}
	s.publish(writes, base)
	return nil
}

// publish lets readers see a batch that is durable.
func (s *segStore) publish(writes []Write, base int64) {
	frame := align(int64(len(s.b.buf)))
	overhead := 0
	if s.b.entries > 0 {
		overhead = (int(frame) - s.b.payload) / s.b.entries
	}
	for _, l := range s.touched {
		if l.staged.destructive {
			l.cold.Lock() // until what is read is again what the index says
		}
	}
	next := 0
	for i := range writes {
		l := s.groups[writes[i].Group]
		var run *stagedRun
		if next < len(s.staged) && s.staged[next].write == i {
			run = &s.staged[next]
			next++
		}
		l.publish(&writes[i], run, base, overhead)
	}
	for _, l := range s.touched {
		if l.staged.destructive {
			l.cold.Unlock()
		}
	}
	for _, r := range s.staged[next:] {
		r.log.relocate(&r, base)
	}
}

// stageConfs adds the configurations that wait for a write.
func (s *segStore) stageConfs() error {
	for _, id := range slices.Sorted(maps.Keys(s.dirty)) {
		l := s.dirty[id]
		conf, err := marshalConf(l.conf)
		if err != nil {
			return fmt.Errorf("group %d: %w", id, err)
		}
		s.b.conf(id, l.confIndex, conf)
		l.saved, l.savedIndex = conf, l.confIndex
		delete(s.dirty, id)
	}
	return nil
}

// evict keeps all tails together below the limit, at the cost of the largest.
func (s *segStore) evict() {
	for s.cached > s.opts.CacheBytes {
		var largest *segLog
		for _, l := range s.groups {
			if largest == nil || cmp.Or(cmp.Compare(l.x.cache.bytes, largest.x.cache.bytes), cmp.Compare(largest.group, l.group)) > 0 {
				largest = l
			}
		}
		largest.mu.Lock()
		largest.x.cache.evict(largest.x.cache.bytes / 2)
		largest.mu.Unlock()
		largest.account()
	}
}

func (s *segStore) SetConfState(group, index uint64, cs *raftpb.ConfState) error {
	if err := s.usable(); err != nil {
		return err
	}
	l, ok := s.groups[group]
	if !ok {
		return fmt.Errorf("set configuration: group %d has no log", group)
	}
	l.mu.Lock()
	l.confIndex, l.conf = index, proto.CloneOf(raftpb.EnsureConfState(cs))
	l.mu.Unlock()
	s.dirty[group] = l
	return nil
}

func (s *segStore) Compact(group, index uint64) error {
	if err := s.usable(); err != nil {
		return err
	}
	l, ok := s.groups[group]
	if !ok {
		return fmt.Errorf("compact: group %d has no log", group)
	}
	if index <= l.x.start {
		return nil
	}
	if index > l.x.last {
		return fmt.Errorf("compact group %d to %d: the log ends at %d", group, index, l.x.last)
	}
	return s.compact(l, index)
}

// compact has the new start ride in front of the next batch, with the configurations that were set before it.
func (s *segStore) compact(l *segLog, index uint64) error {
	s.b.reset(nil)
	if err := s.stageConfs(); err != nil {
		return s.fail(fmt.Errorf("compact group %d: %w", l.group, err))
	}
	s.b.compact(l.group, index, l.x.mustTerm(index))
	p := &s.pending
	p.buf = append(p.buf, s.b.buf[s.b.start:]...)
	p.sections += s.b.sections
	p.about = append(p.about, s.b.about...)
	l.cold.Lock()
	defer l.cold.Unlock()
	l.mu.Lock()
	l.dropBelow(index)
	l.x.compact(index)
	l.mu.Unlock()
	l.account()
	return nil
}

// release notes that a run is no longer needed once the next batch is durable.
func (s *segStore) release(r *run) {
	s.pending.released = append(s.pending.released, release{r.seg, 1, int64(r.size)})
}

func (s *segStore) Remove(group uint64) error {
	if err := s.usable(); err != nil {
		return err
	}
	if _, found, _ := s.Log(group); !found {
		return nil
	}
	defer s.rest()
	s.begin()
	at := s.b.open(secRemove, group)
	s.b.close(at, group)
	l := s.groups[group]
	if l != nil {
		l.cold.Lock()
		defer l.cold.Unlock()
	}
	if _, err := s.commit(); err != nil {
		return s.fail(fmt.Errorf("remove log of group %d: %w", group, err))
	}
	s.mu.Lock()
	delete(s.groups, group)
	delete(s.bad, group)
	s.mu.Unlock()
	delete(s.dirty, group)
	if l != nil {
		l.close()
	}
	return nil
}

// Close makes pending statements durable.
func (s *segStore) Close() error {
	var err error
	if s.usable() == nil && (len(s.dirty) > 0 || s.pending.sections > 0) {
		s.begin()
		if err = s.stageConfs(); err == nil {
			_, err = s.commit()
		}
	}
	if err == nil && s.usable() == nil {
		err = s.seal()
	}
	err = errors.Join(err, s.ring.stop())
	for _, seg := range s.files() {
		err = errors.Join(err, seg.file.Close())
	}
	if err = errors.Join(err, s.opts.Disk.Close()); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return s.usable()
}

// seal leaves a mark that outlives a power cut.
func (s *segStore) seal() error {
	if s.current == nil {
		return nil
	}
	return s.mark(File.WriteSync)
}

// files are all segments that are in use.
func (s *segStore) files() []*segment {
	files := slices.Clone(s.sealed)
	if s.before != nil {
		files = append(files, s.before)
	}
	if s.current != nil {
		files = append(files, s.current)
	}
	return files
}
