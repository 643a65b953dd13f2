package core

import (
	"bytes"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// fakeRoom is a disk, which knows of the others at once.
type fakeRoom struct {
	c     *cluster
	self  uint64
	full  bool
	grace uint64 // bytes that Spend still grants
	kept  uint64 // of which only beginnings of terms get the last
}

func (r *fakeRoom) Full() bool { return r.full }

func (r *fakeRoom) FullAt(replica uint64) bool { return r.c.nodes[replica].room.full }

func (r *fakeRoom) Scarce() bool {
	return slices.ContainsFunc(r.c.ids, r.FullAt)
}

func (r *fakeRoom) Spend(n uint64, begins bool) bool {
	if n > r.grace || !begins && n+r.kept > r.grace {
		return false
	}
	r.grace -= n
	return true
}

func TestPlanRoom(t *testing.T) {
	leader := func(voters ...uint64) *Status {
		s := &Status{Replica: 1, Role: Leader, Voters: voters}
		for _, id := range voters {
			s.Peers = append(s.Peers, Peer{Replica: id, Match: 10 * id, RecentActive: true})
		}
		return s
	}
	follower := leader(1, 2, 3)
	follower.Role = Follower
	silent := leader(1, 2, 3)
	silent.Peers[2].RecentActive = false
	lone := leader(1, 2, 3)
	lone.Peers[1].RecentActive, lone.Peers[2].RecentActive = false, false
	learner := leader(1)
	learner.Peers = append(learner.Peers, Peer{Replica: 2, Match: 10, RecentActive: true, Learner: true})
	joint := leader(1, 2, 3)
	joint.Outgoing = []uint64{1, 4, 5}
	behind := leader(1, 2, 3)
	behind.Peers[1].Match, behind.Peers[2].Match = 0, 0
	for name, c := range map[string]struct {
		s    *Status
		full []uint64
		want RoomPlan
	}{
		"room everywhere":                      {leader(1, 2, 3), nil, RoomPlan{}},
		"a follower has nothing to decide":     {follower, []uint64{1, 2, 3}, RoomPlan{}},
		"a follower is full":                   {leader(1, 2, 3), []uint64{3}, RoomPlan{}},
		"a majority is full":                   {leader(1, 2, 3), []uint64{2, 3}, RoomPlan{Refuse: true}},
		"the leader is full":                   {leader(1, 2, 3), []uint64{1}, RoomPlan{To: 3}},
		"to one with room":                     {leader(1, 2, 3, 4, 5), []uint64{1, 5}, RoomPlan{To: 4}},
		"not to one that is silent":            {silent, []uint64{1}, RoomPlan{Refuse: true, To: 2}},
		"a silent one takes nothing":           {silent, []uint64{2}, RoomPlan{Refuse: true}},
		"a silent one is not needed":           {silent, nil, RoomPlan{}},
		"nor is one that is full as well":      {silent, []uint64{3}, RoomPlan{}},
		"without a quorum disks alone count":   {lone, []uint64{2}, RoomPlan{}},
		"nobody answers":                       {lone, []uint64{1}, RoomPlan{Refuse: true}},
		"to one that has nothing yet":          {behind, []uint64{1}, RoomPlan{To: 2}},
		"without a quorum, to one who may say": {leader(1, 2, 3), []uint64{1, 2}, RoomPlan{Refuse: true, To: 3}},
		"all are full":                         {leader(1, 2, 3), []uint64{1, 2, 3}, RoomPlan{Refuse: true}},
		"half is no quorum":                    {leader(1, 2, 3, 4), []uint64{3, 4}, RoomPlan{Refuse: true}},
		"a single voter":                       {leader(1), []uint64{1}, RoomPlan{Refuse: true}},
		"not to a learner":                     {learner, []uint64{1}, RoomPlan{Refuse: true}},
		"both halves of a joint configuration": {joint, []uint64{4, 5}, RoomPlan{Refuse: true}},
		"one of either half":                   {joint, []uint64{2, 4}, RoomPlan{}},
	} {
		full := func(r uint64) bool { return slices.Contains(c.full, r) }
		silent := func(r uint64) bool {
			return slices.ContainsFunc(c.s.Peers, func(p Peer) bool { return p.Replica == r && !p.RecentActive })
		}
		if got := PlanRoom(c.s, full, silent); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func (c *cluster) fill(full bool, ids ...uint64) {
	for _, id := range ids {
		c.nodes[id].room.full = full
	}
}

// A leader whose disk fills up hands over, and takes leadership back only when it has room again.
func TestFullLeaderHandsOver(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.fill(true, 1)
	c.propose(n, AckQuorum, 10)
	c.run()
	c.want(10, Busy)
	c.tick(1)
	next := c.leader()
	if next == n {
		t.Fatal("the full leader leads on")
	}
	c.propose(next, AckQuorum, 11)
	c.run()
	c.want(11, Committed)
	next.Transfer(1)
	c.run()
	if c.leader() != next {
		t.Error("a full replica took leadership over, if only to hand it on")
	}
	c.tick(40)
	if c.nodes[1].Status().Role == Leader {
		t.Error("a full replica took leadership over")
	}
	c.fill(false, 1)
	c.tick(40) // a transfer that went nowhere is over
	c.leader().Transfer(1)
	c.run()
	if c.nodes[1].Status().Role != Leader {
		t.Error("with room it does not take leadership over")
	}
}

// Without a quorum that has room proposals are refused at once; nothing of them comes into any log.
func TestNoRoomAnywhere(t *testing.T) {
	for name, full := range map[string][]uint64{"all": {1, 2, 3}, "followers": {2, 3}} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, 2, 3)
			n := c.elect(1)
			c.fill(true, full...)
			c.tick(1)
			last := n.Status().Last
			c.propose(n, AckQuorum, 10)
			c.propose(n, AckLocal, 11)
			c.propose(n, AckAll, 12)
			c.run()
			for id := uint64(10); id <= 12; id++ {
				c.want(id, Full)
			}
			if s := n.Status(); s.Last != last || !s.Refusing {
				t.Errorf("refusing %v, the log went from %d to %d", s.Refusing, last, s.Last)
			}
			n.Read(13)
			c.run()
			c.want(13, Ready)
			c.tick(20)
			c.fill(false, full...)
			c.tick(1)
			c.propose(n, AckAll, 14)
			c.run()
			c.want(14, CommittedAll)
		})
	}
}

// A full voter and one that is down leave no quorum: proposals are refused, and do not wait in the leader's log. Nobody
// is refused because raft has just forgotten whom it has heard of.
func TestFullAndDown(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.fill(true, 3)
	c.nodes[3].room.grace = 0
	id := uint64(10)
	for range 50 {
		c.tick(1)
		c.propose(n, AckQuorum, id)
		c.run()
		c.want(id, Committed)
		id++
	}
	for i := range 10 * n.cfg.ElectionTicks {
		answers := i%(n.cfg.ElectionTicks/2) == 0
		c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == 2 && !answers }
		if c.tick(1); n.Status().Refusing {
			t.Fatal("a slow peer is taken for a silent one")
		}
	}
	c.cut = nil
	c.nodes[2].down = true
	c.tick(2*n.cfg.ElectionTicks + 2)
	if n.Status().Role != Leader {
		t.Fatal("two of three are up, and the leader does not lead on")
	}
	last := n.Status().Last
	for range 50 {
		c.propose(n, AckQuorum, id)
		c.run()
		c.want(id, Full)
		c.tick(1)
		id++
	}
	if got := n.Status().Last; got != last {
		t.Errorf("what was refused is in the log: %d entries", got-last)
	}
	c.nodes[2].down = false
	c.tick(n.cfg.ElectionTicks)
	c.propose(c.leader(), AckQuorum, id)
	c.run()
	c.want(id, Committed)
}

// Where writes have used the grace up, replicas that have dropped nothing still take the beginnings of terms: reads go on.
func TestFullReplicasBeginTerms(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.fill(true, 1, 2, 3)
	for _, id := range c.ids {
		c.nodes[id].room.grace, c.nodes[id].room.kept = 500, 500
	}
	n.down = true
	c.tick(200)
	l := c.leader()
	if l == nil || l == n {
		t.Fatal("nobody leads")
	}
	l.Read(10)
	c.run()
	c.want(10, Ready)
}

func TestSingleVoterRefuses(t *testing.T) {
	c := newCluster(t, 1)
	n := c.elect(1)
	c.fill(true, 1)
	c.tick(1)
	c.propose(n, AckLocal, 10)
	c.run()
	c.want(10, Full)
	c.fill(false, 1)
	c.tick(1)
	c.propose(n, AckQuorum, 11)
	c.run()
	c.want(11, Committed)
}

// A follower on a full disk takes what its grace allows, goes on voting, and gets the rest when there is room.
func TestFullFollowerFallsBehind(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.fill(true, 3)
	c.nodes[3].room.grace = 2*entryOverhead + 200 // two small entries
	var ids []uint64
	for id := uint64(10); id < 20; id++ {
		c.propose(n, AckQuorum, id)
		c.run()
		c.want(id, Committed)
		ids = append(ids, id)
	}
	c.tick(30)
	if c.leader() != n {
		t.Error("the full follower disturbs the leader")
	}
	took := c.nodes[3].Status().Last
	if last := n.Status().Last; took >= last || took < last-10 {
		t.Errorf("the full follower is at %d, the leader at %d", took, last)
	}
	c.propose(n, AckAll, 30)
	c.run()
	c.wantNone(30)
	c.fill(false, 3)
	c.tick(3)
	c.want(30, CommittedAll)
	if got := len(c.nodes[3].data); got != len(ids)+1 {
		t.Errorf("after it has room it applied %d of %d", got, len(ids)+1)
	}
}

// Who alone holds what is committed stands for election, full or not; one that has it too and has room goes first, and
// the full one hands over as soon as another has everything.
func TestFullReplicaStandsLast(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.cut = func(m *raftpb.Message) bool { return m.GetTo() == 3 }
	c.propose(n, AckQuorum, 10)
	c.run()
	c.want(10, Committed)
	c.cut = nil
	n.down = true // only 2 has it now
	c.fill(true, 2)
	c.nodes[2].room.grace = 1 << 10
	c.tick(30)
	if s := c.nodes[2].Status(); s.Role != Follower && s.Role != PreCandidate {
		t.Errorf("the full replica is %v after three election timeouts", s.Role)
	}
	c.tick(120)
	if l := c.leader(); l != c.nodes[3] || string(bytes.Join(l.data, nil)) != "p10" {
		t.Errorf("replica %d leads", l.Status().Replica)
	}
}
