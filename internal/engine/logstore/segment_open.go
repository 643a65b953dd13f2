package logstore

import (
	"errors"
	"fmt"
	"slices"
)

// open takes over what the disk holds.
func (s *segStore) open() error {
	rc, err := recoverStore(s.opts.Disk)
	if err == nil {
		err = rc.belongs(s.opts.Owner)
	}
	if err != nil {
		return errors.Join(err, rc.close())
	}
	for _, name := range rc.leftovers {
		if err := s.opts.Disk.Remove(name); err != nil {
			return errors.Join(err, rc.close())
		}
	}
	if s.salt = rc.salt; s.salt == 0 {
		s.salt = s.opts.Salt
	}
	if s.owner = s.opts.Owner; s.owner == (Owner{}) {
		s.owner = rc.owner
	}
	s.current, s.before, s.at, s.number, s.prev = rc.newest, rc.before, rc.at, rc.number, rc.prev
	if rc.cut { // it is not written to any more, else a later start would suspect what is written now
		s.at = s.current.size
	}
	for _, p := range rc.problems {
		s.opts.Log.Error("log damaged", "segment", p.Segment, "offset", p.Offset, "groups", p.Groups, "what", p.What)
	}
	for id, g := range rc.groups {
		if g.bad != nil {
			s.bad[id] = fmt.Errorf("%w: %w", ErrDamaged, g.bad)
			continue
		}
		l, err := s.adopt(id, g, rc)
		if err != nil {
			return errors.Join(err, rc.close())
		}
		s.groups[id] = l
	}
	s.sort(rc)
	if s.current == nil && len(s.ring.spares) == 0 {
		first, err := s.ring.make(s.ring.nextSlot(), s.ring.size, true)
		if err != nil {
			return errors.Join(err, rc.close())
		}
		s.ring.give(first)
	}
	if err := s.settleDisk(); err != nil {
		return errors.Join(err, rc.close())
	}
	return nil
}

// adopt makes a log of what was found of a group.
func (s *segStore) adopt(id uint64, g *replayed, rc *recovery) (*segLog, error) {
	l := newSegLog(s, id)
	conf, err := unmarshalConf(g.conf)
	if err != nil {
		return nil, err
	}
	l.hard, l.conf, l.confIndex = g.hard, conf, g.confIndex
	l.saved, l.savedIndex = slices.Clone(g.conf), g.confIndex
	l.x.reset(g.start, g.startTerm)
	for _, e := range rc.metas[id] {
		l.x.append(l.x.last+1, e.term, e.bytes)
	}
	l.x.cache.reset(l.x.last + 1)
	for _, r := range rc.runs[id] {
		l.addRun(r)
	}
	return l, nil
}

// sort gives every file its part: in use, or spare.
func (s *segStore) sort(rc *recovery) {
	for _, x := range rc.files {
		seg := x.seg
		s.ring.slots = max(s.ring.slots, seg.slot)
		switch {
		case seg == s.current || seg == s.before:
		case seg.runs > 0:
			s.sealed = append(s.sealed, seg)
		default:
			s.ring.give(seg)
		}
	}
	slices.SortFunc(s.sealed, func(a, b *segment) int { return int(int64(a.seq) - int64(b.seq)) })
}

// settleDisk makes what was read durable before anything is built on it: a process that was killed may have left
// writes in memory only. The mark, synced, takes the place of what is left of a torn write, which must not
// come to life again under one that is torn later.
func (s *segStore) settleDisk() error {
	for _, seg := range []*segment{s.before, s.current} {
		if seg == nil {
			continue
		}
		if err := seg.file.Sync(); err != nil {
			return fmt.Errorf("sync segment %s: %w", seg.name, err)
		}
	}
	return s.mark(File.WriteSync)
}
