package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
)

// leaderPatience is for how long a group may be without a leader before somebody is told: elections are no news.
const leaderPatience = 3 * time.Second

// leaderCheck holds if this node knows the group's leader, or is fed.
func (n *node) leaderCheck(g *control.Group) api.Check {
	c := api.Check{Name: "leader " + g.Name, OK: true}
	grp := n.groupHere(g.ID)
	if grp == nil {
		return c // observers have checks of their own
	}
	if since, yes := grp.Leaderless(); yes && time.Since(since) > leaderPatience {
		voters := len(grp.Core().Voters)
		c.OK, c.Text = false, fmt.Sprintf("group %s has had no leader for %s as far as this node knows: fewer than %d of its %d voters work together",
			g.Name, time.Since(since).Round(time.Second), voters/2+1, voters)
	}
	return c
}

// clockWarnings are about peers whose clocks differ from this node's.
func (n *node) clockWarnings() (list []api.Warning) {
	for _, p := range n.net.Peers() {
		if off := p.ClockOffset; p.Up && off.Abs() > transport.ClockBound {
			list = append(list, api.Warning{Name: "clock_differs", Subject: n.nameOf(p.Node),
				Text: fmt.Sprintf("its clock is %s ahead of this node's: tokens expire, and the conflict policy newest decides, by wrong times", off.Round(time.Millisecond)),
				Hint: "set both by NTP"})
		}
	}
	return list
}

// trustWarnings are about a group that nobody leads, or whose promises or states are not what they should be.
func trustWarnings(st *control.State, g *control.Group, shown api.Group, reports []report) (list []api.Warning) {
	damaged := 0
	votes, others := votersBy(g, reports)
	gone := lostVoters(st, g, others)
	voters, up := len(others), len(others)-gone // of a member of before, on a node that is there, it is not known
	for i, m := range g.Members {
		if !votes(m) {
			continue
		}
		voters++
		switch {
		case reports[i].takesPart():
			up++
		case reports[i].Mode == modeDamaged:
			up, damaged = up+1, damaged+1
		}
	}
	switch {
	case voters-gone <= voters/2:
		list = append(list, api.Warning{Name: "no_quorum", Subject: g.Name,
			Text: fmt.Sprintf("its majority is lost: it decides by %d voters, of which %d cannot answer any more, since their nodes were removed, or have joined again without their data: nothing can be written",
				voters, gone),
			Hint: whatIsLeft(g)})
	case up <= voters/2:
		list = append(list, api.Warning{Name: "no_quorum", Subject: g.Name,
			Text: fmt.Sprintf("only %d of %d voters answer; %d are needed: nothing can be written", up, voters, voters/2+1),
			Hint: "start the nodes that are down; if a majority is lost for good, " + whatIsLeft(g)})
	case up-damaged <= voters/2:
		list = append(list, api.Warning{Name: "no_quorum", Subject: g.Name,
			Text: fmt.Sprintf("%d of %d voters answer, but %d of them do not vote, since their logs are damaged: nothing can be written", up, voters, damaged),
			Hint: "if no voter is left to be started: " + recovery(g.Name) + " goes on from what they have"})
	case shown.Leader == "":
		list = append(list, api.Warning{Name: "no_leader", Subject: g.Name, Text: fmt.Sprintf("it has no leader, though %d of %d voters answer", up, voters),
			Hint: "an election takes two seconds at most; if this stays, the voters do not reach each other"})
	}
	if g.Ack == "all" && len(g.InSync.Replicas) < voters {
		list = append(list, api.Warning{Name: "in_sync_set", Subject: g.Name, Since: g.InSync.Since,
			Text: fmt.Sprintf("an all acknowledgement counts %d of %d voters: %s", len(g.InSync.Replicas), voters, g.InSync.Why),
			Hint: "members join again by themselves when they have caught up"})
	}
	list = append(list, doubtWarnings(g, shown, reports)...)
	for i, r := range reports {
		if r.Mode == modeAstray {
			list = append(list, api.Warning{Name: "unknown_history", Subject: g.Name + " on " + shown.Replicas[i].Node, Text: r.Why,
				Hint: wayOut(g.Name, shown.Replicas[i].Node)})
		}
		if r.Alarm != "" {
			list = append(list, api.Warning{Name: "replicas_differ", Subject: g.Name + " on " + shown.Replicas[i].Node, Text: r.Alarm,
				Hint: "nothing is repaired without a majority: lockstep group check " + g.Name + " --deep shows who has what; decide for one and bind the others again"})
		}
	}
	return list
}

// whatIsLeft says where the way on from a lost majority begins. It loses data, so it is not handed out ready to be pasted.
func whatIsLeft(g *control.Group) string {
	if g.Kind == control.KindControl {
		return "see lockstep offline recover -h: it is for the survivor that was up last, stopped, and comes before all else"
	}
	return fmt.Sprintf("lockstep group recover %s --unsafe --dry-run shows what is left", g.Name)
}

// votersBy tells who votes: by the configuration that the leader goes by, which has fewer voters than the control group
// names after a recovery from a lost majority, and while a new one learns. Without a leader by the configuration of the
// member that knows most, whatever the control group has wanted since: it takes a leader to carry that out. others are its
// voters that are no members any more. By what is recorded in the control group only if nobody tells of any.
func votersBy(g *control.Group, reports []report) (votes func(control.Member) bool, others []uint64) {
	var lead *report
	for i, r := range reports {
		if r.Role == "leader" && len(r.Voting) > 0 && (lead == nil || r.Term > lead.Term) {
			lead = &reports[i]
		}
	}
	if lead != nil {
		return func(m control.Member) bool { return contains(lead.Voting, m.Replica) }, nil
	}
	var last *report
	for i := range reports {
		r := &reports[i]
		if r.takesPart() && len(r.Voting) > 0 && r.History == g.History && (last == nil || r.Commit > last.Commit) {
			last = r
		}
	}
	if last == nil {
		return func(m control.Member) bool { return m.Role == control.RoleVoter }, nil
	}
	for _, replica := range last.Voting {
		if !slices.ContainsFunc(g.Members, func(m control.Member) bool { return m.Replica == replica }) {
			others = append(others, replica)
		}
	}
	return func(m control.Member) bool { return contains(last.Voting, m.Replica) }, others
}

// lostVoters counts the replicas that nobody can ever start again: their nodes were removed, or have joined anew without
// what they had.
func lostVoters(st *control.State, g *control.Group, replicas []uint64) (lost int) {
	for _, replica := range replicas {
		id, ok := g.NodeOf(replica)
		if node, known := st.Node(id); !ok || known && node.Removed {
			lost++
		}
	}
	return lost
}

// GroupCheck has a group's replicas compare their states now.
func (n *node) GroupCheck(ctx context.Context, group string, deep bool) (api.GroupCheck, error) {
	const op = "group check"
	g, err := n.groupNamed(op, group)
	if err != nil {
		return api.GroupCheck{}, err
	}
	for i, r := range n.survey(ctx, g) {
		if r.Role != "leader" {
			continue
		}
		return call(ctx, n, g.Members[i].Node, methodCompare, groupRequest{Group: g.ID, Deep: deep}, n.compareHere)
	}
	return api.GroupCheck{}, &api.Error{Code: api.CodeUnavailable, Op: op, Subject: group, Why: "the group has no leader now", Hint: "try again in a second"}
}

func (n *node) compareHere(ctx context.Context, req groupRequest) (api.GroupCheck, error) {
	grp := n.groupHere(req.Group)
	g, ok := n.ctl.state().Group(req.Group)
	if grp == nil || !ok {
		return api.GroupCheck{}, errNoSuchGroup
	}
	c, err := grp.Check(ctx, req.Deep)
	if err != nil {
		return api.GroupCheck{}, &api.Error{Code: api.CodeUnavailable, Op: "group check", Subject: g.Name, Why: err.Error(), Hint: "try again in a second"}
	}
	out := api.GroupCheck{Group: g.Name, Index: c.Mark, Deep: req.Deep, Agreed: c.Verdict != nil, Odd: n.namesOf(g, c.Odd), Missing: []string{}, Nodes: []api.GroupCheckNode{}}
	for _, m := range g.Members {
		name := n.nameOf(m.Node)
		if d, ok := c.Digests[m.Replica]; ok {
			out.Nodes = append(out.Nodes, api.GroupCheckNode{Node: name, Digest: d.String()})
		} else if err, ok := c.Missing[m.Replica]; ok {
			out.Missing = append(out.Missing, name)
			out.Nodes = append(out.Nodes, api.GroupCheckNode{Node: name, Error: err.Error()})
		}
	}
	return out, nil
}
