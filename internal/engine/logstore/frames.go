package logstore

import (
	"fmt"
	"slices"
)

// Kinds of what lies in a segment.
const (
	FrameHead       = "head"
	FrameBatch      = "batch"
	FrameMark       = "mark"
	FrameUnreadable = "unreadable" // a frame must have been here: something is written behind it
)

// Frame is what lies at one place of a segment.
type Frame struct {
	Offset, Bytes int64
	Kind          string
	Batch, Synced uint64
	Damage        string // what does not check, or ""
	Sections      []Section
}

// Section is one statement of a frame about a group.
type Section struct {
	Offset, Bytes int64 // in the segment
	Kind          string
	Group         uint64 // 0: none
	New           bool   // the group was made by it
	Snapshot      bool   // of a write: it replaced the log
	WasDamaged    bool   // of a state: the group was found damaged before
	// At is what the statement is about: the snapshot that replaced the log, the new start of it, the index of the
	// configuration; nil: nothing of these.
	At          *Position
	Hard        *HardState
	First, Last Position // of entries; Last is below First: there are none
	Segments    []uint64 // where the entries of a state are, or which segments are full
	Owner       string   // of an owner: whose store it is
	Damage      string   // what does not check, or ""
}

// sectionNames are the kinds of sections in words.
func sectionName(kind byte) string {
	switch kind {
	case secWrite:
		return "write"
	case secMove:
		return "move"
	case secConf:
		return "configuration"
	case secCompact:
		return "compaction"
	case secRemove:
		return "removal"
	case secState:
		return "state"
	case secSegments:
		return "segments"
	case secOwner:
		return "owner"
	}
	return fmt.Sprintf("unknown kind %q", kind)
}

// Frames reads what lies in a segment, without what is left there of an earlier use of the file; old says how many
// frames that is.
func (in *Inspection) Frames(name string) (frames []Frame, old int, err error) {
	i := slices.IndexFunc(in.rc.files, func(x *examined) bool { return x.seg.name == name })
	if i < 0 {
		return nil, 0, fmt.Errorf("segment %s: there is none", name)
	}
	seg := in.rc.files[i].seg
	data, err := readAll(seg.file)
	if err != nil {
		return nil, 0, fmt.Errorf("segment %s: %w", name, err)
	}
	all, err := scan(data, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("segment %s: %w", name, err)
	}
	own := of(slices.Clone(all), seg.seq)
	return layOut(own), len(all) - len(own), nil
}

// layOut describes frames that are in order, and the gaps between them. Behind a frame whose body does not check, another
// may begin inside of what it would take: the rest of a write that came before it.
func layOut(own []found) (frames []Frame) {
	end := int64(0)
	for i := range own {
		f := &own[i]
		if f.at > end {
			frames = append(frames, Frame{Offset: end, Bytes: f.at - end, Kind: FrameUnreadable, Damage: "no frame begins here, but frames follow"})
		}
		frames = append(frames, f.describe())
		end = f.at + f.aligned()
	}
	return frames
}

func (f *found) describe() Frame {
	d := Frame{Offset: f.at, Bytes: int64(f.length), Kind: FrameBatch, Batch: f.number, Synced: f.synced}
	switch {
	case f.flags&flagMark != 0:
		d.Kind = FrameMark
	case f.flags&flagHead != 0:
		d.Kind = FrameHead
	}
	if f.bad {
		d.Damage = errBadBody.Error()
	}
	for at := int(f.census); at < len(f.body); {
		s, err := nextSection(f.body, at)
		if s.size == 0 {
			d.Sections = append(d.Sections, Section{Offset: f.at + headerSize + int64(at), Bytes: int64(len(f.body) - at), Kind: "unreadable", Damage: err.Error()})
			break
		}
		d.Sections = append(d.Sections, s.describe(f.at+headerSize, err))
		at += s.size
	}
	if d.Damage == "" && d.Kind != FrameMark && uint32(len(d.Sections)) != f.sections {
		d.Damage = fmt.Sprintf("%d sections, the header says %d", len(d.Sections), f.sections)
	}
	return d
}

// describe says what a section says; base is where its frame's body begins in the segment.
func (s *section) describe(base int64, err error) Section {
	d := Section{Offset: base + int64(s.at), Bytes: int64(s.size), Kind: "unreadable"}
	if err == nil {
		d.Kind, d.Group = sectionName(s.kind), s.group
		err = d.parse(s)
	}
	if err != nil {
		d.Damage = err.Error()
	}
	return d
}

func (d *Section) parse(s *section) error {
	switch s.kind {
	case secWrite, secMove:
		return d.parseWrite(s.body)
	case secConf:
		d.At = &Position{}
		rest, err := takeUvarints(s.body, &d.At.Index)
		if err != nil {
			return err
		}
		conf, _, err := takeBytes(rest)
		if err != nil {
			return err
		}
		_, err = unmarshalConf(conf)
		return err
	case secCompact:
		d.At = &Position{}
		_, err := takeUvarints(s.body, &d.At.Index, &d.At.Term)
		return err
	case secState:
		st, err := parseState(s.body)
		d.WasDamaged, d.Hard = st.damaged, &HardState{st.hard.term, st.hard.vote, st.hard.commit}
		d.At = &Position{st.start, st.startTerm}
		d.First, d.Last = Position{Index: st.start + 1}, Position{Index: st.last}
		for _, p := range st.pieces {
			d.Segments = append(d.Segments, p.segment)
		}
		return err
	case secSegments:
		full, err := parseSegments(s.body)
		for _, f := range full {
			d.Segments = append(d.Segments, f.segment)
		}
		return err
	case secOwner:
		o, err := parseOwner(s.body)
		d.Owner = o.String()
		return err
	case secRemove:
		return nil
	}
	return fmt.Errorf("%w: kind", errRecord)
}

func (d *Section) parseWrite(body []byte) error {
	w, err := parseWrite(body)
	if err != nil {
		return err
	}
	d.New = w.flags&isCreate != 0
	if w.flags&hasSnapshot != 0 {
		d.Snapshot = true
		d.At = &Position{w.snapshot.index, w.snapshot.term}
	}
	if w.flags&hasHard != 0 {
		d.Hard = &HardState{w.hard.term, w.hard.vote, w.hard.commit}
	}
	d.First, d.Last = Position{Index: w.first}, Position{Index: w.last()}
	return w.each(func(e storedEntry) error {
		if e.index == w.first {
			d.First.Term = e.term
		}
		d.Last.Term = e.term
		return nil
	})
}
