package sim

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

const (
	feedBeat     = 500 * milli
	feedDeadline = 3 * second
)

// observer is a replica without a log: it follows one source after the other.
type observer struct {
	h    *host
	gr   *group
	run  int // counts starts
	rep  *replica.Replica
	jobs jobs
	feed *feed // attached to, or being so
	try  int
	at   uint64 // highest index that it had since it started
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
	o.rep, o.at = rep, rep.Applied().Index
	o.run++
	o.gr.ledger.compare(o.String(), o.rep)
	o.later(spread(o.h.w.dice.net, 100*milli), o.attach)
}

func (o *observer) stop() {
	if o.feed != nil {
		o.feed.broken = true
	}
	o.run++
	o.rep, o.feed, o.jobs = nil, nil, jobs{}
}

func (o *observer) later(d int64, f func()) {
	run := o.run
	o.h.w.after(d, func() {
		if o.alive() && o.run == run {
			o.h.do(func() {
				if o.alive() && o.run == run {
					f()
				}
			})
		}
	})
}

// attach asks the next source for what this observer lacks.
func (o *observer) attach() {
	w := o.h.w
	sources := o.gr.voters()
	src := o.gr.member(sources[o.try%len(sources)])
	o.try++
	f := &feed{o: o, src: src, run: o.run, heard: w.now}
	o.feed = f
	at := o.rep.Applied()
	line := o.rep.Line()
	f.up(func() {
		src.jobs.add(func(done func()) {
			f.plan(catchup.Learner{
				Group: o.gr.id, Node: o.h.id, History: line.History, Index: at.Index, Term: at.Term, Oldest: at.Index,
			})
			done()
		})
	})
	if !src.alive() && w.dice.net.IntN(4) > 0 {
		f.refused() // quick: its port is closed
	}
	f.watch()
}

// detach leaves the feed and looks for another one soon.
func (o *observer) detach() {
	o.feed.broken = true
	o.feed = nil
	o.later(5*milli+spread(o.h.w.dice.net, 50*milli), o.attach)
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
			for len(es) > 0 && es[0].GetIndex() <= o.rep.Applied().Index {
				es = es[1:]
			}
			if len(es) == 0 {
				return
			}
			if es[0].GetIndex() != o.rep.Applied().Index+1 {
				o.detach() // the source has installed a state and goes on from there
				return
			}
			ok := true
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
			})
			if !ok {
				return
			}
			at := o.rep.Applied().Index
			f.up(func() { f.pinned = max(f.pinned, at) })
		})
	})
}

// install replaces the whole state, then attaches again.
func (o *observer) install(f *feed, t *transfer) {
	o.jobs.add(func(done func()) {
		o.later(spread(o.h.w.dice.disk, milli), func() {
			defer done()
			if o.feed != f {
				return
			}
			if t.restore(o.h, o.rep) {
				o.h.w.report.ObserverSnapshots++
				o.gr.ledger.compare(o.String(), o.rep)
			}
			o.detach()
		})
	})
}
