package logstore

import (
	"errors"
	"fmt"
	"slices"
)

// Inspection is what the files of a store that nobody has open hold, as a start would judge it. Nothing is changed by
// it. It is for one goroutine.
type Inspection struct {
	// Refused is why OpenSegments would not open the store at all, with ErrDamaged, or nil.
	Refused  error
	Owner    Owner     // whose store it is; zero: nothing says so
	Segments []Segment // by sequence number, spare ones last
	Groups   []Found   // by id; none if Refused
	// Problems concern the logs of groups, or nobody's. Torn are writes that were under way when the node went down: a
	// start drops them, and nothing in them was acknowledged.
	Problems, Torn []Problem

	rc *recovery
}

// Parts that a segment has in its store.
const (
	PartCurrent  = "current"  // written to
	PartPrevious = "previous" // stays as it is while the current one's head may be needed
	PartFull     = "full"     // has live entries
	PartSpare    = "spare"    // nothing in it counts
	PartUnknown  = "unknown"  // the store is refused
)

// Segment is one file.
type Segment struct {
	Name        string
	Size        int64
	Number      uint64 // its sequence number; 0: nothing in it can be read, or it was never used
	Part        string
	First, Last uint64 // numbers of its batches
	Runs        int    // sections in it that hold live entries
	Live        int64  // bytes that they take
}

// Found is a group as the files have it.
type Found struct {
	Group uint64
	// Damaged is why a start does not hand the log out, or nil. The rest is then what was known before that.
	Damaged         error
	Start           Position // the log begins after it
	Last            Position // equal to Start: the log is empty
	Hard            HardState
	ConfIndex       uint64
	Voters, Members int // of the configuration; Members counts learners, too
	Bytes           uint64
}

// Position of an entry.
type Position struct{ Index, Term uint64 }

// HardState is raft's, as it was recorded.
type HardState struct{ Term, Vote, Commit uint64 }

// Inspect reads a store without changing it; the caller closes the Inspection, and with it the disk. An error other than of
// the disk means that the directory is not a store's, or of another version.
func Inspect(disk Disk) (*Inspection, error) {
	rc, err := recoverStore(disk)
	in := &Inspection{rc: rc}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return nil, errors.Join(fmt.Errorf("read log: %w", err), in.Close())
	}
	in.Refused, in.Problems, in.Owner = err, rc.problems, rc.owner
	in.listGroups()
	in.listSegments()
	if err := in.findTorn(); err != nil {
		return nil, errors.Join(fmt.Errorf("read log: %w", err), in.Close())
	}
	return in, nil
}

// Close gives the files and the disk back.
func (in *Inspection) Close() error { return errors.Join(in.rc.close(), in.rc.disk.Close()) }

func (in *Inspection) listGroups() {
	if in.Refused != nil {
		return
	}
	for id, g := range in.rc.groups {
		f := Found{Group: id, Damaged: g.bad, Start: Position{g.start, g.startTerm}, Hard: HardState{g.hard.term, g.hard.vote, g.hard.commit}, ConfIndex: g.confIndex}
		f.Last = f.Start
		for _, m := range in.rc.metas[id] {
			f.Last = Position{f.Last.Index + 1, m.term}
			f.Bytes += uint64(m.bytes)
		}
		if cs, err := unmarshalConf(g.conf); err == nil {
			f.Voters = len(cs.GetVoters())
			f.Members = f.Voters + len(cs.GetLearners())
		}
		if g.bad != nil && len(in.rc.metas[id]) == 0 {
			f.Last = Position{Index: g.last}
		}
		in.Groups = append(in.Groups, f)
	}
	slices.SortFunc(in.Groups, func(a, b Found) int { return compare(a.Group, b.Group) })
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (in *Inspection) listSegments() {
	rc := in.rc
	runs, live := map[string]int{}, map[string]int64{}
	for id := range rc.groups {
		for _, r := range rc.runs[id] {
			runs[r.seg.name]++
			live[r.seg.name] += int64(r.size)
		}
	}
	for _, x := range rc.files {
		seg := x.seg
		s := Segment{Name: seg.name, Size: seg.size, Number: seg.seq, First: seg.first, Last: seg.last,
			Runs: runs[seg.name], Live: live[seg.name], Part: PartSpare}
		switch {
		case in.Refused != nil:
			s.Part = PartUnknown
		case seg == rc.newest:
			s.Part = PartCurrent
		case seg == rc.before:
			s.Part = PartPrevious
		case s.Runs > 0:
			s.Part = PartFull
		}
		in.Segments = append(in.Segments, s)
	}
	slices.SortStableFunc(in.Segments, func(a, b Segment) int {
		if (a.Number == 0) != (b.Number == 0) {
			return compare(b.Number, a.Number)
		}
		return compare(a.Number, b.Number)
	})
}

// findTorn looks behind what counts.
func (in *Inspection) findTorn() error {
	rc := in.rc
	if in.Refused != nil || rc.newest == nil {
		return nil
	}
	frames, err := rc.frames(rc.newest)
	if err != nil {
		return err
	}
	for i := range frames {
		if f := &frames[i]; f.bad && f.at >= rc.at {
			in.Torn = append(in.Torn, Problem{Segment: rc.newest.name, Offset: f.at, Batch: f.number,
				What: fmt.Sprintf("batch %d was being written when the node went down", f.number)})
		}
	}
	return nil
}
