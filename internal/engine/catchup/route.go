package catchup

import (
	"errors"
	"fmt"
	"slices"
)

// Why a path is refused by the learner that it would feed.
var (
	ErrLoop    = errors.New("R0: this node is in the source's own path to the voters")
	ErrTooDeep = fmt.Errorf("R0: the source is more than %d hops from the voters", MaxHops-1)
)

// CheckPath guards a learner against loops and paths that are too long; path is how its source is fed, the source first.
// A source refuses by R0 what it sees at HELLO. Paths change later, and two that attach to one another at the same time
// see nothing amiss, so the learner checks the first path and each that follows.
func CheckPath(node uint64, path []uint64) error {
	switch {
	case slices.Contains(path, node):
		return ErrLoop
	case len(path) > MaxHops:
		return ErrTooDeep
	}
	return nil
}

// Candidates are the nodes that a learner asks to be fed by, in this order: its assigned sources, then the voters. Who
// was lost last (0: nobody) is asked last: it may take its time to refuse.
func Candidates(node, lost uint64, assigned, voters []uint64) (nodes []uint64) {
	for _, n := range slices.Concat(assigned, voters) {
		if n != node && !slices.Contains(nodes, n) {
			nodes = append(nodes, n)
		}
	}
	if i := slices.Index(nodes, lost); i >= 0 {
		nodes = append(slices.Delete(nodes, i, i+1), lost)
	}
	return nodes
}
