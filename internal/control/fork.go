package control

import (
	"fmt"
	"slices"
	"strings"
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
	// Trusted: the seed's state was in quarantine, and counts from now on, since people have decided so.
	Trusted bool `json:"trusted,omitempty"`
	// Upload names what the seed was given to begin with (restore).
	Upload string `json:"upload,omitempty"`
	// GivenUp is how far the state went that was replaced (restore of a group that lived), in its own history. Nothing was
	// acknowledged beyond, unless by the nodes that Unasked names: they were not reached, and the others are too few to
	// keep them from acknowledging.
	GivenUp uint64   `json:"given_up,omitempty"`
	Unasked []string `json:"unasked,omitempty"`
}

// ForkGroup puts a group on a new history. It is refused unless the group's history is still Was, so that of two
// recoveries asked for at once the second is told. The history of the control group itself, which was recovered on
// a stopped node, is only recorded by it; doing that again changes nothing.
//
// It is also refused unless the in-sync set is still at version InSync, which every fork raises. So a command
// that is executed late, by a later leader of the control group, does nothing once the set has changed or RefuseFork has
// raised the version; until they see it raised, the seed of a
// recovery, and all members that were asked for a restore, run nothing of the group.
type ForkGroup struct {
	Group string   `json:"group"`
	Was   [16]byte `json:"was"`  // the group's history as the proposer knows it; not for a group being made
	To    [16]byte `json:"to"`   // the new history
	Fork  Fork     `json:"fork"` // Seed and Time are filled in
	Node  string   `json:"node"` // who begins
	// InSync is the version of the in-sync set that was seen after the replicas had been stopped: the seed's (ForkRecover), or
	// those of all members that answer (ForkRestore). Not for a group being made.
	InSync uint64 `json:"in_sync,omitempty"`
}

// RefuseFork sees to it that no recovery is executed any more that was asked for at version InSync of the in-sync set: it
// raises the version, if nothing else has. The members of the set stay.
type RefuseFork struct {
	Group  uint64 `json:"group"`
	InSync uint64 `json:"in_sync"`
}

func (x *execution) refuseFork(c *RefuseFork) (Result, error) {
	g, ok := x.s.Group(c.Group)
	if !ok || g.Deleted {
		return refuse(api.CodeNotFound, "group recover", fmt.Sprint(c.Group), "no such group", "nothing is to be done"), nil
	}
	if g.InSync.Version > c.InSync {
		return Result{Group: g.ID}, nil
	}
	g.InSync.Version = c.InSync + 1
	x.what = fmt.Sprintf("group %s: a recovery whose fate was not known does not happen", g.Name)
	return Result{Group: g.ID}, x.putGroup(g)
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
	if g.ID != ControlGroup && g.InSync.Version != c.InSync {
		return refuse(api.CodeConflict, op, c.Group,
			fmt.Sprintf("its in-sync set is at version %d, the %s was asked for at %d", g.InSync.Version, c.Fork.Cause, c.InSync),
			"see what it does: lockstep group show "+c.Group+"; if that is still meant, do it again"), nil
	}
	if e := x.fork(op, g, c); e != nil {
		return Result{Error: e}, nil
	}
	x.what = fmt.Sprintf("group %s: %s on %s: history %x goes on from %x at %d; what others had beyond is not part of it",
		g.Name, c.Fork.Cause, c.Node, c.To, c.Fork.Before, c.Fork.Index)
	if c.Fork.GivenUp > 0 {
		x.what += fmt.Sprintf("; given up: %x up to %d", c.Was, c.Fork.GivenUp)
	}
	if len(c.Fork.Unasked) > 0 {
		x.what += ", and whatever " + strings.Join(c.Fork.Unasked, ", ") + " had beyond, who did not answer"
	}
	if c.Fork.Trusted {
		x.what += "; its state was in quarantine, and counts from now on"
	}
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
	g.leaveBehind(g.History)
	g.leaveBehind(c.Fork.Before)
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

// maxPast bounds Group.Past. A node that was away for so many forks keeps what it has and says so.
const maxPast = 64

func (g *Group) leaveBehind(history [16]byte) {
	if slices.Contains(g.Past, history) {
		return
	}
	g.Past = append(g.Past, history)
	if len(g.Past) > maxPast {
		g.Past = g.Past[len(g.Past)-maxPast:]
	}
}

// Knows tells whether a history is the group's or one that was given up for it. One that is neither was begun by a
// decision that this state of the control group does not have.
func (g *Group) Knows(history [16]byte) bool {
	return history == g.History || slices.Contains(g.Past, history)
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
