package core

import (
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3"
)

const (
	readRetryTicks = 2 // a read that is not confirmed by then is asked for again
	maxReadRounds  = 4 // rounds under way at once; reads that come meanwhile wait and share the next
)

// reads keeps the linearizable reads. All that wait share rounds: one ReadIndex with a context of its own,
// made of the round's number, for every read asked since the round before. What a round confirms holds for
// every read that was asked before it began, so a round that raft drops costs its reads a little time only.
type reads struct {
	waiting   []read // in the order in which they were asked
	fresh     int    // how many at the end of waiting are in no round yet
	issued    uint64 // number of the latest round
	confirmed uint64 // number of the latest round that was confirmed
	age       int    // ticks since the latest round began
	granted   []read // confirmed; wait for the state to reach index; index never decreases
}

type read struct {
	id    uint64
	round uint64 // the first round that covers it
	index uint64
}

// Read asks for an index such that the local state, once it includes it, is linearizable: answered Ready
// when that is so. It works on every member, on followers through the leader; it is asked again as long as
// no leader answers, until Expire.
func (g *Group) Read(id uint64) {
	g.reads.waiting = append(g.reads.waiting, read{id: id})
	g.reads.fresh++
}

func (r *reads) tick() { r.age++ }

// again has every waiting read asked again at once: the leader has changed.
func (r *reads) again() { r.age = readRetryTicks }

// mayKnowLess says whether this replica leads, by raft's own word, and is not known to have committed in its term: what it
// believes to be committed may then be older than what its predecessor has acknowledged. Raft itself makes an exception
// for a group of one voter, whose commit index may be behind after a crash. The role of the last Effects does not tell: an
// event since, as that its own vote is durable, may have made it leader.
func (g *Group) mayKnowLess() bool {
	s := g.rn.BasicStatus()
	return s.RaftState == raft.StateLeader && (g.role != Leader || g.term != s.GetTerm() || !g.termBegun)
}

// readsDue says whether a round should begin. Without a leader raft would drop it. A leader waits for the first
// commit of its term (see mayKnowLess). That it leads cannot have escaped here: it was a candidate first, whose vote
// went out with Effects, and since then no leader is known.
func (g *Group) readsDue() bool {
	r := &g.reads
	switch {
	case len(r.waiting) == 0, g.leader == 0, g.role == Leader && !g.termBegun:
		return false
	case r.age >= readRetryTicks:
		return true
	default:
		return r.fresh > 0 && r.issued-r.confirmed < maxReadRounds
	}
}

func (g *Group) issueReads() {
	r := &g.reads
	if !g.readsDue() {
		return
	}
	r.issued++
	for i := len(r.waiting) - r.fresh; i < len(r.waiting); i++ {
		r.waiting[i].round = r.issued
	}
	r.fresh, r.age = 0, 0
	ctx := binary.BigEndian.AppendUint64(make([]byte, 0, 24), g.cfg.Replica)
	ctx = binary.BigEndian.AppendUint64(ctx, g.cfg.Nonce)
	g.rn.ReadIndex(binary.BigEndian.AppendUint64(ctx, r.issued))
}

// confirm takes raft's answer to a round; answers to an earlier run's reads are ignored.
func (r *reads) confirm(nonce uint64, rs raft.ReadState) {
	ctx := rs.RequestCtx
	if len(ctx) != 24 || binary.BigEndian.Uint64(ctx[8:]) != nonce {
		return
	}
	round := binary.BigEndian.Uint64(ctx[16:])
	r.confirmed = max(r.confirmed, round)
	index := rs.Index
	if n := len(r.granted); n > 0 {
		index = max(index, r.granted[n-1].index)
	}
	n := 0
	for n < len(r.waiting)-r.fresh && r.waiting[n].round <= round {
		r.waiting[n].index = index
		n++
	}
	r.granted = append(r.granted, r.waiting[:n]...)
	r.waiting = slices.Delete(r.waiting, 0, n)
}

// answerReads answers the confirmed reads that the state has reached.
func (g *Group) answerReads() {
	r := &g.reads
	n := 0
	for n < len(r.granted) && r.granted[n].index <= g.applied {
		at := Position{Index: r.granted[n].index}
		g.answers = append(g.answers, Answer{ID: r.granted[n].id, Code: Ready, Position: at})
		n++
	}
	r.granted = slices.Delete(r.granted, 0, n)
}

// drop forgets a read; false if there is none of that id.
func (r *reads) drop(id uint64) bool {
	is := func(x read) bool { return x.id == id }
	if i := slices.IndexFunc(r.granted, is); i >= 0 {
		r.granted = slices.Delete(r.granted, i, i+1)
		return true
	}
	i := slices.IndexFunc(r.waiting, is)
	if i < 0 {
		return false
	}
	if i >= len(r.waiting)-r.fresh {
		r.fresh--
	}
	r.waiting = slices.Delete(r.waiting, i, i+1)
	return true
}
