package server

import (
	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/engine"
)

// sourcesOf lists the nodes that this node's observer of a group is to be fed by, the best first, as the group's
// topology has it; nil as long as the control group's state says nothing about it.
func (n *node) sourcesOf(group uint64) []uint64 {
	st := n.ctl.state()
	g, ok := st.Group(group)
	if !ok {
		return nil
	}
	f, ok := st.Feeds(g)[n.self]
	if !ok {
		return nil
	}
	return append([]uint64{f.Upstream}, f.Fallbacks...)
}

// feed fills in how a member is fed.
func (r *report) feed(how engine.Catchup) {
	r.Mode, r.Rule, r.Why = how.Mode, how.Rule, how.Why
	if how.By != "" && how.Mode == engine.ModeLive {
		r.Why = "caught up by " + how.By + ": " + how.Why
	}
	r.Upstream, r.Hops, r.Feeds, r.Received = how.Upstream, how.Hops, how.Feeds, how.Received
}

// feedWarnings are what an operator should look at in how a group's replicas are fed.
func feedWarnings(g api.Group) (list []api.Warning) {
	for _, r := range g.Replicas {
		subject := g.Name + " on " + r.Node
		switch r.Mode {
		case engine.ModeDiverged:
			list = append(list, api.Warning{Name: "replica_diverged", Subject: subject, Text: r.Rule + ": " + r.Why,
				Hint: "it is replaced by a whole state by itself; look for damage on that node's disk"})
		case engine.ModeDetached:
			list = append(list, api.Warning{Name: "replica_detached", Subject: subject, Text: r.Why,
				Hint: "lockstep group show " + g.Name + " shows who could feed it; it attaches by itself as soon as one can be reached"})
		}
	}
	return list
}
