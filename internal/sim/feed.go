package sim

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// source is whoever feeds observers: a member from its log, or an observer (a relay) from what it remembers. What it feeds
// is committed and applied, and follows what was fed before without a gap.
type source interface {
	fmt.Stringer
	host() *host
	alive() bool
	do(f func())
	later(d int64, f func())
	between(job func(done func())) // two applied batches
	stock() catchup.Source
	line() replica.Line
	path() []uint64 // itself first, its upstream, and so on to a voter; empty: it has no way there at present
	covers() uint64 // its state, the index
	offered() uint64
	bytes(from, to uint64) uint64
	entries(from, to uint64) ([]*raftpb.Entry, error)
	begin() *transfer
	brood() *children
}

// children are the feeds from one source.
type children struct{ feeds []*feed }

func (c *children) brood() *children { return c }

// leave ends a feed at its source.
func (c *children) leave(f *feed) {
	f.broken = true
	c.feeds = slices.DeleteFunc(slices.Clone(c.feeds), func(x *feed) bool { return x == f })
}

// cutAll ends every feed: the source ends, or its state was replaced and what is live does not follow what was sent.
func (c *children) cutAll() {
	for _, f := range c.feeds {
		f.sourceGone()
	}
	c.feeds = nil
}

// lacking is the lowest index that a child has not said to have, or limit.
func (c *children) lacking(limit uint64) uint64 {
	for _, f := range c.feeds {
		limit = min(limit, f.pinned+1)
	}
	return limit
}

// advance has what was applied sent on.
func (c *children) advance() {
	for _, f := range slices.Clone(c.feeds) {
		f.pump()
	}
}

// reroute tells of a path that has changed.
func (c *children) reroute() {
	for _, f := range c.feeds {
		f.tell()
	}
}

// feed is the connection of an observer with its source: what is sent arrives in order or the connection is
// broken, of which each end hears in its own time. It plays the part of the engine's runner of feeds.
type feed struct {
	o      *observer
	src    source // nil: nobody is there
	node   uint64
	whole  bool // the whole state is asked for, not entries
	broken bool

	// Of the observer.
	heard int64 // when it heard of the source last
	live  bool  // it is fed from here

	// Of the source.
	told    []uint64 // path that the observer was told last
	sending bool
	next    uint64   // to be sent
	pinned  uint64   // what is above is needed
	barrier uint64   // up to there the observer catches up
	limit   uint64   // bytes that it may be behind
	arrival [2]int64 // when the latest in each direction arrives
}

// carry delivers in order or breaks the connection.
func (f *feed) carry(from, to uint64, direction int, arrive func()) {
	w := f.o.h.w
	if f.broken {
		return
	}
	r := w.dice.net
	if r.Float64() < (w.shape.drop+w.net.loss)/10 || w.net.blocked[[2]uint64{from, to}] {
		f.broken = true
		return
	}
	at := max(w.now+w.net.delay(), f.arrival[direction])
	f.arrival[direction] = at
	w.after(at-w.now, func() {
		if !f.broken {
			arrive()
		}
	})
}

// up sends from the observer to the source.
func (f *feed) up(arrive func()) {
	f.carry(f.o.h.id, f.node, 0, func() { f.src.do(arrive) })
}

// down sends from the source to the observer.
func (f *feed) down(arrive func()) {
	f.carry(f.node, f.o.h.id, 1, func() {
		f.o.later(0, func() {
			if f.held() {
				f.heard = f.o.h.w.now
				arrive()
			}
		})
	})
}

// held says whether the observer holds on to the connection.
func (f *feed) held() bool { return f.o.feed == f || f.o.better == f }

// watch has the observer leave a silent source.
func (f *feed) watch() {
	f.o.later(second, func() {
		silent, patience := f.o.h.w.now-f.heard, planPatience
		if f.live {
			patience = feedDeadline
		}
		switch {
		case !f.held():
		case silent > patience:
			f.o.h.w.report.Reattached++
			f.o.lose(f)
		default:
			f.watch()
		}
	})
}

// refuse has the observer hear soon that the connection is no more.
func (f *feed) refuse() {
	f.o.later(spread(f.o.h.w.dice.net, 5*milli), func() {
		if f.held() {
			f.o.lose(f)
		}
	})
}

// sourceGone: the source's end is closed; most observers hear of it soon.
func (f *feed) sourceGone() {
	f.broken = true
	if f.o.h.w.dice.net.IntN(4) > 0 {
		f.refuse()
	}
}

// plan decides and registers between two applied batches of the source.
func (f *feed) plan(l catchup.Learner) {
	s, w := f.src, f.o.h.w
	stock := s.stock()
	p := catchup.Decide(stock, l)
	if p.Mode != catchup.Reject && slices.Contains(stock.Path, l.Node) {
		fail("%s is told %s %s by %s, which it feeds itself: %v", f.o, p.Mode, p.Rule, s, stock.Path)
	}
	w.report.plan(p.Rule, p.Mode)
	if l.Term >= forgedTerm && p.Mode == catchup.Diff { // what it asked with: it may have been forged since, and this connection be over
		fail("%s has what the group never had, and is told %s %s by %s", f.o, p.Mode, p.Rule, s)
	}
	w.trace(traceFeed, f.o.h.id, f.node, uint64(p.Mode), p.From, p.To)
	path, line := s.path(), s.line()
	switch {
	case p.Mode == catchup.Diff:
		f.enter(p.From-1, p.To)
		f.down(func() { f.o.welcome(f, path, line) })
		f.pump()
		f.beat()
	case (p.Mode == catchup.Snap || p.Mode == catchup.Diverged) && f.whole:
		f.enter(s.covers(), s.covers())
		f.sending = true // nothing before it is installed
		t := s.begin()
		f.down(func() { f.o.install(f, t, path) })
		f.beat()
	default:
		f.down(func() { f.o.refused(f, &p) })
	}
	f.told = path
}

// enter registers the feed: the observer has everything up to at.
func (f *feed) enter(at, barrier uint64) {
	f.next, f.pinned, f.barrier = at+1, at, barrier
	f.limit = max(uint64(f.o.h.w.shape.feedBacklog), 2*f.src.bytes(at+1, barrier))
	c := f.src.brood()
	c.feeds = append(c.feeds, f)
}

// pump sends the next frame of what the observer lacks; an observer that is too slow is cut off.
func (f *feed) pump() {
	s, w := f.src, f.o.h.w
	if f.broken {
		s.brood().leave(f)
		return
	}
	to := s.offered()
	if f.sending || f.next > to {
		return
	}
	if s.bytes(f.next, to) > f.limit {
		w.report.CutOff++
		f.sourceGone()
		s.brood().leave(f)
		return
	}
	es, err := s.entries(f.next, to)
	if err != nil { // the log was reset to an installed state, or a relay has forgotten them
		f.sourceGone()
		s.brood().leave(f)
		return
	}
	w.report.Fed += len(es)
	if _, relay := s.(*observer); relay {
		w.report.Relayed += len(es)
	}
	f.next, f.sending = f.next+uint64(len(es)), true
	f.down(func() { f.o.apply(f, es) })
	pause := spread(w.dice.disk, 200*micro)
	if f.next > f.barrier { // live
		pause = spread(w.dice.net, w.shape.latency)
	}
	s.later(pause, func() {
		f.sending = false
		f.pump()
	})
}

// tell lets the observer know how its source is fed, if that has changed.
func (f *feed) tell() {
	if path := f.src.path(); !slices.Equal(path, f.told) {
		f.told = path
		f.down(func() { f.o.hearPath(f, path) })
	}
}

// beat says now and then that the source is there, and sends what its state had before its log.
func (f *feed) beat() {
	f.src.later(feedBeat, func() {
		f.pump()
		if f.broken {
			return
		}
		f.tell()
		f.down(func() {})
		f.beat()
	})
}

// A member is a source: it feeds from its log what raft has committed.

func (m *member) host() *host                   { return m.h }
func (m *member) between(job func(done func())) { m.jobs.add(job) }
func (m *member) line() replica.Line            { return m.rep.Line() }
func (m *member) covers() uint64                { return m.rep.Applied().Index }
func (m *member) bytes(from, to uint64) (n uint64) {
	if all, rest := m.log.Bytes(from), m.log.Bytes(to+1); all > rest {
		n = all - rest
	}
	return n
}

func (m *member) offered() uint64 {
	commit, err := core.CommittedIn(m.log, m.rep.Applied(), m.g.Status().Applied)
	must(err, "look at log")
	return commit
}

func (m *member) entries(from, to uint64) ([]*raftpb.Entry, error) {
	es, err := m.log.Entries(from, to+1, m.h.w.shape.feedFrame)
	if errors.Is(err, logstore.ErrDamaged) {
		m.unreadable(to, err)
	}
	if err == nil && len(es) == 0 {
		err = errBroken
	}
	return es, err
}

// path of a voter: it is its own, as long as somebody leads.
func (m *member) path() []uint64 {
	if _, leader, _ := m.g.Lead(); leader == 0 {
		return nil
	}
	return []uint64{m.h.id}
}

func (m *member) stock() catchup.Source {
	first, err := m.log.FirstIndex()
	must(err, "look at log")
	s := lineOf(m.rep)
	s.Group, s.Node, s.Path = m.gr.id, m.h.id, []uint64{m.h.id} // what it has is good, even while nobody leads
	first = max(first, m.spoilt+1)
	s.First, s.Commit, s.Cached, s.Snapshot = first, m.offered(), ^uint64(0), m.h.w.shape.snapshotBytes
	s.Term = func(i uint64) (uint64, bool) {
		t, err := m.log.Term(i)
		return t, err == nil
	}
	s.Bytes = func(from, to uint64) uint64 { return m.bytes(from, to) << 20 }
	if m.h.w.shape.cached {
		s.Cached = first
	}
	return s
}

// lineOf is the part of a stock that the replica knows.
func lineOf(rep *replica.Replica) (s catchup.Source) {
	line := rep.Line()
	s.History = line.History
	if line.Before != ([16]byte{}) {
		s.Fork = &catchup.Fork{Before: line.Before, Index: line.Fork.Index, Term: line.Fork.Term}
	}
	return s
}

// barrier asks a voter, as an observer does, for an index that covers everything that is committed now.
func (o *observer) barrier(voter *member, done func(index uint64)) {
	net := &o.h.w.net
	net.carry(o.h.id, voter.h.id, 0, func(bool) {
		voter.do(func() {
			voter.read(func(a core.Answer) {
				if a.Code == core.Ready {
					net.carry(voter.h.id, o.h.id, 0, func(bool) { o.h.do(func() { done(a.Position.Index) }) })
				}
			})
			id := voter.nextID
			voter.later(2*second, func() { voter.g.Expire(id) })
		})
	})
}
