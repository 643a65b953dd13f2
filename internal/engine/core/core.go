// Package core is the pure heart of a group: raft's RawNode (async storage writes) wrapped so that events go
// in as method calls and work comes out as one Effects value. It has no goroutine, clock, socket, disk or
// randomness of its own; the runner in production and the simulator in tests carry the effects out.
//
// One log entry carries a batch of proposals (everything that was queued while the last entry was on its
// way), so raft's per-entry cost is paid once per batch. A proposal is identified by its session (Client,
// Seq); the sessions' table is part of the replicated state (package replica).
package core

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Ack says what must have happened before a write is answered.
type Ack uint8

const (
	AckQuorum Ack = iota // committed and applied on the leader
	AckLocal             // synced to the leader's log
	AckAll               // committed and durable on every member of the configuration
)

// Proposal is one client's write.
type Proposal struct {
	ID      uint64 // the runner's handle; comes back in the Answer
	Ack     Ack
	Client  [16]byte // session id; zero: no session, at-least-once
	Seq     uint64   // > 0 and unique in the session
	Floor   uint64   // every Seq below it has been answered to the client: results may be forgotten
	Payload []byte   // immutable from here on
}

// Code is the typed answer to a proposal or a read.
type Code uint8

const (
	Unknown      Code = iota // fate open: retry with the same Client and Seq
	Accepted                 // AckLocal: synced on the leader at Position; may be lost by a failover
	Committed                // committed and applied at Position
	CommittedAll             // and durable on every member
	NotLeader                // not taken; Leader names the replica to ask (0: none known)
	Busy                     // not taken: too much uncommitted; retry later
	Ready                    // a read: the local state at Index or above is linearizable
)

// Position of an entry in the group's history.
type Position struct {
	Term, Index uint64
}

// Answer resolves a Proposal, a Read or a Change.
type Answer struct {
	ID       uint64
	Code     Code
	Position Position
	Result   []byte // the machine's result, for Committed and CommittedAll
	Leader   uint64 // replica id, for NotLeader
}

// Config of a group's core.
type Config struct {
	Group, Replica uint64 // ids; never reused
	Storage        raft.Storage
	Applied        uint64 // index that the state already covers
	ElectionTicks  int    // ≥ 3 × HeartbeatTicks; default 10
	HeartbeatTicks int    // default 1
	MaxEntryBytes  uint64 // proposals are packed into entries of at most about this size; default 1 MiB
	MaxUncommitted uint64 // bytes; above: Busy; default 64 MiB
	Logger         raft.Logger
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
}

// Append is one log write. Sync is false when raft asked for no durability.
type Append struct {
	Entries   []*raftpb.Entry
	HardState *raftpb.HardState
	Snapshot  *raftpb.Snapshot
	Sync      bool

	done []*raftpb.Message
}

// Apply is one batch of committed entries.
type Apply struct {
	Entries []*raftpb.Entry

	done []*raftpb.Message
}

// Batch is the decoded payload of a normal entry.
type Batch struct {
	Proposer  uint64     // replica that was leader
	ID        uint64     // unique per proposer incarnation
	Time      int64      // leader's clock, Unix ns
	Proposals []Proposal // ID and Ack are not on the wire
}

// The methods of Group, by event. None blocks. Call Effects after a round of events and carry it out.
//
//	New(Config) (*Group, error)
//	Tick()                                     one clock tick (100 ms)
//	Receive(m *raftpb.Message) error           a message from a peer (MsgSnap only after its state is installed)
//	Propose(now int64, batch uint64, ps []Proposal)  answered later, each exactly once
//	Read(id uint64)                            answered Ready or NotLeader (followers forward through raft)
//	Change(id uint64, cc *raftpb.ConfChangeV2) one at a time; answered when applied
//	Transfer(to uint64)                        hand leadership over
//	PeerDown(replica uint64)                   its process is known to be gone: forget it as leader; rank-staggered campaign
//	Unreachable(replica uint64)                a send failed
//	SnapshotSent(replica uint64, ok bool)
//	Appended(a *Append); Applied(a *Apply, results [][][]byte)   results[entry][proposal]
//	ApplyConf(cc) *raftpb.ConfState            called by the runner while applying a conf-change entry
//	Effects() (e Effects, any bool)
//	Status() Status                            role, term, leader, commit, applied, per-peer match/mode/why
