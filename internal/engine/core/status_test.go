package core

import (
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func TestSpares(t *testing.T) {
	peers := func(active ...uint64) (ps []Peer) {
		for id := range uint64(7) {
			ps = append(ps, Peer{Replica: id + 1, RecentActive: slices.Contains(active, id+1), Match: 9})
		}
		return ps
	}
	lags := func(ps []Peer, ids ...uint64) []Peer {
		for _, id := range ids {
			ps[id-1].Match--
		}
		return ps
	}
	leads := func(ps []Peer, ids ...uint64) []Peer {
		for _, id := range ids {
			ps[id-1].Match++
		}
		return ps
	}
	three := []uint64{1, 2, 3}
	for name, c := range map[string]struct {
		status Status
		want   []uint64
	}{
		"three, all up":               {Status{Voters: three, Peers: peers(1, 2, 3)}, []uint64{2, 3, 4}},
		"three, one down":             {Status{Voters: three, Peers: peers(1, 2)}, []uint64{3, 4}},
		"three, one lacks some":       {Status{Voters: three, Peers: lags(peers(1, 2, 3), 2)}, []uint64{2, 4}},
		"three, the one up lacks":     {Status{Voters: three, Peers: lags(peers(1, 2), 2)}, []uint64{4}},
		"three, unsynced at leader":   {Status{Voters: three, Peers: lags(peers(1, 2, 3), 1)}, []uint64{4}},
		"two":                         {Status{Voters: []uint64{1, 2}, Peers: peers(1, 2)}, []uint64{3, 4}},
		"two, one down":               {Status{Voters: []uint64{1, 2}, Peers: peers(1)}, []uint64{3, 4}},
		"one":                         {Status{Voters: []uint64{1}, Peers: peers(1)}, []uint64{2, 3, 4}},
		"five, two down":              {Status{Voters: []uint64{1, 2, 3, 4, 5}, Peers: peers(1, 2, 3)}, []uint64{4}},
		"five, one down":              {Status{Voters: []uint64{1, 2, 3, 4, 5}, Peers: peers(1, 2, 3, 4)}, []uint64{2, 3, 4}},
		"five, acknowledged by three": {Status{Voters: []uint64{1, 2, 3, 4, 5}, Peers: leads(peers(1, 2, 3, 4, 5), 1, 2, 4)}, []uint64{3}},
		"being changed":               {Status{Voters: three, Outgoing: []uint64{1, 2}, Peers: peers(1, 2, 3)}, []uint64{3, 4}},
		"leaves":                      {Status{Voters: []uint64{1, 2}, Outgoing: three, Peers: peers(1, 2)}, []uint64{3, 4}},
		"one learns":                  {Status{Voters: []uint64{1, 2}, Learners: []uint64{3}, Peers: peers(1, 2, 3)}, []uint64{3, 4}},
		"a follower":                  {Status{Role: Follower, Voters: three, Peers: peers(1, 2, 3)}, nil},
	} {
		if name != "a follower" {
			c.status.Role = Leader
		}
		c.status.Replica, c.status.Commit = 1, 9
		var got []uint64
		for id := range uint64(4) {
			if c.status.Spares(id + 1) {
				got = append(got, id+1)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestWhoIsLeftOutIsNotMissed: a leader spares whoever does not vote by the configuration in force, whatever the others
// have on their disks. Whichever of five voters commit a write and the change that leaves one of them out, and whoever
// stands for election after all were started anew: who wins has the write, though the log of the one that was left out is
// gone, as long as nothing is sent under its id.
func TestWhoIsLeftOutIsNotMissed(t *testing.T) {
	rest := []uint64{1, 3, 4, 5}
	for _, committers := range [][]uint64{{1, 3, 5}, {1, 4, 5}, {3, 4, 5}, {1, 2, 5}, {2, 3, 5}, {2, 4, 5}} {
		elected := 0
		for _, down := range []uint64{0, 1, 3, 4, 5} {
			up := slices.DeleteFunc(slices.Clone(rest), func(id uint64) bool { return id == down })
			for _, candidate := range up {
				wins, has := standsAfter(t, committers, up, candidate)
				if wins && !has {
					t.Errorf("committed by %v: of %v, replica %d is elected without the write", committers, up, candidate)
				}
				if wins {
					elected++
				}
			}
		}
		if elected == 0 {
			t.Errorf("committed by %v: nobody is ever elected", committers)
		}
	}
	// That is why it never speaks again: without its log it helps those to win who lack what it had acknowledged.
	if wins, has := standsAfter(t, []uint64{2, 3, 5}, []uint64{1, 2, 4}, 1); !wins || has {
		t.Errorf("with its id in use again replica 1 is elected: %v, with the write: %v", wins, has)
	}
}

// standsAfter has committers, led by replica 5, commit a write and then that replica 2 is left out of five voters, of which
// the others hear nothing. Replica 2 loses its log, everybody is started anew, and candidate stands for election among up.
func standsAfter(t *testing.T, committers, up []uint64, candidate uint64) (wins, has bool) {
	t.Helper()
	c := newCluster(t, 1, 2, 3, 4, 5)
	leader := c.elect(5)
	c.cut = func(m *raftpb.Message) bool {
		return !slices.Contains(committers, m.GetFrom()) || !slices.Contains(committers, m.GetTo())
	}
	c.propose(leader, AckQuorum, 10)
	leader.Change(11, change(raftpb.ConfChangeRemoveNode, 2))
	c.run()
	c.want(10, Committed)
	c.want(11, Committed)
	if s := leader.Status(); !s.Spares(2) || !slices.Equal(s.Voters, []uint64{1, 3, 4, 5}) {
		t.Fatalf("committed by %v: replica 2 is not spared: %+v", committers, s)
	}
	c.cut = nil
	for _, id := range c.ids {
		n := c.nodes[id]
		if n.down, n.data = !slices.Contains(up, id), nil; id == 2 {
			n.log = emptyLog(t, &raftpb.ConfState{Voters: c.ids})
		}
		c.open(id, 1)
	}
	c.run() // what is known to be committed is applied
	n := c.nodes[candidate]
	if err := n.rn.Campaign(); err != nil {
		t.Fatal(err)
	}
	c.run()
	s := n.Status()
	return s.Role == Leader && s.TermBegun, slices.ContainsFunc(n.data, func(b []byte) bool { return string(b) == "p10" })
}
