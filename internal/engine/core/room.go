package core

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// Room is the room on the disks under the logs of a group. Full and Scarce are asked with every append and every tick:
// they must cost next to nothing.
//
// A full disk's log goes on in a reserve, which is there for what must not wait: terms, votes, what is on its way when
// the disk fills up, and the entries by which leaders begin their terms. A replica on such a disk
//   - takes entries only as far as Spend allows, and drops the others: its leader sees a slow follower. Once it has
//     dropped some it takes nothing of later terms either, since its log would have a gap;
//   - votes, and follows;
//   - does not take leadership over, and stands for election only after everybody else had the time to, because it may
//     be the only one that holds what is committed.
//
// What a leader does is said at PlanRoom.
type Room interface {
	Full() bool                 // this replica's disk
	FullAt(replica uint64) bool // another replica's, as far as is known
	Scarce() bool               // false: no disk is full, neither this nor another
	// Spend asks for bytes of the reserve, while this replica's disk is full. begins: they are for entries without a
	// payload, by which a leader begins its term; other entries must not use up what these need.
	Spend(bytes uint64, begins bool) bool
}

// reluctance is for how many election timeouts without a leader a replica on a full disk leaves it to others to stand.
const reluctance = 4

// full says whether this replica's disk is.
func (g *Group) full() bool { return g.cfg.Room != nil && g.cfg.Room.Full() }

// tickRaft passes a tick on to raft; while this replica is reluctant, raft's time goes by without an election.
func (g *Group) tickRaft() {
	g.silence++
	if g.role == Leader {
		g.silence = 0
	}
	if g.silence < reluctance*g.cfg.ElectionTicks && g.full() && g.role != Leader {
		g.rn.TickQuiesced()
		return
	}
	g.rn.Tick()
}

// hear notes signs of a leader.
func (g *Group) hear(m *raftpb.Message) {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		if m.GetTerm() >= g.term {
			g.silence, g.heard = 0, m.GetFrom()
		}
	}
}

// mindRoom is done with every tick: a leader looks whether it, or too many of the others, are on full disks.
func (g *Group) mindRoom() {
	if g.cfg.Room == nil || !g.cfg.Room.Scarce() || g.role != Leader {
		g.plan, g.unheard = RoomPlan{}, nil
		return
	}
	s := g.Status()
	g.listen(&s)
	g.plan = PlanRoom(&s, func(replica uint64) bool {
		if replica == g.cfg.Replica {
			return g.cfg.Room.Full()
		}
		return g.cfg.Room.FullAt(replica)
	}, func(replica uint64) bool { return g.unheard[replica] >= g.cfg.ElectionTicks })
	if g.plan.To != 0 && s.Transferee == 0 {
		g.rn.TransferLeader(g.plan.To)
	}
}

// listen counts, on a leader, for how many ticks each peer was not heard of. RecentActive alone does not tell: raft
// forgets it once an election timeout, and a slow peer has answered only some ticks later.
func (g *Group) listen(s *Status) {
	next := make(map[uint64]int, len(s.Peers))
	for _, peer := range s.Peers {
		if !peer.RecentActive && peer.Replica != s.Replica {
			next[peer.Replica] = g.unheard[peer.Replica] + 1
		}
	}
	g.unheard = next
}

// roomFor says whether a leader may take proposals; if not, with which answer it refuses.
func (g *Group) roomFor() (refusal Code, ok bool) {
	switch {
	case g.plan.Refuse:
		return Full, false
	case g.full():
		return Busy, false // somebody else is about to lead, or the next tick will tell that nobody can
	}
	return 0, true
}

// unwelcome says whether a full disk is a reason to drop m.
func (g *Group) unwelcome(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgApp:
		entries := m.GetEntries()
		return len(entries) > 0 && g.full() && !g.cfg.Room.Spend(entryBytes(entries), !slices.ContainsFunc(entries, hasPayload))
	case raftpb.MsgTimeoutNow:
		return g.full()
	}
	return false
}

// entryOverhead is about what an entry costs a log beside its payload.
const entryOverhead = 64

func entryBytes(entries []*raftpb.Entry) (n uint64) {
	for _, e := range entries {
		n += uint64(len(e.GetData())) + entryOverhead
	}
	return n
}

func hasPayload(e *raftpb.Entry) bool { return len(e.GetData()) > 0 }

// RoomPlan is what a leader does about full disks.
type RoomPlan struct {
	// Refuse: not enough voters have room for what is proposed. It would be taken into a log, and wait there.
	Refuse bool
	// To is the voter to hand over to; 0: nobody, or there is no need to.
	To uint64
}

// PlanRoom decides for the leader whose status is s; full says whether a replica's disk is, as far as is known, silent
// whether a peer has not been heard of for an election timeout. A leader on a full disk hands over to the voter with
// room, heard of lately, that has most of the log. If it cannot, or if no quorum has room, it refuses proposals.
func PlanRoom(s *Status, full, silent func(replica uint64) bool) RoomPlan {
	if s.Role != Leader {
		return RoomPlan{}
	}
	p := RoomPlan{Refuse: !roomyQuorum(s.Voters, full, silent) || !roomyQuorum(s.Outgoing, full, silent)}
	if !full(s.Replica) {
		return p
	}
	var match uint64
	for _, peer := range s.Peers {
		votes := slices.Contains(s.Voters, peer.Replica)
		if votes && peer.RecentActive && peer.Replica != s.Replica && !full(peer.Replica) && (p.To == 0 || peer.Match > match) {
			p.To, match = peer.Replica, peer.Match
		}
	}
	p.Refuse = p.Refuse || p.To == 0
	return p
}

// roomyQuorum says whether a majority of voters has room; of nobody it has. A silent voter takes nothing, so it counts
// as if it had none. If too many are silent it is not for want of room that nothing is committed, and raft deposes the
// leader: then only disks count.
func roomyQuorum(voters []uint64, full, silent func(uint64) bool) bool {
	roomy, heard, ready := 0, 0, 0
	for _, v := range voters {
		if !full(v) {
			roomy++
		}
		if !silent(v) {
			heard++
		}
		if !full(v) && !silent(v) {
			ready++
		}
	}
	most := len(voters) / 2
	if heard > most {
		roomy = ready
	}
	return len(voters) == 0 || roomy > most
}
