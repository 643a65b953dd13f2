package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// report is a node's account of its part of a group.
type report struct {
	Role string `json:"role"`
	Mode string `json:"mode"`
	Why  string `json:"why"`
	Rule string `json:"rule,omitempty"`
	// How the member is fed: see engine.Catchup.
	Upstream uint64 `json:"upstream,omitempty"`
	Hops     int    `json:"hops,omitempty"`
	Feeds    int    `json:"feeds,omitempty"`
	Received uint64 `json:"received,omitempty"`

	History [16]byte `json:"history,omitzero"` // that the replica's log is of; zero: the control group's first
	Leader  uint64   `json:"leader"`           // node; 0: none known
	Term    uint64   `json:"term"`
	Commit  uint64   `json:"commit"`
	Applied uint64   `json:"applied"`
	// Configured are the replicas of the configuration in force here; a leader's account counts.
	Configured []uint64 `json:"configured,omitempty"`
	// Voting are those of them that vote.
	Voting []uint64     `json:"voting,omitempty"`
	Digest string       `json:"digest,omitempty"`
	Dir    *api.DirNode `json:"dir,omitempty"`
	Losses uint64       `json:"losses,omitempty"` // writes that it accepted as the leader and lost, ever
	Alarm  string       `json:"alarm,omitempty"`  // states differ and nobody knows who is right
	// Doubtful: the state is in quarantine.
	Doubtful bool `json:"doubtful,omitempty"`
	// Damage is what was found wrong with the log of a replica that goes on all the same; DamageNext is what to do about
	// that, or about a log with which the replica does not run.
	Damage     string `json:"damage,omitempty"`
	DamageNext string `json:"damage_next,omitempty"`
	// StateDamage is what was found wrong with the node's state store, in its report of the control group.
	StateDamage string    `json:"state_damage,omitempty"`
	StateSince  time.Time `json:"state_since,omitzero"`
	Files       uint64    `json:"files"`
	Bytes       uint64    `json:"bytes"`
	// Moved are the bytes of files' contents that it has received since it opened the directory.
	Moved uint64 `json:"moved,omitempty"`
}

// absent stands in for the report of a node that gave none: it is down, or answers but does not run the group (yet).
func absent(err error) report {
	r := report{Role: "unknown", Mode: "starting", Why: err.Error()}
	if silent := (*unanswered)(nil); errors.As(err, &silent) {
		r.Mode = "down"
	}
	if e := (*api.Error)(nil); errors.As(err, &e) {
		r.Why = e.Why
	}
	return r
}

// of tells whether the replica's log is of a history, as far as it says.
func (r *report) of(history [16]byte) bool { return r.History == history || r.History == [16]byte{} }

// reports tells whether a member has given an account of its part.
func (r *report) reports() bool { return r.Mode != "down" && r.Mode != "starting" }

// takesPart tells whether the member's replica runs.
func (r *report) takesPart() bool {
	return r.reports() && r.Mode != modeStopped && r.Mode != modeDamaged && r.Mode != modeAstray
}

func (n *node) reportHere(ctx context.Context, req groupRequest) (report, error) {
	if req.Group == control.ControlGroup {
		n.ctl.mu.Lock()
		defer n.ctl.mu.Unlock()
		if n.ctl.self == nil {
			return report{}, errStarting
		}
		if r, ok := n.reportSuspect(req.Group); ok {
			return r, nil
		}
		r, err := reportMember(n.ctl.self, n.ctl.grp, n.ctl.obs)
		if d := n.stateHurt.Load(); d != nil {
			r.StateDamage, r.StateSince = d.text, d.since
		}
		if n.ctl.grp == nil || !r.troubles(n.ctl.grp, nil) {
			n.noteFull(&r)
		}
		return r, err
	}
	if r, ok := n.reportSuspect(req.Group); ok {
		return r, nil
	}
	h, err := n.holding(req.Group)
	if err != nil {
		return report{}, err
	}
	r, err := reportMember(h.member, h.grp, h.obs)
	if err != nil {
		return r, err
	}
	if h.grp != nil && r.troubles(h.grp, h.whyItWaits()) {
		r.Dir = r.stoppedDir(n.id.Name())
		return r, nil
	}
	n.noteFull(&r)
	return r, h.describe(&r)
}

func reportMember(m member, grp *engine.Group, obs *engine.Observer) (report, error) {
	at, how := m.Applied(), m.Catchup()
	r := report{Applied: at.Index, Commit: at.Index, Term: at.Term, Role: control.RoleObserver, Doubtful: m.Quarantine() != nil}
	r.feed(how)
	if grp == nil {
		r.Leader, r.Commit = 0, max(at.Index, obs.SourceApplied())
		r.Alarm = obs.Alarm()
		return r, nil
	}
	st := grp.Fresh()
	r.History, r.Term, r.Commit = grp.Line().History, st.Term, committed(st.Commit, at.Index)
	r.Leader, _ = grp.NodeOf(st.Leader)
	r.Role, r.Configured, r.Voting = "follower", configured(st), st.Voters
	switch {
	case st.Role == core.Leader:
		r.Role = "leader"
	case !contains(st.Voters, grp.Replica()) && !contains(st.Outgoing, grp.Replica()): // also before it knows of itself
		r.Role = "learner"
	}
	var err error
	r.Losses, err = grp.Losses()
	r.Alarm = grp.Alarm()
	return r, err
}

var errStarting = &api.Error{Code: api.CodeUnavailable, Op: "group", Why: "the node is starting", Hint: "try again in a second"}

func contains(list []uint64, x uint64) bool {
	for _, y := range list {
		if x == y {
			return true
		}
	}
	return false
}

// survey asks every member of a group for its report, at once.
func (n *node) survey(ctx context.Context, g *control.Group) []report {
	return each(g.Members, func(m control.Member) report { return n.reportOrAbsent(ctx, g, m.Node) })
}

// surveys is survey of several groups. However many there are, a node that does not answer costs the time of one question.
func (n *node) surveys(ctx context.Context, groups []*control.Group) [][]report {
	silent := n.silent(ctx, groups)
	return eachAtMost(askedAtOnce, groups, func(g *control.Group) []report {
		return each(g.Members, func(m control.Member) report {
			if why := silent[m.Node]; why != nil {
				return absent(why)
			}
			return n.reportOrAbsent(ctx, g, m.Node)
		})
	})
}

// silent are the nodes among the groups' members that do not answer, and why.
func (n *node) silent(ctx context.Context, groups []*control.Group) map[uint64]error {
	var nodes []uint64
	for _, g := range groups {
		for _, m := range g.Members {
			nodes = append(nodes, m.Node)
		}
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	silent := map[uint64]error{}
	for i, err := range each(nodes, func(id uint64) error { _, err := n.hello(ctx, id); return err }) {
		if err != nil {
			silent[nodes[i]] = err
		}
	}
	return silent
}

// reportOrAbsent stands in for a report that a node does not give.
func (n *node) reportOrAbsent(ctx context.Context, g *control.Group, node uint64) report {
	r, err := n.reportOf(ctx, g, node)
	if err == nil {
		return r
	}
	if r = absent(err); r.Mode != "starting" {
		return r
	}
	if hello, err := n.hello(ctx, node); err == nil && hello.Full != nil {
		r.Why += "; its disk is full: " + describeFull(hello.Full)
	}
	return r
}

func (n *node) reportOf(ctx context.Context, g *control.Group, node uint64) (report, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return call(ctx, n, node, methodReport, groupRequest{Group: g.ID}, n.reportHere)
}

// describeGroup puts the members' reports together. The one with the highest term knows best who leads.
func (n *node) describeGroup(g *control.Group, reports []report) api.Group {
	out := api.Group{Name: g.Name, Kind: g.Kind, Ack: g.Ack, Topology: g.Topology, Replicas: []api.Replica{},
		InSync: api.InSync{Version: g.InSync.Version, Nodes: n.namesOf(g, g.InSync.Replicas), Since: g.InSync.Since, Why: g.InSync.Why,
			After: g.InSyncBound().String()}}
	out.History = fmt.Sprintf("%x", g.History)
	out.RepairAfter, out.RepairInherited = repairOff, g.RepairAfter == nil
	if after := n.ctl.state().RepairAfter(g); after > 0 {
		out.RepairAfter = after.String()
	}
	if f := g.Fork; f != nil {
		out.Fork = &api.Fork{Before: fmt.Sprintf("%x", f.Before), Index: f.Index, Cause: f.Cause, Time: f.Time, Node: n.seedOf(g)}
	}
	for _, r := range reports {
		if r.reports() && r.Leader != 0 && r.Term >= out.Term {
			out.Term, out.Leader = r.Term, n.nameOf(r.Leader)
		}
		out.Commit = max(out.Commit, r.Commit)
		out.Losses += r.Losses
	}
	for i, r := range reports {
		rep := api.Replica{Node: n.nameOf(g.Members[i].Node), Role: r.Role, Mode: r.Mode, Why: r.Why, Applied: r.Applied,
			Rule: r.Rule, Hops: r.Hops, Feeds: r.Feeds, Received: r.Received}
		if r.Upstream != 0 {
			rep.Upstream = n.nameOf(r.Upstream)
		}
		if r.reports() {
			rep.LagEntries = out.Commit - min(out.Commit, r.Applied)
		}
		if r.Dir != nil {
			rep.LagSeconds = r.Dir.LagSeconds
		}
		out.Replicas = append(out.Replicas, rep)
	}
	return out
}

func (n *node) describeDir(g *control.Group, reports []report) api.DirStatus {
	out := api.DirStatus{Group: g.Name, Ack: g.Ack, Conflict: g.Conflict, Topology: g.Topology, Nodes: []api.DirNode{}}
	for _, r := range reports {
		if r.Applied >= out.Position && r.reports() {
			out.Position = r.Applied
			if r.Digest != "" {
				out.Digest, out.Files, out.Bytes = r.Digest, r.Files, r.Bytes
			}
		}
	}
	for i, r := range reports {
		m := g.Members[i]
		d := api.DirNode{Node: n.nameOf(m.Node), Role: r.Role, Path: m.Path, Mode: r.Mode, Why: r.Why, Problems: []api.Problem{}}
		if r.Dir != nil {
			d = *r.Dir
			d.Node, d.Role, d.Path, d.Applied, d.Digest = n.nameOf(m.Node), r.Role, m.Path, r.Applied, r.Digest
		}
		out.Nodes = append(out.Nodes, d)
	}
	slices.SortFunc(out.Nodes, func(a, b api.DirNode) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// seedOf names the node that began a group's history; "" if it is no member any more.
func (n *node) seedOf(g *control.Group) string {
	for _, m := range g.Members {
		if m.Replica == g.Fork.Seed {
			return n.nameOf(m.Node)
		}
	}
	return ""
}
