package server

import (
	"context"
	"slices"

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
		now := n.hear(ctx, g)
		if e := control.CheckLeave(st, op, node, g, now.runs, now.voting); e != nil {
			return e
		}
	}
	comes := req.Node
	if req.Op == control.OpReplace {
		comes = req.With
	}
	if path := req.Path; path != "" {
		if err := n.checkBinding(ctx, op, comes, path, g.Marker()); err != nil {
			return err
		}
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Members: &control.Members{
		Group: group, Op: req.Op, Node: req.Node, With: req.With, Path: req.Path, Role: req.Role,
	}})
	return err
}

// hear asks all who have a part in the groups (none: in any), or had one lately, who leads a group included.
func (n *node) hear(ctx context.Context, groups ...*control.Group) heard {
	st := n.ctl.state()
	if len(groups) == 0 {
		for i := range st.Groups {
			groups = append(groups, &st.Groups[i])
		}
	}
	var nodes []uint64
	for _, g := range groups {
		if !g.Deleted {
			nodes = append(nodes, g.Holders()...)
		}
	}
	slices.Sort(nodes)
	nodes = slices.DeleteFunc(slices.Compact(nodes), func(id uint64) bool {
		p, ok := st.Node(id)
		return !ok || p.Removed
	})
	said := heard{}
	for i, a := range each(nodes, func(id uint64) *helloAnswer {
		a, err := n.hello(ctx, id)
		if err != nil {
			return nil
		}
		return &a
	}) {
		if a != nil {
			said[nodes[i]] = *a
		}
	}
	return said
}

// GroupDelete ends a group; the files stay.
func (n *node) GroupDelete(ctx context.Context, group string) error {
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), DeleteGroup: &control.DeleteGroup{Group: group}})
	return err
}
