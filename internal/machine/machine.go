// Package machine is the contract between the engine and a replicated state machine: one kind of group
// (files, control, later records and tree). The engine orders commands; a machine executes them.
//
// A machine keeps its replicated state in the kv.Tx that it is handed and nowhere else (a cache that can be
// rebuilt from there is fine). That makes snapshots, restart and crash recovery the engine's business, once
// for all kinds. A machine must be deterministic: its results and its state are functions of the prior state
// and the command. It has no clock (Command.Time is the leader's), no randomness, no goroutine.
//
// Nor does it depend on the program that it is part of: nodes are upgraded one by one, so for a while replicas of one
// group run different programs. What a newer program executes in another way, or knows in addition, it does so only
// from a cluster level on, and Command.Level says which one is in force; below that it does exactly what the older one
// does, up to the refusal of a command that the older one does not know.
package machine

import (
	"encoding/hex"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Digest identifies a machine's replicated state: equal state, equal digest, on every replica.
type Digest [32]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Command is one committed command.
type Command struct {
	Index   uint64 // log index of the entry that carried it; several commands may share one
	Time    int64  // leader's clock when it was proposed, Unix nanoseconds, never decreasing within a log
	Level   uint64 // cluster level under which it is executed, never decreasing within a log; at least 1
	Payload []byte // the machine's own encoding; must be treated as immutable
}

// Machine is implemented once per kind and passes machinetest.Run.
type Machine interface {
	// Apply executes cmd against tx and returns what the proposer is told. Malformed or refused commands are
	// results, never errors: an error means that storage failed and stops the replica.
	Apply(tx kv.Tx, cmd Command) (result []byte, err error)
	// Committed is called after the batch that holds every Apply up to index has committed: now others may
	// see it (events go out from here). Called from the same goroutine as Apply.
	Committed(index uint64)
	// Restored is called after the whole state was replaced by a snapshot taken at index, and once when a
	// replica is opened: whatever is cached must be rebuilt from r.
	Restored(r kv.Reader, index uint64) error
	// Digest computes the digest of the state in tx; it may store memos in tx, but only under keys that
	// do not change the digest and are rebuilt if absent.
	Digest(tx kv.Tx) (Digest, error)
}

// Recomputer is a machine whose Digest believes memos that it stored. Recompute is the same digest, of the state in r,
// from the records themselves: it finds what changed without the machine.
type Recomputer interface {
	Machine
	Recompute(r kv.Reader) (Digest, error)
}
