package sim

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

const (
	feedBeat     = 500 * milli
	feedDeadline = 3 * second   // silence after which a source is left
	planPatience = 2 * second   // for the answer of one that was asked
	cutOff       = 1500 * milli // without a way to the voters, after which an observer looks elsewhere
	homeEvery    = 5 * second   // one that is not at its first choice looks whether it could be
)

// observer is a replica without a log: it follows one source after the other, and may be one itself. Which ones it asks,
// and in what order, is the control group's assignment (wiring.go) under the engine's rules: the first that feeds it by
// DIFF; if none does, the whole state of who offered it first; away from who is silent, from a loop at once, and from who
// has lost the way to the voters, or is not the best, as soon as there is a better one.
type observer struct {
	children
	h     *host
	gr    *group
	run   int // counts starts
	rep   *replica.Replica
	tail  *engine.Tail // what it can feed others
	jobs  jobs
	route []uint64 // own path to the voters, itself first; empty: cut off
	at    uint64   // highest index that it had since it started

	feed   *feed    // attached to, or being so
	round  []uint64 // to be asked yet, to attach
	whole  uint64   // who offered the state in this round; 0: nobody
	lost   uint64   // the source that was lost last
	cut    int64    // since when the source has no way to the voters; 0: it has
	better *feed    // asked while another one feeds
	wooed  []uint64 // to be asked yet, to change over
	sought int64    // when it last looked for a better source

	wiringRead int   // up to which state of the wiring its host has come
	forged     bool  // its state is not the group's, see forge.go
	circling   int64 // since when it feeds itself, by way of others; 0: it does not
}

func (o *observer) alive() bool { return o != nil && o.rep != nil }

func (o *observer) String() string { return fmt.Sprintf("group %d observer %d", o.gr.id, o.h.id) }

func (gr *group) addObserver(h *host) { h.observers[gr.id-1] = &observer{h: h, gr: gr} }

func (o *observer) start() {
	rep, err := replica.OpenLimited(kv.Prefixed(o.h.store, o.gr.prefix()), o.gr.work.machine(o.h), o.h.limits())
	if o.h.unknown(err) {
		o.rep = nil
		return
	}
	must(err, "open observer")
	o.h.fits(rep)
	rep.FollowForks()
	o.rep, o.at = rep, rep.Applied().Index
	o.tail = engine.NewTail(o.h.w.shape.tailBytes, rep.Applied())
	o.run++
	if !o.forged {
		o.gr.ledger.compare(o.String(), o.rep)
	}
	o.later(spread(o.h.w.dice.net, 100*milli), o.attach)
	o.later(o.h.w.dice.net.Int64N(second), o.lookAround)
}

func (o *observer) stop() {
	for _, f := range []*feed{o.feed, o.better} {
		if f != nil {
			f.broken = true
		}
	}
	o.cutAll()
	*o = observer{h: o.h, gr: o.gr, run: o.run + 1, wiringRead: o.wiringRead, forged: o.forged}
}

// do runs an event of the observer, as the host does.
func (o *observer) do(f func()) {
	run := o.run
	o.h.do(func() {
		if o.alive() && o.run == run {
			f()
		}
	})
}

func (o *observer) later(d int64, f func()) {
	run := o.run
	o.h.w.after(d, func() {
		if o.run == run {
			o.do(f)
		}
	})
}

// attach begins a round of asking who feeds this observer.
func (o *observer) attach() {
	o.round, o.whole, o.lost = o.candidates(o.lost), 0, 0
	o.next()
}

// next asks the next candidate of the round, then for the state from whom offered it; then there will be another round.
func (o *observer) next() {
	switch {
	case len(o.round) > 0:
		node := o.round[0]
		o.round = o.round[1:]
		o.feed = o.greet(node, false)
	case o.whole != 0:
		node := o.whole
		o.whole = 0
		o.feed = o.greet(node, true)
	default:
		o.later(5*milli+spread(o.h.w.dice.net, 50*milli), o.attach)
	}
}

// greet asks a node to feed this observer.
func (o *observer) greet(node uint64, whole bool) *feed {
	w := o.h.w
	f := &feed{o: o, node: node, src: o.gr.sourceAt(w.hosts[node-1]), whole: whole, heard: w.now}
	f.watch()
	if f.src == nil {
		f.refuse()
		return f
	}
	at, line := o.rep.Applied(), o.rep.Line()
	f.up(func() {
		f.src.between(func(done func()) {
			f.plan(catchup.Learner{
				Group: o.gr.id, Node: o.h.id, History: line.History, Index: at.Index, Term: at.Term, Oldest: at.Index,
			})
			done()
		})
	})
	if !f.src.alive() && w.dice.net.IntN(4) > 0 {
		f.refuse() // quick: its port is closed
	}
	return f
}

// sourceAt is the group's replica on a host; nil: it has none.
func (gr *group) sourceAt(h *host) source {
	if m := h.members[gr.id-1]; m != nil {
		return m
	}
	if o := h.observers[gr.id-1]; o != nil {
		return o
	}
	return nil
}

// refused is the answer of a source that does not feed this observer.
func (o *observer) refused(f *feed, p *catchup.Plan) {
	switch p.Mode {
	case catchup.Reject, catchup.Behind:
	case catchup.Diverged:
		o.diverged(f)
	case catchup.Snap:
		if o.feed == f && o.whole == 0 {
			o.whole = f.node
		}
		if o.rep.Applied().Index == 0 || p.Rule == "R4" {
			o.round = nil // nobody has anything better
		}
	default:
		fail("%s is told %s %s: %s", o, p.Mode, p.Rule, p.Why)
	}
	o.lose(f)
}

// welcome is the answer of a source that feeds this observer, which has a path to the voters.
func (o *observer) welcome(f *feed, path []uint64, line replica.Line) {
	turns := line.History != o.rep.Line().History && o.rep.Applied().Index > 0
	if !o.passable(path) || o.better == f && (turns || len(path) == 0) {
		o.lose(f)
		return
	}
	if turns {
		must(o.rep.Adopt(line), "take up a new history")
		o.h.w.report.Adopted++
	}
	if o.better == f {
		o.feed.broken = true
		o.feed, o.better, o.wooed = f, nil, nil
		o.h.w.report.Moved++
	}
	f.live = true
	o.hearPath(f, path)
}

// hearPath is told how the source is fed.
func (o *observer) hearPath(f *feed, path []uint64) {
	switch {
	case !o.passable(path):
		o.lose(f)
	case o.feed != f:
	default:
		if len(path) > 0 {
			o.cut = 0
		} else if o.cut == 0 {
			o.cut = o.h.w.now
		}
		o.setRoute(path)
	}
}

// passable says whether the observer may be fed by a path.
func (o *observer) passable(path []uint64) bool {
	err := catchup.CheckPath(o.h.id, path)
	switch {
	case errors.Is(err, catchup.ErrLoop):
		o.h.w.report.Loops++
	case errors.Is(err, catchup.ErrTooDeep):
		o.h.w.report.TooDeep++
	}
	return err == nil
}

// setRoute takes the path of the upstream; empty: there is none.
func (o *observer) setRoute(upstream []uint64) {
	var own []uint64
	if len(upstream) > 0 {
		own = append([]uint64{o.h.id}, upstream...)
	}
	if slices.Contains(upstream, o.h.id) || len(upstream) > catchup.MaxHops {
		fail("%s is fed by way of %v", o, upstream)
	}
	if !slices.Equal(own, o.route) {
		o.route = own
		o.reroute()
	}
}

// lose lets go of a feed, and looks for another one.
func (o *observer) lose(f *feed) {
	f.broken = true
	switch {
	case o.better == f:
		o.better = nil
		o.woo()
	case !f.live:
		o.feed = nil
		o.next()
	default:
		if o.better != nil {
			o.better.broken = true
		}
		o.feed, o.better, o.wooed, o.cut, o.lost = nil, nil, nil, 0, f.node
		o.setRoute(nil)
		o.later(5*milli+spread(o.h.w.dice.net, 50*milli), o.attach)
	}
}

func (o *observer) lookAround() {
	o.later(second, o.lookAround)
	o.look()
}

// look has an observer that has lost the way to the voters, or is not at its first choice, look for a better source. The
// present one goes on feeding meanwhile.
func (o *observer) look() {
	now := o.h.w.now
	if o.feed == nil || !o.feed.live || o.better != nil {
		return
	}
	lost := o.cut != 0 && now-o.cut >= cutOff
	if !lost && now-o.sought < homeEvery {
		return
	}
	nodes := o.candidates(0)
	if i := slices.Index(nodes, o.feed.node); i >= 0 && !lost {
		nodes = nodes[:i]
	}
	o.sought = now
	o.wooed = slices.DeleteFunc(nodes, func(n uint64) bool { return n == o.feed.node })
	o.woo()
}

// woo asks the next one of those that would be better.
func (o *observer) woo() {
	if len(o.wooed) > 0 {
		node := o.wooed[0]
		o.wooed = o.wooed[1:]
		o.better = o.greet(node, false)
	}
}

// apply executes entries that came by the feed, after what came before.
func (o *observer) apply(f *feed, es []*raftpb.Entry) {
	w := o.h.w
	o.jobs.add(func(done func()) {
		o.later(o.h.slow*spread(w.dice.disk, 100*micro), func() {
			defer done()
			if o.feed != f {
				return
			}
			at := o.rep.Applied().Index
			for len(es) > 0 && es[0].GetIndex() <= at {
				es = es[1:]
			}
			if len(es) > 0 && es[0].GetIndex() != at+1 {
				fail("%s is at %d and is fed %d by %s", o, at, es[0].GetIndex(), f.src)
			}
			if !o.execute(es) {
				return
			}
			at = o.rep.Applied().Index
			f.up(func() { f.pinned = max(f.pinned, at) })
		})
	})
}

// execute applies entries and has them passed on; false if the host's program does not know what is there.
func (o *observer) execute(es []*raftpb.Entry) (ok bool) {
	ok = true
	eachRun(es, func(es []*raftpb.Entry) {
		if !ok {
			return
		}
		_, err := o.rep.Apply(es, nil)
		if ok = !o.h.unknown(err); !ok {
			return
		}
		must(err, "apply at an observer")
		o.gr.ledger.observed(o, es)
		o.tail.Append(es, o.lacking(o.rep.Applied().Index+1))
	})
	o.advance()
	return ok
}

// install replaces the whole state; then the source goes on from there.
func (o *observer) install(f *feed, t *transfer, path []uint64) {
	o.jobs.add(func(done func()) {
		o.later(spread(o.h.w.dice.disk, milli), func() {
			defer done()
			if o.feed != f {
				return
			}
			history := o.rep.Line().History
			if !o.passable(path) || !t.restore(o.h, o.rep) {
				o.lose(f)
				return
			}
			if at := o.rep.Applied().Index; at >= o.at || history != o.rep.Line().History {
				o.at = at
			} else {
				fail("%s was taken back from %d to %d by %s", o, o.at, at, f.src)
			}
			o.forged = false
			o.h.w.report.ObserverSnapshots++
			o.gr.ledger.compare(o.String(), o.rep)
			o.tail.Reset(o.rep.Applied())
			o.cutAll()
			f.live = true
			o.hearPath(f, path)
			f.up(func() {
				f.sending = false
				f.pump()
			})
		})
	})
}

// An observer is a source: it feeds what it remembers of what it has applied.

func (o *observer) host() *host                   { return o.h }
func (o *observer) between(job func(done func())) { o.jobs.add(job) }
func (o *observer) path() []uint64                { return o.route }
func (o *observer) line() replica.Line            { return o.rep.Line() }
func (o *observer) covers() uint64                { return o.rep.Applied().Index }
func (o *observer) offered() uint64               { return min(o.tail.Last(), o.covers()) }
func (o *observer) bytes(from, to uint64) uint64  { return o.tail.Bytes(from, to) }
func (o *observer) begin() *transfer              { return begin(o.h, o.gr, o.rep) }

func (o *observer) entries(from, to uint64) ([]*raftpb.Entry, error) {
	return o.tail.Entries(from, to, o.h.w.shape.feedFrame)
}

func (o *observer) stock() catchup.Source {
	first, err := o.tail.First()
	must(err, "look at what an observer remembers")
	s := lineOf(o.rep)
	s.Group, s.Node, s.Path = o.gr.id, o.h.id, o.route
	s.First, s.Commit, s.Cached, s.Snapshot = first, o.offered(), o.tail.Cached(), o.h.w.shape.snapshotBytes
	s.Term, s.Bytes = o.tail.Term, func(from, to uint64) uint64 { return o.tail.Bytes(from, to) << 20 }
	return s
}
