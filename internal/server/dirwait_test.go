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

// TestAnotherHistoryAnswersNoWait: what a replica has placed of one history says nothing about another one, whose indexes
// may be the lower ones. A node that has not heard of a fork yet must not pass for one that has everything.
func TestAnotherHistoryAnswersNoWait(t *testing.T) {
	s := startSealed(t)
	defer func() { stopNode(t, s.node) }()
	before := s.web()
	answers := func(history [16]byte) bool {
		t.Helper()
		req := groupRequest{Group: before.ID, History: history}
		_, flushed := s.flushHere(t.Context(), req)
		_, placed := s.placedHere(t.Context(), req)
		if (flushed == nil) != (placed == nil) {
			t.Errorf("flush: %v; placed: %v", flushed, placed)
		}
		return flushed == nil
	}
	await(t, "the binding is open", func() bool { return answers(before.History) })
	if answers([16]byte{1}) {
		t.Error("another history's question is answered")
	}
	if _, err := s.recoverHere(t.Context(), groupRequest{Group: before.ID, Path: "n1"}); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	await(t, "the new history's question is answered", func() bool { return answers(s.web().History) })
	if answers(before.History) {
		t.Error("who goes by the history before the fork is answered")
	}
}
