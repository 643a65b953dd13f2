package control

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Health is what the voters of the control group together say of a node.
type Health struct {
	Up   bool          // it answers now
	Full bool          // its disk is: it can keep a seat, and learn nothing for another
	Down time.Duration // how long a majority has missed it; 0 while it does not
}

// PlanSeats is the next change of who votes in a group, by policy: a node that is being drained gives its seat up, a
// spare takes that of a voter that is down for longer than RepairAfter, an empty seat is taken by who may have it,
// and the seats are spread over zones. nil: all is well, or nothing can be done.
//
// voting are the nodes that vote by the configuration in force; nil: those of the members that should, and nobody
// learns. While the two differ, one change at a time, only who does not vote yet loses its seat, by the first two rules:
// the group misses nothing then, and waits no longer for somebody who may be dead.
//
// It never plans what would leave fewer voters up than a majority of those that remain, and applied again and again
// to an unchanging farm it comes to an end.
func PlanSeats(s *State, g *Group, voting []uint64, health func(node uint64) Health) *Seats {
	if g.Deleted {
		return nil
	}
	p := seating{s: s, g: g, voting: voting, health: health}
	rules := []func() *Seats{p.drain, p.repair, p.refill, p.spreadOut}
	if voting != nil {
		rules = rules[:2]
	}
	for _, rule := range rules {
		if c := rule(); c != nil {
			c.Group = g.ID
			return c
		}
	}
	return nil
}

type seating struct {
	s      *State
	g      *Group
	voting []uint64 // nodes, by the configuration in force; nil: as the members say
	health func(node uint64) Health
}

// votes are the nodes whose votes count now.
func (p *seating) votes() []uint64 {
	if p.voting != nil {
		return p.voting
	}
	return nodesOf(p.g.Voters())
}

// fixed tells that a voter's seat is not to be given away now: it votes, and another change is under way.
func (p *seating) fixed(node uint64) bool { return p.voting != nil && slices.Contains(p.voting, node) }

func (p *seating) drain() *Seats {
	for _, m := range p.g.Voters() {
		n, ok := p.s.Node(m.Node)
		if !ok || !n.Drain || p.fixed(m.Node) {
			continue
		}
		c := &Seats{Out: m.Node, In: p.best(m.Node, func(o Member) bool { return !o.Pinned }), Why: "it is being drained"}
		if c.In == 0 {
			c.In = p.best(m.Node, func(o Member) bool { return o.Spare })
		}
		if p.allowed(c) {
			return c
		}
	}
	return nil
}

func (p *seating) repair() *Seats {
	after := p.s.RepairAfter(p.g)
	if after == 0 {
		return nil
	}
	for _, m := range p.g.Voters() {
		down := p.health(m.Node).Down
		if down < after || p.fixed(m.Node) {
			continue
		}
		c := &Seats{Out: m.Node, In: p.best(m.Node, func(o Member) bool { return o.Spare }),
			Why: fmt.Sprintf("it is down for %s, and repair_after is %s", down.Round(time.Second), after)}
		if c.In != 0 && p.allowed(c) {
			return c
		}
	}
	return nil
}

func (p *seating) refill() *Seats {
	if len(p.g.Voters()) >= MaxVoters {
		return nil
	}
	c := &Seats{In: p.best(0, func(o Member) bool { return !o.Pinned }), Why: "a seat is free"}
	if c.In == 0 || !p.allowed(c) {
		return nil
	}
	return c
}

// spreadOut exchanges two nodes if the zones are strictly better served then, and nobody is missing.
func (p *seating) spreadOut() *Seats {
	voters := p.g.Voters()
	for _, m := range voters {
		if !p.health(m.Node).Up {
			return nil
		}
	}
	nodes := nodesOf(voters)
	best, found := crowding(p.s, nodes), (*Seats)(nil)
	for _, out := range voters {
		if out.Pinned || p.zone(out.Node) == "" {
			continue
		}
		for _, in := range p.g.Members {
			if in.Role == RoleVoter || in.Pinned || p.zone(in.Node) == "" || !p.fit(in.Node) {
				continue
			}
			if c := crowding(p.s, with(without(nodes, out.Node), in.Node)); c < best {
				best, found = c, &Seats{In: in.Node, Out: out.Node, Why: "the seats are spread over more zones so"}
			}
		}
	}
	return found
}

func (p *seating) zone(node uint64) string {
	if n, ok := p.s.Node(node); ok {
		return n.Zone
	}
	return ""
}

// fit tells whether a node may take a seat now.
func (p *seating) fit(node uint64) bool {
	n, ok := p.s.Node(node)
	h := p.health(node)
	return ok && !n.Removed && !n.Drain && h.Up && !h.Full
}

// best is the fittest node for the seat of out (0: a further seat) among observers, 0 if there is none: the one
// whose zone has the fewest voters, and among those the one that came first.
func (p *seating) best(out uint64, may func(Member) bool) (node uint64) {
	rest := without(nodesOf(p.g.Voters()), out)
	least := 0
	for _, m := range p.g.Members {
		if m.Role == RoleVoter || !may(m) || !p.fit(m.Node) {
			continue
		}
		if c := crowding(p.s, with(rest, m.Node)); node == 0 || c < least {
			node, least = m.Node, c
		}
	}
	return node
}

// allowed tells whether the change can be carried out, and leaves a majority up.
func (p *seating) allowed(c *Seats) bool {
	nodes := p.votes()
	if !p.majority(nodes) {
		return false
	}
	if c.Out != 0 {
		nodes = without(nodes, c.Out)
	}
	if c.In != 0 {
		nodes = with(nodes, c.In)
	}
	return p.majority(nodes)
}

func (p *seating) majority(nodes []uint64) bool {
	up := 0
	for _, n := range nodes {
		if p.health(n).Up {
			up++
		}
	}
	return len(nodes) > 0 && up > len(nodes)/2
}

func nodesOf(members []Member) (nodes []uint64) {
	for _, m := range members {
		nodes = append(nodes, m.Node)
	}
	return nodes
}

// crowding measures how many of the nodes fail together: pairs of the same zone. A node without a zone is a zone of
// its own.
func crowding(s *State, nodes []uint64) (pairs int) {
	zones := map[string]int{}
	for _, id := range nodes {
		if n, ok := s.Node(id); ok && n.Zone != "" {
			pairs += zones[n.Zone]
			zones[n.Zone]++
		}
	}
	return pairs
}

// spread chooses at most n of the members so that they are spread over zones, nodes that are being drained last; in
// the order of members. The result is their places in the list.
func spread(s *State, members []Member, n int) (chosen []int) {
	var nodes []uint64
	for len(chosen) < min(n, len(members)) {
		best, least := -1, 0
		for i, m := range members {
			if slices.Contains(chosen, i) {
				continue
			}
			c := crowding(s, with(nodes, m.Node))
			if p, ok := s.Node(m.Node); ok && p.Drain {
				c += len(members) * len(members)
			}
			if best < 0 || c < least {
				best, least = i, c
			}
		}
		chosen, nodes = append(chosen, best), append(nodes, members[best].Node)
	}
	slices.Sort(chosen)
	return chosen
}

// CheckLeave refuses to take a node's seat in a group, or all of its seats (g nil), if the voters that remain would
// be no majority, or if no majority is up that could agree to it. up says on which nodes a group's replica runs; that of
// the node itself counts for the agreement only. voting are the nodes that vote by the configuration in force, as the group's
// leader has it; nil if nobody says so: then the members count that should. Who has not learned yet is not missed.
func CheckLeave(s *State, op string, n *Node, g *Group, up func(group, node uint64) bool, voting func(group uint64) []uint64) *api.Error {
	for i := range s.Groups {
		at := &s.Groups[i]
		m, ok := at.Member(n.ID)
		if at.Deleted || !ok || m.Role != RoleVoter || g != nil && at.ID != g.ID {
			continue
		}
		p := seating{s: s, g: at, voting: voting(at.ID), health: func(node uint64) Health { return Health{Up: up(at.ID, node)} }}
		nodes := p.votes()
		if !p.majority(nodes) {
			return &api.Error{Code: api.CodeUnavailable, Op: op, Subject: n.Name,
				Why:  fmt.Sprintf("group %s has lost its majority: only %s of its voters answer", at.Name, p.count(nodes)),
				Hint: "start the nodes that are down, and try again"}
		}
		rest := p.remaining(n.ID)
		if p.majority(rest) || len(rest) == 0 || p.majority(with(rest, p.best(n.ID, func(o Member) bool { return !o.Pinned || o.Spare }))) {
			continue
		}
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: n.Name,
			Why:  fmt.Sprintf("group %s would lose its majority: of the voters that remain only %s answer", at.Name, p.count(rest)),
			Hint: "start the nodes that are down, or give their seats to others first: lockstep group members " + at.Name + " replace OLD NEW"}
	}
	return nil
}

// remaining are those that vote when a node has left: who learns yet counts once it answers, or if nobody else is left.
func (p *seating) remaining(node uint64) (nodes []uint64) {
	should := without(nodesOf(p.g.Voters()), node)
	for _, id := range should {
		if slices.Contains(p.votes(), id) || p.health(id).Up {
			nodes = append(nodes, id)
		}
	}
	if len(nodes) == 0 {
		return should
	}
	return nodes
}

func (p *seating) count(nodes []uint64) string {
	up := 0
	for _, n := range nodes {
		if p.health(n).Up {
			up++
		}
	}
	return fmt.Sprintf("%d of %d", up, len(nodes))
}

// Led is a group of which it is known who leads it.
type Led struct {
	Group  uint64
	Node   uint64        // that leads
	Voters []uint64      // nodes that could: they vote and have caught up
	Fixed  bool          // not to be moved now
	Steady time.Duration // that the leader has led
}

// Move is a leadership that should go elsewhere.
type Move struct {
	Group, From, To uint64
	Why             string
}

// SteadyAfter is how long a group must have had its leader before it is moved to spread the load, and ChosenFor how
// long a leader that somebody chose is left alone.
const (
	SteadyAfter = time.Minute
	ChosenFor   = 30 * time.Minute
)

// PlanLeader spreads leaderships over nodes: one is moved from the node that has most to the one that has least of
// those that could take it, if that one has at least two less. nil: they are spread well enough, or nothing may be
// moved. Each move makes the numbers strictly more even, so moves come to an end.
func PlanLeader(s *State, leds []Led, now time.Time) *Move {
	count := map[uint64]int{}
	for _, l := range leds {
		count[l.Node]++
	}
	var best *Move
	gap := 1
	for _, l := range leds {
		g, ok := s.Group(l.Group)
		if l.Fixed || !ok || g.Deleted || l.Steady < SteadyAfter || now.Sub(g.LeaderChosen) < ChosenFor {
			continue
		}
		for _, to := range l.Voters {
			if n, ok := s.Node(to); !ok || n.Drain || n.Removed {
				continue
			}
			if d := count[l.Node] - count[to]; d > gap {
				gap = d
				best = &Move{Group: l.Group, From: l.Node, To: to, Why: fmt.Sprintf("node %s leads %d groups, node %s %d",
					nameIn(s, l.Node), count[l.Node], nameIn(s, to), count[to])}
			}
		}
	}
	return best
}

func nameIn(s *State, node uint64) string {
	if n, ok := s.Node(node); ok {
		return n.Name
	}
	return fmt.Sprint(node)
}
