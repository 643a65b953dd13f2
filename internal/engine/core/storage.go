package core

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// ErrLogBehind says that the state covers more than the log holds: a snapshot was installed and the crash
// came before the log was reset to it. The runner resets the log to the state's snapshot position.
var ErrLogBehind = errors.New("log ends before the applied state")

// ErrLogAhead says that the log starts after the applied state: entries between the two are lost here, so
// the replica needs a snapshot.
var ErrLogAhead = errors.New("log starts after the applied state")

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
	first, err := cfg.Storage.FirstIndex()
	if err != nil {
		return nil, fmt.Errorf("read first index: %w", err)
	}
	last, err := cfg.Storage.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("read last index: %w", err)
	}
	if cfg.Applied == 0 && first == firstOfNew {
		cfg.Applied = first - 1
	}
	switch {
	case cfg.Applied > last:
		return nil, fmt.Errorf("applied %d, log %d to %d: %w", cfg.Applied, first, last, ErrLogBehind)
	case cfg.Applied+1 < first:
		return nil, fmt.Errorf("applied %d, log %d to %d: %w", cfg.Applied, first, last, ErrLogAhead)
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
