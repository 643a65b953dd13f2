package logstore

import (
	"errors"
	"fmt"
	"slices"
)

// replay follows what the batches from a head on say about the groups. Of entries it learns only in which segment
// they are; which of the versions there counts, the loading finds out.
type replay struct {
	groups   map[uint64]*replayed
	sealed   []sealedSegment
	owner    Owner // by the head; zero: it was not read
	based    bool  // the head was read
	salvaged map[place]bool
	problems []Problem
	nameOf   func(seq uint64) string // of a segment's file
}

// place of a frame.
type place struct {
	segment uint64
	at      int64
}

// replayed is a group so far.
type replayed struct {
	groupState
	bad error
}

// Problem is something that a store's files should not hold.
type Problem struct {
	Segment string   `json:"segment"`
	Offset  int64    `json:"offset"`
	Batch   uint64   `json:"batch,omitempty"`
	Groups  []uint64 `json:"groups"` // whose log cannot be trusted because of it; empty: nobody's
	What    string   `json:"what"`
}

func newReplay() *replay { return &replay{groups: map[uint64]*replayed{}, salvaged: map[place]bool{}} }

// run takes the frames of one or two segments in order, beginning with batch next: that of a sound head, or the first
// of all, before which there was nothing.
func (r *replay) run(frames []found, next uint64) (last uint64) {
	for i := range frames {
		f := &frames[i]
		if f.bad || f.number < next && f.flags&flagMark == 0 {
			continue
		}
		upTo := f.number // of what must be there before this frame
		if f.flags&flagMark != 0 {
			upTo++
		}
		if upTo > next {
			r.lost(frames, next, upTo-1, f)
			next = upTo
		}
		if f.flags&flagMark != 0 {
			continue
		}
		f.each(func(s section) { r.apply(f, s) })
		r.based = true
		next = f.number + 1
	}
	return next - 1
}

// lost deals with batches that were synced, as the frame witness proves, and cannot be read.
func (r *replay) lost(frames []found, from, to uint64, witness *found) {
	p := Problem{Segment: r.nameOf(witness.segment), Offset: witness.at, Batch: from,
		What: fmt.Sprintf("batches %d to %d are damaged: a later record says that they were synced", from, to)}
	var hit []uint64
	about := witness.before()
	if from == to {
		p.What = fmt.Sprintf("batch %d is damaged: a later record says that it was synced", from)
	}
	r.based = true // whatever a head behind this one says is about a time when this was not lost
	if from == to && len(about) > 0 {
		hit = r.salvage(frames, from, about, witness, &p)
	} else {
		for g := range r.groups {
			hit = append(hit, g)
		}
	}
	slices.Sort(hit)
	for _, g := range hit {
		r.spoil(g, errors.New(p.What))
	}
	p.Groups = hit
	r.problems = append(r.problems, p)
}

// salvage applies what is sound of a damaged batch and returns the groups of which something is missing.
func (r *replay) salvage(frames []found, number uint64, about census, witness *found, p *Problem) (hit []uint64) {
	sound := map[uint64]uint64{}
	// It lies right in front of the witness: what looks like it elsewhere is left of a write that was torn.
	i := slices.IndexFunc(frames, func(f found) bool {
		return f.bad && f.number == number && f.segment == witness.segment && f.at+f.aligned() == witness.at
	})
	if i >= 0 {
		p.Offset = frames[i].at
		r.salvaged[place{frames[i].segment, frames[i].at}] = true
		frames[i].each(func(s section) {
			if !onlyHeads(s.kind) {
				sound[s.group]++
			}
		})
	}
	for _, c := range about {
		if sound[c.group] < c.sections {
			hit = append(hit, c.group)
			delete(sound, c.group)
		}
	}
	if i >= 0 {
		frames[i].each(func(s section) {
			if sound[s.group] > 0 {
				r.apply(&frames[i], s)
			}
		})
	}
	return hit
}

func (r *replay) spoil(group uint64, err error) {
	g := r.groups[group]
	if g == nil {
		g = &replayed{}
		r.groups[group] = g
	}
	if g.bad == nil {
		g.bad = err
	}
	g.pieces = nil
}

func (r *replay) apply(f *found, s section) {
	if err := r.applyTo(f, s); err != nil {
		err = fmt.Errorf("batch %d, section %q: %w", f.number, s.kind, err)
		r.spoil(s.group, err)
		r.problems = append(r.problems, Problem{Segment: r.nameOf(f.segment), Offset: f.at + headerSize + int64(s.at), Batch: f.number,
			Groups: []uint64{s.group}, What: err.Error()})
	}
}

func (r *replay) applyTo(f *found, s section) (err error) {
	switch s.kind {
	case secOwner:
		if !r.based {
			r.owner, err = parseOwner(s.body)
		}
		return err
	case secSegments:
		if !r.based {
			r.sealed, err = parseSegments(s.body)
		}
		return err
	case secState:
		if r.based {
			return nil
		}
		st, err := parseState(s.body)
		g := &replayed{groupState: st}
		if st.damaged {
			g.bad = errors.New("it was found damaged before")
		}
		r.groups[s.group] = g
		return err
	case secRemove:
		delete(r.groups, s.group)
		return nil
	}
	g := r.groups[s.group]
	var w writeSection
	if s.kind == secWrite || s.kind == secMove {
		if w, err = parseWrite(s.body); err != nil {
			return err
		}
		if w.flags&isCreate != 0 {
			g = &replayed{}
			r.groups[s.group] = g
		}
	}
	if g == nil {
		return errors.New("of a group that was never created")
	}
	if g.bad != nil {
		return nil
	}
	return g.apply(f.segment, s, &w)
}

func (g *replayed) apply(segment uint64, s section, w *writeSection) error {
	switch s.kind {
	case secWrite:
		return g.write(segment, w)
	case secMove:
		g.pieces = placed(g.pieces, piece{segment, w.first, w.last()})
	case secConf:
		rest, err := takeUvarints(s.body, &g.confIndex)
		if err == nil {
			g.conf, _, err = takeBytes(rest)
		}
		return err
	case secCompact:
		var index, term uint64
		if _, err := takeUvarints(s.body, &index, &term); err != nil {
			return err
		}
		if index > g.last {
			return fmt.Errorf("starts after %d, but ends at %d", index, g.last)
		}
		if index > g.start {
			g.start, g.startTerm = index, term
			g.pieces = cutBelow(g.pieces, index)
		}
	default:
		return fmt.Errorf("%w: kind", errRecord)
	}
	return nil
}

func (g *replayed) write(segment uint64, w *writeSection) error {
	if w.flags&hasSnapshot != 0 {
		g.start, g.startTerm, g.last, g.pieces = w.snapshot.index, w.snapshot.term, w.snapshot.index, nil
		g.confIndex, g.conf = w.snapshot.index, w.snapshot.conf
	}
	if w.flags&hasHard != 0 {
		g.hard = w.hard
	}
	if w.count == 0 {
		return nil
	}
	if w.first > g.last+1 || w.first <= g.start {
		return fmt.Errorf("entry %d in a log from %d to %d", w.first, g.start, g.last)
	}
	g.pieces = extended(cutAbove(g.pieces, w.first-1), piece{segment, w.first, w.last()})
	g.last = w.last()
	return nil
}

// extended adds p behind ps. Writes that follow each other in a segment are one piece, so that there are not more pieces
// than segments while nothing is moved.
func extended(ps []piece, p piece) []piece {
	if n := len(ps); n > 0 && ps[n-1].segment == p.segment && ps[n-1].last+1 == p.first {
		ps[n-1].last = p.last
		return ps
	}
	return append(ps, p)
}

func cutAbove(ps []piece, index uint64) []piece {
	for len(ps) > 0 && ps[len(ps)-1].first > index {
		ps = ps[:len(ps)-1]
	}
	if n := len(ps); n > 0 {
		ps[n-1].last = min(ps[n-1].last, index)
	}
	return ps
}

func cutBelow(ps []piece, index uint64) []piece {
	for len(ps) > 0 && ps[0].last <= index {
		ps = ps[1:]
	}
	if len(ps) > 0 {
		ps[0].first = max(ps[0].first, index+1)
	}
	return ps
}

// placed puts p in the place of whatever pieces said about its entries.
func placed(ps []piece, p piece) (out []piece) {
	out = append(cutAbove(slices.Clone(ps), p.first-1), p)
	return append(out, cutBelow(slices.Clone(ps), p.last)...)
}
