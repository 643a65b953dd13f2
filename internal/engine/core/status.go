package core

import (
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// Role of a replica.
type Role uint8

const (
	Follower Role = iota // or learner
	PreCandidate
	Candidate
	Leader
)

var roleNames = [...]string{"follower", "pre-candidate", "candidate", "leader"}

func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return "invalid"
}

func roleOf(s raft.StateType) Role {
	switch s {
	case raft.StateLeader:
		return Leader
	case raft.StateCandidate:
		return Candidate
	case raft.StatePreCandidate:
		return PreCandidate
	default:
		return Follower
	}
}

// PeerState says how the leader feeds a member.
type PeerState uint8

const (
	Probing     PeerState = iota // looking for where its log agrees; one append at a time
	Replicating                  // appends are pipelined
	Snapshotting
)

var peerStateNames = [...]string{"probing", "replicating", "snapshotting"}

func (s PeerState) String() string {
	if int(s) < len(peerStateNames) {
		return peerStateNames[s]
	}
	return "invalid"
}

// Peer is a member as the leader sees it, itself included.
type Peer struct {
	Replica      uint64
	Match        uint64 // durable there up to this index
	Next         uint64 // the next index to send
	State        PeerState
	Learner      bool
	RecentActive bool // heard of within the last election timeout
}

// Status is a snapshot of a Group.
type Status struct {
	Replica     uint64
	Role        Role
	Term        uint64
	Leader      uint64 // 0: none known
	Transferee  uint64 // leadership is being handed to it; 0: it is not
	Commit      uint64
	Applied     uint64
	Last        uint64 // last index of the log, durable or on its way to the disk
	TermBegun   bool   // leading, and an entry of this term is committed: reads and writes are served
	Peers       []Peer // on the leader only; by replica id
	Voters      []uint64
	Learners    []uint64
	Outgoing    []uint64 // voters of the configuration that is being left; empty outside joint consensus
	Proposals   int      // proposed entries that are not applied yet
	Reads       int      // reads that are not answered yet
	WaitingAcks int      // AckAll proposals that are committed but not everywhere
	Refusing    bool     // leading, and proposals are answered Full
}

// Spares says whether the leader whose status it is can do without a replica for good: one that does not vote, or
// without which those that it has heard of lately and that have everything committed on their disks are a majority of
// every configuration in force. What the replica has acknowledged counts as committed: its word may be what is missing
// for that. Whoever does not lead spares nobody.
//
// One that does not vote was left out by a change that is committed. It may be among those who committed that, but too
// few to elect one of them lack anything: it is not missed as long as nothing is sent under its id again.
//
// What it says is worth something only if the leader has heard since it was asked that it still leads (a read that was
// answered): another leader may have committed what this one has never heard of.
func (s *Status) Spares(replica uint64) bool {
	return s.Role == Leader && replica != s.Replica && s.holdWithout(replica, s.Voters) && s.holdWithout(replica, s.Outgoing)
}

// holdWithout says whether a majority of voters, the replica not among them, has what is committed; a replica that is
// none of them is not missed.
func (s *Status) holdWithout(replica uint64, voters []uint64) bool {
	if !slices.Contains(voters, replica) {
		return true
	}
	have, all := 0, max(s.Commit, s.match(replica))
	for _, p := range s.Peers {
		if p.RecentActive && p.Match >= all && p.Replica != replica && slices.Contains(voters, p.Replica) {
			have++
		}
	}
	return have > len(voters)/2
}

// match is how far a replica's log is known to agree with the leader's.
func (s *Status) match(replica uint64) uint64 {
	for _, p := range s.Peers {
		if p.Replica == replica {
			return p.Match
		}
	}
	return 0
}

// Status describes the group as of now. It allocates; it is meant for status calls and ticks, not for every
// event.
func (g *Group) Status() Status {
	defer g.blame("Status")
	raw := g.rn.Status()
	s := Status{
		Replica:     g.cfg.Replica,
		Role:        roleOf(raw.RaftState),
		Term:        raw.GetTerm(),
		Leader:      raw.Lead,
		Transferee:  raw.LeadTransferee,
		Commit:      raw.GetCommit(),
		Applied:     g.applied,
		Last:        g.last,
		TermBegun:   raw.RaftState == raft.StateLeader && !g.mayKnowLess(),
		Voters:      slices.Sorted(maps.Keys(raw.Config.Voters[0])),
		Learners:    slices.Sorted(maps.Keys(raw.Config.Learners)),
		Outgoing:    slices.Sorted(maps.Keys(raw.Config.Voters[1])),
		Proposals:   len(g.pending.live()),
		Reads:       len(g.reads.waiting) + len(g.reads.granted),
		WaitingAcks: len(g.waitAll),
		Refusing:    g.plan.Refuse,
	}
	for _, id := range slices.Sorted(maps.Keys(raw.Progress)) {
		pr := raw.Progress[id]
		s.Peers = append(s.Peers, Peer{
			Replica:      id,
			Match:        pr.Match,
			Next:         pr.Next,
			State:        peerStateOf(pr.State),
			Learner:      pr.IsLearner,
			RecentActive: pr.RecentActive || id == g.cfg.Replica,
		})
	}
	return s
}

func peerStateOf(s tracker.StateType) PeerState {
	switch s {
	case tracker.StateReplicate:
		return Replicating
	case tracker.StateSnapshot:
		return Snapshotting
	default:
		return Probing
	}
}

// Lead is the part of Status that is cheap enough to ask after every event; it is as of the last Effects.
func (g *Group) Lead() (role Role, leader, term uint64) { return g.role, g.leader, g.term }
