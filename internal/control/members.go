package control

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// add appends a member under the group's next replica id.
func (g *Group) add(m Member) {
	m.Replica, m.Binding = g.NextReplica, g.NextReplica
	g.NextReplica++
	g.Members = append(g.Members, m)
}

// drop ends a membership.
func (g *Group) drop(i int) {
	if g.Members[i].Role == RoleVoter {
		g.retire(g.Members[i])
	}
	g.Members = slices.Delete(g.Members, i, i+1)
}

// retire remembers where a voter lived: the configuration holds it until the group's leader has taken it out.
func (g *Group) retire(m Member) {
	g.Former = append(g.Former, Former{m.Replica, m.Node})
	if extra := len(g.Former) - maxFormer; extra > 0 {
		g.Former = slices.Delete(g.Former, 0, extra)
	}
}

// turn gives a member another role, and with it another replica: an observer has no log to vote from, and a voter
// that has left must not be taken for one that came back.
func (g *Group) turn(i int, role string) {
	m := &g.Members[i]
	if m.Role == role {
		return
	}
	if m.Role == RoleVoter {
		g.retire(*m)
	}
	m.Role, m.Replica = role, g.NextReplica
	g.NextReplica++
}

// lastSeat refuses to take a seat without which nobody could vote.
func (g *Group) lastSeat(op string, n *Node, i int) *api.Error {
	if len(g.Members) == 1 {
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: n.Name, Why: "it holds the last copy of group " + g.Name,
			Hint: "add another member first, or end the group: lockstep group delete " + g.Name}
	}
	if g.Members[i].Role == RoleVoter && len(g.Voters()) == 1 {
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: n.Name, Why: "it is the last voter of group " + g.Name,
			Hint: "add or promote another node first: lockstep group members " + g.Name + " promote NODE"}
	}
	return nil
}

// memberNamed finds a member by its node's name.
func (x *execution) memberNamed(op string, g *Group, name string) (*Node, int, *api.Error) {
	n, ok := x.s.NodeNamed(name)
	if !ok {
		return nil, 0, x.s.UnknownNode(op, name)
	}
	i := slices.IndexFunc(g.Members, func(m Member) bool { return m.Node == n.ID })
	if i < 0 {
		return nil, 0, &api.Error{Code: api.CodeNotFound, Op: op, Subject: name, Why: "it is no member of group " + g.Name,
			Hint: "lockstep group show " + g.Name + " lists who is"}
	}
	return n, i, nil
}

func (x *execution) members(c *Members) (Result, error) {
	op := "group members " + c.Op
	g, ok := x.s.GroupNamed(c.Group)
	if !ok {
		return Result{Error: x.s.UnknownGroup(op, c.Group)}, nil
	}
	var e *api.Error
	switch c.Op {
	case OpAdd:
		e = x.addMember(op, g, c)
	case OpRemove:
		e = x.removeMember(op, g, c)
	case OpPromote, OpDemote:
		e = x.changeRole(op, g, c)
	case OpReplace:
		e = x.replaceMember(op, g, c)
	default:
		return refuse(api.CodeUsage, "group members", c.Op, "no such operation", "use add, remove, promote, demote or replace"), nil
	}
	if e != nil {
		return Result{Error: e}, nil
	}
	return Result{Group: g.ID}, x.putGroup(g)
}

func (x *execution) addMember(op string, g *Group, c *Members) *api.Error {
	if g.Kind == KindControl {
		return x.everyNode(op, c.Node)
	}
	n, path, e := x.newMember(op, g, c.Node, c.Path)
	if e != nil {
		return e
	}
	m := Member{Node: n.ID, Path: path, Role: g.roleOfNext()}
	switch c.Role {
	case "":
	case RoleVoter:
		if e := g.room(op, c.Node); e != nil {
			return e
		}
		m.Role, m.Pinned = RoleVoter, true
	case RoleObserver, RoleSpare:
		m.Role, m.Pinned, m.Spare = RoleObserver, true, c.Role == RoleSpare
	default:
		return &api.Error{Code: api.CodeUsage, Op: op, Subject: c.Role, Why: "no such role", Hint: "use voter, observer or spare"}
	}
	if n.Drain && m.Role == RoleVoter {
		return draining(op, n)
	}
	g.add(m)
	x.what = fmt.Sprintf("group %s: %s added as %s", g.Name, n.Name, g.Members[len(g.Members)-1].title())
	return nil
}

// title is a member's role in words.
func (m Member) title() string {
	if m.Spare {
		return RoleSpare
	}
	return m.Role
}

func (x *execution) everyNode(op, node string) *api.Error {
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: node, Why: "every node of the cluster belongs to the control group",
		Hint: "promote and demote say who votes in it; lockstep node remove takes a node out of the cluster"}
}

func (g *Group) room(op, node string) *api.Error {
	if len(g.Voters()) < MaxVoters {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: node,
		Why:  fmt.Sprintf("%d members of group %s vote, and more would only make it slower", MaxVoters, g.Name),
		Hint: "demote one first, or use: lockstep group members " + g.Name + " replace OLD NEW"}
}

func draining(op string, n *Node) *api.Error {
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: n.Name, Why: "the node is being drained: it takes no seat",
		Hint: "lockstep node undrain " + n.Name}
}

// newMember checks a node that is to become a member, and its directory.
func (x *execution) newMember(op string, g *Group, node, dir string) (*Node, string, *api.Error) {
	n, ok := x.s.NodeNamed(node)
	if !ok {
		return nil, "", x.s.UnknownNode(op, node)
	}
	if m, ok := g.Member(n.ID); ok {
		return nil, "", &api.Error{Code: api.CodeConflict, Op: op, Subject: node, Why: "it is a member already, as " + m.title(),
			Hint: "promote and demote change its role; lockstep group show " + g.Name + " lists the members"}
	}
	if dir == "" {
		if dir = g.commonPath(); dir == "" {
			return nil, "", &api.Error{Code: api.CodeUsage, Op: op, Subject: node, Why: "the members keep group " + g.Name + " at different paths",
				Hint: "say which directory: " + node + ":/PATH"}
		}
	}
	return x.checkBinding(op, node, dir)
}

// commonPath is the path that all members use, or "".
func (g *Group) commonPath() string {
	for _, m := range g.Members {
		if m.Path != g.Members[0].Path {
			return ""
		}
	}
	return g.Members[0].Path
}

func (x *execution) removeMember(op string, g *Group, c *Members) *api.Error {
	if g.Kind == KindControl {
		return x.everyNode(op, c.Node)
	}
	n, i, e := x.memberNamed(op, g, c.Node)
	if e == nil {
		e = g.lastSeat(op, n, i)
	}
	if e != nil {
		return e
	}
	g.drop(i)
	x.what = fmt.Sprintf("group %s: %s removed", g.Name, n.Name)
	return nil
}

func (x *execution) changeRole(op string, g *Group, c *Members) *api.Error {
	n, i, e := x.memberNamed(op, g, c.Node)
	if e != nil {
		return e
	}
	role := RoleVoter
	if c.Op == OpDemote {
		role = RoleObserver
	}
	switch m := g.Members[i]; {
	case m.Role == role:
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: c.Node, Why: "it is a " + m.title() + " of group " + g.Name + " already",
			Hint: "lockstep group show " + g.Name + " lists the members"}
	case role == RoleObserver:
		e = g.lastSeat(op, n, i)
	case n.Drain:
		e = draining(op, n)
	default:
		e = g.room(op, c.Node)
	}
	if e != nil {
		return e
	}
	g.turn(i, role)
	g.Members[i].Pinned, g.Members[i].Spare = true, false
	x.what = fmt.Sprintf("group %s: %s is now %s", g.Name, n.Name, role)
	return nil
}

// replaceMember gives a member's place to another node, which may be a member already if it observes.
func (x *execution) replaceMember(op string, g *Group, c *Members) *api.Error {
	old, i, e := x.memberNamed(op, g, c.Node)
	if e != nil {
		return e
	}
	with, ok := x.s.NodeNamed(c.With)
	if !ok {
		return x.s.UnknownNode(op, c.With)
	}
	if with.Drain && g.Members[i].Role == RoleVoter {
		return draining(op, with)
	}
	k := slices.IndexFunc(g.Members, func(m Member) bool { return m.Node == with.ID })
	if g.Kind == KindControl && k < 0 {
		return x.everyNode(op, c.With)
	}
	if k >= 0 && (g.Members[k].Role == RoleVoter || g.Members[i].Role != RoleVoter) {
		return &api.Error{Code: api.CodeConflict, Op: op, Subject: c.With, Why: "it is a " + g.Members[k].title() + " of group " + g.Name + " already",
			Hint: "choose a node that could take " + c.Node + "'s place: one that is no member, or only observes"}
	}
	role := g.Members[i].Role
	if k < 0 {
		n, path, e := x.newMember(op, g, c.With, c.Path)
		if e != nil {
			return e
		}
		g.add(Member{Node: n.ID, Role: role, Path: path, Pinned: g.Members[i].Pinned, Spare: g.Members[i].Spare})
	} else {
		g.turn(k, RoleVoter)
		g.Members[k].Pinned, g.Members[k].Spare = true, false
	}
	if g.Kind == KindControl { // every node stays a member of that one
		g.turn(i, RoleObserver)
		g.Members[i].Pinned = true
	} else {
		g.drop(i)
	}
	x.what = fmt.Sprintf("group %s: %s takes the place of %s as %s", g.Name, with.Name, old.Name, role)
	return nil
}

// seats carries out a decision of PlanSeats, if it still fits.
func (x *execution) seats(c *Seats) (Result, error) {
	const op = "seats"
	g, ok := x.s.Group(c.Group)
	if !ok || g.Deleted {
		return refuse(api.CodeNotFound, op, fmt.Sprint(c.Group), "no such group", "nothing is to be done"), nil
	}
	in, out := g.index(c.In), g.index(c.Out)
	stale := c.In != 0 && (in < 0 || g.Members[in].Role == RoleVoter) || c.Out != 0 && (out < 0 || g.Members[out].Role != RoleVoter) ||
		in < 0 && out < 0 || in < 0 && len(g.Voters()) == 1 || out < 0 && len(g.Voters()) >= MaxVoters
	if n, ok := x.s.Node(c.In); c.In != 0 && (!ok || n.Removed || n.Drain) {
		stale = true
	}
	if stale {
		return refuse(api.CodeConflict, op, g.Name, "the members have changed meanwhile", "the next decision looks at them again"), nil
	}
	x.what = fmt.Sprintf("group %s:", g.Name)
	if in >= 0 {
		g.turn(in, RoleVoter)
		x.what += fmt.Sprintf(" node %s votes", nameIn(x.s, c.In))
	}
	if out >= 0 {
		g.turn(out, RoleObserver)
		x.what += fmt.Sprintf(" node %s only observes", nameIn(x.s, c.Out))
	}
	if in >= 0 && out >= 0 {
		a, b := &g.Members[in], &g.Members[out]
		a.Pinned, b.Pinned, a.Spare, b.Spare = b.Pinned, a.Pinned, b.Spare, a.Spare
	}
	x.what += ": " + c.Why
	return Result{Group: g.ID}, x.putGroup(g)
}

// index of a node's membership, -1 if it has none.
func (g *Group) index(node uint64) int {
	return slices.IndexFunc(g.Members, func(m Member) bool { return m.Node == node })
}

func (x *execution) drain(c *Drain) (Result, error) {
	op := "node drain"
	if c.Off {
		op = "node undrain"
	}
	n, ok := x.s.NodeNamed(c.Node)
	if !ok {
		return Result{Error: x.s.UnknownNode(op, c.Node)}, nil
	}
	if n.Drain != c.Off {
		return Result{Node: n.ID}, nil
	}
	if !c.Off {
		if e := x.s.onlyHolder(op, n, func(m Member) bool { return m.Role == RoleVoter }); e != nil {
			return Result{Error: e}, nil
		}
	}
	n.Drain = !c.Off
	x.what = "node " + n.Name + " is being drained"
	if c.Off {
		x.what = "node " + n.Name + " takes part again"
	}
	return Result{Node: n.ID}, x.put(idKey(tagNode, n.ID), *n)
}

// onlyHolder refuses what would leave a group without anybody who could take over from the node. counts says which
// of its memberships matter.
func (s *State) onlyHolder(op string, n *Node, counts func(Member) bool) *api.Error {
	for i := range s.Groups {
		g := &s.Groups[i]
		m, ok := g.Member(n.ID)
		if g.Deleted || !ok || !counts(m) {
			continue
		}
		others := slices.ContainsFunc(g.Members, func(o Member) bool {
			p, ok := s.Node(o.Node)
			return o.Node != n.ID && ok && !p.Drain && (o.Role == RoleVoter || !o.Pinned || o.Spare)
		})
		if !others {
			why := "no other node could vote in group " + g.Name
			hint := "promote or add one first: lockstep group members " + g.Name + " add NODE"
			if len(g.Members) == 1 {
				why = "it holds the last copy of group " + g.Name
				hint = "add a node to it (lockstep group members " + g.Name + " add NODE), or end it (lockstep group delete " + g.Name + ")"
			}
			if g.Kind == KindControl {
				hint = "let another server join first"
			}
			return &api.Error{Code: api.CodeConflict, Op: op, Subject: n.Name, Why: why, Hint: hint}
		}
	}
	return nil
}

func (x *execution) removeNode(c *RemoveNode) (Result, error) {
	const op = "node remove"
	n, ok := x.s.NodeNamed(c.Node)
	if !ok {
		return Result{Error: x.s.UnknownNode(op, c.Node)}, nil
	}
	if e := x.s.onlyHolder(op, n, func(Member) bool { return true }); e != nil {
		return Result{Error: e}, nil
	}
	for i := range x.s.Groups {
		g := &x.s.Groups[i]
		k := g.index(n.ID)
		if k < 0 {
			continue
		}
		if g.Members[k].Role == RoleVoter && !g.Deleted {
			return refuse(api.CodeConflict, op, n.Name, "it still votes in group "+g.Name, "drain it first: lockstep node drain "+n.Name), nil
		}
		g.drop(k)
		if err := x.putGroup(g); err != nil {
			return Result{}, err
		}
	}
	n.Removed, n.Drain = true, false
	x.what = fmt.Sprintf("node %s removed", n.Name)
	return Result{Node: n.ID}, x.put(idKey(tagNode, n.ID), *n)
}

func (x *execution) deleteGroup(c *DeleteGroup) (Result, error) {
	const op = "group delete"
	g, ok := x.s.GroupNamed(c.Group)
	switch {
	case !ok:
		return Result{Error: x.s.UnknownGroup(op, c.Group)}, nil
	case g.Kind == KindControl:
		return refuse(api.CodeConflict, op, c.Group, "it describes the cluster itself", "delete the other groups; a cluster ends with its last node"), nil
	}
	g.Deleted = true
	x.what = fmt.Sprintf("group %s deleted; its files stay on %d nodes", g.Name, len(g.Members))
	return Result{Group: g.ID}, x.putGroup(g)
}

// MinRepairAfter keeps a restart from being taken for a loss.
const MinRepairAfter = 10 * time.Second

func (x *execution) choseLeader(c *ChoseLeader) (Result, error) {
	g, ok := x.s.GroupNamed(c.Group)
	if !ok {
		return Result{Error: x.s.UnknownGroup("group transfer", c.Group)}, nil
	}
	g.LeaderChosen = x.now
	x.what = fmt.Sprintf("group %s: leadership given to %s", g.Name, c.Node)
	return Result{Group: g.ID}, x.putGroup(g)
}
