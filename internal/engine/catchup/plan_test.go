package catchup

import (
	"math/rand/v2"
	"testing"
)

func TestDecide(t *testing.T) {
	here, before, after, other := History{1}, History{2}, History{3}, History{4}
	cluster := [16]byte{7}
	terms := map[uint64]uint64{99: 1, 100: 1, 150: 2, 199: 2, 200: 3}
	src := Source{
		Cluster: cluster, Group: 5, Node: 1, Path: []uint64{1, 3}, History: here, First: 100, Commit: 200, Cached: 180, Snapshot: 30 << 20,
		Fork:  &Fork{Before: before, Index: 150, Term: 2},
		Term:  func(i uint64) (uint64, bool) { tm, ok := terms[i]; return tm, ok },
		Bytes: func(from, to uint64) uint64 { return (to - from + 1) << 20 },
	}
	with := func(change func(*Source)) Source { s := src; change(&s); return s }
	at := func(h History, index, term uint64) Learner {
		return Learner{Cluster: cluster, Group: 5, Node: 9, History: h, Index: index, Term: term, Oldest: index}
	}
	but := func(l Learner, change func(*Learner)) Learner { change(&l); return l }
	for _, c := range []struct {
		name string
		s    Source
		l    Learner
		mode Mode
		rule string
		from uint64
	}{
		{"other cluster", src, but(at(here, 200, 3), func(l *Learner) { l.Cluster[0]++ }), Reject, "R0", 0},
		{"other group", src, but(at(here, 200, 3), func(l *Learner) { l.Group++ }), Reject, "R0", 0},
		{"own id is the source's upstream", src, but(at(here, 200, 3), func(l *Learner) { l.Node = 3 }), Reject, "R0", 0},
		{"own id is the source", src, but(at(here, 200, 3), func(l *Learner) { l.Node = 1 }), Reject, "R0", 0},
		{"as deep as may be", with(func(s *Source) { s.Path = make([]uint64, 8) }), at(here, 200, 3), Diff, "R3", 201},
		{"too deep", with(func(s *Source) { s.Path = make([]uint64, 9) }), at(here, 200, 3), Reject, "R0", 0},
		{"source cut off", with(func(s *Source) { s.Path = nil }), at(here, 200, 3), Behind, "R1", 0},
		{"source empty", with(func(s *Source) { s.Commit = 0 }), at(here, 0, 0), Behind, "R1", 0},
		{"empty", src, at(History{}, 0, 0), Snap, "R7", 0},
		{"unknown history", src, at(other, 150, 2), Snap, "R7", 0},
		{"source stale", src, at(here, 201, 3), Behind, "R1", 0},
		{"source on the history that the learner left", src,
			but(at(after, 150, 2), func(l *Learner) { l.Fork = &Fork{Before: here, Index: 120} }), Behind, "R1", 0},
		{"diverged", src, at(here, 199, 1), Diverged, "R2", 0},
		{"diverged at the end", src, at(here, 200, 2), Diverged, "R2", 0},
		{"diverged below the first", src, at(here, 99, 2), Diverged, "R2", 0},
		{"current", src, at(here, 200, 3), Diff, "R3", 201},
		{"cached tail", src, at(here, 199, 2), Diff, "R4", 200},
		{"too much log, not cached", src, at(here, 99, 1), Snap, "R4", 0},
		{"too much log, but cached", with(func(s *Source) { s.Cached = 100 }), at(here, 99, 1), Diff, "R4", 100},
		{"first retained", with(func(s *Source) { s.Snapshot = 400 << 20 }), at(here, 99, 1), Diff, "R4", 100},
		{"below the log", src, at(here, 98, 1), Snap, "R5", 0},
		{"fork, below", src, at(before, 150, 2), Snap, "R6/R4", 0},
		{"fork, below, cheap", with(func(s *Source) { s.Snapshot = 400 << 20 }), at(before, 150, 2), Diff, "R6/R4", 151},
		{"fork, below the log", src, at(before, 98, 1), Snap, "R6/R5", 0},
		{"fork, below, diverged", src, at(before, 150, 1), Diverged, "R6/R2", 0},
		{"fork, above, can go back", src, but(at(before, 160, 2), func(l *Learner) { l.Oldest = 150 }), Trunc, "R6", 151},
		{"fork, above, cannot", src, at(before, 160, 2), Snap, "R6", 0},
		{"fork, above, log cut", with(func(s *Source) { s.First = 152 }), but(at(before, 160, 2), func(l *Learner) { l.Oldest = 150 }), Snap, "R6", 0},
	} {
		p := Decide(c.s, c.l)
		if p.Mode != c.mode || p.Rule != c.rule || (c.from != 0 && p.From != c.from) || p.Why == "" {
			t.Errorf("%s: got %v %s from %d (%s), want %v %s from %d", c.name, p.Mode, p.Rule, p.From, p.Why, c.mode, c.rule, c.from)
		}
	}
}

// TestDecideNeverSkips: whatever is decided, DIFF covers exactly what is missing, and never leaves out a check of the
// entry that both sides must share.
func TestDecideNeverSkips(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		term := func(i uint64) uint64 { return 1 + i/7 }
		s := Source{
			Path: []uint64{1}, History: History{byte(rng.IntN(3))}, First: rng.Uint64N(40), Commit: rng.Uint64N(80),
			Cached: rng.Uint64N(80), Snapshot: rng.Uint64N(100 << 20),
			Bytes: func(from, to uint64) uint64 { return (to - from + 1) << 20 },
		}
		s.Term = func(i uint64) (uint64, bool) { return term(i), i+1 >= s.First && i <= s.Commit }
		l := Learner{Node: 2, History: History{byte(rng.IntN(3))}, Index: rng.Uint64N(90)}
		l.Term, l.Oldest = term(l.Index)+rng.Uint64N(5)/4, l.Index
		if rng.IntN(3) == 0 {
			s.Fork = &Fork{Before: History{9}, Index: rng.Uint64N(80)}
			l.History = s.Fork.Before
		}
		switch p := Decide(s, l); p.Mode {
		case Diff:
			if p.From != l.Index+1 || p.To != s.Commit || p.From < s.First || l.Term != term(l.Index) {
				t.Fatalf("%+v\n%+v\n%+v", s, l, p)
			}
			if l.History != s.History && (s.Fork == nil || l.Index > s.Fork.Index) {
				t.Fatalf("DIFF over a fork: %+v\n%+v\n%+v", s, l, p)
			}
		case Trunc:
			t.Fatalf("a learner that cannot go back: %+v\n%+v\n%+v", s, l, p)
		}
	}
}
