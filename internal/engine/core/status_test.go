package core

import (
	"slices"
	"testing"
)

func TestSpares(t *testing.T) {
	peers := func(active ...uint64) (ps []Peer) {
		for id := range uint64(7) {
			ps = append(ps, Peer{Replica: id + 1, RecentActive: slices.Contains(active, id+1)})
		}
		return ps
	}
	for name, c := range map[string]struct {
		status Status
		want   []uint64
	}{
		"three, all up":   {Status{Voters: []uint64{1, 2, 3}, Peers: peers(1, 2, 3)}, []uint64{2, 3}},
		"three, one down": {Status{Voters: []uint64{1, 2, 3}, Peers: peers(1, 2)}, []uint64{3}},
		"two":             {Status{Voters: []uint64{1, 2}, Peers: peers(1, 2)}, nil},
		"two, one down":   {Status{Voters: []uint64{1, 2}, Peers: peers(1)}, nil},
		"one":             {Status{Voters: []uint64{1}, Peers: peers(1)}, nil},
		"five, two down":  {Status{Voters: []uint64{1, 2, 3, 4, 5}, Peers: peers(1, 2, 3)}, []uint64{4, 5}},
		"five, one down":  {Status{Voters: []uint64{1, 2, 3, 4, 5}, Peers: peers(1, 2, 3, 4)}, []uint64{2, 3, 4, 5}},
		"being changed":   {Status{Voters: []uint64{1, 2, 3}, Outgoing: []uint64{1, 2}, Peers: peers(1, 2, 3)}, []uint64{3}},
		"a follower":      {Status{Role: Follower, Voters: []uint64{1, 2, 3}, Peers: peers(1, 2, 3)}, nil},
		"one learns":      {Status{Voters: []uint64{1, 2}, Learners: []uint64{3}, Peers: peers(1, 2, 3)}, []uint64{3}},
	} {
		if name != "a follower" {
			c.status.Role = Leader
		}
		c.status.Replica = 1
		if got := c.status.Spares(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
