package logstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// recovery finds out what a store's files hold. docs/en/formats/log.md has the rules.
type recovery struct {
	disk  Disk
	salt  uint64
	files []*examined // all of them
	// leftovers are files that were never finished.
	leftovers []string
	bySeq     map[uint64]*segment
	newest    *segment
	before    *segment // the one before the newest, if it is there
	at        int64    // where the next frame goes
	number    uint64   // of the newest batch
	prev      []byte   // its census
	cut       bool     // the newest segment is shorter than it was
	*replay
	metas map[uint64][]entryMeta // by group: its retained entries in order
	runs  map[uint64][]run
}

// entryMeta is what the index keeps of an entry.
type entryMeta struct {
	term  uint64
	bytes int
}

// recoverStore reads everything. An error means that nothing of the store can be used.
func recoverStore(disk Disk) (*recovery, error) {
	rc := &recovery{disk: disk, bySeq: map[uint64]*segment{}, replay: newReplay(),
		metas: map[uint64][]entryMeta{}, runs: map[uint64][]run{}}
	rc.nameOf = rc.segmentName
	var err error
	if rc.leftovers, err = examineAll(disk, func(x *examined) { rc.files = append(rc.files, x) }); err != nil {
		return rc, err
	}
	if err := rc.order(); err != nil || rc.newest == nil {
		return rc, err
	}
	if err := rc.follow(); err != nil {
		return rc, err
	}
	return rc, rc.load()
}

// close gives the files back after an error or an inspection.
func (rc *recovery) close() (err error) {
	for _, x := range rc.files {
		err = errors.Join(err, x.seg.file.Close())
	}
	return err
}

// order sorts out which file is which segment. Files that are not of the store that most are of do not count.
func (rc *recovery) order() error {
	votes := map[uint64]int{}
	for _, x := range rc.files {
		if x.seg.seq > 0 {
			votes[x.salt]++
			if votes[x.salt] > votes[rc.salt] {
				rc.salt = x.salt
			}
		}
	}
	for _, x := range rc.files {
		switch {
		case x.seg.seq == 0:
			continue
		case x.salt != rc.salt:
			rc.problems = append(rc.problems, Problem{Segment: x.seg.name, What: "it belongs to another store"})
			x.seg.seq = 0
			continue
		case rc.bySeq[x.seg.seq] != nil:
			return fmt.Errorf("%w: %s and %s are both segment %d", ErrDamaged, rc.bySeq[x.seg.seq].name, x.seg.name, x.seg.seq)
		}
		rc.bySeq[x.seg.seq] = x.seg
		if rc.newest == nil || x.seg.seq > rc.newest.seq {
			rc.newest = x.seg
		}
	}
	if rc.newest != nil {
		rc.before = rc.bySeq[rc.newest.seq-1]
	}
	return nil
}

// readable says whether a segment can be followed from its beginning: its head is sound, or it is the first of all,
// whose head has nothing to say.
func (rc *recovery) readable(seg *segment) bool {
	return seg.seq == 1 || slices.ContainsFunc(rc.files, func(x *examined) bool { return x.seg == seg && x.head })
}

func (rc *recovery) segmentName(seq uint64) string {
	if seg := rc.bySeq[seq]; seg != nil {
		return seg.name
	}
	return fmt.Sprintf("segment %d", seq)
}

// frames reads a segment's frames.
func (rc *recovery) frames(seg *segment) ([]found, error) {
	data, err := readAll(seg.file)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", seg.name, err)
	}
	fs, err := scan(data, rc.salt)
	return of(fs, seg.seq), err
}

// follow replays the newest segment; with its head damaged, from the one before.
func (rc *recovery) follow() error {
	frames, err := rc.frames(rc.newest)
	if err != nil {
		return err
	}
	all, base := frames, rc.newest
	if !rc.readable(base) {
		if base = rc.before; base == nil || !rc.readable(base) {
			return fmt.Errorf("%w: the heads of the newest segments cannot be read", ErrDamaged)
		}
		if all, err = rc.frames(base); err != nil {
			return err
		}
		all = append(all, frames...)
	}
	first := base.first
	if base.seq == 1 {
		first = 1
	}
	// Frames that were written again after a torn write of the same batch, and marks that were overwritten, lie
	// where their successors are: each place has one frame.
	rc.number = rc.replay.run(all, first)
	rc.checkLength(frames)
	for i := range frames {
		f := &frames[i]
		switch {
		case f.bad:
		case f.flags&flagMark != 0:
			rc.at, rc.prev = f.at, f.before().encode(nil)
		default:
			rc.at, rc.prev = f.at+f.aligned(), f.about().encode(nil)
			rc.newest.first = min(rc.newest.first, f.number)
		}
	}
	rc.newest.last = rc.number
	return nil
}

// checkLength finds a newest segment that was cut off: what stood behind, nobody knows.
func (rc *recovery) checkLength(frames []found) {
	i := slices.IndexFunc(frames, func(f found) bool { return !f.bad && int64(f.blocks)*blockSize > rc.newest.size })
	if i < 0 {
		return
	}
	rc.cut = true
	p := Problem{Segment: rc.newest.name, Offset: rc.newest.size, Groups: slices.Sorted(maps.Keys(rc.groups)),
		What: fmt.Sprintf("the newest segment is cut off: it has %d bytes and had %d", rc.newest.size, int64(frames[i].blocks)*blockSize)}
	for _, g := range p.Groups {
		rc.spoil(g, errors.New(p.What))
	}
	rc.problems = append(rc.problems, p)
}

// load finds every retained entry and what the index needs to know of it.
func (rc *recovery) load() error {
	needed := map[uint64][]uint64{} // segment → groups
	for id, g := range rc.groups {
		for _, p := range g.pieces {
			if gs := needed[p.segment]; len(gs) == 0 || gs[len(gs)-1] != id {
				needed[p.segment] = append(gs, id)
			}
		}
	}
	byGroup := map[uint64]map[uint64]*loader{} // group → segment → what is there
	for _, seq := range slices.Sorted(maps.Keys(needed)) {
		if err := rc.loadSegment(seq, needed[seq], byGroup); err != nil {
			return err
		}
	}
	for id, g := range rc.groups {
		if g.bad == nil {
			if segment, err := rc.assemble(id, g, byGroup[id]); err != nil {
				rc.spoil(id, err)
				rc.problems = append(rc.problems, Problem{Segment: rc.nameOf(segment), Groups: []uint64{id}, What: err.Error()})
			}
		}
	}
	return nil
}

// loadSegment collects the runs of some groups in a segment, after a look at whether it is whole.
func (rc *recovery) loadSegment(seq uint64, groups []uint64, into map[uint64]map[uint64]*loader) error {
	seg := rc.bySeq[seq]
	if seg == nil {
		what := fmt.Sprintf("segment %d is missing", seq)
		rc.problems = append(rc.problems, Problem{Segment: what, Groups: groups, What: what})
		for _, g := range groups {
			rc.spoil(g, errors.New(what))
		}
		return nil
	}
	frames, err := rc.frames(seg)
	if err != nil {
		return err
	}
	sealedTo := uint64(0)
	for _, s := range rc.sealed {
		if s.segment == seq {
			sealedTo = s.last
			seg.first, seg.last = s.first, s.last
			if err := rc.checkSealed(seg, s, frames, groups); err != nil {
				return err
			}
		}
	}
	here := map[uint64]*loader{}
	for _, id := range groups {
		l := &loader{}
		here[id] = l
		if into[id] == nil {
			into[id] = map[uint64]*loader{}
		}
		into[id][seq] = l
	}
	for i := range frames {
		f := &frames[i]
		if f.bad && f.number > sealedTo && !rc.salvaged[place{seq, f.at}] {
			continue // a torn write
		}
		overhead := f.overhead()
		f.each(func(s section) {
			if l := here[s.group]; l != nil && (s.kind == secWrite || s.kind == secMove) {
				l.add(seg, f, s, overhead)
			}
		})
	}
	for _, id := range groups {
		here[id].finish(rc.groups[id].pieces)
	}
	return nil
}

// checkSealed looks for batches of a full segment that cannot be read. Whom they concern is said by the batch
// behind; if that is gone as well, everyone who has entries here. They do not concern a group that was removed after
// them: what it has here is of the log that was made anew.
func (rc *recovery) checkSealed(seg *segment, want sealedSegment, frames []found, groups []uint64) error {
	bodies, abouts, removed := map[uint64]*found{}, map[uint64]census{}, map[uint64]uint64{}
	for i := range frames {
		f := &frames[i]
		if f.flags&flagMark == 0 {
			bodies[f.number] = f
		}
		f.witness(abouts)
		f.removals(removed)
	}
	for n := want.first; n <= want.last; n++ {
		f := bodies[n]
		if f != nil && !f.bad {
			continue
		}
		if n == want.last {
			if err := rc.witnessBehind(seg, abouts); err != nil {
				return err
			}
		}
		p := Problem{Segment: seg.name, Batch: n, What: fmt.Sprintf("batch %d of a full segment is damaged", n)}
		sound := census(nil)
		if f != nil {
			p.Offset, sound = f.at, f.about()
		}
		for _, g := range groups {
			if about, known := abouts[n]; n > removed[g] && (!known || about.of(g) > sound.of(g)) {
				p.Groups = append(p.Groups, g)
				rc.spoil(g, errors.New(p.What))
			}
		}
		rc.problems = append(rc.problems, p)
	}
	return nil
}

// witness notes the census that a sound frame has of the batch before it, or a mark of its own.
func (f *found) witness(abouts map[uint64]census) {
	switch {
	case f.bad || f.census == 0:
	case f.flags&flagMark != 0:
		abouts[f.number] = f.before()
	default:
		abouts[f.number-1] = f.before()
	}
}

// removals notes, by group, the last sound batch that removes it.
func (f *found) removals(last map[uint64]uint64) {
	if f.bad || f.flags&flagMark != 0 {
		return
	}
	f.each(func(s section) {
		if s.kind == secRemove {
			last[s.group] = max(last[s.group], f.number)
		}
	})
}

// witnessBehind adds what the next segment's head says, if that is still there.
func (rc *recovery) witnessBehind(seg *segment, abouts map[uint64]census) error {
	next := rc.bySeq[seg.seq+1]
	if next == nil {
		return nil
	}
	frames, err := rc.frames(next)
	if err == nil && len(frames) > 0 {
		frames[0].witness(abouts)
	}
	return err
}

// of counts a group's sections.
func (c census) of(group uint64) (n uint64) {
	for _, i := range c {
		if i.group == group {
			n += i.sections
		}
	}
	return n
}

// overhead is what each entry of a frame takes beyond its own bytes.
func (f *found) overhead() int {
	entries, payload := 0, 0
	f.each(func(s section) {
		if s.kind == secWrite || s.kind == secMove {
			if w, err := parseWrite(s.body); err == nil {
				entries += int(w.count)
				payload += len(w.entries)
			}
		}
	})
	if entries == 0 {
		return 0
	}
	return (int(f.aligned()) - payload) / entries
}

// loader collects what a segment holds of a group's entries.
type loader struct {
	runs  []loadedRun // by index, none in another
	metas map[uint64]entryMeta
	err   error
}

type loadedRun struct {
	run
	write    writeSection
	overhead int
}

// add takes the next section. Whatever a write replaces is dropped, so that in the end the version remains that
// was the last in this segment.
func (l *loader) add(seg *segment, f *found, s section, overhead int) {
	w, err := parseWrite(s.body)
	if err != nil {
		l.err = errors.Join(l.err, err)
		return
	}
	if w.flags&hasSnapshot != 0 {
		l.runs = nil
	}
	if w.count == 0 {
		return
	}
	r := loadedRun{run{w.first, w.last(), seg, f.at + headerSize + int64(s.at), uint32(s.size)}, w, overhead}
	at, _ := slices.BinarySearchFunc(l.runs, w.first, func(r loadedRun, first uint64) int {
		if r.last < first {
			return -1
		}
		return 1
	})
	if at == len(l.runs) {
		l.runs = append(l.runs, r)
		return
	}
	replaced := slices.Clone(l.runs[at:])
	l.runs = l.runs[:at]
	if before := replaced[0]; before.first < w.first {
		before.last = w.first - 1
		l.runs = append(l.runs, before)
	}
	l.runs = append(l.runs, r)
	if s.kind != secMove {
		return
	}
	for _, behind := range replaced {
		if behind.last > w.last() {
			behind.first = max(behind.first, w.last()+1)
			l.runs = append(l.runs, behind)
		}
	}
}

// finish decodes the entries that count, while the segment is in memory, and lets go of it.
func (l *loader) finish(pieces []piece) {
	l.metas = map[uint64]entryMeta{}
	for i := range l.runs {
		r := &l.runs[i]
		if l.err != nil || !slices.ContainsFunc(pieces, func(p piece) bool { return p.segment == r.seg.seq && p.first <= r.last && p.last >= r.first }) {
			continue
		}
		l.err = r.write.each(func(e storedEntry) error {
			if e.index >= r.first && e.index <= r.last {
				l.metas[e.index] = entryMeta{e.term, storedBytes(len(e.data)) + r.overhead}
			}
			return nil
		})
		r.write.entries = nil
	}
	for i := range l.runs {
		l.runs[i].write.entries = nil
	}
}

// assemble puts a group's pieces together. With an error it says in which segment.
func (rc *recovery) assemble(id uint64, g *replayed, from map[uint64]*loader) (segment uint64, err error) {
	next := g.start + 1
	for _, p := range g.pieces {
		l := from[p.segment]
		if l == nil {
			return p.segment, fmt.Errorf("entries %d to %d were not found", p.first, p.last)
		}
		if l.err != nil {
			return p.segment, l.err
		}
		if p.first != next {
			return p.segment, fmt.Errorf("entry %d is missing", next)
		}
		for _, r := range l.runs {
			if r.last < p.first || r.first > p.last {
				continue
			}
			r.first, r.last = max(r.first, p.first), min(r.last, p.last)
			rc.runs[id] = append(rc.runs[id], r.run)
		}
		for ; next <= p.last; next++ {
			m, ok := l.metas[next]
			if !ok {
				return p.segment, fmt.Errorf("entry %d is missing in segment %s", next, rc.nameOf(p.segment))
			}
			rc.metas[id] = append(rc.metas[id], m)
		}
	}
	return rc.newest.seq, g.check(rc.metas[id])
}

// check holds a log that is complete against itself.
func (g *replayed) check(entries []entryMeta) error {
	last := g.start + uint64(len(entries))
	term := g.startTerm
	for i, e := range entries {
		if e.term < term {
			return fmt.Errorf("entry %d of term %d follows term %d", g.start+1+uint64(i), e.term, term)
		}
		term = e.term
	}
	if g.hard.commit > last {
		return fmt.Errorf("committed up to %d, but the log ends at %d", g.hard.commit, last)
	}
	if len(entries) > 0 && term > g.hard.term {
		return fmt.Errorf("entry of term %d, but the hard state is at term %d", term, g.hard.term)
	}
	_, err := unmarshalConf(g.conf)
	return err
}
