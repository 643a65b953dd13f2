package control

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// Progress of a replica, as the group's leader sees it.
type Progress uint8

const (
	Absent   Progress = iota // not heard of lately
	Learning                 // it runs and gets what it lacks
	CaughtUp
)

// promoteWithin is how many entries a learner may lack when it becomes a voter.
const promoteWithin = 64

// ProgressOf is the progress of a peer of which the leader, whose commit index is commit, knows this: it was heard of
// lately (active), it is fed by entries as they come (replicating), and has them up to match on its disk.
func ProgressOf(active, replicating bool, match, commit uint64) Progress {
	switch {
	case !active:
		return Absent
	case replicating && match+promoteWithin >= commit:
		return CaughtUp
	}
	return Learning
}

// Lead is a group as its leader sees it.
type Lead struct {
	Self     uint64            // the replica that leads
	Conf     *raftpb.ConfState // in force
	Progress func(replica uint64) Progress
	Avoid    func(replica uint64) bool // it should not lead: its node is being drained
}

// Step is what the leader does next; the zero Step is nothing.
type Step struct {
	Change   *raftpb.ConfChangeV2
	Transfer uint64 // replica that is to lead instead
	Why      string
}

// PlanMembership is the next step from the configuration in force towards the members that the group should
// have. One change at a time: new voters enter as learners and are promoted when they have caught up; a voter that
// is being replaced leaves in the same joint change in which its replacement is promoted, so that the group never
// has fewer that can vote. No change is planned after which a majority would not be there. A leader does not take
// itself out: it hands over first.
//
// A replacement that does not run yet keeps the one that it replaces in, but for one on the same node, which may
// have to end the old replica first.
func PlanMembership(g *Group, l Lead) Step {
	if len(l.Conf.GetVotersOutgoing()) > 0 {
		return Step{}
	}
	voters := l.Conf.GetVoters()
	stale := staleVoters(g, l)
	ready, waiting, step := newVoters(g, l, stale)
	if step.Why != "" {
		return step
	}
	for _, r := range l.Conf.GetLearners() {
		if !wanted(g, r) {
			return Step{Change: change(raftpb.ConfChangeRemoveNode, r), Why: fmt.Sprintf("replica %d is no longer a member", r)}
		}
	}
	leaves := slices.Contains(stale, l.Self)
	others := slices.DeleteFunc(slices.Clone(stale), func(r uint64) bool { return r == l.Self })
	if len(ready) > 0 {
		leaver := g.replacedBy(ready[0], others)
		if leaver != 0 && l.stands(with(without(voters, leaver), ready[0])) {
			cc := change(raftpb.ConfChangeAddNode, ready[0])
			cc.Changes = append(cc.Changes, change(raftpb.ConfChangeRemoveNode, leaver).Changes...)
			return Step{Change: cc, Why: fmt.Sprintf("replica %d has caught up and takes the place of %d", ready[0], leaver)}
		}
		return Step{Change: change(raftpb.ConfChangeAddNode, ready[0]), Why: fmt.Sprintf("replica %d has caught up: it votes", ready[0])}
	}
	// Whoever else is waited for: the new replica of a node cannot run before that node's old one has been let go.
	i := slices.IndexFunc(others, func(r uint64) bool { return blocks(g, l, r) && l.stands(without(voters, r)) })
	if i >= 0 {
		return Step{Change: change(raftpb.ConfChangeRemoveNode, others[i]), Why: fmt.Sprintf("replica %d is no longer a member", others[i])}
	}
	if len(stale) > waiting && len(others) > 0 && l.stands(without(voters, others[0])) {
		return Step{Change: change(raftpb.ConfChangeRemoveNode, others[0]), Why: fmt.Sprintf("replica %d is no longer a member", others[0])}
	}
	if leaves && len(stale) > waiting || !leaves && l.avoids(l.Self) {
		return l.handOver(g)
	}
	return Step{}
}

// replacedBy is whom of the leaving a new voter replaces: the one that was on its node before, else the first; 0: nobody
// leaves. Another's place would stay taken until that one's replacement votes, which may never come.
func (g *Group) replacedBy(ready uint64, leaving []uint64) uint64 {
	if len(leaving) == 0 {
		return 0
	}
	node, _ := g.NodeOf(ready)
	for _, r := range leaving {
		if n, ok := g.NodeOf(r); ok && n == node {
			return r
		}
	}
	return leaving[0]
}

// staleVoters vote but should not, those first that are not there.
func staleVoters(g *Group, l Lead) (stale []uint64) {
	for _, r := range l.Conf.GetVoters() {
		if !wanted(g, r) {
			stale = append(stale, r)
		}
	}
	slices.SortStableFunc(stale, func(a, b uint64) int { return int(min(l.Progress(a), 1)) - int(min(l.Progress(b), 1)) })
	return stale
}

// newVoters sorts those that should vote and do not yet; one that is unknown to the configuration is the next step.
func newVoters(g *Group, l Lead, stale []uint64) (ready []uint64, waiting int, _ Step) {
	leaving := map[uint64]bool{} // nodes that may have to end a replica first
	for _, r := range stale {
		if node, ok := g.NodeOf(r); ok {
			leaving[node] = true
		}
	}
	for _, m := range g.Voters() {
		progress := l.Progress(m.Replica)
		switch {
		case slices.Contains(l.Conf.GetVoters(), m.Replica):
		case !slices.Contains(l.Conf.GetLearners(), m.Replica):
			return nil, 0, Step{Change: change(raftpb.ConfChangeAddLearnerNode, m.Replica),
				Why: fmt.Sprintf("replica %d is new: it learns before it votes", m.Replica)}
		case progress == CaughtUp:
			ready = append(ready, m.Replica)
		case progress == Learning || !leaving[m.Node]:
			waiting++
		}
	}
	return ready, waiting, Step{}
}

// blocks tells whether a new replica on the node of a stale one does not run yet.
func blocks(g *Group, l Lead, stale uint64) bool {
	node, ok := g.NodeOf(stale)
	return ok && slices.ContainsFunc(g.Voters(), func(m Member) bool {
		return m.Node == node && slices.Contains(l.Conf.GetLearners(), m.Replica) && l.Progress(m.Replica) == Absent
	})
}

func wanted(g *Group, replica uint64) bool {
	return slices.ContainsFunc(g.Members, func(m Member) bool { return m.Replica == replica && m.Role == RoleVoter })
}

// stands tells whether a majority of these voters is there.
func (l Lead) stands(voters []uint64) bool {
	there := 0
	for _, r := range voters {
		if r == l.Self || l.Progress(r) != Absent {
			there++
		}
	}
	return len(voters) > 0 && there > len(voters)/2
}

func (l Lead) avoids(replica uint64) bool { return l.Avoid != nil && l.Avoid(replica) }

// handOver finds a voter that stays and has caught up.
func (l Lead) handOver(g *Group) Step {
	for _, r := range l.Conf.GetVoters() {
		if r != l.Self && wanted(g, r) && !l.avoids(r) && l.Progress(r) == CaughtUp {
			return Step{Transfer: r, Why: fmt.Sprintf("replica %d is to lead no longer; %d takes over", l.Self, r)}
		}
	}
	return Step{}
}

func without(list []uint64, x uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(list), func(y uint64) bool { return x == y })
}

func with(list []uint64, x uint64) []uint64 { return append(slices.Clone(list), x) }

func change(kind raftpb.ConfChangeType, replica uint64) *raftpb.ConfChangeV2 {
	return &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &replica}}}
}
