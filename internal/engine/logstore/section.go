package logstore

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A section is one statement about one group. Each has its own checksum, so that entries are read back without
// the rest of their batch, and damage to one group's part leaves the others.

const sectionHead = 8 // checksum, length

// Kinds of sections.
const (
	secWrite    = 'w' // what Write or Create says about a group
	secMove     = 'v' // entries that were written before, here again: nothing changes but where they are
	secConf     = 'c' // configuration
	secCompact  = 'k' // the log starts later
	secRemove   = 'r' // the group is forgotten
	secState    = 's' // a group as it was before this batch; in head frames
	secSegments = 'm' // the segments that hold live entries; in head frames
	secOwner    = 'o' // whose store it is; in head frames
)

// onlyHeads says that a kind stands in head frames alone: no census counts it, since the next head says it again.
func onlyHeads(kind byte) bool { return kind == secState || kind == secSegments || kind == secOwner }

// Fields that a write section has.
const (
	hasSnapshot = 1 << iota
	hasHard
	isCreate
)

// section as it was read; body is what follows the group and shares memory with what was parsed.
type section struct {
	kind  byte
	group uint64
	body  []byte
	at    int // where it begins, in what was parsed
	size  int // with its head
}

// nextSection reads the section at b[at:]. When the checksum alone is wrong, size is where the next one would be.
func nextSection(b []byte, at int) (s section, err error) {
	le := binary.LittleEndian
	if len(b)-at < sectionHead {
		return s, fmt.Errorf("%w: section cut off", errRecord)
	}
	n := int(le.Uint32(b[at+4:]))
	if n > len(b)-at-sectionHead {
		return s, fmt.Errorf("%w: section longer than its frame", errRecord)
	}
	s.at, s.size = at, sectionHead+n
	if le.Uint32(b[at:]) != crcOf(b[at+4:at+s.size]) {
		return s, fmt.Errorf("%w: checksum of section", errRecord)
	}
	body := b[at+sectionHead : at+s.size]
	if len(body) == 0 {
		return s, fmt.Errorf("%w: empty section", errRecord)
	}
	s.kind = body[0]
	s.body, err = takeUvarints(body[1:], &s.group)
	return s, err
}

// snapshotAt is a position with its configuration.
type snapshotAt struct {
	index, term uint64
	conf        []byte // raftpb.ConfState
}

// writeSection is the decoded front of a secWrite or secMove; entries is what is left of it.
type writeSection struct {
	flags    byte
	snapshot snapshotAt
	hard     hardState
	first    uint64
	count    uint64
	entries  []byte
}

func parseWrite(body []byte) (w writeSection, err error) {
	if len(body) == 0 {
		return w, fmt.Errorf("%w: write without flags", errRecord)
	}
	w.flags, body = body[0], body[1:]
	if w.flags&hasSnapshot != 0 {
		if body, err = takeUvarints(body, &w.snapshot.index, &w.snapshot.term); err == nil {
			w.snapshot.conf, body, err = takeBytes(body)
		}
	}
	if err == nil && w.flags&hasHard != 0 {
		body, err = takeUvarints(body, &w.hard.term, &w.hard.vote, &w.hard.commit)
	}
	if err == nil {
		body, err = takeUvarints(body, &w.first, &w.count)
	}
	if err == nil && (w.count > uint64(len(body)) || w.first+w.count < w.first) {
		err = fmt.Errorf("%w: %d entries from %d in %d bytes", errRecord, w.count, w.first, len(body))
	}
	w.entries = body
	return w, err
}

// last index of the section's entries; below first when there are none.
func (w *writeSection) last() uint64 { return w.first + w.count - 1 }

// storedEntry is an entry as it lies in a section; data shares its memory.
type storedEntry struct {
	index, term uint64
	head        byte
	data        []byte
}

// each visits the entries in order.
func (w *writeSection) each(visit func(storedEntry) error) error {
	rest := w.entries
	for i := range w.count {
		e := storedEntry{index: w.first + i}
		if len(rest) == 0 {
			return fmt.Errorf("%w: entry %d is missing", errRecord, e.index)
		}
		e.head = rest[0]
		r, err := takeUvarints(rest[1:], &e.term)
		if err == nil {
			e.data, rest, err = takeBytes(r)
		}
		if err == nil && (e.head&^(headType|headHasType|headHasData) != 0 || e.head&headHasData == 0 && len(e.data) > 0 ||
			e.head&headHasType == 0 && e.head&headType != 0) {
			err = fmt.Errorf("%w: fields", errRecord)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.index, err)
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("%w: %d bytes too many", errRecord, len(rest))
	}
	return nil
}

// entry makes raft's form, which shares the data.
func (e *storedEntry) entry() *raftpb.Entry {
	h := &heldEntry{term: e.term, index: e.index}
	h.entry.Term, h.entry.Index = &h.term, &h.index
	if e.head&headHasType != 0 {
		h.typ = raftpb.EntryType(e.head & headType)
		h.entry.Type = &h.typ
	}
	if e.head&headHasData != 0 {
		h.entry.Data = e.data[:len(e.data):len(e.data)]
	}
	return &h.entry
}

// storedBytes is what an entry takes in a section, about.
func storedBytes(data int) int { return data + 8 }

func (b *builder) entry(e *raftpb.Entry) {
	head := byte(e.GetType()) & headType
	if e.Type != nil {
		head |= headHasType
	}
	if e.Data != nil {
		head |= headHasData
	}
	b.stored(head, e.GetTerm(), e.Data)
}

func (b *builder) stored(head byte, term uint64, data []byte) {
	b.buf = binary.AppendUvarint(append(b.buf, head), term)
	b.bytes(data)
	b.entries++
	b.payload += storedBytes(len(data))
}

func (b *builder) conf(group, index uint64, conf []byte) {
	at := b.open(secConf, group)
	b.numbers(index)
	b.bytes(conf)
	b.close(at, group)
}

func (b *builder) compact(group, index, term uint64) {
	at := b.open(secCompact, group)
	b.numbers(index, term)
	b.close(at, group)
}

// groupState is what a head frame says about a group.
type groupState struct {
	damaged         bool
	hard            hardState
	start           uint64
	startTerm       uint64
	confIndex, last uint64
	conf            []byte
	pieces          []piece // where entries start < index ≤ last are, without a gap
}

// piece says that entries first ≤ index ≤ last are in a segment.
type piece struct{ segment, first, last uint64 }

func (b *builder) state(group uint64, st *groupState) {
	at := b.open(secState, group)
	var damaged byte
	if st.damaged {
		damaged = 1
	}
	b.buf = append(b.buf, damaged)
	b.numbers(st.hard.term, st.hard.vote, st.hard.commit, st.start, st.startTerm, st.confIndex)
	b.bytes(st.conf)
	b.numbers(uint64(len(st.pieces)))
	for _, p := range st.pieces {
		b.numbers(p.segment, p.first, p.last)
	}
	b.close(at, 0) // said of everyone: a census is about what a batch adds
}

func parseState(body []byte) (st groupState, err error) {
	if len(body) == 0 || body[0] > 1 {
		return st, fmt.Errorf("%w: state", errRecord)
	}
	st.damaged = body[0] == 1
	var n uint64
	body, err = takeUvarints(body[1:], &st.hard.term, &st.hard.vote, &st.hard.commit, &st.start, &st.startTerm, &st.confIndex)
	if err == nil {
		st.conf, body, err = takeBytes(body)
	}
	if err == nil {
		body, err = takeUvarints(body, &n)
	}
	st.last = st.start
	for ; err == nil && n > 0; n-- {
		var p piece
		if body, err = takeUvarints(body, &p.segment, &p.first, &p.last); err != nil {
			break
		}
		if p.first != st.last+1 || p.last < p.first {
			return st, fmt.Errorf("%w: piece %d to %d after %d", errRecord, p.first, p.last, st.last)
		}
		st.last = p.last
		st.pieces = append(st.pieces, p)
	}
	if err == nil && len(body) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", errRecord, len(body))
	}
	return st, err
}

// sealedSegment is a full segment that holds live entries, and the numbers of its first and last batch.
type sealedSegment struct{ segment, first, last uint64 }

func (b *builder) segments(list []sealedSegment) {
	at := b.open(secSegments, 0)
	b.numbers(uint64(len(list)))
	for _, s := range list {
		b.numbers(s.segment, s.first, s.last)
	}
	b.close(at, 0)
}

func parseSegments(body []byte) (list []sealedSegment, err error) {
	var n uint64
	body, err = takeUvarints(body, &n)
	for ; err == nil && n > 0; n-- {
		var s sealedSegment
		if body, err = takeUvarints(body, &s.segment, &s.first, &s.last); err == nil {
			list = append(list, s)
		}
	}
	if err == nil && len(body) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", errRecord, len(body))
	}
	return list, err
}

func takeBytes(b []byte) (p, rest []byte, err error) {
	var n uint64
	if b, err = takeUvarints(b, &n); err != nil {
		return nil, nil, err
	}
	if n > uint64(len(b)) {
		return nil, nil, fmt.Errorf("%w: %d bytes of %d", errRecord, len(b), n)
	}
	return b[:n], b[n:], nil
}

func marshalConf(cs *raftpb.ConfState) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(raftpb.EnsureConfState(cs))
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
}

func unmarshalConf(b []byte) (*raftpb.ConfState, error) {
	cs := &raftpb.ConfState{}
	if err := proto.Unmarshal(bytes.Clone(b), cs); err != nil {
		return nil, fmt.Errorf("%w: configuration: %w", errRecord, err)
	}
	return cs, nil
}
