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
	m := &g.Members[i]
	if m.Replica != c.Replica || m.Role != RoleVoter {
		return Result{Group: g.ID}, nil
	}
	if len(g.Voters()) == 1 {
		return refuse(api.CodeConflict, op, g.Name, "it is the only voter: there is no other log to heal from",
			"restore the group from a backup: lockstep restore"), nil
	}
	g.retire(*m)
	m.Replica = g.NextReplica
	g.NextReplica++
	x.what = fmt.Sprintf("group %s: the log of node %s is damaged; it begins again as replica %d", g.Name, nameIn(x.s, c.Node), m.Replica)
	return Result{Group: g.ID}, x.putGroup(g)
}
