package server

import (
	"context"

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
