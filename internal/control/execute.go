package control

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// execution is one command at work on the state before it.
type execution struct {
	tx    kv.Tx
	s     *State
	now   time.Time
	index uint64
	what  string // for the audit trail
	wrote bool
}

// run returns a storage error, or a result that may hold a refusal.
func (x *execution) run(c *Command) (Result, error) {
	if c.Init == nil && x.s.Cluster.ID == "" {
		return refuse(api.CodeUnavailable, "control", "", "the cluster has not been started yet", "try again in a moment"), nil
	}
	switch {
	case c.Init != nil:
		return x.init(c.Init)
	case c.AddToken != nil:
		return x.addToken(c.AddToken)
	case c.RevokeToken != nil:
		return x.revokeToken(c.RevokeToken)
	case c.Join != nil:
		return x.join(c.Join)
	case c.SetAddress != nil:
		return x.setAddress(c.SetAddress)
	case c.CreateGroup != nil:
		return x.createGroup(c.CreateGroup)
	case c.Bind != nil:
		return x.bind(c.Bind)
	case c.Unbind != nil:
		return x.unbind(c.Unbind)
	case c.ForkGroup != nil:
		return x.forkGroup(c.ForkGroup)
	case c.RefuseFork != nil:
		return x.refuseFork(c.RefuseFork)
	case c.SetGroup != nil:
		return x.setGroup(c.SetGroup)
	case c.SetCluster != nil:
		return x.setCluster(c.SetCluster)
	case c.SetInSync != nil:
		return x.setInSync(c.SetInSync)
	case c.Raise != nil:
		return x.raise(c.Raise)
	}
	return x.runMembership(c)
}

// runMembership carries out what changes who belongs to what.
func (x *execution) runMembership(c *Command) (Result, error) {
	switch {
	case c.Members != nil:
		return x.members(c.Members)
	case c.Seats != nil:
		return x.seats(c.Seats)
	case c.Drain != nil:
		return x.drain(c.Drain)
	case c.RemoveNode != nil:
		return x.removeNode(c.RemoveNode)
	case c.DeleteGroup != nil:
		return x.deleteGroup(c.DeleteGroup)
	case c.ChoseLeader != nil:
		return x.choseLeader(c.ChoseLeader)
	case c.Renew != nil:
		return x.renew(c.Renew)
	}
	return refuse(api.CodeUsage, "control", "", "an unknown command", "upgrade the nodes that are older"), nil
}

func refuse(code api.Code, op, subject, why, hint string) Result {
	return Result{Error: &api.Error{Code: code, Op: op, Subject: subject, Why: why, Hint: hint}}
}

func (x *execution) init(c *Init) (Result, error) {
	if x.s.Cluster.ID != "" {
		return Result{Node: 1}, nil
	}
	if c.Cluster.ID == "" {
		return refuse(api.CodeUsage, "serve", "", "a cluster needs an id", "start the node again"), nil
	}
	if why := checkName(c.Node.Name); why != "" {
		return refuse(api.CodeUsage, "serve", c.Node.Name, why, "choose another with --name"), nil
	}
	if level := max(c.Cluster.Level, FirstLevel); !c.Node.Levels.Has(level) {
		return Result{Error: Unfit("serve", c.Node.Name, c.Node.Levels, level)}, nil
	}
	n := c.Node
	n.ID, n.Joined = 1, x.now
	g := Group{
		ID: ControlGroup, Name: KindControl, Kind: KindControl, Ack: "quorum", History: c.History, Created: x.now,
		Initial: []uint64{1}, Members: []Member{{Replica: 1, Node: 1, Role: RoleVoter, Binding: 1}}, NextReplica: 2,
		Topology: "auto", InSync: InSync{Version: 1, Replicas: []uint64{1}, Since: x.now, Why: "the group is new"},
	}
	c.Cluster.Created = x.now
	x.what = "cluster created by " + n.Name
	return Result{Node: 1}, x.put([]byte{tagCluster}, c.Cluster, idKey(tagNode, 1), n, idKey(tagGroup, ControlGroup), g)
}

func (x *execution) addToken(t *Token) (Result, error) {
	t.Created, t.Used, t.Revoked = x.now, 0, false
	if _, exists := x.s.Token(t.ID); exists || t.ID == "" {
		return refuse(api.CodeConflict, "token create", t.ID, "a token of this id exists", "create another"), nil
	}
	if !t.Expires.After(x.now) {
		return refuse(api.CodeUsage, "token create", t.ID, "it would have expired already", "give a longer --ttl"), nil
	}
	for _, old := range x.s.Tokens { // expired ones make room
		if old.Expires.Before(x.now.Add(-24 * time.Hour)) {
			if err := x.tx.Delete(tokenKey(old.ID)); err != nil {
				return Result{}, err
			}
		}
	}
	x.what = "token " + t.ID + " created"
	return Result{}, x.put(tokenKey(t.ID), *t)
}

func tokenKey(id string) []byte { return append([]byte{tagToken}, id...) }

func (x *execution) revokeToken(c *RevokeToken) (Result, error) {
	t, ok := x.s.Token(c.ID)
	if !ok {
		return refuse(api.CodeNotFound, "token revoke", c.ID, "no such token", "lockstep token list shows them"), nil
	}
	t.Revoked = true
	x.what = "token " + t.ID + " revoked"
	return Result{}, x.put(tokenKey(t.ID), *t)
}

func (x *execution) join(c *Join) (Result, error) {
	const op, again = "join", "make a new one with: lockstep token create"
	t, ok := x.s.Token(c.Token)
	switch {
	case !ok:
		return refuse(api.CodeDenied, op, "token "+c.Token, "the cluster does not know this token", again), nil
	case t.Revoked:
		return refuse(api.CodeDenied, op, "token "+c.Token, "the token was revoked", again), nil
	case !x.now.Before(t.Expires):
		return refuse(api.CodeDenied, op, "token "+c.Token, "the token expired at "+t.Expires.Format(time.RFC3339), again), nil
	}
	if why := checkName(c.Name); why != "" {
		return refuse(api.CodeUsage, op, c.Name, why, "choose another with --name"), nil
	}
	old, taken := x.s.NodeNamed(c.Name)
	if taken && !c.Replace {
		return refuse(api.CodeConflict, op, c.Name, "a node of this name is in the cluster",
			"choose another --name; or, if that node has lost its data for good, add --replace"), nil
	}
	if !taken && c.Replace {
		e := x.s.UnknownNode(op, c.Name)
		e.Why = "the cluster has no node of this name, whose place could be taken"
		e.Hint = "give the name of the lost node with --name (" + e.Hint + "); or, to join as a new node, leave --replace out"
		return Result{Error: e}, nil
	}
	if why := checkZone(c.Zone); why != "" {
		return refuse(api.CodeUsage, op, c.Zone, why, "choose another with --zone"), nil
	}
	if level := x.s.Level(); !c.Levels.Has(level) {
		return Result{Error: Unfit(op, c.Name, c.Levels, level)}, nil
	}
	n := Node{ID: x.s.Nodes[len(x.s.Nodes)-1].ID + 1, Name: c.Name, Address: c.Address, Version: c.Version, Zone: c.Zone, Joined: x.now, Levels: c.Levels}
	t.Used++
	x.what = fmt.Sprintf("node %s joined as %d with token %s", n.Name, n.ID, t.ID)
	if err := x.put(idKey(tagNode, n.ID), n, tokenKey(t.ID), *t); err != nil {
		return Result{}, err
	}
	if taken {
		return Result{Node: n.ID}, x.replace(old, n.ID)
	}
	control, _ := x.s.Group(ControlGroup)
	control.add(Member{Node: n.ID, Role: control.roleOfNext()})
	return Result{Node: n.ID}, x.putGroup(control)
}

// replace gives the new node every membership of the old one, under replica ids of its own.
func (x *execution) replace(old *Node, by uint64) error {
	old.Removed, old.ReplacedBy = true, by
	x.what += fmt.Sprintf(", in place of node %d", old.ID)
	if err := x.put(idKey(tagNode, old.ID), *old); err != nil {
		return err
	}
	for i := range x.s.Groups {
		g := &x.s.Groups[i]
		for k, m := range g.Members {
			if m.Node != old.ID {
				continue
			}
			if m.Role == RoleVoter {
				g.retire(m)
			}
			m.Node, m.Replica = by, g.NextReplica
			m.Binding = m.Replica
			g.NextReplica++
			g.Members[k] = m
			if err := x.putGroup(g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (x *execution) setAddress(c *SetAddress) (Result, error) {
	n, ok := x.s.Node(c.Node)
	if !ok || n.Removed {
		return Result{Error: Expelled(fmt.Sprint(c.Node))}, nil
	}
	if !n.Life.Admits(c.Life) {
		return Result{Error: Outlived(n.Name)}, nil
	}
	if why := checkZone(c.Zone); why != "" {
		return refuse(api.CodeUsage, "serve", c.Zone, why, "choose another with --zone"), nil
	}
	if level := x.s.Level(); !c.Levels.Has(level) {
		return Result{Error: Unfit("serve", n.Name, c.Levels, level)}, nil
	}
	if c.Life == (Life{}) {
		c.Life = n.Life
	}
	same := n.Address == c.Address && n.Version == c.Version && n.Zone == c.Zone && n.Levels == c.Levels
	if same && n.Life == c.Life {
		return Result{Node: n.ID}, nil
	}
	if !same { // a mere start is no change that anybody has to answer for
		x.what = fmt.Sprintf("node %s is at %s, version %s", n.Name, c.Address, c.Version)
		if c.Zone != "" {
			x.what += ", in zone " + c.Zone
		}
		if n.Levels.Known() != c.Levels.Known() {
			x.what += ", which knows " + c.Levels.String()
		}
	}
	n.Address, n.Version, n.Zone, n.Life, n.Levels = c.Address, c.Version, c.Zone, c.Life, c.Levels
	return Result{Node: n.ID}, x.put(idKey(tagNode, n.ID), *n)
}

func (x *execution) createGroup(c *CreateGroup) (Result, error) {
	const op = "dir create"
	if why := checkName(c.Name); why != "" {
		return refuse(api.CodeUsage, op, c.Name, why, "choose another name"), nil
	}
	if _, ok := x.s.GroupNamed(c.Name); ok {
		return refuse(api.CodeConflict, op, c.Name, "a group of this name exists", "lockstep dir status "+c.Name+" shows it; choose another name"), nil
	}
	g := Group{
		ID: x.s.Groups[len(x.s.Groups)-1].ID + 1, Name: c.Name, Kind: KindFiles, Ack: c.Ack, Conflict: c.Conflict,
		Mode: c.Mode, Topology: c.Topology, History: c.History, Created: x.now, NextReplica: 1,
	}
	if e := checkSettings(x.s, &g); e != nil {
		return Result{Error: e}, nil
	}
	if len(c.Paths) == 0 {
		return refuse(api.CodeUsage, op, c.Name, "no node is to hold it", "name at least one with --on"), nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.Paths)) {
		n, path, e := x.checkBinding(op, name, c.Paths[name])
		if e != nil {
			return Result{Error: e}, nil
		}
		g.add(Member{Node: n.ID, Role: RoleObserver, Path: path})
	}
	for _, i := range spread(x.s, g.Members, MaxVoters) {
		g.Members[i].Role = RoleVoter
		g.Initial = append(g.Initial, g.Members[i].Replica)
	}
	g.InSync = InSync{Version: 1, Replicas: slices.Clone(g.Initial), Since: x.now, Why: "the group is new"}
	x.what = fmt.Sprintf("files group %s created on %s", g.Name, nodes(len(g.Members)))
	if c.Restore != nil {
		if e := x.fork("restore", &g, c.Restore); e != nil {
			return Result{Error: e}, nil
		}
		x.what += fmt.Sprintf(" from a backup: history %x goes on from %x at %d", g.History, g.Fork.Before, g.Fork.Index)
	}
	return Result{Group: g.ID}, x.put(idKey(tagGroup, g.ID), g)
}

func (x *execution) bind(c *Bind) (Result, error) {
	const op = "dir bind"
	g, r := x.filesGroup(op, c.Group)
	if g == nil {
		return r, nil
	}
	n, path, e := x.checkBinding(op, c.Node, c.Path)
	if e != nil {
		return Result{Error: e}, nil
	}
	if m, ok := g.Member(n.ID); ok {
		return refuse(api.CodeConflict, op, c.Node, fmt.Sprintf("it holds group %s already, at %s", g.Name, m.Path),
			"to move it: lockstep dir unbind "+g.Name+" "+c.Node+", then bind again"), nil
	}
	x.what = fmt.Sprintf("group %s bound to %s:%s", g.Name, n.Name, path)
	g.add(Member{Node: n.ID, Role: g.roleOfNext(), Path: path})
	return Result{Group: g.ID}, x.putGroup(g)
}

func (x *execution) unbind(c *Unbind) (Result, error) {
	const op = "dir unbind"
	g, r := x.filesGroup(op, c.Group)
	if g == nil {
		return r, nil
	}
	n, i, e := x.memberNamed(op, g, c.Node)
	if e != nil {
		return Result{Error: e}, nil
	}
	if e := g.lastSeat(op, n, i); e != nil {
		return Result{Error: e}, nil
	}
	g.drop(i)
	x.what = fmt.Sprintf("group %s unbound from %s", g.Name, n.Name)
	return Result{Group: g.ID}, x.putGroup(g)
}

func (x *execution) filesGroup(op, name string) (*Group, Result) {
	g, ok := x.s.GroupNamed(name)
	if !ok || g.Kind != KindFiles {
		e := x.s.UnknownGroup(op, name)
		e.Why = "no such files group"
		return nil, Result{Error: e}
	}
	return g, Result{}
}

func nodes(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

func (x *execution) putGroup(g *Group) error { return x.put(idKey(tagGroup, g.ID), *g) }

// put stores pairs of key and value.
func (x *execution) put(pairs ...any) error {
	x.wrote = true
	for i := 0; i < len(pairs); i += 2 {
		if g, ok := pairs[i+1].(Group); ok { // observers have seats, whatever changed the members
			g.Members = seated(g.Members, x.s.zoneOf)
			pairs[i+1] = g
		}
		v, err := json.Marshal(pairs[i+1])
		if err != nil {
			return fmt.Errorf("control: encode state: %w", err)
		}
		if err := x.tx.Set(pairs[i].([]byte), v); err != nil {
			return err
		}
	}
	return nil
}

// audit adds a record of the change and keeps the newest maxAudit.
func (x *execution) audit(by string) error {
	seq := uint64(1)
	if n := len(x.s.Audit); n > 0 {
		seq = x.s.Audit[n-1].Seq + 1
	}
	if len(x.s.Audit) >= maxAudit {
		if err := x.tx.Delete(idKey(tagAudit, x.s.Audit[0].Seq)); err != nil {
			return err
		}
	}
	return x.put(idKey(tagAudit, seq), Audit{Seq: seq, Index: x.index, Time: x.now, By: by, What: x.what})
}
