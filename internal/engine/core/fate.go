package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// maxTerms bounds Terms: that many leaderships back it is known what became of an accepted write.
const maxTerms = 1024

// Terms says in which term each committed entry is, as far back as it is remembered: where each term begins, the
// newest maxTerms of them. It is part of the replicated state, a function of the log alone. A value is immutable.
type Terms struct {
	starts []Position // of each term the first entry known, by index
}

// Note adds a committed entry, in the order of the log.
func (t Terms) Note(at Position) Terms {
	n := len(t.starts)
	if n > 0 && t.starts[n-1].Term == at.Term {
		return t
	}
	return Terms{append(slices.Clone(t.starts[max(0, n-maxTerms+1):]), at)}
}

// At is the term of the entry at index; false: it is not remembered. Index must not be above what is covered.
func (t Terms) At(index uint64) (term uint64, ok bool) {
	i, found := slices.BinarySearchFunc(t.starts, index, func(p Position, index uint64) int {
		switch {
		case p.Index < index:
			return -1
		case p.Index > index:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	if i < 0 {
		return 0, false
	}
	return t.starts[i].Term, true
}

// Equal says whether t and o, of which one was made from the other by Note, are the same.
func (t Terms) Equal(o Terms) bool {
	n, m := len(t.starts), len(o.starts)
	return n == m && (n == 0 || t.starts[n-1] == o.starts[n-1])
}

// Append encodes t: for each term its number and first index, as unsigned varints.
func (t Terms) Append(b []byte) []byte {
	for _, p := range t.starts {
		b = binary.AppendUvarint(binary.AppendUvarint(b, p.Term), p.Index)
	}
	return b
}

var errTerms = errors.New("malformed table of terms")

// DecodeTerms is the inverse of Append.
func DecodeTerms(b []byte) (Terms, error) {
	d := decoder{rest: b}
	var t Terms
	for len(d.rest) > 0 {
		p := Position{Term: d.uvarint(), Index: d.uvarint()}
		n := len(t.starts)
		if d.bad || n == maxTerms || n > 0 && (p.Term <= t.starts[n-1].Term || p.Index <= t.starts[n-1].Index) {
			return Terms{}, errTerms
		}
		t.starts = append(t.starts, p)
	}
	return t, nil
}

// Fate of an entry that a leader had accepted.
type Fate uint8

const (
	FateOpen      Fate = iota // the state does not reach that far yet
	FateCommitted             // it is part of the log for good
	FateLost                  // it never will be
	FateForgotten             // Terms do not reach back to it
)

var fateNames = [...]string{"open", "committed", "lost", "forgotten"}

func (f Fate) String() string { return fateNames[f] }

// FateOf tells what became of an entry from what a state covers: where it ends, and its terms. It is exact: an
// entry is what was accepted if its term is, and terms never decrease along a log, so a committed entry of a
// later term below an index rules out for good that one of an earlier term is ever committed there.
func FateOf(entry, covered Position, terms Terms) Fate {
	if entry.Index > covered.Index {
		if covered.Term > entry.Term {
			return FateLost
		}
		return FateOpen
	}
	switch term, ok := terms.At(entry.Index); {
	case !ok:
		return FateForgotten
	case term == entry.Term:
		return FateCommitted
	}
	return FateLost
}

// doubt is an entry of this replica's, in its log, with writes that were answered Accepted, of which it no longer
// leads the term. An entry that is overwritten is not lost yet, another replica may still bring it back: only what
// is committed at its index decides.
type doubt struct {
	at     Position
	writes int
}

// doubt remembers what was accepted in f when it leaves the queue without being committed.
func (g *Group) doubt(f *inflight) {
	if f.accepted > 0 && g.cfg.Terms != nil {
		g.doubts = append(g.doubts, doubt{f.at, f.accepted})
	}
}

// findDoubts looks for what an earlier run of this replica may have accepted: the last part of its log.
func (g *Group) findDoubts(log *reconciled) error {
	if g.cfg.Terms == nil {
		return nil
	}
	for at := g.applied + 1; at <= g.last; {
		entries, err := log.Entries(at, g.last+1, maxBytesPerMessage)
		if err != nil {
			return fmt.Errorf("read entries from %d: %w", at, err)
		}
		for _, e := range entries {
			if n := g.acceptedIn(e); n > 0 {
				g.doubts = append(g.doubts, doubt{Position{Term: e.GetTerm(), Index: e.GetIndex()}, n})
			}
		}
		at += uint64(len(entries))
	}
	return nil
}

// acceptedIn is how many proposals of e this replica may have answered Accepted.
func (g *Group) acceptedIn(e *raftpb.Entry) (n int) {
	if e.GetType() != raftpb.EntryNormal || len(e.GetData()) == 0 {
		return 0
	}
	b, err := DecodeBatch(e.GetData())
	if err != nil || b.Proposer != g.cfg.Replica {
		return 0 // an entry that cannot be decoded stops the replica when it is applied
	}
	for i := range b.Proposals {
		if b.Proposals[i].Ack == AckLocal {
			n++
		}
	}
	return n
}

// settleDoubts decides about the doubts that the state has reached.
func (g *Group) settleDoubts() {
	if len(g.doubts) == 0 {
		return
	}
	terms := g.cfg.Terms()
	term, _ := terms.At(g.applied)
	covered := Position{Term: term, Index: g.applied}
	open := g.doubts[:0]
	for _, d := range g.doubts {
		switch f := FateOf(d.at, covered, terms); f {
		case FateOpen:
			open = append(open, d)
		case FateLost, FateForgotten:
			g.lost = append(g.lost, Loss{Position: d.at, Writes: d.writes, Known: f == FateLost})
		}
	}
	g.doubts = open
}
