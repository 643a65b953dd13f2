package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// InSync is a group's recorded in-sync set: what an `all` acknowledgement is about. Its version grows with every
// change. Only the group's leader changes it, after it has bound the record to its term (core.InSync says why).
type InSync struct {
	Version  uint64    `json:"version"` // 0: none was ever recorded
	Replicas []uint64  `json:"replicas"`
	History  [16]byte  `json:"history"`
	Term     uint64    `json:"term"` // of the leader that has it; a lower term's changes are refused
	Since    time.Time `json:"since"`
	Why      string    `json:"why,omitempty"`
}

// SetInSync changes a group's in-sync set, or binds it to a term if Replicas stay the same. It takes effect only on
// the version that it was made for.
type SetInSync struct {
	Group    uint64   `json:"group"`
	History  [16]byte `json:"history"` // terms are of one history
	Term     uint64   `json:"term"`
	Version  uint64   `json:"version"`
	Replicas []uint64 `json:"replicas"`
	Why      string   `json:"why"`
}

// DefaultInSyncAfter is how long a member may lag or be down before it leaves the in-sync set.
const DefaultInSyncAfter = 5 * time.Second

// InSyncBound is how long a member of g may lag or be down before it leaves the set.
func (g *Group) InSyncBound() time.Duration {
	if g.InSyncAfter > 0 {
		return g.InSyncAfter
	}
	return DefaultInSyncAfter
}

// DefaultCheckEvery is how often the replicas of a group compare their states, if something was written.
const DefaultCheckEvery = time.Minute

// CheckInterval is how often the replicas of g compare their states, if something was written.
func (g *Group) CheckInterval() time.Duration {
	if g.CheckEvery > 0 {
		return g.CheckEvery
	}
	return DefaultCheckEvery
}

func (x *execution) setInSync(c *SetInSync) (Result, error) {
	const op = "in-sync set"
	g, ok := x.s.Group(c.Group)
	if !ok || g.Deleted {
		return refuse(api.CodeNotFound, op, fmt.Sprint(c.Group), "no such group", "the group's leader sees it by itself"), nil
	}
	switch {
	case c.History != g.History:
		return refuse(api.CodeConflict, op, g.Name, "it is of a history that was given up", "the group's leader sees to it"), nil
	case g.InSync.History == g.History && c.Term < g.InSync.Term:
		return refuse(api.CodeConflict, op, g.Name, fmt.Sprintf("the leader of term %d has it, this is of term %d", g.InSync.Term, c.Term),
			"the group's new leader sees to it"), nil
	case c.Version != g.InSync.Version:
		return refuse(api.CodeConflict, op, g.Name, fmt.Sprintf("it is at version %d, this is for version %d", g.InSync.Version, c.Version),
			"the group's leader tries again by itself"), nil
	case len(c.Replicas) == 0:
		return refuse(api.CodeUsage, op, g.Name, "a set without members", "the leader is always one"), nil
	}
	set := slices.Compact(slices.Sorted(slices.Values(c.Replicas)))
	for _, r := range set {
		if !slices.ContainsFunc(g.Voters(), func(m Member) bool { return m.Replica == r }) && !slices.Contains(g.InSync.Replicas, r) {
			return refuse(api.CodeConflict, op, g.Name, fmt.Sprintf("replica %d does not vote in it", r), "the group's leader tries again by itself"), nil
		}
	}
	g.InSync.Term, g.InSync.History = c.Term, c.History
	if g.InSync.Version == 0 || !slices.Equal(set, g.InSync.Replicas) {
		g.InSync = InSync{Version: g.InSync.Version + 1, Replicas: set, History: c.History, Term: c.Term, Since: x.now, Why: c.Why}
		x.what = fmt.Sprintf("in-sync set %d of group %s: %s (%s)", g.InSync.Version, g.Name, x.namesOf(g, set), c.Why)
	}
	return Result{Group: g.ID}, x.put(idKey(tagGroup, g.ID), *g)
}

// namesOf names the nodes of replicas.
func (x *execution) namesOf(g *Group, replicas []uint64) string {
	var names []string
	for _, r := range replicas {
		name := fmt.Sprintf("replica %d", r)
		for _, m := range g.Members {
			if n, ok := x.s.Node(m.Node); ok && m.Replica == r {
				name = n.Name
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// InSyncMember is what the leader sees of a voter.
type InSyncMember struct {
	Replica uint64
	Name    string
	Votes   bool          // in the configuration in force
	Down    bool          // not heard of lately
	Behind  time.Duration // since when it lacks what was committed, or is down; 0: it does not
	Current time.Duration // since when it has everything
}

// joinsAfter is for how long a member must have had everything before it joins the in-sync set again.
const joinsAfter = time.Second

// PlanInSync is the next in-sync set, by what the leader sees of the members; nil: it stays as it is. A member that
// lags or is down for longer than bound leaves at once, several together; one that has caught up joins alone.
func PlanInSync(set []uint64, leader uint64, members []InSyncMember, bound time.Duration) (next []uint64, why string) {
	var gone []string
	for _, r := range set {
		reason := leaves(r, leader, members, bound)
		if reason == "" {
			next = append(next, r)
			continue
		}
		gone = append(gone, reason)
	}
	if len(gone) > 0 && len(next) > 0 {
		return next, strings.Join(gone, "; ")
	}
	for _, m := range members {
		if slices.Contains(set, m.Replica) || !m.Votes {
			continue
		}
		if m.Replica == leader || m.Behind == 0 && m.Current >= joinsAfter {
			return slices.Sorted(slices.Values(append(slices.Clone(set), m.Replica))), m.Name + " has everything"
		}
	}
	return nil, ""
}

// leaves is the reason why a replica is to leave the set; empty: it stays.
func leaves(replica, leader uint64, members []InSyncMember, bound time.Duration) string {
	i := slices.IndexFunc(members, func(m InSyncMember) bool { return m.Replica == replica })
	switch {
	case i < 0:
		return fmt.Sprintf("replica %d is no longer a member", replica)
	case !members[i].Votes:
		return members[i].Name + " does not vote"
	case replica == leader || members[i].Behind <= bound:
		return ""
	case members[i].Down:
		return fmt.Sprintf("%s is down for more than %s", members[i].Name, bound)
	}
	return fmt.Sprintf("%s is behind for more than %s", members[i].Name, bound)
}
