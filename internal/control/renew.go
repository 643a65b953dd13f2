package control

import (
	"fmt"

	"github.com/lockstep-sync/lockstep/api"
)

// renew has a voter begin again under another id, fed by the others. The configuration takes the old one out in the
// change that promotes the new one. Whether the others can go on without it meanwhile only they know: who asks has
// made sure of it.
func (x *execution) renew(c *Renew) (Result, error) {
	const op = "renew replica"
	g, ok := x.s.Group(c.Group)
	if !ok || g.Deleted {
		return refuse(api.CodeNotFound, op, fmt.Sprint(c.Group), "no such group", "nothing is to be done"), nil
	}
	i := g.index(c.Node)
	if i < 0 {
		return refuse(api.CodeNotFound, op, g.Name, "the node is no member", "nothing is to be done"), nil
	}
	m := g.Members[i]
	if m.Replica == c.Replica && m.Role == RoleVoter && len(g.Voters()) == 1 {
		return refuse(api.CodeConflict, op, g.Name, "it is the only voter: there is no other log to heal from",
			"restore the group from a backup: lockstep restore"), nil
	}
	if !g.Renew(c.Node, c.Replica) {
		return Result{Group: g.ID}, nil
	}
	x.what = fmt.Sprintf("group %s: the log of node %s is damaged; it begins again as replica %d", g.Name, nameIn(x.s, c.Node),
		g.Members[i].Replica)
	return Result{Group: g.ID}, x.putGroup(g)
}

// Renew gives the node's seat to another replica; false if replica does not have it, does not vote, or is the only one
// that does.
func (g *Group) Renew(node, replica uint64) bool {
	i := g.index(node)
	if i < 0 || g.Members[i].Replica != replica || g.Members[i].Role != RoleVoter || len(g.Voters()) == 1 {
		return false
	}
	m := &g.Members[i]
	g.retire(*m)
	m.Replica = g.NextReplica
	g.NextReplica++
	return true
}
