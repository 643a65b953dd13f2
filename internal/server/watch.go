package server

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// watch is what a voter of the control group knows of the nodes: it asks each of them every watchEvery. Whether a
// node counts as down is decided by what a majority of those voters say.
type watch struct {
	mu    sync.Mutex
	nodes map[uint64]*watched
	began time.Time
}

type watched struct {
	answered time.Time // last; the start of watching if never
	last     helloAnswer
	up       bool
}

const (
	watchEvery = time.Second
	// watchAtOnce bounds the nodes that are asked at the same time.
	watchAtOnce = 16
	// settleTime is how long a voter watches before it decides anything.
	settleTime = 5 * time.Second
)

func newWatch() *watch { return &watch{nodes: map[uint64]*watched{}} }

// helloAnswer is what a node says to a hello.
type helloAnswer struct {
	// At is the index of its copy of the control group's state.
	At uint64 `json:"at"`
	// Leads are the groups that it leads.
	Leads []leadAnswer `json:"leads,omitempty"`
	// Missed are the nodes that it watches and that do not answer it: for how long.
	Missed map[uint64]time.Duration `json:"missed,omitempty"`
	// Watches: it is a voter of the control group and has watched for long enough.
	Watches bool `json:"watches,omitempty"`
	// Stopped are the groups whose replica there has ended by itself: for how long.
	Stopped map[uint64]time.Duration `json:"stopped,omitempty"`
	// Aside are the groups of which it has a replica that does not run: its log is damaged, or it has gone astray.
	Aside []uint64 `json:"aside,omitempty"`
	// Full is set while its disk is full.
	Full *api.FullDisk `json:"full,omitempty"`
}

type leadAnswer struct {
	Group   uint64        `json:"group"`
	Term    uint64        `json:"term"`
	Voting  []uint64      `json:"voting"`  // nodes that vote by the configuration in force; 0: one that nobody knows
	Settled bool          `json:"settled"` // the configuration is that of the members
	Fresh   []uint64      `json:"fresh"`   // nodes of voters that have caught up
	Steady  time.Duration `json:"steady"`  // for how long it leads
}

// helloHere answers for this node.
func (n *node) helloHere(context.Context, groupRequest) (helloAnswer, error) {
	st := n.ctl.state()
	a := helloAnswer{At: st.Index}
	for i := range st.Groups {
		g := &st.Groups[i]
		if grp := n.groupHere(g.ID); grp != nil && grp.Core().Role == core.Leader {
			a.Leads = append(a.Leads, leadOf(g, grp.Fresh(), grp.Led(), n.disk.FullAt))
		}
	}
	a.Missed, a.Watches = n.watch.missed(time.Now())
	a.Full, a.Stopped, a.Aside = n.disk.report(), n.stoppedHere(time.Now()), n.asideHere()
	return a, nil
}

// leadOf leaves out of Fresh whose disk is full: it would not take leadership over.
func leadOf(g *control.Group, st core.Status, led time.Duration, full func(node uint64) bool) leadAnswer {
	a := leadAnswer{Group: g.ID, Term: st.Term, Steady: led}
	for _, replica := range slices.Concat(st.Voters, st.Outgoing) {
		if node, _ := g.NodeOf(replica); !contains(a.Voting, node) {
			a.Voting = append(a.Voting, node)
		}
	}
	var want []uint64
	for _, m := range g.Voters() {
		want = append(want, m.Replica)
		if contains(st.Voters, m.Replica) && progressOf(st, m.Replica) == control.CaughtUp && !full(m.Node) {
			a.Fresh = append(a.Fresh, m.Node)
		}
	}
	slices.Sort(want)
	a.Settled = len(st.Outgoing) == 0 && len(st.Learners) == 0 && slices.Equal(want, st.Voters)
	return a
}

// heard is what those nodes said that answered when they were asked.
type heard map[uint64]helloAnswer

func (h heard) up(node uint64) bool {
	_, ok := h[node]
	return ok
}

// runs says whether a node answers and has not said that its replica of the group does not run.
func (h heard) runs(group, node uint64) bool {
	a, ok := h[node]
	_, ended := a.Stopped[group]
	return ok && !ended && !contains(a.Aside, group)
}

// lead is what a group's leader says of it. Of several that take themselves for it, the one of the latest term is.
func (h heard) lead(group uint64) (lead leadAnswer, ok bool) {
	for _, a := range h {
		for _, l := range a.Leads {
			if l.Group == group && (!ok || l.Term > lead.Term) {
				lead, ok = l, true
			}
		}
	}
	return lead, ok
}

// voting are the nodes that vote in a group by the configuration in force; nil if nobody leads it.
func (h heard) voting(group uint64) []uint64 {
	l, _ := h.lead(group)
	return l.Voting
}

// missed are the nodes that did not answer when last asked.
func (w *watch) missed(now time.Time) (map[uint64]time.Duration, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	missed := map[uint64]time.Duration{}
	for id, at := range w.nodes {
		if !at.up {
			missed[id] = now.Sub(at.answered)
		}
	}
	return missed, !w.began.IsZero() && now.Sub(w.began) >= settleTime
}

// stop forgets everything: what is not watched is not known.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = time.Time{}
	clear(w.nodes)
}

func (w *watch) note(id uint64, a helloAnswer, up bool, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began.IsZero() {
		w.began = now
	}
	at, ok := w.nodes[id]
	if !ok {
		at = &watched{answered: now}
		w.nodes[id] = at
	}
	if at.up = up; up {
		at.answered, at.last = now, a
	}
}

// keep drops nodes that are no longer there.
func (w *watch) keep(ids []uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.nodes {
		if !contains(ids, id) {
			delete(w.nodes, id)
		}
	}
}

// answers are the last words of the nodes that answer.
func (w *watch) answers() heard {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := heard{}
	for id, at := range w.nodes {
		if at.up {
			all[id] = at.last
		}
	}
	return all
}

// watchNodes asks all nodes while this one votes in the control group, and decides about seats and leaders while it
// leads that.
func (n *node) watchNodes(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		grp := n.groupHere(control.ControlGroup)
		if grp == nil {
			n.watch.stop()
			continue
		}
		n.watchOnce(ctx)
		if grp.Core().Role == core.Leader && ctx.Err() == nil {
			n.govern(ctx)
		}
	}
}

func (n *node) watchOnce(ctx context.Context) {
	var ids []uint64
	for _, p := range n.ctl.state().Nodes {
		if !p.Removed {
			ids = append(ids, p.ID)
		}
	}
	n.watch.keep(ids)
	slots := make(chan struct{}, watchAtOnce)
	var wait sync.WaitGroup
	for _, id := range ids {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			a, err := n.hello(ctx, id)
			if ctx.Err() == nil {
				n.watch.note(id, a, err == nil, time.Now())
			}
		})
	}
	wait.Wait()
}

// hello asks a node whether it lives.
func (n *node) hello(ctx context.Context, id uint64) (helloAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return call(ctx, n, id, methodHello, groupRequest{}, n.helloHere)
}

// healthOf puts together what the voters of the control group say: a node is down for as long as a majority of all of
// them has missed it. Whether its disk is full it says itself.
func healthOf(st *control.State, answers heard) func(node uint64) control.Health {
	g, ok := st.Group(control.ControlGroup)
	if !ok {
		return func(uint64) control.Health { return control.Health{} }
	}
	voters := g.Voters()
	return func(id uint64) control.Health {
		var missed []time.Duration
		for _, v := range voters {
			if a := answers[v.Node]; a.Watches {
				if d, is := a.Missed[id]; is {
					missed = append(missed, d)
				}
			}
		}
		a, answered := answers[id]
		majority := len(voters)/2 + 1
		if len(missed) < majority {
			return control.Health{Up: answered, Full: a.Full != nil}
		}
		slices.Sort(missed)
		return control.Health{Down: missed[len(missed)-majority]} // that long at least, says a majority
	}
}

// govern decides, on the leader of the control group: at most one seat a group and one leadership at a time.
func (n *node) govern(ctx context.Context) {
	st := n.ctl.state()
	answers := n.watch.answers()
	if !answers[n.self].Watches {
		return
	}
	var leds []control.Led
	for id, a := range answers {
		if a.At < st.Index && len(a.Leads) > 0 {
			return // what it says of its groups is about members of before
		}
		for _, l := range a.Leads {
			leds = append(leds, control.Led{Group: l.Group, Node: id, Voters: l.Fresh, Fixed: !l.Settled, Steady: l.Steady})
		}
	}
	changes := planSeats(st, answers)
	for _, c := range changes {
		g, _ := st.Group(c.Group)
		n.log.Info("seats", "group", g.Name, "in", n.nameOf(c.In), "out", n.nameOf(c.Out), "why", c.Why)
		if _, err := n.ctl.propose(ctx, &control.Command{By: "policy", Seats: c}); err != nil {
			n.log.Warn("seats not changed", "group", g.Name, "err", err)
		}
	}
	if len(changes) == 0 {
		n.spreadLeaders(ctx, st, leds)
	}
}

// planSeats is at most one change for each group of which somebody says that it leads it.
func planSeats(st *control.State, answers heard) (changes []*control.Seats) {
	health := healthOf(st, answers)
	for i := range st.Groups {
		g := &st.Groups[i]
		l, led := answers.lead(g.ID)
		if !led || len(l.Voting) == 0 {
			continue
		}
		if l.Settled {
			l.Voting = nil
		}
		if c := control.PlanSeats(st, g, l.Voting, healthIn(g.ID, answers, health)); c != nil {
			changes = append(changes, c)
		}
	}
	return changes
}

// spreadLeaders moves one leadership, if that makes the load more even.
func (n *node) spreadLeaders(ctx context.Context, st *control.State, leds []control.Led) {
	slices.SortFunc(leds, func(a, b control.Led) int { return cmp.Compare(a.Group, b.Group) })
	m := control.PlanLeader(st, leds, time.Now())
	if m == nil {
		return
	}
	_, err := call(ctx, n, m.From, methodLead, groupRequest{Group: m.Group, Node: m.To}, n.leadHere)
	n.log.Info("leadership moved to spread the load", "group", m.Group, "from", n.nameOf(m.From), "to", n.nameOf(m.To), "why", m.Why, "err", err)
}
