package server

import (
	"reflect"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/files"
)

// TestHolders: a quorum is made of voters, and ack all asks for the in-sync set, whoever else is a member.
func TestHolders(t *testing.T) {
	members := []control.Member{{Replica: 11, Node: 1, Role: control.RoleVoter}, {Replica: 12, Node: 2, Role: control.RoleVoter},
		{Replica: 13, Node: 3, Role: control.RoleVoter}, {Replica: 14, Node: 4, Role: control.RoleObserver},
		{Replica: 15, Node: 5, Role: control.RoleObserver, Spare: true}}
	for name, c := range map[string]struct {
		ack    string
		inSync []uint64
		self   uint64
		want   files.Holders
	}{
		"local":                     {"local", []uint64{11, 12, 13}, 1, files.Holders{}},
		"quorum, a voter":           {"quorum", []uint64{11, 12, 13}, 1, files.Holders{Voters: []uint64{2, 3}, Quorum: 1}},
		"quorum, an observer":       {"quorum", []uint64{11, 12, 13}, 4, files.Holders{Voters: []uint64{1, 2, 3}, Quorum: 2}},
		"all":                       {"all", []uint64{11, 12, 13}, 2, files.Holders{Voters: []uint64{1, 3}, Quorum: 1, All: []uint64{1, 3}}},
		"all, one left the set":     {"all", []uint64{11, 12}, 1, files.Holders{Voters: []uint64{2, 3}, Quorum: 1, All: []uint64{2}}},
		"all, the others left":      {"all", []uint64{11}, 1, files.Holders{Voters: []uint64{2, 3}, Quorum: 1}},
		"all, a spare":              {"all", []uint64{11, 13}, 5, files.Holders{Voters: []uint64{1, 2, 3}, Quorum: 2, All: []uint64{1, 3}}},
		"all, a replica that is no": {"all", []uint64{9, 11, 12}, 1, files.Holders{Voters: []uint64{2, 3}, Quorum: 1, All: []uint64{2}}},
	} {
		g := &control.Group{Name: "web", Ack: c.ack, Members: members, InSync: control.InSync{Version: 2, Replicas: c.inSync}}
		got := holdersOf(g, c.self)
		if (got.Hint != "") != (c.ack == "all") {
			t.Errorf("%s: hint %q", name, got.Hint)
		}
		if got.Hint = ""; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
