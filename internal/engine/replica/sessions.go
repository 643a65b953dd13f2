package replica

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Limits bound the table of sessions. They decide what is forgotten, so all replicas of a group must have the
// same: production has DefaultLimits, the simulator smaller ones, so that it sees evictions.
type Limits struct {
	Sessions int // the one that was used longest ago, in log order, makes room
	Results  int // what one session may leave unacknowledged: the lowest make room
	// Level is the newest cluster level that the program knows, machine included; 0: core.FirstLevel. Of all, it is what
	// replicas of a group may differ in: one that meets a higher level stops before it (NewerLevelError).
	Level uint64
}

const (
	maxSessions = 10_000
	maxResults  = 2048
)

// DefaultLimits are the upper bounds as well.
func DefaultLimits() Limits { return Limits{Sessions: maxSessions, Results: maxResults} }

// sessions is the table of answered writes (RIFL, Lee et al., SOSP 2015): part of the replicated state, and
// like it a function of the log alone, evictions included. It is kept in memory and written through, one
// record for each session that an Apply touched.
//
// A session begins with its first write, without being announced. One that is not in the table is new if
// nothing was ever evicted or if it says that nothing was ever answered (Floor ≤ 1), else it may have been
// evicted and is refused. So a write can be executed twice in one case only: the very first ones of a session
// are retried after maxSessions others have written.
//
// Only the applier changes it; executes, which foretells, may be called meanwhile: mu guards what it reads.
type sessions struct {
	mu            sync.Mutex
	by            map[[16]byte]*session
	first, latest *session // in order of use
	young         *session // the first of those used last, at most half of limits.Sessions; nil: there is none
	youngs        int      // how many they are
	evicted       uint64   // how many ever
	limits        Limits

	dirty []*session // touched since the last flush
	gone  [][16]byte // evicted since the last flush
}

type session struct {
	client  [16]byte
	floor   uint64 // results below it are forgotten
	used    use
	results []stored // by seq
	dirty   bool
	young   bool // see sessions

	older, newer *session
}

// use is when, in log order, a session was used last.
type use struct {
	index   uint64
	ordinal uint64 // of the proposal in its entry
}

type stored struct {
	seq    uint64
	result []byte // immutable
}

// touch finds or makes the session of p and forgets what p says is answered. nil: it was evicted.
func (t *sessions) touch(p *core.Proposal, now use) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.by[p.Client]
	switch {
	case s != nil:
		t.unlink(s)
	case p.Floor > 1 && t.evicted > 0:
		return nil
	default:
		s = &session{client: p.Client}
		if t.by == nil {
			t.by = map[[16]byte]*session{}
		}
		t.by[p.Client] = s
	}
	s.used = now
	t.link(s)
	if len(t.by) > t.limits.Sessions {
		t.evict(t.first)
	}
	if !s.dirty {
		s.dirty = true
		t.dirty = append(t.dirty, s)
	}
	s.forget(p.Floor)
	return s
}

func (t *sessions) evict(s *session) {
	t.unlink(s)
	delete(t.by, s.client)
	t.evicted++
	t.gone = append(t.gone, s.client)
	if s.dirty {
		t.dirty = slices.DeleteFunc(t.dirty, func(x *session) bool { return x == s })
	}
}

// oldest is the head of the list in order of use.
func (t *sessions) oldest() *session { return t.first }

func (t *sessions) link(s *session) {
	s.older, s.newer = t.latest, nil
	if t.latest != nil {
		t.latest.newer = s
	} else {
		t.first = s
	}
	t.latest = s
	if t.young == nil {
		t.young = s
	}
	s.young = true
	if t.youngs++; t.youngs > max(1, t.limits.Sessions/2) {
		t.young.young = false
		t.young = t.young.newer
		t.youngs--
	}
}

func (t *sessions) unlink(s *session) {
	if s.young {
		t.youngs--
		if s.young = false; t.young == s {
			t.young = s.newer
		}
	}
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		t.first = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		t.latest = s.older
	}
	s.older, s.newer = nil, nil
}

func (s *session) find(seq uint64) (result []byte, ok bool) {
	i, ok := s.search(seq)
	if !ok {
		return nil, false
	}
	return s.results[i].result, true
}

func (s *session) search(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(s.results, seq, func(r stored, seq uint64) int { return cmp.Compare(r.seq, seq) })
}

// add keeps the result of a write of s.
func (t *sessions) add(s *session, seq uint64, result []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, _ := s.search(seq)
	s.results = slices.Insert(s.results, i, stored{seq: seq, result: result})
	if len(s.results) > t.limits.Results {
		s.forget(s.results[0].seq + 1)
	}
}

// executes says whether p is certain to be executed when it is applied behind what the table covers and ahead. If the
// session is known, it is evicted once as many others as there is room for were used since it was: those that are
// ahead, and those that were used after it so far, of which there are fewer than young ones if it is young. If it is
// not known although it had answers, it begins in front of p, or p is refused as soon as anything was evicted.
func (t *sessions) executes(p *core.Proposal, ahead core.Ahead) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.by[p.Client]
	floor, top, others := max(p.Floor, ahead.Floor), ahead.Top, len(t.by)
	if s != nil {
		floor = max(floor, s.floor)
		if n := len(s.results); n > 0 {
			top = max(top, s.results[n-1].seq)
		}
		if others--; s.young {
			others = min(others, t.youngs-1)
		}
	}
	// Only results above p.Seq can make its own place be forgotten.
	if p.Seq < floor || top > p.Seq && top-p.Seq > uint64(t.limits.Results) {
		return false
	}
	return p.Floor <= 1 || (s != nil || t.evicted == 0) && others+ahead.Sessions < t.limits.Sessions
}

// forget drops the results below floor.
func (s *session) forget(floor uint64) {
	if floor <= s.floor {
		return
	}
	s.floor = floor
	n, _ := s.search(floor)
	s.results = slices.Delete(s.results, 0, n)
}

// flush writes what was touched or evicted since the last flush.
func (t *sessions) flush(tx kv.Tx, in slot) error {
	key := append(make([]byte, 0, 32), in.sessions()...)
	n := len(key)
	for _, client := range t.gone {
		if err := tx.Delete(append(key[:n], client[:]...)); err != nil {
			return err
		}
	}
	if len(t.gone) > 0 {
		if err := tx.Set(key[:n], binary.AppendUvarint(nil, t.evicted)); err != nil {
			return err
		}
	}
	t.gone = t.gone[:0]
	var buf []byte
	for _, s := range t.dirty {
		s.dirty = false
		buf = s.encode(buf[:0])
		if err := tx.Set(append(key[:n], s.client[:]...), buf); err != nil {
			return err
		}
	}
	t.dirty = t.dirty[:0]
	return nil
}

const sessionVersion = 1

func (s *session) encode(buf []byte) []byte {
	buf = binary.AppendUvarint(buf, sessionVersion)
	buf = binary.AppendUvarint(buf, s.used.index)
	buf = binary.AppendUvarint(buf, s.used.ordinal)
	buf = binary.AppendUvarint(buf, s.floor)
	buf = binary.AppendUvarint(buf, uint64(len(s.results)))
	for _, r := range s.results {
		buf = binary.AppendUvarint(buf, r.seq)
		buf = binary.AppendUvarint(buf, uint64(len(r.result)))
		buf = append(buf, r.result...)
	}
	return buf
}

func decodeSession(client, value []byte) (*session, error) {
	s := &session{}
	d := reader{rest: value}
	if len(client) != len(s.client) || d.uvarint() != sessionVersion {
		return nil, fmt.Errorf("session %x: %w", client, ErrDamaged)
	}
	copy(s.client[:], client)
	s.used = use{index: d.uvarint(), ordinal: d.uvarint()}
	s.floor = d.uvarint()
	n := d.uvarint()
	if d.bad || n > maxResults || n > uint64(len(d.rest)) {
		return nil, fmt.Errorf("session %x: %w", client, ErrDamaged)
	}
	last := uint64(0)
	for i := range n {
		seq := d.uvarint()
		result := bytes.Clone(d.bytes(d.uvarint()))
		if d.bad || i > 0 && seq <= last {
			return nil, fmt.Errorf("session %x: result %d: %w", client, i, ErrDamaged)
		}
		s.results, last = append(s.results, stored{seq: seq, result: result}), seq
	}
	if len(d.rest) > 0 {
		return nil, fmt.Errorf("session %x: %d bytes too many: %w", client, len(d.rest), ErrDamaged)
	}
	return s, nil
}

// load replaces the table by the one in r.
func (t *sessions) load(r kv.Reader, from slot) error {
	prefix := from.sessions()
	var all []*session
	var evicted uint64
	err := r.Scan(prefix, kv.PrefixEnd(prefix), func(key, value []byte) error {
		if len(key) == len(prefix) {
			d := reader{rest: value}
			if evicted = d.uvarint(); d.bad {
				return fmt.Errorf("number of evicted sessions: %w", ErrDamaged)
			}
			return nil
		}
		s, err := decodeSession(key[len(prefix):], value)
		all = append(all, s)
		return err
	})
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	slices.SortFunc(all, func(a, b *session) int {
		return cmp.Or(cmp.Compare(a.used.index, b.used.index), cmp.Compare(a.used.ordinal, b.used.ordinal))
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by, t.evicted, t.dirty, t.gone = map[[16]byte]*session{}, evicted, nil, nil
	t.first, t.latest, t.young, t.youngs = nil, nil, nil, 0
	for _, s := range all {
		t.by[s.client] = s
		t.link(s)
	}
	return nil
}
