package core

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// ErrLogBehind says that the log does not lead to the state (see LogFits): a snapshot was installed and the
// crash came before the log was reset to it. The runner resets the log to the state's snapshot position.
var ErrLogBehind = errors.New("log does not lead to the applied state")

// ErrLogAhead says that the log starts after the applied state: entries between the two are lost here, so
// the replica needs a snapshot.
var ErrLogAhead = errors.New("log starts after the applied state")

// LogFits says whether a state at at can be continued from log. It cannot if the log ends before or holds
// another entry there, one that was never committed: the log must then be reset to the state's position,
// else this replica would pass on, as committed, entries that never were. If the log starts later it fits:
// what is missing is then the state.
func LogFits(log raft.Storage, at Position) (bool, error) {
	first, last, err := bounds(log)
	if err != nil || at.Index > last {
		return false, err
	}
	if at.Index+1 < first {
		return true, nil
	}
	term, err := log.Term(at.Index)
	if err != nil {
		return false, fmt.Errorf("read term of entry %d: %w", at.Index, err)
	}
	return term == at.Term, nil
}

// HardStateFrom is what has to be written together with a reset of the log to a state at at: of that term, at least, for
// a log with an entry of a later term than its hard state's is damaged. In a term that it has not heard of a replica has
// not voted.
func HardStateFrom(log raft.Storage, at Position) (*raftpb.HardState, error) {
	hs, _, err := log.InitialState()
	if err != nil {
		return nil, fmt.Errorf("read hard state: %w", err)
	}
	next := &raftpb.HardState{
		Term: proto.Uint64(hs.GetTerm()), Vote: proto.Uint64(hs.GetVote()), Commit: proto.Uint64(max(hs.GetCommit(), at.Index)),
	}
	if at.Term > hs.GetTerm() {
		next.Term, next.Vote = proto.Uint64(at.Term), proto.Uint64(0)
	}
	return next, nil
}

// CommittedIn is how far the log of a replica that runs is known to be what was committed: to its state, at at, if the log
// holds that very entry; else, while a state that was installed is ahead of the log, to what raft has applied from it.
// What is above may have been replaced elsewhere.
func CommittedIn(log raft.Storage, at Position, applied uint64) (uint64, error) {
	fits, err := LogFits(log, at)
	if err != nil || fits {
		return at.Index, err
	}
	return min(at.Index, applied), nil
}

func bounds(log raft.Storage) (first, last uint64, err error) {
	if first, err = log.FirstIndex(); err != nil {
		return 0, 0, fmt.Errorf("read first index: %w", err)
	}
	if last, err = log.LastIndex(); err != nil {
		return 0, 0, fmt.Errorf("read last index: %w", err)
	}
	return first, last, nil
}

// reconciled is a Storage whose initial state agrees with the applied state. A commit index is written
// without a sync and a state may be ahead of it after a crash; what is applied is committed.
type reconciled struct {
	raft.Storage
	hard *raftpb.HardState
	conf *raftpb.ConfState
}

func (s *reconciled) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return s.hard, s.conf, nil
}

// firstOfNew is the first index of a new group's log: the entry before it, which no log holds, stands for
// the empty state and the first configuration.
const firstOfNew = 2

func reconcile(cfg *Config) (*reconciled, error) {
	hs, cs, err := cfg.Storage.InitialState()
	if err != nil {
		return nil, fmt.Errorf("read initial state: %w", err)
	}
	first, last, err := bounds(cfg.Storage)
	if err != nil {
		return nil, err
	}
	if cfg.Applied == 0 && first == firstOfNew {
		cfg.Applied = first - 1
	}
	if cfg.Applied+1 < first {
		return nil, fmt.Errorf("applied %d, log %d to %d: %w", cfg.Applied, first, last, ErrLogAhead)
	}
	fits := cfg.Applied <= last
	if fits && cfg.AppliedTerm != 0 {
		if fits, err = LogFits(cfg.Storage, Position{Term: cfg.AppliedTerm, Index: cfg.Applied}); err != nil {
			return nil, err
		}
	}
	if !fits {
		return nil, fmt.Errorf("applied %d, log %d to %d: %w", cfg.Applied, first, last, ErrLogBehind)
	}
	lastTerm, err := cfg.Storage.Term(last)
	if err != nil {
		return nil, fmt.Errorf("read term of entry %d: %w", last, err)
	}
	if cfg.ConfState != nil {
		cs = cfg.ConfState
	}
	hard := &raftpb.HardState{
		Term:   proto.Uint64(hs.GetTerm()),
		Vote:   proto.Uint64(hs.GetVote()),
		Commit: proto.Uint64(max(hs.GetCommit(), cfg.Applied)),
	}
	if lastTerm > hs.GetTerm() {
		// A log that was reset to an installed snapshot: the term was never voted in by this replica.
		hard.Term, hard.Vote = proto.Uint64(lastTerm), proto.Uint64(0)
	}
	return &reconciled{Storage: cfg.Storage, hard: hard, conf: raftpb.EnsureConfState(cs)}, nil
}
