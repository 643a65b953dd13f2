// Package core is the pure heart of a group: raft's RawNode (async storage writes) wrapped so that events go
// in as method calls and work comes out as one Effects value. It has no goroutine, clock, socket, disk or
// randomness of its own; the runner in production and the simulator in tests carry the effects out.
//
// One log entry carries a batch of proposals (everything that was queued while the last entry was on its
// way), so raft's per-entry cost is paid once per batch. A proposal is identified by its session (Client,
// Seq); the sessions' table is part of the replicated state (package replica).
//
// The package is not safe for concurrent use: one goroutine at a time owns a Group.
package core

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Ack says what must have happened before a write is answered.
type Ack uint8

const (
	AckQuorum Ack = iota // committed and applied on the leader
	AckLocal             // synced to the leader's log, and certain to be executed if it is committed; else as AckQuorum
	AckAll               // committed and durable on every member of the configuration
)

// Proposal is one client's write.
type Proposal struct {
	ID      uint64 // the runner's handle; comes back in the Answer; unique among what is pending
	Ack     Ack
	Client  [16]byte // session id; zero: no session, at-least-once
	Seq     uint64   // > 0 and unique in the session
	Floor   uint64   // every Seq below it has been answered to the client: results may be forgotten
	Payload []byte   // immutable from here on
	Engine  bool     // a command of the engine itself (package replica): no machine is shown it
}

// Code is the typed answer to a proposal or a read.
type Code uint8

const (
	Unknown             Code = iota // fate open: retry with the same Client and Seq
	Accepted                        // AckLocal: synced on the leader at Position; may be lost by a failover, is executed if it is not
	Committed                       // committed and applied at Position
	CommittedAll                    // and durable on every member of the set of version Set
	NotLeader                       // not taken; Leader names the replica to ask (0: none known)
	Busy                            // not taken: too much uncommitted, or another Change is under way; retry later
	Ready                           // a read: the local state at Index or above is linearizable
	CommittedQuorumOnly             // AckAll given up: committed and applied, but Missing do not have it yet
	Rejected                        // a Change that the present configuration does not allow; not taken
	Full                            // not taken: no quorum has room on its disks (see PlanRoom)
)

var codeNames = [...]string{"unknown", "accepted", "committed", "committed-all", "not-leader", "busy",
	"ready", "committed-quorum-only", "rejected", "full"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "invalid"
}

// Position of an entry in the group's history.
type Position struct {
	Term, Index uint64
}

// Answer resolves a Proposal, a Read or a Change.
type Answer struct {
	ID       uint64
	Code     Code
	Position Position // Ready: only Index is set
	Place    uint32   // of the proposal in its entry, for Accepted
	Set      uint64   // version of the in-sync set that was counted, for CommittedAll; 0: the configuration
	Result   []byte   // what Applied was given, for Committed, CommittedAll and CommittedQuorumOnly
	Leader   uint64   // replica id, for NotLeader
	// Missing are the replica ids that did not have it, for CommittedQuorumOnly; empty if that is not known:
	// this replica no longer leads, or the in-sync set was not confirmed for its term.
	Missing []uint64
}

// Config of a group's core.
type Config struct {
	Group, Replica uint64 // ids; never reused
	// Nonce must differ between any two runs of this replica (random, or a boot counter): it tells the
	// answers to this run's reads from late ones to an earlier run. Not 0.
	Nonce   uint64
	Storage raft.Storage
	// Applied is the index that the state already covers; 0: there is none yet.
	Applied uint64
	// AppliedTerm is the term of the entry at Applied; 0: not known, LogFits is not checked.
	AppliedTerm uint64
	// ConfState is the configuration in force at Applied. nil: Storage.InitialState has it.
	ConfState *raftpb.ConfState
	// InSync makes AckAll count the set that CountInSync names, and nothing before it names one. Without it
	// AckAll counts every member of the configuration.
	InSync bool
	// Terms returns the terms of everything that the state covers; with it the core tells what was Accepted
	// here and is lost (Effects.Lost). It may be called after Applied and Appended. nil: nobody wants to know.
	Terms func() Terms
	// Executes says whether a proposal of a session is certain to be executed if it is applied behind what the state
	// covers and ahead, and nothing else. Without that Accepted is not said. It may be called in Propose, and knows at
	// least what Applied told. nil: it is never certain.
	Executes func(p *Proposal, ahead Ahead) bool
	// Level is the cluster level that this node acts under: what is proposed here is stamped with it. nil: FirstLevel.
	Level func() uint64
	// Room is of the disk that Storage is on. nil: there is always room.
	Room Room

	ElectionTicks  int         // ≥ 3 × HeartbeatTicks; default 10
	HeartbeatTicks int         // default 2, with which 100 idle groups cost a quarter less than with 1
	MaxEntryBytes  uint64      // proposals are packed into entries of at most about this size; default 1 MiB
	MaxUncommitted uint64      // bytes; above: Busy; default 64 MiB
	MaxInflight    int         // appends on their way to one peer; default 256
	Logger         raft.Logger // default: NewLogger(Group, Replica, nil)
}

// Effects is the work that one round of events asks for. Its parts may run concurrently, except as said.
type Effects struct {
	// Send: may be sent at once; raft tolerates loss. Messages that promise durability are not here but
	// in Append.done: Group.Appended turns them into Sends once the append is synced.
	Send []*raftpb.Message
	// Append: must be written and synced atomically, in order of issue, before Group.Appended is called
	// with it. nil: nothing to write.
	Append *Append
	// Apply: committed entries, in order; call Group.Applied when the state includes them.
	Apply   *Apply
	Answers []Answer
	// Snapshot: a follower needs state (raft's MsgSnap): Snapshots lists those to serve; the runner
	// streams the state out of band and reports with Group.SnapshotSent.
	Snapshots []*raftpb.Message
	// Lost: writes that this replica answered Accepted and that will never be committed. Each once.
	Lost []Loss
}

// Loss is of one entry that was overwritten.
type Loss struct {
	Position
	Writes int  // how many that were Accepted the entry carried
	Known  bool // false: whether the entry was committed is no longer known, Terms do not reach back to it
}

// Append is one log write. Sync is false when raft asked for no durability: the write may then be left to
// the next sync, but Group.Appended is still called only after every earlier Append is durable.
type Append struct {
	Entries   []*raftpb.Entry
	HardState *raftpb.HardState
	Snapshot  *raftpb.Snapshot
	Sync      bool

	done []*raftpb.Message
	term uint64 // in which this replica led when it was issued; 0: it did not
}

// Apply is one batch of committed entries.
type Apply struct {
	Entries []*raftpb.Entry

	done []*raftpb.Message
}

// FirstLevel is the lowest cluster level.
const FirstLevel = 1

// Batch is the decoded payload of a normal entry.
type Batch struct {
	Level     uint64     // cluster level that the leader acted under; 0 is encoded as FirstLevel
	Proposer  uint64     // replica that was leader
	ID        uint64     // unique per proposer incarnation
	Time      int64      // leader's clock, Unix ns
	Proposals []Proposal // ID is not on the wire, and of Ack only whether it is AckLocal
}
