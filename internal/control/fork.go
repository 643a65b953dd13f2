package control

import (
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Why a group was forked.
const (
	ForkRecover = "recover" // its majority was lost for good
	ForkRestore = "restore" // it was restored from a backup
)

// Fork says how a group's present history came to be. Up to Index, whose entry has Term, it is the same as Before.
// Replica Seed began it, as the only voter; configuration changes up to index Start are void.
type Fork struct {
	Before  [16]byte  `json:"before"`
	Index   uint64    `json:"index"`
	Term    uint64    `json:"term"`
	Start   uint64    `json:"start"`
	Seed    uint64    `json:"seed"`
	Cause   string    `json:"cause"`
	Time    time.Time `json:"time"`
	Members []uint64  `json:"members"` // the replicas that there were then
	// Upload names what the seed was given to begin with (restore).
	Upload string `json:"upload,omitempty"`
}

// ForkGroup puts a group on a new history. It is refused unless the group's history is still Was, so that of two
// recoveries asked for at once the second is told. The history of the control group itself, which was recovered on
// a stopped node, is only recorded by it; doing that again changes nothing.
type ForkGroup struct {
	Group string   `json:"group"`
	Was   [16]byte `json:"was"`  // the group's history as the proposer knows it; not for a group being made
	To    [16]byte `json:"to"`   // the new history
	Fork  Fork     `json:"fork"` // Seed and Time are filled in
	Node  string   `json:"node"` // who begins
}

// Origin is the first history that the group is known to have had: it stands in the root marker of its bindings.
func (g *Group) origin() [16]byte {
	if g.Origin != ([16]byte{}) {
		return g.Origin
	}
	return g.History
}

// Marker is what bindings of the group are marked with; it stays the same over forks.
func (g *Group) Marker() string { return fmt.Sprintf("%x", g.origin()) }

func (x *execution) forkGroup(c *ForkGroup) (Result, error) {
	op := "group recover"
	if c.Fork.Cause == ForkRestore {
		op = "restore"
	}
	g, ok := x.s.GroupNamed(c.Group)
	if !ok {
		return Result{Error: x.s.UnknownGroup(op, c.Group)}, nil
	}
	if g.History == c.To {
		return Result{Group: g.ID}, nil
	}
	if g.History != c.Was {
		return refuse(api.CodeConflict, op, c.Group, "somebody else has recovered or restored it meanwhile",
			"lockstep group show "+c.Group+" says how it stands"), nil
	}
	if e := x.fork(op, g, c); e != nil {
		return Result{Error: e}, nil
	}
	x.what = fmt.Sprintf("group %s: %s on %s: history %x goes on from %x at %d; what others had beyond is not part of it",
		g.Name, c.Fork.Cause, c.Node, c.To, c.Fork.Before, c.Fork.Index)
	return Result{Group: g.ID}, x.put(idKey(tagGroup, g.ID), *g)
}

// fork changes g, which may not be stored yet.
func (x *execution) fork(op string, g *Group, c *ForkGroup) *api.Error {
	n, ok := x.s.NodeNamed(c.Node)
	if !ok {
		return x.s.UnknownNode(op, c.Node)
	}
	i := slices.IndexFunc(g.Members, func(m Member) bool { return m.Node == n.ID })
	if i < 0 {
		return &api.Error{Code: api.CodeNotFound, Op: op, Subject: c.Node, Why: "it does not hold group " + g.Name,
			Hint: "lockstep group show " + g.Name + " lists who does"}
	}
	if c.To == ([16]byte{}) || c.Fork.Start <= c.Fork.Index || c.Fork.Cause != ForkRecover && c.Fork.Cause != ForkRestore {
		return &api.Error{Code: api.CodeUsage, Op: op, Subject: g.Name, Why: "a fork without a history, a start or a cause",
			Hint: "upgrade the nodes that are older"}
	}
	g.seat(i)
	g.Origin = g.origin()
	g.History, g.Initial = c.To, nil // nobody starts this history with an empty log
	f := c.Fork
	f.Seed, f.Time, f.Members = g.Members[i].Replica, x.now, nil
	for _, m := range g.Members {
		f.Members = append(f.Members, m.Replica)
	}
	g.Fork = &f
	g.InSync = InSync{Version: g.InSync.Version + 1, Replicas: []uint64{f.Seed}, History: c.To, Since: x.now,
		Why: "the group began a new history with " + n.Name}
	return nil
}

// seat makes a member a voter; if there are too many then, the last other one observes from now on.
func (g *Group) seat(i int) {
	if g.Members[i].Role == RoleVoter {
		return
	}
	g.Members[i].Role, g.Members[i].Seat = RoleVoter, 0
	if len(g.Voters()) <= MaxVoters {
		return
	}
	for k := len(g.Members) - 1; k >= 0; k-- {
		if k != i && g.Members[k].Role == RoleVoter {
			g.turn(k, RoleObserver)
			return
		}
	}
}
