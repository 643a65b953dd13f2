package logstore

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// segLog is one group's log in a segStore.
type segLog struct {
	store *segStore
	group uint64

	staged     staging // of the Write at hand
	stagedConf []byte
	counted    int // what store.cached includes for this log
	// saved is the configuration that the last batch left, which a head repeats.
	saved      []byte
	savedIndex uint64

	// cold is held shared while entries are read from segments, and alone while entries are given up or
	// written again elsewhere. It is taken before mu.
	cold sync.RWMutex

	logState
	runs []run // where entries are, in order and without a gap; guarded by mu
}

// run is a section that holds entries first ≤ index ≤ last, and perhaps others that count no more.
type run struct {
	first, last uint64
	seg         *segment
	at          int64
	size        uint32
}

// staging is the log as it will be after the writes staged so far.
type staging struct {
	active, destructive bool
	start, last, term   uint64 // term of last
}

func newSegLog(s *segStore, group uint64) *segLog { return &segLog{store: s, group: group} }

func (l *segLog) account() {
	l.store.cached += l.x.cache.bytes - l.counted
	l.counted = l.x.cache.bytes
}

func (l *segLog) beginStaging() {
	if l.staged.active {
		return
	}
	l.staged = staging{active: true, start: l.x.start, last: l.x.last, term: l.x.mustTerm(l.x.last)}
	l.store.touched = append(l.store.touched, l)
}

func (l *segLog) stageCreate(b *builder, snap *raftpb.SnapshotMetadata) (err error) {
	if l.stagedConf, err = marshalConf(snap.GetConfState()); err != nil {
		return err
	}
	at := b.open(secWrite, l.group)
	b.buf = append(b.buf, isCreate|hasSnapshot|hasHard)
	b.numbers(snap.GetIndex(), snap.GetTerm())
	b.bytes(l.stagedConf)
	b.numbers(0, 0, 0, 0, 0)
	b.close(at, l.group)
	return nil
}

// stage adds one write to the batch, after the checks that keep a log a log.
func (l *segLog) stage(b *builder, place int, w *Write) (err error) {
	st := &l.staged
	if w.Snapshot != nil {
		st.destructive = true
		st.start, st.last, st.term = w.Snapshot.GetIndex(), w.Snapshot.GetIndex(), w.Snapshot.GetTerm()
	}
	entries := above(w.Entries, st.start)
	if err := st.follow(entries); err != nil {
		return err
	}
	if w.HardState != nil && w.HardState.GetCommit() > st.last {
		return fmt.Errorf("hard state commits %d, but the log ends at %d", w.HardState.GetCommit(), st.last)
	}
	if w.Snapshot == nil && w.HardState == nil && len(entries) == 0 {
		return nil
	}
	at := b.open(secWrite, l.group)
	if err := l.stageFront(b, w); err != nil {
		return err
	}
	if len(entries) == 0 {
		b.numbers(0, 0)
		b.close(at, l.group)
		return nil
	}
	b.numbers(entries[0].GetIndex(), uint64(len(entries)))
	for _, e := range entries {
		b.entry(e)
	}
	b.close(at, l.group)
	l.store.staged = append(l.store.staged,
		stagedRun{log: l, first: entries[0].GetIndex(), last: st.last, at: at, size: len(b.buf) - at, write: place})
	return nil
}

// stageFront writes a write section's flags, snapshot and hard state.
func (l *segLog) stageFront(b *builder, w *Write) (err error) {
	flagsAt := len(b.buf)
	b.buf = append(b.buf, 0)
	if w.Snapshot != nil {
		b.buf[flagsAt] |= hasSnapshot
		if l.stagedConf, err = marshalConf(w.Snapshot.GetConfState()); err != nil {
			return err
		}
		b.numbers(w.Snapshot.GetIndex(), w.Snapshot.GetTerm())
		b.bytes(l.stagedConf)
	}
	if w.HardState != nil {
		b.buf[flagsAt] |= hasHard
		h := hardStateOf(w.HardState)
		b.numbers(h.term, h.vote, h.commit)
	}
	return nil
}

// follow checks that entries continue the log or replace its tail.
func (st *staging) follow(entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	first := entries[0].GetIndex()
	if first > st.last+1 {
		return fmt.Errorf("entry %d follows %d", first, st.last)
	}
	if first <= st.last {
		st.destructive = true
		st.term = 0 // the new tail may start below the old one's term
	}
	for i, e := range entries {
		if e.GetIndex() != first+uint64(i) || e.GetTerm() < st.term {
			return fmt.Errorf("entry %d of term %d follows %d of term %d", e.GetIndex(), e.GetTerm(), first+uint64(i)-1, st.term)
		}
		st.term = e.GetTerm()
	}
	st.last = first + uint64(len(entries)) - 1
	return nil
}

// publish lets readers see a write that is durable; staged has its entries' place.
func (l *segLog) publish(w *Write, staged *stagedRun, base int64, overhead int) {
	if w.Snapshot != nil {
		l.publishReset(w.Snapshot)
		l.saved, l.savedIndex = l.stagedConf, w.Snapshot.GetIndex()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if staged != nil {
		entries := above(w.Entries, l.x.start)
		l.x.truncate(entries[0].GetIndex() - 1)
		l.dropAbove(entries[0].GetIndex() - 1)
		for _, e := range entries {
			l.x.append(e.GetIndex(), e.GetTerm(), storedBytes(len(e.Data))+overhead)
			l.x.cache.append(e)
		}
		l.x.cache.evict(l.store.opts.GroupCacheBytes)
		l.addRun(run{staged.first, staged.last, l.store.current, base + int64(staged.at), uint32(staged.size)})
	}
	if w.HardState != nil {
		l.hard = hardStateOf(w.HardState)
	}
	l.account()
}

func (l *segLog) addRun(r run) {
	r.seg.runs++
	r.seg.bytes += int64(r.size)
	l.runs = append(l.runs, r)
}

func (l *segLog) publishReset(snap *raftpb.SnapshotMetadata) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropAbove(0)
	l.x.reset(snap.GetIndex(), snap.GetTerm())
	l.confIndex, l.conf = snap.GetIndex(), proto.CloneOf(raftpb.EnsureConfState(snap.GetConfState()))
	l.account()
}

// dropBelow gives up the runs of entries up to index.
func (l *segLog) dropBelow(index uint64) {
	n := 0
	for n < len(l.runs) && l.runs[n].last <= index {
		l.store.release(&l.runs[n])
		n++
	}
	l.runs = slices.Delete(l.runs, 0, n)
	if len(l.runs) > 0 {
		l.runs[0].first = max(l.runs[0].first, index+1)
	}
}

// dropAbove gives up the runs of entries above index.
func (l *segLog) dropAbove(index uint64) {
	n := len(l.runs)
	for n > 0 && l.runs[n-1].first > index {
		l.store.release(&l.runs[n-1])
		n--
	}
	clear(l.runs[n:])
	l.runs = l.runs[:n]
	if n > 0 {
		l.runs[n-1].last = min(l.runs[n-1].last, index)
	}
}

// relocate has reads find entries where the mover wrote them again.
func (l *segLog) relocate(s *stagedRun, base int64) {
	l.cold.Lock()
	defer l.cold.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.runs {
		if r := &l.runs[i]; r.first == s.first && r.last == s.last {
			l.store.release(r)
			*r = run{s.first, s.last, l.store.current, base + int64(s.at), uint32(s.size)}
			r.seg.runs++
			r.seg.bytes += int64(r.size)
			return
		}
	}
}

// state is what a head says about the group: everything as the batches so far left it.
func (l *segLog) state() groupState {
	st := groupState{hard: l.hard, start: l.x.start, startTerm: l.x.startTerm, confIndex: l.savedIndex, conf: l.saved}
	for _, r := range l.runs {
		if n := len(st.pieces); n > 0 && st.pieces[n-1].segment == r.seg.seq {
			st.pieces[n-1].last = r.last
			continue
		}
		st.pieces = append(st.pieces, piece{r.seg.seq, r.first, r.last})
	}
	return st
}

func (l *segLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
	l.dropAbove(0)
	l.x.reset(l.x.start, l.x.startTerm)
	l.account()
}

// Entries implements raft.Storage.
func (l *segLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if out, ok, err := l.recent(lo, hi, maxSize); ok || err != nil {
		return out, err
	}
	l.cold.RLock()
	defer l.cold.RUnlock()
	l.mu.RLock()
	err := l.x.check(lo, hi)
	var runs []run
	var hot []*raftpb.Entry
	mid := min(hi, l.x.cache.first)
	if err == nil {
		runs = l.runsOf(lo, mid)
		if mid < hi {
			hot = l.x.cache.take(nil, max(lo, mid), hi, 0, maxSize)
		}
	}
	l.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	out, size, err := l.read(runs, lo, mid, maxSize)
	if err != nil {
		return nil, fmt.Errorf("group %d: read entries %d to %d: %w", l.group, lo, mid, err)
	}
	if lo+uint64(len(out)) < mid {
		return out, nil // the limit
	}
	for _, e := range hot {
		if size += entrySize(e); size > maxSize && len(out) > 0 {
			break
		}
		out = append(out, e)
	}
	return out, nil
}

// runsOf copies the runs that hold entries lo ≤ index < hi.
func (l *segLog) runsOf(lo, hi uint64) []run {
	if lo >= hi {
		return nil
	}
	from := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].last >= lo })
	to := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].first >= hi })
	return slices.Clone(l.runs[from:to])
}

// readSpan is how much is read at a time where runs lie close together.
const readSpan = 256 << 10

var errEnough = errors.New("enough")

// read reads entries that are in segments, up to the size limit but at least one.
func (l *segLog) read(runs []run, lo, hi, maxSize uint64) (out []*raftpb.Entry, size uint64, err error) {
	next := lo
	take := func(e storedEntry) error {
		if e.index != next || next >= hi {
			return nil // before what is asked for, behind it, or overwritten later
		}
		entry := e.entry()
		if n := entrySize(entry); size+n > maxSize && len(out) > 0 {
			return errEnough
		} else {
			size += n
		}
		out = append(out, entry)
		next++
		return nil
	}
	for len(runs) > 0 {
		n := spanOf(runs, maxSize-size)
		if err := l.readSpan(runs[:n], take); err == errEnough {
			return out, size, nil
		} else if err != nil {
			return nil, 0, err
		}
		runs = runs[n:]
	}
	if next < hi {
		return nil, 0, &Unreadable{next, hi - 1, fmt.Errorf("entry %d is missing", next)}
	}
	return out, size, nil
}

// spanOf says how many of the runs one read gets: those that lie in order in one segment, within readSpan and not
// far beyond what is wanted.
func spanOf(runs []run, want uint64) int {
	end := func(r *run) int64 { return r.at + int64(r.size) }
	limit := runs[0].at + int64(min(readSpan, want))
	n := 1
	for n < len(runs) && runs[n].seg == runs[0].seg && runs[n].at >= end(&runs[n-1]) && end(&runs[n]) <= limit {
		n++
	}
	return n
}

func (l *segLog) readSpan(runs []run, take func(storedEntry) error) error {
	from := runs[0].at
	last := &runs[len(runs)-1]
	buf := make([]byte, last.at+int64(last.size)-from)
	if _, err := runs[0].seg.file.ReadAt(buf, from); err != nil && err != io.EOF {
		return err
	}
	for i := range runs {
		r := &runs[i]
		if err := l.readRun(r, buf[r.at-from:][:r.size], take); err != nil {
			return err
		}
	}
	return nil
}

func (l *segLog) readRun(r *run, b []byte, take func(storedEntry) error) error {
	w, err := l.sectionOf(r, b)
	if err == nil {
		err = w.each(func(e storedEntry) error {
			if e.index < r.first || e.index > r.last {
				return nil
			}
			return take(e)
		})
	}
	if errors.Is(err, errRecord) {
		return &Unreadable{r.first, r.last, fmt.Errorf("segment %s at %d: %w", r.seg.name, r.at, err)}
	}
	return err
}

// sectionOf checks that b is the section that the run says.
func (l *segLog) sectionOf(r *run, b []byte) (w writeSection, err error) {
	s, err := nextSection(b, 0)
	if err != nil {
		return w, err
	}
	if s.group != l.group || s.kind != secWrite && s.kind != secMove {
		return w, fmt.Errorf("%w: a section %q of group %d", errRecord, s.kind, s.group)
	}
	if w, err = parseWrite(s.body); err == nil && (w.first > r.first || w.last() < r.last) {
		err = fmt.Errorf("%w: entries %d to %d", errRecord, w.first, w.last())
	}
	return w, err
}
