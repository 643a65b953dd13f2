package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// The methods of httpdoor.Node that are not about directories.

// Version of this binary.
func (n *node) Version(context.Context) (api.Version, error) {
	v := n.cfg.Version
	if st := n.ctl.state(); st.Cluster.ID != "" {
		v.Cluster = int(st.Level())
	}
	return v, nil
}

// Ready holds once the node knows its cluster and every directory that it holds has been compared with it.
func (n *node) Ready(context.Context) []api.Check {
	st := n.ctl.state()
	checks := []api.Check{{Name: "control", OK: st.Cluster.ID != "", Text: "the node does not know its cluster's state yet"}}
	if me, ok := st.Node(n.self); !ok || me.Removed {
		checks = append(checks, api.Check{Name: "member", Text: "the node is not a member of the cluster yet"})
	}
	if g, ok := st.Group(control.ControlGroup); ok {
		checks = append(checks, n.leaderCheck(g))
	}
	for i := range st.Groups {
		g := &st.Groups[i]
		if _, mine := g.Member(n.self); !mine || g.Deleted || g.Kind != control.KindFiles {
			continue
		}
		checks = append(checks, n.leaderCheck(g))
		c := api.Check{Name: "dir " + g.Name}
		if h, err := n.holding(g.ID); err != nil {
			c.Text = err.Error()
			if s, ok := n.suspected(g.ID); ok {
				c.Hint = s.hint()
			}
		} else {
			c.OK, c.Text = h.ready()
		}
		checks = append(checks, c)
	}
	for i := range checks {
		if checks[i].OK {
			checks[i].Text = ""
		}
	}
	return checks
}

// Status of this node and its view of the cluster.
func (n *node) Status(ctx context.Context) (api.Status, error) {
	st := n.ctl.state()
	out := api.Status{Cluster: n.id.Cluster().String(), Ready: true, Groups: []api.Group{}, Dirs: []api.DirStatus{}, Warnings: []api.Warning{}}
	for _, c := range n.Ready(ctx) {
		out.Ready = out.Ready && c.OK
		if !c.OK {
			out.Warnings = append(out.Warnings, api.Warning{Name: "not_ready", Subject: c.Name, Text: c.Text, Hint: cmp.Or(c.Hint, "it usually becomes ready by itself"), Since: time.Now()})
		}
	}
	out.Warnings = append(append(out.Warnings, n.strangers()...), n.clockWarnings()...)
	if st.Cluster.ID != "" {
		out.Level = st.Level()
		out.Warnings = append(out.Warnings, levelWarnings(st)...)
	}
	var err error
	if out.Nodes, err = n.Nodes(ctx); err != nil {
		return out, err
	}
	for _, node := range out.Nodes {
		if node.Self {
			out.Node = node
		}
		if node.Full != nil {
			out.Warnings = append(out.Warnings, fullWarning(node))
		}
	}
	groups := living(st)
	for i, reports := range n.surveys(ctx, groups) {
		g := groups[i]
		shown := n.describeGroup(g, reports)
		out.Groups = append(out.Groups, shown)
		out.Warnings = append(append(out.Warnings, feedWarnings(shown)...), trustWarnings(n.ctl.state(), g, shown, reports)...)
		out.Warnings = append(out.Warnings, damageWarnings(shown, reports)...)
		if g.Kind == control.KindFiles {
			d := n.describeDir(g, reports)
			out.Dirs = append(out.Dirs, d)
			out.Warnings = append(out.Warnings, warnings(d)...)
		}
	}
	out.Warnings = append(out.Warnings, idleDown(out)...)
	return out, nil
}

// idleDown are the nodes that are down and keep no directory, which the directories' warnings do not name.
func idleDown(s api.Status) (list []api.Warning) {
	for _, node := range s.Nodes {
		keeps := slices.ContainsFunc(s.Dirs, func(d api.DirStatus) bool {
			return slices.ContainsFunc(d.Nodes, func(m api.DirNode) bool { return m.Node == node.Name })
		})
		if node.State == "down" && !keeps {
			list = append(list, api.Warning{Name: "node_down", Subject: node.Name, Text: "it does not answer at " + node.Address,
				Hint: "start it; if it is gone for good: lockstep node remove " + node.Name + " --force"})
		}
	}
	return list
}

// warnings are what an operator should look at in a directory.
func warnings(d api.DirStatus) (list []api.Warning) {
	for _, m := range d.Nodes {
		subject := d.Group + " on " + m.Node
		switch m.Mode {
		case "down":
			list = append(list, api.Warning{Name: "node_down", Subject: subject, Text: m.Why,
				Hint: "start it; it catches up by itself"})
		case "starting":
			list = append(list, api.Warning{Name: "node_starting", Subject: subject, Text: "the node answers, but does not take part yet: " + m.Why,
				Hint: "usually nothing: it follows within seconds; if it stays, see the node's output"})
		case "stopped":
			list = append(list, api.Warning{Name: "dir_stopped", Subject: subject, Text: m.Why,
				Hint: stoppedHint(d.Group, &m)})
		}
		rest := slices.DeleteFunc(slices.Clone(m.Problems), func(p api.Problem) bool { return m.Mode == "stopped" && saysWhy(p, &m) })
		if len(rest) > 0 {
			list = append(list, api.Warning{Name: "dir_problems", Subject: subject, Since: rest[0].Since,
				Text: problemText(rest), Hint: "lockstep dir status " + d.Group + " lists them, and what to do"})
		}
	}
	return list
}

// saysWhy tells a problem that is the reason of a node's mode.
func saysWhy(p api.Problem, m *api.DirNode) bool { return p.Path == "" && p.What == m.Why }

// stoppedHint tells what a binding that does not work waits for: what the reason's own problem says, else a word, if a
// guard holds it, or its directory.
func stoppedHint(group string, m *api.DirNode) string {
	for _, p := range m.Problems {
		if saysWhy(p, m) && p.Hint != "" {
			return p.Hint
		}
	}
	if m.Watcher == "" { // it could not even be opened
		return fmt.Sprintf("see to %s on %s; the node takes it up by itself, within seconds", m.Path, m.Node)
	}
	return fmt.Sprintf("look at %s; if all is as it should be: lockstep dir resume %s %s", m.Path, group, m.Node)
}

// problemText sums problems up. One with an empty path is of the whole directory, and comes first.
func problemText(list []api.Problem) string {
	if i := slices.IndexFunc(list, func(p api.Problem) bool { return p.Path == "" }); i >= 0 {
		if len(list) == 1 {
			return list[i].What
		}
		return fmt.Sprintf("%s (and %d more)", list[i].What, len(list)-1)
	}
	many := "1 path is"
	if len(list) > 1 {
		many = fmt.Sprintf("%d paths are", len(list))
	}
	return fmt.Sprintf("%s not in step, the first: %s: %s", many, list[0].Path, list[0].What)
}

// Nodes of the cluster that were not removed.
func (n *node) Nodes(ctx context.Context) ([]api.Node, error) {
	st := n.ctl.state()
	ctl, ok := st.Group(control.ControlGroup)
	if !ok {
		return []api.Node{{Name: n.id.Name(), ID: nodeID(n.self), Address: n.advertise, State: "joining", Version: n.cfg.Version.Version, Self: true, Levels: shownLevels(knows())}}, nil
	}
	now := n.hear(ctx, ctl)
	var out []api.Node
	for _, m := range ctl.Members {
		p, ok := st.Node(m.Node)
		if !ok || p.Removed {
			continue
		}
		state := "down"
		if now.up(m.Node) {
			state = "up"
		}
		votes, learning := voteOf(&m, now.voting(ctl.ID))
		out = append(out, api.Node{Name: p.Name, ID: nodeID(p.ID), Address: p.Address, State: state, Version: p.Version,
			Voter: votes, Learning: learning, Self: p.ID == n.self, Drain: p.Drain, Zone: p.Zone, Full: now[m.Node].Full, Levels: shownLevels(p.Levels)})
	}
	return out, nil
}

// voteOf says whether a member votes by the configuration in force, or is to once it has learned. Without a leader, which
// knows, its role has to do.
func voteOf(m *control.Member, voting []uint64) (votes, learning bool) {
	should := m.Role == control.RoleVoter
	if voting == nil {
		return should, false
	}
	votes = contains(voting, m.Node)
	return votes, should && !votes
}

func nodeID(id uint64) string { return fmt.Sprintf("%016x", id) }

// TokenCreate mints a token that names up to five nodes to ask.
func (n *node) TokenCreate(ctx context.Context, ttl time.Duration) (api.Token, error) {
	var addrs []string
	for _, id := range append([]uint64{n.self}, n.votersOf(control.ControlGroup)...) {
		if p, ok := n.ctl.state().Node(id); ok && len(addrs) < 5 && (id != n.self || len(addrs) == 0) {
			addrs = append(addrs, p.Address)
		}
	}
	if len(addrs) == 0 {
		return api.Token{}, &api.Error{Code: api.CodeUnavailable, Op: "token create", Subject: n.id.Name(),
			Why: "this node does not know its cluster yet", Hint: "try again in a second"}
	}
	t, err := access.NewToken(n.id.Cluster(), n.id.CAFingerprint(), addrs, ttl, time.Now(), rand.Reader)
	if err != nil {
		return api.Token{}, &api.Error{Code: api.CodeUsage, Op: "token create", Why: err.Error()}
	}
	hash := t.Secret.Hash(t.ID)
	_, err = n.ctl.propose(ctx, &control.Command{By: n.id.Name(), AddToken: &control.Token{
		ID: t.ID.String(), SecretHash: hex.EncodeToString(hash[:]), Expires: t.Expires,
	}})
	return api.Token{Token: t.Encode(), ID: t.ID.String(), Expires: t.Expires}, err
}

// TokenList shows tokens that still let servers in.
func (n *node) TokenList(context.Context) ([]api.Token, error) {
	var out []api.Token
	for _, t := range n.ctl.state().Tokens {
		if !t.Revoked && t.Expires.After(time.Now()) {
			out = append(out, api.Token{ID: t.ID, Expires: t.Expires, Used: t.Used})
		}
	}
	return out, nil
}

// TokenRevoke ends a token.
func (n *node) TokenRevoke(ctx context.Context, id string) error {
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), RevokeToken: &control.RevokeToken{ID: id}})
	return err
}

// Groups of the cluster.
func (n *node) Groups(ctx context.Context) ([]api.Group, error) {
	var out []api.Group
	groups := living(n.ctl.state())
	for i, reports := range n.surveys(ctx, groups) {
		out = append(out, n.describeGroup(groups[i], reports))
	}
	return out, nil
}

// living are the groups that were not deleted.
func living(st *control.State) (groups []*control.Group) {
	for i := range st.Groups {
		if g := &st.Groups[i]; !g.Deleted {
			groups = append(groups, g)
		}
	}
	return groups
}

// Group by name.
func (n *node) Group(ctx context.Context, name string) (api.Group, error) {
	g, err := n.groupNamed("group show", name)
	if err != nil {
		return api.Group{}, err
	}
	return n.describeGroup(g, n.survey(ctx, g)), nil
}

func (n *node) groupNamed(op, name string) (*control.Group, error) {
	g, ok := n.ctl.state().GroupNamed(name)
	if !ok {
		return nil, n.ctl.state().UnknownGroup(op, name)
	}
	return g, nil
}

// TransferLeader hands a group's leadership to a node.
func (n *node) TransferLeader(ctx context.Context, group, name string) error {
	const op = "group transfer"
	g, err := n.groupNamed(op, group)
	if err != nil {
		return err
	}
	to, ok := n.ctl.state().NodeNamed(name)
	if !ok {
		return &api.Error{Code: api.CodeNotFound, Op: op, Subject: name, Why: "no such node", Hint: "lockstep node list shows them"}
	}
	if m, ok := g.Member(to.ID); !ok || m.Role != control.RoleVoter {
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "it does not vote in group " + group, Hint: "lockstep group show " + group + " lists who does"}
	}
	for i, r := range n.survey(ctx, g) {
		if r.Role == "leader" {
			if _, err := call(ctx, n, g.Members[i].Node, methodLead, groupRequest{Group: g.ID, Node: to.ID}, n.leadHere); err != nil {
				return err
			}
			// Recorded afterwards, so that a transfer works while the control group does not.
			ctx, cancel := context.WithTimeout(ctx, answerTime)
			defer cancel()
			if _, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), ChoseLeader: &control.ChoseLeader{Group: group, Node: name}}); err != nil {
				n.log.Warn("the choice of a leader is not recorded: it may be moved again", "group", group, "err", err)
			}
			return nil
		}
	}
	return &api.Error{Code: api.CodeUnavailable, Op: op, Subject: group, Why: "the group has no leader now", Hint: "try again in a second"}
}

func (n *node) leadHere(ctx context.Context, req groupRequest) (none, error) {
	grp := n.groupHere(req.Group)
	if grp == nil {
		return none{}, errNoSuchGroup
	}
	g, ok := n.ctl.state().Group(req.Group)
	if !ok {
		return none{}, errNoSuchGroup
	}
	m, ok := g.Member(req.Node)
	if !ok {
		return none{}, errNoSuchGroup
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return none{}, grp.Transfer(ctx, m.Replica)
}
