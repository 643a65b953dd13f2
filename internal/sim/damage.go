package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// A log may turn out to be damaged while its replica runs, by who reads it. What raft makes of that is real
// (engine.Storage, engine.CutBehind); the host plays the rest of engine/damage.go and of the server. Entries that the state
// covers count as cut: those that lack them get the whole state, and the replica goes on, gives leadership away, and steps
// aside once a leader can do without it. An entry that is not applied yet ends the replica at once. In either case its
// process goes on, its log is not handed out again, and it comes back like one that was found damaged at a start (return.go).
//
// What must hold, beside what holds always: the other groups of the host go on (unharmed), and a log that was condemned is
// not handed out before it was dropped.

// unreadable is called when a read of entries up to index to met damage.
func (m *member) unreadable(to uint64, err error) {
	if m.h.alteredAt <= m.begun {
		fail("%s: nothing was altered, and its log is damaged: %v", m, err)
	}
	m.spoilt = max(m.spoilt, engine.CutBehind(to, m.rep.Applied().Index, err))
	if m.rotten == nil {
		m.rotten = err
		m.h.w.report.Rotted++
		m.comeBack()
	}
}

// rottenLog is the member's log as raft reads it. Bits seldom flip in the little that is written and not applied yet, so that
// a read of just that fails is played.
type rottenLog struct {
	logstore.Log
	m *member
}

// Entries implements logstore.Log.
func (l rottenLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if from := max(lo, l.m.rep.Applied().Index+1); l.m.losing && from < hi {
		return nil, fmt.Errorf("read: %w", &logstore.Unreadable{First: from, Last: hi - 1, Cause: errors.New("altered")})
	}
	return l.Log.Entries(lo, hi, maxSize)
}

// lookThrough reads what the logs of the host's replicas have that is applied, as a binding that was away does
// (engine.Group.Replay).
func (h *host) lookThrough() {
	for _, m := range h.members {
		m.do(func() {
			first, err := m.log.FirstIndex()
			must(err, "look at log")
			for to := m.offered(); first <= to; {
				es, err := m.entries(first, to)
				if err != nil {
					return
				}
				first += uint64(len(es))
			}
		})
	}
}

// shield runs f. A fault of a core that has read what was altered ends its replica, as the engine ends it; what else the
// host has goes on.
func (h *host) shield(f func()) {
	runs := h.running()
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		fault, ok := v.(*core.Fault)
		if !ok || !strings.Contains(fault.Error(), logstore.ErrDamaged.Error()) {
			panic(v)
		}
		m := h.members[fault.Group-1]
		m.rotten = errors.Join(m.rotten, fmt.Errorf("%w: %w", fault, logstore.ErrDamaged))
		h.w.report.Ended++
		m.condemn()
		h.unharmed(m, runs)
	}()
	f()
}

// stepAside ends a replica that goes on with a log that has rotted, since the others can do without it.
func (m *member) stepAside() {
	if !m.alive() || m.rotten == nil {
		return // it was started again meanwhile
	}
	runs := m.h.running()
	m.h.w.report.Aside++
	m.condemn()
	m.h.unharmed(m, runs)
}

// condemn ends the replica for the damage that was met. Its log is not handed out again, and of what was still to be written
// nothing was acknowledged.
func (m *member) condemn() {
	h, why := m.h, m.rotten
	m.stop()
	h.lazy = slices.DeleteFunc(h.lazy, func(w logstore.Write) bool { return w.Group == m.gr.id })
	h.appends = slices.DeleteFunc(h.appends, func(q queued) bool { return q.m == m })
	h.logs.Condemn(m.gr.id, why)
	if _, _, err := h.logs.Log(m.gr.id); !errors.Is(err, logstore.ErrDamaged) {
		fail("%s: its log is handed out again, though it was found damaged: %v", m, err)
	}
	m.found()
}

// handOver has a leader with such a log give leadership to a voter that has everything.
func (m *member) handOver() {
	role, _, _ := m.g.Lead()
	if role != core.Leader {
		return
	}
	s := m.g.Status()
	for _, p := range s.Peers {
		if p.RecentActive && p.Match >= s.Commit && slices.Contains(s.Voters, p.Replica) {
			m.do(func() { m.g.Transfer(p.Replica) })
			return
		}
	}
}

// running are the replicas that the host runs, with their runs.
func (h *host) running() map[*member]int {
	runs := map[*member]int{}
	for _, m := range h.members {
		if m.alive() {
			runs[m] = m.run
		}
	}
	return runs
}

// unharmed holds that of what the host ran only the replica that ended has.
func (h *host) unharmed(ended *member, runs map[*member]int) {
	if !h.up {
		fail("host %d went down with %s", h.id, ended)
	}
	for _, m := range h.members {
		if run, ran := runs[m]; ran && m != ended && (!m.alive() || m.run != run) {
			fail("%s ended with %s", m, ended)
		}
	}
}
