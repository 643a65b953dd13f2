package core

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// InSync is a recorded in-sync set: what a group's `all` acknowledgement is about. Versions grow with every
// change; 0: none is recorded.
//
// The invariant that makes it worth something: at any time every member of the set that is recorded holds,
// durably, every write that was ever answered CommittedAll. So a set may shrink whenever one likes, whoever does
// it: that takes a member out of every later promise. It may grow only by a replica that holds all those writes,
// and they are counted on it from before the larger set could be recorded: CountInSync.
type InSync struct {
	Version  uint64
	Replicas []uint64
}

// inSync is what a leader counts. It is empty outside a leadership.
type inSync struct {
	recorded InSync
	required []uint64 // members of recorded, and of sets that may be recorded by now
	upTo     uint64   // no entry above it was ever answered CommittedAll
}

// waiting is an AckAll proposal that is committed and applied here but not everywhere.
type waiting struct {
	id     uint64
	at     Position
	result []byte
}

// CountInSync tells the leader of a term which set is recorded, and who is a member of sets that were proposed and
// may be recorded by now, or later: AckAll waits for all of them and names recorded's version. It must be called
// with what it is about to be proposed before that is done, and recorded must have been read after the record was
// bound to this term, so that no proposal of an earlier leader can take effect any more.
//
// False: nothing was changed. This replica does not lead in that term, or has not committed in it yet, or one of
// proposed does not hold everything that was answered CommittedAll so far, so the set must not grow by it now.
func (g *Group) CountInSync(term uint64, recorded InSync, proposed []uint64) bool {
	defer g.blame("CountInSync")
	if g.role != Leader || g.term != term || !g.termBegun || recorded.Version == 0 {
		return false
	}
	required := slices.Clone(recorded.Replicas)
	for _, r := range proposed {
		if slices.Contains(required, r) {
			continue
		}
		if !slices.Contains(g.inSync.required, r) && g.match(r) < g.inSync.upTo {
			return false
		}
		required = append(required, r)
	}
	g.inSync.recorded, g.inSync.required = recorded, required
	return true
}

// match is up to where a member is known to hold this leader's log, durably; 0 if it is none.
func (g *Group) match(replica uint64) (index uint64) {
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == replica {
			index = pr.Match
		}
	})
	return index
}

// awaitAll takes up what is committed and applied. A replica that no longer leads learns nothing of the others.
func (g *Group) awaitAll(w waiting) {
	if g.role != Leader {
		g.answers = append(g.answers, quorumOnly(w, nil))
		return
	}
	g.waitAll = append(g.waitAll, w)
}

// loseAll ends what a leadership knew.
func (g *Group) loseAll() {
	for _, w := range g.waitAll {
		g.answers = append(g.answers, quorumOnly(w, nil))
	}
	clear(g.waitAll)
	g.waitAll = g.waitAll[:0]
	g.inSync = inSync{}
}

// answerAll answers the AckAll proposals that every member that counts has.
func (g *Group) answerAll() {
	if len(g.waitAll) == 0 {
		return
	}
	everywhere := g.everywhere()
	n := 0
	for n < len(g.waitAll) && g.waitAll[n].at.Index <= everywhere {
		w := &g.waitAll[n]
		g.inSync.upTo = max(g.inSync.upTo, w.at.Index)
		g.answers = append(g.answers, Answer{ID: w.id, Code: CommittedAll, Position: w.at, Set: g.inSync.recorded.Version, Result: w.result})
		n++
	}
	g.waitAll = slices.Delete(g.waitAll, 0, n)
}

// counts says whether AckAll waits for a member of the configuration.
func (g *Group) counts(replica uint64) bool {
	return !g.cfg.InSync || slices.Contains(g.inSync.required, replica)
}

// everywhere is up to where all members that count hold the log durably.
func (g *Group) everywhere() uint64 {
	if g.cfg.InSync && g.inSync.recorded.Version == 0 {
		return 0
	}
	found, index := 0, ^uint64(0)
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if g.counts(id) {
			found++
			index = min(index, pr.Match)
		}
	})
	if g.cfg.InSync && found < len(g.inSync.required) {
		return 0 // one of them is no member any more: the record must say so first
	}
	return index
}

// missing lists who counts and is not known to have index.
func (g *Group) missing(index uint64) []uint64 {
	var ids []uint64
	have := map[uint64]bool{}
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		have[id] = pr.Match >= index
		if g.counts(id) && pr.Match < index {
			ids = append(ids, id)
		}
	})
	for _, id := range g.inSync.required {
		if _, member := have[id]; !member {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func quorumOnly(w waiting, missing []uint64) Answer {
	return Answer{ID: w.id, Code: CommittedQuorumOnly, Position: w.at, Result: w.result, Missing: missing}
}
