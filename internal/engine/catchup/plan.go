// Package catchup decides how a member that is behind gets what it lacks: DIFF, TRUNC or SNAP, and says why.
//
// It is one pure function over what a source has and what a learner has (rules R0 to R7), without goroutine,
// clock, socket or disk. The source evaluates it and registers the learner for live entries under one lock.
package catchup

import "fmt"

// Mode is the decision.
type Mode uint8

const (
	Reject   Mode = iota // not a learner of ours
	Behind               // the source is stale: choose another; never truncate
	Diverged             // same history, other content: alarm, quarantine the copy, then SNAP by policy
	Diff                 // entries From..To
	Trunc                // cut to To, then DIFF from there
	Snap                 // whole state
)

func (m Mode) String() string {
	return [...]string{"reject", "behind", "diverged", "diff", "trunc", "snap"}[m]
}

// History identifies one line of log; a fork (restore, unsafe recovery) starts another.
type History [16]byte

// Fork records that this history began where another one was cut.
type Fork struct {
	Before      History
	Index, Term uint64 // last entry that both share
}

// MaxHops is how far from a voter an observer may be: longer paths are loops or mistakes.
const MaxHops = 8

// Source is what the member asked can offer. Only its own durable, committed prefix counts.
type Source struct {
	Cluster [16]byte
	Group   uint64
	Node    uint64
	// Path is how this source is fed: its own node, its upstream's, and so on to a voter's. Empty: it has no way to
	// the voters at present, what it has may be old.
	Path     []uint64
	History  History
	Fork     *Fork
	First    uint64 // first retained index
	Commit   uint64 // last durable committed index
	Term     func(index uint64) (term uint64, ok bool)
	Bytes    func(from, to uint64) uint64 // size of entries from..to
	Cached   uint64                       // entries from here on are in memory
	Snapshot uint64                       // approximate bytes of a snapshot
}

// Learner is what the member that asks has.
type Learner struct {
	Cluster     [16]byte
	Group       uint64
	Node        uint64
	History     History
	Fork        *Fork  // where its own history was cut from another one
	Index, Term uint64 // its position; 0: empty
	Oldest      uint64 // the oldest index to which it can take its state back (for TRUNC); at most Index
}

// Plan is the decision, the range that it covers, and the reason in words for logs and status.
type Plan struct {
	Mode     Mode
	From, To uint64
	Bytes    uint64 // of the entries From..To
	Rule     string // R0 … R7
	Why      string
}

// diffFloor is the amount of log that is always cheaper than thinking about it.
const diffFloor = 16 << 20

// Decide applies R0 to R7 in order.
func Decide(s Source, l Learner) Plan {
	switch {
	case l.Cluster != s.Cluster:
		return reject("another cluster")
	case l.Group != s.Group:
		return reject("another group")
	case contains(s.Path, l.Node):
		return reject("the learner is in this source's own path to the voters")
	case len(s.Path) > MaxHops:
		return reject(fmt.Sprintf("this source is %d hops from the voters, more than %d are not allowed", len(s.Path)-1, MaxHops-1))
	case len(s.Path) == 0:
		return Plan{Mode: Behind, To: s.Commit, Rule: "R1", Why: "this source has no way to the voters at present"}
	case s.Commit == 0:
		return Plan{Mode: Behind, Rule: "R1", Why: "this source is empty itself"}
	case l.Index == 0:
		return snap(s, "R7", "the member is empty")
	case l.History == s.History:
		return sameHistory(s, l)
	case s.Fork != nil && l.History == s.Fork.Before:
		return forked(s, l)
	case l.Fork != nil && l.Fork.Before == s.History:
		return Plan{Mode: Behind, To: s.Commit, Rule: "R1", Why: "this source is still on a history that was given up"}
	}
	return snap(s, "R7", "the member's history is not known here")
}

func sameHistory(s Source, l Learner) Plan {
	if l.Index > s.Commit {
		return Plan{Mode: Behind, To: s.Commit, Rule: "R1",
			Why: fmt.Sprintf("the member is at %d, this source only at %d", l.Index, s.Commit)}
	}
	if l.Index+1 < s.First {
		return snap(s, "R5", fmt.Sprintf("the log starts at %d, the member is at %d", s.First, l.Index))
	}
	if term, ok := s.Term(l.Index); !ok || term != l.Term {
		return Plan{Mode: Diverged, Rule: "R2",
			Why: fmt.Sprintf("entry %d has term %d here and %d at the member", l.Index, term, l.Term)}
	}
	return diff(s, l.Index)
}

func diff(s Source, at uint64) Plan {
	if at == s.Commit {
		return Plan{Mode: Diff, From: at + 1, To: at, Rule: "R3", Why: "nothing is missing"}
	}
	bytes := s.Bytes(at+1, s.Commit)
	limit := max(uint64(diffFloor), s.Snapshot/3)
	if at+1 < s.Cached && bytes > limit {
		return snap(s, "R4", fmt.Sprintf("%d bytes of log are more than a third of the state", bytes))
	}
	return Plan{Mode: Diff, From: at + 1, To: s.Commit, Bytes: bytes, Rule: "R4",
		Why: fmt.Sprintf("the log holds all %d missing entries", s.Commit-at)}
}

// forked serves a member of the history that ours was cut from.
func forked(s Source, l Learner) Plan {
	k := s.Fork.Index
	if l.Index <= k {
		l.History = s.History
		p := sameHistory(s, l)
		p.Rule = "R6/" + p.Rule
		return p
	}
	if k+1 >= s.First && k <= s.Commit && l.Oldest <= k {
		return Plan{Mode: Trunc, From: k + 1, To: k, Rule: "R6",
			Why: fmt.Sprintf("entries above %d belong to a history that was given up", k)}
	}
	return snap(s, "R6", fmt.Sprintf("the member went on to %d after the fork at %d and cannot go back", l.Index, k))
}

func reject(why string) Plan { return Plan{Mode: Reject, Rule: "R0", Why: why} }

func snap(s Source, rule, why string) Plan {
	return Plan{Mode: Snap, To: s.Commit, Rule: rule, Why: why}
}

func contains(path []uint64, node uint64) bool {
	for _, n := range path {
		if n == node {
			return true
		}
	}
	return false
}
