package core

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// tellCommitted answers a candidate that may go by a configuration of before: one in which this replica votes, while by its
// own it does not any more. Raft changes configurations as entries are applied, so a leader that was removed can stand down
// before the others know that the change is committed. Its log may be ahead of theirs, so that it refuses them its vote; and
// if they need that (two voters of which one was replaced), nobody ever leads again.
//
// What is committed may be told by anybody. The answer is an append without entries at the position that this replica has
// applied: raft goes by it only if its log has that entry, whatever the candidate said of it and has lost since. A candidate
// that does not claim to have it is left alone: it would take the answer for a leader's, and stand again a timeout later.
func (g *Group) tellCommitted(m *raftpb.Message) {
	if m.GetTerm() == 0 || g.votes() {
		return
	}
	term, err := g.cfg.Storage.Term(g.applied)
	if err != nil || m.GetLogTerm() < term || m.GetLogTerm() == term && m.GetIndex() < g.applied {
		return
	}
	g.sends = append(g.sends, &raftpb.Message{
		Type: raftpb.MsgApp.Enum(), From: new(g.cfg.Replica), To: new(m.GetFrom()),
		Term:  new(m.GetTerm() - 1), // a pre-vote names the term that the candidate would begin
		Index: new(g.applied), LogTerm: &term, Commit: new(g.applied),
	})
}

// votes tells whether this replica has a vote in its own configuration, or leads in any.
func (g *Group) votes() bool {
	s := g.rn.Status()
	_, in := s.Config.Voters.IDs()[g.cfg.Replica]
	return in || s.RaftState == raft.StateLeader
}
