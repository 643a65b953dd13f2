package core

import (
	"maps"
	"slices"
)

// succession is the hurried election after the leader's process is known to be gone, or was silent for too long. The
// voters that remain take turns by rank, one tick each, so that two of them hardly ever campaign at once; the turns go
// round until there is a leader, because the others may learn of it a little later and refuse before.
type succession struct {
	on    bool
	term  uint64 // in which the leader was lost; a higher one means that an election went through
	rank  int    // of this replica among the voters that remain
	count int    // of the voters that remain
	age   int    // ticks since
	due   bool   // campaign at the next Effects
}

// rounds bounds the turns of each voter; after them raft's own timeouts go on alone.
const successionRounds = 8

// PeerDown says that replica's process is known to be gone (its host refuses connections, or it said
// goodbye). Is it the leader, then it is forgotten, so that elections are not refused in its favour, and this
// replica campaigns when its turn comes. A wrong report costs nothing: the leader's next heartbeat mends it.
func (g *Group) PeerDown(replica uint64) {
	defer g.blame("PeerDown")
	if replica != g.cfg.Replica && g.rn.BasicStatus().Lead == replica {
		g.succeedTo(replica)
	}
}

// succeedTo forgets the leader that is gone and begins the turns of the others.
func (g *Group) succeedTo(gone uint64) {
	if err := g.rn.ForgetLeader(); err != nil {
		panic(err)
	}
	voters := make([]uint64, 0, 8)
	config := g.rn.Status().Config
	for id := range config.Voters.IDs() {
		if id != gone {
			voters = append(voters, id)
		}
	}
	slices.Sort(voters)
	rank, votes := slices.BinarySearch(voters, g.cfg.Replica)
	if !votes {
		return
	}
	g.succeed = succession{on: true, term: g.rn.BasicStatus().GetTerm(), rank: rank, count: len(voters), due: rank == 0}
}

// patience is for how many ticks a leader may be silent before its succession begins. One more than an election timeout:
// clocks tick at different moments, and only after a tick more everybody's timeout is over for certain, so that the first
// voter whose turn it is finds nobody who still holds to the leader. Raft's own timeouts are up to twice as long, so that
// voters which know nothing of ranks hardly ever meet; what they bear a silent leader at least is the same.
func (g *Group) patience() int { return g.cfg.ElectionTicks + 1 }

// tickSilence begins the succession of a leader that was not heard of for too long.
func (g *Group) tickSilence() {
	if g.silence == g.patience() && g.role != Leader && g.heard != 0 && !g.succeed.on {
		g.succeedTo(g.heard)
	}
}

// Hurry campaigns without waiting for an election timeout if nobody is known to lead: for a replica that just
// started. Is there a leader that the others hear, they refuse and nothing happens.
func (g *Group) Hurry() {
	defer g.blame("Hurry")
	s := g.rn.BasicStatus()
	voters := slices.Sorted(maps.Keys(g.rn.Status().Config.Voters.IDs()))
	rank, votes := slices.BinarySearch(voters, g.cfg.Replica)
	if s.Lead == 0 && votes {
		g.succeed = succession{on: true, term: s.GetTerm(), rank: rank, count: len(voters), due: rank == 0}
	}
}

func (g *Group) tickSuccession() {
	c := &g.succeed
	if !c.on {
		return
	}
	c.age++
	c.on = c.age < successionRounds*c.count
	c.due = c.due || c.on && c.age%c.count == c.rank
}

// runSuccession campaigns if it is this replica's turn.
func (g *Group) runSuccession() {
	c := &g.succeed
	if !c.due {
		return
	}
	c.due = false
	if g.full() && g.silence < reluctance*g.cfg.ElectionTicks {
		return // the others take their turns
	}
	s := g.rn.BasicStatus()
	if s.Lead != 0 || s.GetTerm() > c.term && s.GetVote() != 0 && s.GetVote() != g.cfg.Replica {
		c.on = c.on && s.Lead == 0
		return
	}
	if err := g.rn.Campaign(); err != nil {
		panic(err)
	}
}
