package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"go.etcd.io/raft/v3/raftpb"
)

// load rebuilds the indexes from the database and checks that it holds what was acknowledged.
func (s *pebbleStore) load() error {
	if err := s.checkFormat(); err != nil {
		return err
	}
	found := map[uint64]*loading{}
	if err := s.scan([]byte{groupPrefix}, []byte{groupPrefix + 1}, func(key, value []byte) error {
		if len(key) != groupKeyLen {
			return fmt.Errorf("%w: key %x", ErrDamaged, key)
		}
		l := s.loadingOf(found, binary.BigEndian.Uint64(key[1:]))
		l.record(key, value)
		return nil
	}); err != nil {
		return err
	}
	if err := s.scan([]byte{entryPrefix}, []byte{entryPrefix + 1}, func(key, value []byte) error {
		if len(key) != entryKeyLen {
			return fmt.Errorf("%w: key %x", ErrDamaged, key)
		}
		l := s.loadingOf(found, binary.BigEndian.Uint64(key[1:]))
		l.entry(key, value)
		return nil
	}); err != nil {
		return err
	}
	for group, l := range found {
		if err := l.finish(); err != nil {
			s.bad[group] = fmt.Errorf("%w: %w", ErrDamaged, err)
			continue
		}
		s.groups[group] = l.log
	}
	return nil
}

// checkFormat refuses what another version wrote, and marks a store that is new.
func (s *pebbleStore) checkFormat() error {
	v, c, err := s.db.Get([]byte(formatKey))
	if err == nil {
		format := string(v)
		if err := c.Close(); err != nil {
			return err
		}
		if format != formatValue {
			return fmt.Errorf("format %q is not %q: written by a newer version?", format, formatValue)
		}
		return nil
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return err
	}
	empty := true
	if err := s.scan(nil, nil, func(_, _ []byte) error { empty = false; return nil }); err != nil {
		return err
	}
	if !empty {
		return fmt.Errorf("%w: the format record is missing", ErrDamaged)
	}
	if err := s.db.Set([]byte(formatKey), []byte(formatValue), pebble.Sync); err != nil {
		return err
	}
	// Pebble begins a new database's write-ahead log before it has its format version: without the marks
	// that tell damage from a torn tail. A flush begins another.
	return s.db.Flush()
}

func (s *pebbleStore) scan(from, to []byte, visit func(key, value []byte) error) (err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := it.Close(); err == nil {
			err = cerr // what ended the iteration, if anything did
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := visit(it.Key(), value); err != nil {
			return err
		}
	}
	return nil
}

// loading is a log of which the records come in key order: configuration, hard state, start, entries.
type loading struct {
	log                *pebbleLog
	conf, hard, starts bool
	err                error // the first thing wrong
}

func (s *pebbleStore) loadingOf(found map[uint64]*loading, group uint64) *loading {
	l := found[group]
	if l == nil {
		l = &loading{log: newPebbleLog(s, group)}
		found[group] = l
	}
	return l
}

func (l *loading) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

func (l *loading) record(key, value []byte) {
	var err error
	switch key[groupKeyLen-1] {
	case kindConf:
		l.conf = true
		l.log.confIndex, l.log.conf, err = decodeConf(key, value)
	case kindHard:
		l.hard = true
		l.log.hard, err = decodeHard(key, value)
	case kindStart:
		var index, term uint64
		l.starts = true
		if index, term, err = decodeStart(key, value); err == nil {
			l.log.x.reset(index, term)
			l.log.stored = index + 1
		}
	default:
		err = fmt.Errorf("%w: kind %q", errRecord, key[groupKeyLen-1])
	}
	if err != nil {
		l.fail(err)
	}
}

func (l *loading) entry(key, value []byte) {
	x := &l.log.x
	i := binary.BigEndian.Uint64(key[9:])
	if !l.starts || l.err != nil {
		return // finish tells what is wrong
	}
	if i <= x.start {
		l.log.stored = min(l.log.stored, i) // compacted, not yet reclaimed
		l.log.garbage += uint64(len(value) + entryKeyLen)
		return
	}
	term, data, err := checkEntry(key, value)
	switch {
	case err != nil:
		l.fail(err)
	case i != x.last+1:
		l.fail(fmt.Errorf("entry %d is missing", x.last+1))
	case term < x.mustTerm(x.last):
		l.fail(fmt.Errorf("entry %d of term %d follows term %d", i, term, x.mustTerm(x.last)))
	default:
		x.append(i, term, len(data)+entryKeyLen+8)
	}
}

func (l *loading) finish() error {
	x := &l.log.x
	if l.err != nil {
		return l.err
	}
	if !l.starts || !l.hard || !l.conf {
		return fmt.Errorf("records missing: start %v, hard state %v, configuration %v", !l.starts, !l.hard, !l.conf)
	}
	x.cache.reset(x.last + 1)
	h := l.log.hard
	if h.commit > x.last {
		return fmt.Errorf("committed up to %d, but the log ends at %d", h.commit, x.last)
	}
	if t := x.mustTerm(x.last); x.last > x.start && t > h.term {
		return fmt.Errorf("entry of term %d, but the hard state is at term %d", t, h.term)
	}
	if l.log.conf == nil {
		l.log.conf = &raftpb.ConfState{}
	}
	return nil
}
