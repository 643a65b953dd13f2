package catchup

import "testing"

func TestDecide(t *testing.T) {
	here, before, other := History{1}, History{2}, History{3}
	terms := map[uint64]uint64{99: 1, 100: 1, 150: 2, 199: 2, 200: 3}
	src := Source{
		Cluster: [16]byte{7}, Group: 5, Node: 1, History: here, First: 100, Commit: 200, Cached: 180, Snapshot: 30 << 20,
		Fork:  &Fork{Before: before, Index: 150, Term: 2},
		Term:  func(i uint64) (uint64, bool) { tm, ok := terms[i]; return tm, ok },
		Bytes: func(from, to uint64) uint64 { return (to - from + 1) << 20 },
	}
	can := func(uint64) bool { return true }
	for _, c := range []struct {
		name string
		l    Learner
		mode Mode
		rule string
		from uint64
	}{
		{"other cluster", Learner{Cluster: [16]byte{8}, Group: 5}, Reject, "R0", 0},
		{"other group", Learner{Cluster: src.Cluster, Group: 6}, Reject, "R0", 0},
		{"loop", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 200, Term: 3, Path: []uint64{4, 1}}, Reject, "R0", 0},
		{"too deep", Learner{Cluster: src.Cluster, Group: 5, Path: make([]uint64, 9)}, Reject, "R0", 0},
		{"empty", Learner{Cluster: src.Cluster, Group: 5}, Snap, "R7", 0},
		{"unknown history", Learner{Cluster: src.Cluster, Group: 5, History: other, Index: 150, Term: 2}, Snap, "R7", 0},
		{"source stale", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 201, Term: 3}, Behind, "R1", 0},
		{"diverged", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 199, Term: 1}, Diverged, "R2", 0},
		{"current", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 200, Term: 3}, Diff, "R3", 201},
		{"cached tail", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 199, Term: 2}, Diff, "R4", 200},
		{"first retained", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 99, Term: 1}, Snap, "R4", 0},
		{"below the log", Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 98, Term: 1}, Snap, "R5", 0},
		{"fork, below", Learner{Cluster: src.Cluster, Group: 5, History: before, Index: 150, Term: 2}, Snap, "R6/R4", 0},
		{"fork, above, can go back", Learner{Cluster: src.Cluster, Group: 5, History: before, Index: 160, Term: 2, StateAt: can}, Trunc, "R6", 151},
		{"fork, above, cannot", Learner{Cluster: src.Cluster, Group: 5, History: before, Index: 160, Term: 2}, Snap, "R6", 0},
	} {
		p := Decide(src, c.l)
		if p.Mode != c.mode || p.Rule != c.rule || (c.from != 0 && p.From != c.from) || p.Why == "" {
			t.Errorf("%s: got %v %s from %d (%s), want %v %s from %d", c.name, p.Mode, p.Rule, p.From, p.Why, c.mode, c.rule, c.from)
		}
	}
	src.Snapshot = 400 << 20 // a big state makes a long DIFF worth it
	if p := Decide(src, Learner{Cluster: src.Cluster, Group: 5, History: here, Index: 100, Term: 1}); p.Mode != Diff || p.To != 200 {
		t.Errorf("big state: %+v", p)
	}
}
