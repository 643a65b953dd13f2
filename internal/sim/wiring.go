package sim

import (
	mathrand "math/rand/v2"
	"slices"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
)

// Who feeds whom. The control group assigns each observer an upstream and two fallbacks (control.State.Feeds); it is played
// by a record that hosts follow at some distance. Topology and seats change at any time, so that observers act on
// assignments that contradict each other. In two topologies that no control group gives nobody is nearer to the voters
// than the others: loops are to be found and left.
//
// What must hold: whoever feeds is not fed by whom it feeds, by way of whomever, and no path is longer than it may be, as
// far as those who are asked know (feed.plan, observer.setRoute); what two do at the same time, so that each of them feeds
// the other, they find out and end (watchCircles).

const (
	ring = "ring" // each is to be fed by the one before
	any_ = "any"  // each is to be fed by any other
)

var topologies = [...]string{"star", "star", "chain", "chain", "tree:2", "tree:3", "auto", ring, any_}

// wiring is an assignment.
type wiring struct {
	feeds map[uint64]control.Feed // by host
	loose map[uint64][]uint64     // the same of a topology that no control group gives
}

// rewire assigns anew, by the seats of voters and observers.
func (gr *group) rewire() {
	var next wiring
	switch gr.topology {
	case ring, any_:
		next.loose = map[uint64][]uint64{}
		for i, id := range gr.places {
			others := slices.Concat(gr.places[i+1:], gr.places[:i]) // the one before is the last
			if slices.Reverse(others); gr.topology == any_ && i%2 == 0 {
				slices.Sort(others)
			}
			next.loose[id] = others
		}
	default:
		next.feeds = gr.w.zoned().Feeds(gr.plan())
	}
	gr.wirings = append(gr.wirings, next)
}

// plan is the group as the control group has it, with its observers.
func (gr *group) plan() *control.Group {
	g := control.Group{ID: gr.id, Topology: gr.topology, Members: slices.Clone(gr.seats().Members)}
	for i, id := range gr.places {
		g.Members = append(g.Members, control.Member{Node: id, Replica: 1<<20 + id, Role: control.RoleObserver, Seat: i + 1})
	}
	return &g
}

// zoned is a cluster with the seed's zones.
func (w *world) zoned() *control.State {
	var s control.State
	for _, h := range w.hosts {
		n := control.Node{ID: h.id}
		if w.shape.zones > 0 {
			n.Zone = string(rune('a' + int(h.id)%w.shape.zones))
		}
		s.Nodes = append(s.Nodes, n)
	}
	return &s
}

// redraw gives observers other seats and another topology; false if there are too few.
func (gr *group) redraw(r *mathrand.Rand) bool {
	if len(gr.places) < 2 {
		return false
	}
	if gr.topology = topologies[r.IntN(len(topologies))]; r.IntN(2) == 0 {
		gr.topology = any_
	}
	gr.places = slices.Clone(gr.places)
	r.Shuffle(len(gr.places), func(i, j int) { gr.places[i], gr.places[j] = gr.places[j], gr.places[i] })
	gr.rewire()
	mean := []int64{0, 3 * milli}[r.IntN(2)]
	gr.eachObserver(func(o *observer) {
		if r.IntN(4) > 0 { // it is told at once
			o.later(spread(r, mean), func() {
				o.wiringRead, o.sought = len(gr.wirings)-1, -homeEvery
				o.look()
			})
		}
	})
	return true
}

// candidates are the hosts that an observer asks, in order, by the assignment that its host knows.
func (o *observer) candidates(lost uint64) []uint64 {
	gr := o.gr
	o.wiringRead += o.h.w.dice.net.IntN(len(gr.wirings) - o.wiringRead)
	known := gr.wirings[o.wiringRead]
	assigned := known.loose[o.h.id]
	if f, ok := known.feeds[o.h.id]; ok {
		assigned = append([]uint64{f.Upstream}, f.Fallbacks...)
	}
	var voters []uint64
	for _, id := range gr.voters() {
		voters = append(voters, gr.member(id).h.id)
	}
	if n := len(voters); n > 1 { // in what order they are listed has nothing to do with who asks
		at := o.h.w.dice.net.IntN(n)
		voters = slices.Concat(voters[at:], voters[:at])
	}
	return catchup.Candidates(o.h.id, lost, assigned, voters)
}

// circleBound is how long observers may feed one another while all of them run and reach each other: a path that has
// changed takes its time to get around, and a connection that is broken to be given up.
const circleBound = feedDeadline + 3*second

// watchCircles looks now and then for observers that feed themselves, by way of others.
func (w *world) watchCircles() {
	for _, gr := range w.groups {
		if len(gr.places) > 1 {
			gr.eachObserver(func(o *observer) { o.watchCircle() })
		}
	}
	w.after(500*milli, w.watchCircles)
}

func (o *observer) watchCircle() {
	w := o.h.w
	switch whole, well := o.circle(); {
	case !whole:
		o.circling = 0
	case o.circling == 0:
		w.report.Circles++
		o.circling = w.now
	case !well:
		o.circling = w.now
	case w.now-o.circling > circleBound:
		fail("%s feeds itself, by way of others, since %d s: its path is %v", o, (w.now-o.circling)/second, o.route)
	}
}

// circle says whether the observer feeds itself, and whether nothing keeps those who are part of it from noticing.
func (o *observer) circle() (whole, well bool) {
	well = true
	at := o
	for range o.gr.places {
		f := at.feed
		if f == nil || !f.live {
			return false, false
		}
		up, relay := f.src.(*observer)
		if !relay {
			return false, false
		}
		well = well && !f.broken && !at.h.paused && at.h.slow == 1
		if at = up; at == o {
			return true, well
		}
	}
	return false, false
}
