package core

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// tellCommitted answers a candidate that may go by a configuration of before: one in which this replica votes, while by its
// own it is no member any more. Raft changes configurations as entries are applied, so a leader that was removed can stand
// down before the others know that the change is committed. Its log may be ahead of theirs, so that it refuses them its vote;
// and if they need that (two voters of which one was replaced), nobody ever leads again.
//
// What is committed may be told by anybody. The answer is an append without entries at the position that this replica has
// applied: raft goes by it only if its log has that entry, whatever the candidate said of it and has lost since. The candidate
// takes it for a leader's and stands again a timeout later, so it is told only if it gains by that: if it is refused the vote,
// and says that it has the entry.
func (g *Group) tellCommitted(m *raftpb.Message) {
	if m.GetTerm() == 0 || !g.departed() {
		return
	}
	last, err := g.cfg.Storage.LastIndex()
	if err != nil {
		return
	}
	lastTerm, err := g.cfg.Storage.Term(last)
	if err != nil || !behind(m.GetLogTerm(), m.GetIndex(), lastTerm, last) {
		return
	}
	term, err := g.cfg.Storage.Term(g.applied)
	if err != nil || behind(m.GetLogTerm(), m.GetIndex(), term, g.applied) {
		return
	}
	g.sends = append(g.sends, &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), From: new(g.cfg.Replica), To: new(m.GetFrom()),
		Term:  new(m.GetTerm() - 1), // a pre-vote names the term that the candidate would begin
		Index: new(g.applied), LogTerm: &term, Commit: new(g.applied),
	})
}

// behind says whether a log that ends at (term, index) lacks the committed entry at (otherTerm, other), or is not as up to
// date as a log that ends there (Raft, section 5.4.1).
func behind(term, index, otherTerm, other uint64) bool {
	return term < otherTerm || term == otherTerm && index < other
}

// departed tells whether this replica knows a configuration, is no member of it, nor leads.
func (g *Group) departed() bool {
	s := g.rn.Status()
	ids := s.Config.Voters.IDs()
	_, votes := ids[g.cfg.Replica]
	_, learns := s.Config.Learners[g.cfg.Replica]
	return len(ids) > 0 && !votes && !learns && s.RaftState != raft.StateLeader
}
