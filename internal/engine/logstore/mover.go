package logstore

import (
	"maps"
	"slices"
)

// moveBytes is how much is written again with one batch.
const moveBytes = 256 << 10

// mover writes live entries of a mostly dead segment again, so that a group that stands still does not keep the
// segments of groups that move on: there are at most twice as many segments as the live entries fill, and four.
type mover struct {
	victim *segment
	queue  []moved
}

type moved struct {
	log         *segLog
	first, last uint64
}

// plan is called when a segment begins. It chooses the fullest waste.
func (m *mover) plan(s *segStore) {
	m.victim, m.queue = nil, m.queue[:0]
	var size, live int64
	for _, seg := range s.sealed {
		size += seg.size
		live += seg.bytes
		if seg.runs > 0 && (m.victim == nil || seg.bytes < m.victim.bytes) {
			m.victim = seg
		}
	}
	if m.victim == nil || size <= 2*live+4*s.opts.SegmentBytes {
		m.victim = nil
		return
	}
	for _, id := range slices.Sorted(maps.Keys(s.groups)) {
		l := s.groups[id]
		for _, r := range l.runs {
			if r.seg == m.victim {
				m.queue = append(m.queue, moved{l, r.first, r.last})
			}
		}
	}
}

// stage adds some of the entries to the batch at hand. What changed since the plan is left to the next one, and so
// is what cannot be read: its group finds that out when it is read for.
func (m *mover) stage(s *segStore) {
	for n := 0; len(m.queue) > 0 && n < moveBytes; m.queue = m.queue[1:] {
		q := m.queue[0]
		if s.groups[q.log.group] != q.log || q.log.staged.active && q.log.staged.destructive {
			continue
		}
		for i := range q.log.runs {
			if r := &q.log.runs[i]; r.seg == m.victim && r.first == q.first && r.last == q.last {
				n += q.log.stageMove(&s.b, r)
				break
			}
		}
	}
}

// stageMove writes a run's entries again and returns their size.
func (l *segLog) stageMove(b *builder, r *run) int {
	old := make([]byte, r.size)
	if _, err := r.seg.file.ReadAt(old, r.at); err != nil {
		return 0
	}
	w, err := l.sectionOf(r, old)
	if err != nil {
		return 0
	}
	at := b.open(secMove, l.group)
	b.buf = append(b.buf, 0)
	b.numbers(r.first, r.last-r.first+1)
	entries, payload := b.entries, b.payload
	err = w.each(func(e storedEntry) error {
		if e.index >= r.first && e.index <= r.last {
			b.stored(e.head, e.term, e.data)
		}
		return nil
	})
	if err != nil {
		b.buf, b.entries, b.payload = b.buf[:at], entries, payload
		return 0
	}
	b.close(at, l.group)
	l.store.staged = append(l.store.staged, stagedRun{log: l, first: r.first, last: r.last, at: at, size: len(b.buf) - at, write: -1})
	return len(b.buf) - at
}
