package engine

import (
	"fmt"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// How a replica gets, or got, what it lacked.
const (
	ModeLive     = "live"     // it lacks nothing that its upstream has
	ModeDiff     = "diff"     // it gets entries
	ModeSnap     = "snap"     // it gets the whole state
	ModeDiverged = "diverged" // its state cannot be trusted and is about to be replaced
	ModeDetached = "detached" // nobody feeds it
)

// Catchup says how a replica is fed, and the decision by which it last caught up.
type Catchup struct {
	Mode     string
	By       string // ModeDiff or ModeSnap: how it last caught up; empty: it lacked nothing
	Rule     string // R0 … R7; empty: nothing had to be decided
	Why      string
	From, To uint64 // applied index at the decision, and the one that ends catching up
	Received uint64 // ModeSnap: bytes of the state that have come
	Upstream uint64 // node; 0: nobody
	Hops     int    // observers: feeds from a voter to it; 0: not known
	Feeds    int    // observers that it feeds
}

// catchupLog remembers the decision.
type catchupLog struct {
	mu   sync.Mutex
	last Catchup
}

func (c *catchupLog) start(applied uint64) {
	c.set(func(l *Catchup) { *l = Catchup{Mode: ModeDetached, Why: "it has just been started", From: applied} })
}

func (c *catchupLog) set(change func(*Catchup)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.last)
}

// begin records a decision, at the decision.
func (c *catchupLog) begin(l Catchup) {
	if l.Mode == ModeDiff && l.To > l.From || l.Mode == ModeSnap {
		l.By = l.Mode
	}
	c.set(func(last *Catchup) { *last = l })
}

// received counts bytes of a state.
func (c *catchupLog) received(n int) { c.set(func(l *Catchup) { l.Received += uint64(n) }) }

// reached notes that the replica has applied what ends catching up.
func (c *catchupLog) reached(applied uint64) {
	c.set(func(l *Catchup) {
		if (l.Mode == ModeDiff || l.Mode == ModeSnap) && applied >= l.To {
			l.Mode, l.Received = ModeLive, 0
		}
	})
}

func (c *catchupLog) get() Catchup {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Catchup says how this replica is fed.
func (g *Group) Catchup() Catchup {
	c := g.catchup.get()
	c.Feeds = g.src.count()
	if q := g.rep.Quarantine(); q != nil {
		why, st := q.String(), g.Core()
		if sources, _ := healers(&st, q, g.book.latest()); len(sources) == 0 {
			why = fmt.Sprintf("its state after entry %d is not what the majority had, and of no member it is known that it has a better one", q.Mark)
		}
		return Catchup{Mode: ModeDiverged, Rule: "R2", Why: why, From: c.From, To: c.To, Received: c.Received, Feeds: c.Feeds}
	}
	st := g.Core()
	if st.Role == core.Leader {
		return Catchup{Mode: ModeLive, Why: "it leads the group", From: c.From, To: c.To, Feeds: c.Feeds}
	}
	c.Upstream, _ = g.NodeOf(st.Leader)
	if st.Leader == 0 && (c.Mode == ModeLive || c.Mode == ModeDetached) {
		c.Mode, c.Why = ModeDetached, "no leader is known"
	}
	return c
}

// heard takes a message of a leader: the first one after a start, or after there was no leader, tells what this
// replica lacks. That is the decision; raft carries it out.
func (g *Group) heard(m *raftpb.Message) {
	switch {
	case g.decided:
		return
	case m.GetType() == raftpb.MsgHeartbeat:
		g.heardNothing(m)
		return
	case m.GetType() != raftpb.MsgApp:
		return
	}
	g.decided = true
	at, to := g.rep.Applied().Index, m.GetCommit()
	if to <= at {
		g.catchup.begin(Catchup{Mode: ModeLive, Rule: "R3", Why: "nothing is missing", From: at, To: at})
		return
	}
	g.catchup.begin(Catchup{Mode: ModeDiff, Rule: "R4", From: at, To: to,
		Why: fmt.Sprintf("the leader's log holds all %d missing entries", to-at)})
}

// heardNothing takes a heartbeat before anything was decided. A leader that has something for this replica sends it after
// the answer to the first one; one that did not notice that the replica was away has nothing to send until somebody
// writes. What comes after all is a decision of its own.
func (g *Group) heardNothing(m *raftpb.Message) {
	if st := g.status.Load(); st == nil || st.Leader != m.GetFrom() || st.Term != m.GetTerm() {
		return
	}
	g.beats++
	if at := g.rep.Applied().Index; g.beats == quietBeats && m.GetCommit() <= at {
		g.catchup.begin(Catchup{Mode: ModeLive, Rule: "R3", Why: "nothing is missing", From: at, To: at})
	}
}

// quietBeats is how many heartbeats of a leader, none with anything between them, say that nothing is missing.
const quietBeats = 3

// path of a voter: it is its own, as long as somebody leads.
func (g *Group) path() []uint64 {
	if g.Core().Leader == 0 {
		return nil
	}
	return []uint64{g.eng.cfg.Node}
}

// news of a voter: what it has applied is committed.
func (g *Group) news() news {
	at := g.rep.Applied().Index
	return news{applied: at, commit: at, at: g.eng.cfg.Now().UnixNano()}
}
