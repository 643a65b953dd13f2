package server

import (
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// TestWhoIsWaitedForChanges: a wait begins anew when those that it is for are no longer the same, and only then.
func TestWhoIsWaitedForChanges(t *testing.T) {
	of := func(members ...control.Member) *control.Group { return &control.Group{Members: members} }
	member := func(node, binding uint64, role string) control.Member {
		return control.Member{Node: node, Binding: binding, Replica: binding, Role: role}
	}
	n1, n2, n3 := member(1, 1, control.RoleVoter), member(2, 2, control.RoleVoter), member(3, 3, control.RoleObserver)
	demoted, again := member(2, 2, control.RoleObserver), member(2, 4, control.RoleVoter)
	recast := n1
	recast.Replica = 9
	for name, c := range map[string]struct {
		now         *control.Group
		quorum, all bool
	}{
		"nothing":               {of(n1, n2, n3), true, true},
		"another replica id":    {of(recast, n2, n3), true, true},
		"a voter has left":      {of(n1, n3), false, false},
		"a voter observes":      {of(n1, demoted, n3), false, true},
		"an observer has left":  {of(n1, n2), true, false},
		"left and joined again": {of(n1, again, n3), false, false},
		"an observer has come":  {of(n1, n2, n3, member(4, 4, control.RoleObserver)), true, false},
		"a voter has come":      {of(n1, n2, n3, member(4, 4, control.RoleVoter)), false, false},
	} {
		for mode, want := range map[string]bool{api.WaitQuorum: c.quorum, api.WaitAll: c.all, api.WaitNode: c.all} {
			if got := sameTargets(of(n1, n2, n3), c.now, api.DirWaitFor{Mode: mode}); got != want {
				t.Errorf("%s, waiting for %s: the same %t, want %t", name, mode, got, want)
			}
		}
	}
}
