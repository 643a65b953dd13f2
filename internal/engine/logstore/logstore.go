// Package logstore keeps the raft logs of all groups of a node in one store: one writer, one sync in flight.
//
// A Write is the unit that raft calls MsgStorageAppend. Store.Write makes a slice of them durable with a
// single sync (group commit); atomically for each group: entries, hard state and snapshot position are all
// there after a crash, or none of that Write is.
//
// Open is the store of a node, NewMemory its twin for tests and the simulator, which knows what a crash may leave.
// docs/en/formats/log.md has the format, and what is believed after a crash and why. The package is not where logs are
// compared or shipped, and decides nothing about truncation.
//
// How it is built: a builder collects the sections of a batch (section.go), segStore makes frames of them (segments.go,
// segment_write.go), segLog is a group's part (segment_log.go, on logState and index, which need no disk), ring hands
// out segments (ring.go), mover keeps them from being pinned (mover.go). recovery reads them back: scan finds frames,
// replay follows what they say, load finds the entries (scan.go, replay.go, recover.go). Inspect is the same recovery
// for who only looks (inspect.go, frames.go). Disk is the seam to the operating system. Pebble is the oracle in tests
// (pebble_*_oracle_test.go).
//
// Goroutines: one, which makes segments ready; Close waits for it. Invariants:
//   - What is acknowledged was synced, and what is read at a start is synced before anything is built on it.
//   - A frame says what was durable before it. So a bad frame with a sound one behind it is damage, not a torn write.
//   - A segment is used again only when, by what is durable, no live entry is in it, and never the one before the
//     current: all else that it said, the current head says again.
//   - An entry is readable until the cold lock of its log is held alone; segments are given back after that.
//
// Cost (bench_test.go, 2 busy cores, ext4 on a virtual disk): a Write takes 0.16 ms with its sync, of one entry of 300 B
// or of 64 of them; 64 entries of 4,000 B for as many groups 0.46 ms.
package logstore

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// ErrDamaged wraps what Open or a read finds when acknowledged data is missing or altered: that replica
// must not vote again under its id.
var ErrDamaged = errors.New("log damaged")

// Unreadable is the ErrDamaged of a read of entries: some of First to Last are missing or altered. What lies outside may
// be readable.
type Unreadable struct {
	First, Last uint64
	Cause       error
}

func (e *Unreadable) Error() string {
	return fmt.Sprintf("%v: entries %d to %d: %v", ErrDamaged, e.First, e.Last, e.Cause)
}

// Unwrap makes it an ErrDamaged.
func (e *Unreadable) Unwrap() []error { return []error{ErrDamaged, e.Cause} }

// Write is one group's part of a synced append.
type Write struct {
	Group uint64
	// Snapshot, when set, replaces the log: it then starts after Snapshot.Index with this term and
	// configuration. It is applied before Entries.
	Snapshot *raftpb.SnapshotMetadata
	// Entries are appended; whatever the log held at Entries[0].Index and above is dropped first.
	Entries   []*raftpb.Entry
	HardState *raftpb.HardState // nil: unchanged
}

// Store is all logs of a node. Write, Compact, Remove and Create are called by one goroutine at a time;
// logs may be read concurrently with them.
type Store interface {
	// Log opens the log of a group; found is false if the group has none.
	Log(group uint64) (log Log, found bool, err error)
	// Create makes an empty log that starts after snap with snap's configuration, durably. Index 0 without
	// a configuration is right for a replica that joins a group which exists: raft gives it a snapshot.
	Create(group uint64, snap *raftpb.SnapshotMetadata) (Log, error)
	// Write makes all writes durable with one sync. On error nothing may be assumed: the caller stops.
	Write(writes []Write) error
	// SetConfState records the configuration that is in force once everything up to index is applied;
	// it is what InitialState returns, and after a crash it is there if a later Write is, or a later Compact.
	SetConfState(group uint64, index uint64, cs *raftpb.ConfState) error
	// Compact drops entries up to and including index (≤ the applied index that is durable elsewhere). It
	// waits for no sync: a crash before the next Write may undo it. Nothing happens if index is compacted.
	Compact(group uint64, index uint64) error
	// Condemn has Log refuse a group's log from now on, with why, which wraps ErrDamaged: a read found what was
	// acknowledged altered, after Log had handed it out. It lasts until Remove. It is not made durable at once: a start
	// before that reads the whole log, and either finds the damage itself or has every entry as it was acknowledged.
	Condemn(group uint64, why error)
	// Remove forgets a group durably.
	Remove(group uint64) error
	Groups() ([]uint64, error)
	// Idle is called when nothing has been written for a moment; what a store does then is on nobody's way. After an error
	// the caller stops, as after one of Write.
	Idle() error
	// Full says why the disk has no room for more, or nil. A store that is full goes on writing from a reserve; the
	// owner sees to it that little is written until Full is nil again, which is when the reserve is whole. What no
	// longer goes into the reserve waits. Any goroutine may call it at any time: it is an atomic load.
	Full() error
	// Retry has a disk that is full tried again; to be called once a second or so while Full is not nil. Any goroutine
	// may call it.
	Retry()
	Close() error
}

// Log is one group's log as raft reads it (raft.Storage, with the errors of raft.MemoryStorage), plus its
// size. Entries that come out are shared and must not be changed.
//
// Snapshot returns metadata alone: the newest position whose configuration is known here, which is never
// before the log's start. A runner that can stream a newer state answers raft with that instead.
type Log interface {
	raft.Storage
	// Bytes is the approximate size of the retained entries from lo to the end.
	Bytes(lo uint64) uint64
	// Cached is the first index from which on all entries are in memory; behind the last one: none are.
	Cached() uint64
}
