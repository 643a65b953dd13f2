package core

import (
	"slices"
	"testing"
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
