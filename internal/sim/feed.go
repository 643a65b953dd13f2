package sim

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// feed is the connection of an observer with its source: what is sent arrives in order or the connection is
// broken, of which each end hears in its own time. It plays the part of the engine's runner of feeds.
type feed struct {
	o      *observer
	src    *member
	run    int // of the observer
	broken bool
	heard  int64 // when the observer heard of the source last

	live     bool // registered with the source
	entries  []*raftpb.Entry
	bytes    int
	sending  bool
	pinned   uint64   // the log is needed above it
	next     uint64   // what was not sent yet
	arrivals [2]int64 // when the latest in each direction arrives
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
	at := max(w.now+w.net.delay(), f.arrivals[direction])
	f.arrivals[direction] = at
	w.after(at-w.now, func() {
		if !f.broken {
			arrive()
		}
	})
}

// up sends from the observer to the source.
func (f *feed) up(arrive func()) {
	f.carry(f.o.h.id, f.src.h.id, 0, func() { f.src.do(arrive) })
}

// down sends from the source to the observer.
func (f *feed) down(arrive func()) {
	f.carry(f.src.h.id, f.o.h.id, 1, func() {
		f.o.later(0, func() {
			if f.o.feed == f {
				f.heard = f.o.h.w.now
				arrive()
			}
		})
	})
}

// watch has the observer leave a silent source.
func (f *feed) watch() {
	f.o.later(second, func() {
		switch {
		case f.o.feed != f:
		case f.o.h.w.now-f.heard > feedDeadline:
			f.o.h.w.report.Reattached++
			f.o.detach()
		default:
			f.watch()
		}
	})
}

// refused has the observer look for another source soon.
func (f *feed) refused() {
	f.o.later(spread(f.o.h.w.dice.net, 5*milli), func() {
		if f.o.feed == f {
			f.o.detach()
		}
	})
}

// sourceGone: the source's process ended; most observers hear of it soon.
func (f *feed) sourceGone() {
	f.broken = true
	if f.o.h.w.dice.net.IntN(4) > 0 {
		f.refused()
	}
}

// plan decides and registers between two applied batches of the source.
func (f *feed) plan(l catchup.Learner) {
	m, w := f.src, f.o.h.w
	first, err := m.log.FirstIndex()
	must(err, "look at log")
	commit := f.offered()
	cached := ^uint64(0)
	if w.shape.cached {
		cached = first
	}
	p := catchup.Decide(catchup.Source{
		Group: m.gr.id, Node: m.h.id, Path: []uint64{m.h.id}, History: m.rep.Line().History,
		First: first, Commit: commit,
		Term: func(i uint64) (uint64, bool) {
			t, err := m.log.Term(i)
			return t, err == nil
		},
		Bytes:  func(from, to uint64) uint64 { return (m.log.Bytes(from) - m.log.Bytes(to+1)) << 20 },
		Cached: cached, Snapshot: w.shape.snapshotBytes,
	}, l)
	w.report.plan(p.Rule, p.Mode)
	w.trace(traceFeed, f.o.h.id, m.h.id, uint64(p.Mode), p.From, p.To)
	switch p.Mode {
	case catchup.Diff:
		f.live, f.pinned, f.next = true, p.From-1, p.From
		m.feeds = append(m.feeds, f)
		f.down(func() {})
		f.diff(p.From, p.To)
	case catchup.Snap:
		t := m.begin()
		f.down(func() { f.o.install(f, t) })
	case catchup.Behind:
		f.down(func() { f.o.detach() })
	default:
		fail("%s is told %s %s: %s", f.o, p.Mode, p.Rule, p.Why)
	}
}

// diff sends what the log has, a frame after the other, then what is live.
func (f *feed) diff(from, to uint64) {
	m, w := f.src, f.o.h.w
	if f.broken {
		m.drop(f)
		return
	}
	if from > to {
		f.sending = false
		f.flush()
		f.beat()
		return
	}
	f.sending = true
	es, err := m.log.Entries(from, to+1, w.shape.feedFrame)
	if err != nil { // the log was reset to an installed state
		f.sourceGone()
		m.drop(f)
		return
	}
	w.report.Fed += len(es)
	f.next = from + uint64(len(es))
	f.down(func() { f.o.apply(f, es) })
	m.later(spread(w.dice.disk, 200*micro), func() { f.diff(from+uint64(len(es)), to) })
}

// offered is how far the source can feed.
func (f *feed) offered() uint64 {
	m := f.src
	commit, err := core.CommittedIn(m.log, m.rep.Applied(), m.g.Status().Applied)
	must(err, "look at log")
	return commit
}

// beat says now and then that the source is there, and sends what its state had before its log.
func (f *feed) beat() {
	f.src.later(feedBeat, func() {
		if f.broken {
			f.src.drop(f)
			return
		}
		if to := f.offered(); !f.sending && len(f.entries) == 0 && f.next <= to {
			f.diff(f.next, to)
			return
		}
		f.down(func() {})
		f.beat()
	})
}

// flush sends what has become live.
func (f *feed) flush() {
	if f.sending || f.broken || len(f.entries) == 0 {
		return
	}
	w := f.o.h.w
	es := f.entries
	f.next = es[len(es)-1].GetIndex() + 1
	f.entries, f.bytes, f.sending = nil, 0, true
	w.report.Fed += len(es)
	f.down(func() { f.o.apply(f, es) })
	f.src.later(spread(w.dice.net, w.shape.latency), func() {
		f.sending = false
		f.flush()
	})
}

// publish hands applied entries to every observer that is fed from here; one that is too slow is cut off.
func (m *member) publish(es []*raftpb.Entry) {
	for _, f := range append([]*feed(nil), m.feeds...) {
		f.entries = append(f.entries, es...)
		for _, e := range es {
			f.bytes += len(e.GetData())
		}
		if f.bytes > m.h.w.shape.feedBacklog {
			m.h.w.report.CutOff++
			f.sourceGone()
			m.drop(f)
			continue
		}
		f.flush()
	}
}

// cutAll ends every feed: the state was replaced, and what is live does not follow what was sent.
func (m *member) cutAll() {
	for _, f := range m.feeds {
		f.sourceGone()
	}
	m.feeds = nil
}

// drop ends the feed at its source.
func (m *member) drop(f *feed) {
	f.broken = true
	for i, x := range m.feeds {
		if x == f {
			m.feeds = append(m.feeds[:i:i], m.feeds[i+1:]...)
			return
		}
	}
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
