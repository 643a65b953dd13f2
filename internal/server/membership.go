package server

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// The methods of httpdoor.Node about who belongs to what.

// GroupMember changes a membership. The groups' leaders carry the change out, one step at a time.
func (n *node) GroupMember(ctx context.Context, group string, req api.GroupMember) error {
	op := "group members " + req.Op
	st := n.ctl.state()
	g, ok := st.GroupNamed(group)
	if !ok {
		return st.UnknownGroup(op, group)
	}
	if node, ok := st.NodeNamed(req.Node); ok && (req.Op == control.OpRemove || req.Op == control.OpDemote) {
		if e := control.CheckLeave(st, op, node, g, n.upNow(ctx, g)); e != nil {
			return e
		}
	}
	comes := req.Node
	if req.Op == control.OpReplace {
		comes = req.With
	}
	if path := req.Path; path != "" {
		if err := n.checkBinding(ctx, op, comes, path); err != nil {
			return err
		}
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Members: &control.Members{
		Group: group, Op: req.Op, Node: req.Node, With: req.With, Path: req.Path, Role: req.Role,
	}})
	return err
}

// upNow asks the voters of the groups (none: of all) which of them answer.
func (n *node) upNow(ctx context.Context, groups ...*control.Group) func(node uint64) bool {
	st := n.ctl.state()
	if len(groups) == 0 {
		for i := range st.Groups {
			groups = append(groups, &st.Groups[i])
		}
	}
	var nodes []control.Member
	seen := map[uint64]bool{}
	for _, g := range groups {
		for _, m := range g.Members {
			if !g.Deleted && !seen[m.Node] {
				seen[m.Node] = true
				nodes = append(nodes, m)
			}
		}
	}
	up := map[uint64]bool{}
	for i, answers := range each(nodes, func(m control.Member) bool { return n.isUp(ctx, m.Node) }) {
		up[nodes[i].Node] = answers
	}
	return func(id uint64) bool { return up[id] }
}

// GroupDelete ends a group; the files stay.
func (n *node) GroupDelete(ctx context.Context, group string) error {
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), DeleteGroup: &control.DeleteGroup{Group: group}})
	return err
}

// NodeDrain moves a node's seats and leaderships away and returns when the groups' configurations hold it no more, or
// has it take part again.
func (n *node) NodeDrain(ctx context.Context, name string, off bool, progress func(api.Progress)) (api.NodeChange, error) {
	out := api.NodeChange{Node: name, State: "active", Moved: []string{}, Warnings: []string{}}
	if off {
		_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Drain: &control.Drain{Node: name, Off: true}})
		return out, err
	}
	return n.drain(ctx, "node drain", name, progress)
}

func (n *node) drain(ctx context.Context, op, name string, progress func(api.Progress)) (api.NodeChange, error) {
	out := api.NodeChange{Node: name, State: "drained", Moved: []string{}, Warnings: []string{}}
	st := n.ctl.state()
	p, ok := st.NodeNamed(name)
	if !ok {
		return out, st.UnknownNode(op, name)
	}
	if e := control.CheckLeave(st, op, p, nil, n.upNow(ctx)); e != nil {
		return out, e
	}
	for i := range st.Groups {
		if m, ok := st.Groups[i].Member(p.ID); ok && m.Role == control.RoleVoter && !st.Groups[i].Deleted {
			out.Moved = append(out.Moved, st.Groups[i].Name)
		}
	}
	if _, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Drain: &control.Drain{Node: name}}); err != nil {
		return out, err
	}
	if err := n.awaitDrained(ctx, op, p, uint64(len(out.Moved)), progress); err != nil {
		return out, err
	}
	st = n.ctl.state()
	for _, moved := range out.Moved {
		if g, ok := st.GroupNamed(moved); ok && len(g.Voters()) < 3 {
			out.Warnings = append(out.Warnings, fmt.Sprintf("group %s has %d voters left: if one is down it accepts no changes", moved, len(g.Voters())))
		}
	}
	return out, nil
}

// drainPoll is how often a drain is looked at while somebody waits for it.
const drainPoll = 200 * time.Millisecond

func (n *node) awaitDrained(ctx context.Context, op string, p *control.Node, total uint64, progress func(api.Progress)) error {
	t := time.NewTicker(drainPoll)
	defer t.Stop()
	for {
		left := n.seatsLeft(ctx, p.ID)
		if progress != nil {
			progress(api.Progress{What: "draining", Node: p.Name, Done: total - min(total, uint64(len(left))), Total: total, Unit: "groups"})
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return &api.Error{Code: api.CodeUnavailable, Op: op, Subject: p.Name,
				Why:  fmt.Sprintf("it still has a seat in %d groups, %s among them", len(left), left[0]),
				Hint: "it goes on being drained; lockstep group show " + left[0] + " says what keeps it"}
		}
	}
}

// seatsLeft names the groups that a node still has a seat in: by the control group's word, or in the configuration that
// the group's leader has in force.
func (n *node) seatsLeft(ctx context.Context, id uint64) (left []string) {
	st := n.ctl.state()
	for i := range st.Groups {
		g := &st.Groups[i]
		m, ok := g.Member(id)
		if g.Deleted || !ok {
			continue
		}
		if m.Role == control.RoleVoter || n.configuredAt(ctx, g, id) {
			left = append(left, g.Name)
		}
	}
	return left
}

// configuredAt asks the leader whether its configuration holds a replica of the node; without a leader nobody knows.
func (n *node) configuredAt(ctx context.Context, g *control.Group, id uint64) bool {
	for _, r := range n.survey(ctx, g) {
		if r.Role != "leader" {
			continue
		}
		for _, replica := range r.Configured {
			if at, ok := g.NodeOf(replica); ok && at == id {
				return true
			}
		}
		return false
	}
	return true
}

// NodeRemove drains a node, waits until others have what it holds, and takes it out of the cluster. With force the node
// is lost: nobody waits for what only it had.
func (n *node) NodeRemove(ctx context.Context, name string, force bool, progress func(api.Progress)) (api.NodeChange, error) {
	const op = "node remove"
	st := n.ctl.state()
	p, ok := st.NodeNamed(name)
	if !ok {
		return api.NodeChange{}, st.UnknownNode(op, name)
	}
	up := n.isUp(ctx, p.ID)
	switch {
	case !up && !force:
		return api.NodeChange{}, &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "it is down, so what only it has cannot be saved",
			Hint: "start it and try again; if it is lost for good, add --force"}
	case up && force:
		return api.NodeChange{}, &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "it is up: nothing has to be forced",
			Hint: "leave --force out; to remove a node that must not speak, stop it first"}
	case p.ID == n.self:
		return api.NodeChange{}, &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "a node does not remove itself",
			Hint: "ask another node: --server"}
	}
	out, err := n.drain(ctx, op, name, progress)
	if err != nil {
		return out, err
	}
	if !force {
		if err := n.saveCopies(ctx, op, p, progress); err != nil {
			return out, err
		}
	}
	_, err = n.ctl.propose(ctx, &control.Command{By: n.id.Name(), RemoveNode: &control.RemoveNode{Node: name}})
	out.State = "removed"
	return out, err
}

// saveCopies waits until a majority of each directory's voters holds all that is on the node's disk.
func (n *node) saveCopies(ctx context.Context, op string, p *control.Node, progress func(api.Progress)) error {
	st := n.ctl.state()
	for i := range st.Groups {
		g := &st.Groups[i]
		if _, ok := g.Member(p.ID); !ok || g.Deleted || g.Kind != control.KindFiles {
			continue
		}
		w, err := n.DirWait(ctx, g.Name, api.DirWaitFor{Mode: api.WaitQuorum}, progress)
		if err != nil {
			return err
		}
		if !w.Done {
			return &api.Error{Code: api.CodeUnavailable, Op: op, Subject: p.Name, Why: "the others do not have everything of " + g.Name + " yet",
				Hint: "lockstep dir status " + g.Name + " says what keeps them; then try again"}
		}
	}
	return nil
}
