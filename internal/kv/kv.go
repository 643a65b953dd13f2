// Package kv is the seam to the ordered key-value store that holds the applied state of every machine of
// a node: Pebble in production, an in-memory B-tree with a crash model in tests and in the simulator.
//
// It is not a log and makes no promise of its own about durability: what a batch committed survives the
// death of the process once Sync has returned; after a crash the store holds a prefix of the batches that
// were committed, in commit order, and never half of one. The raft log closes the gap: every batch
// carries the index that it applied up to, so replay starts exactly where the surviving prefix ends.
//
// What no log can tell again (what a binding has done to its disk) is committed through Store.Through: after the death
// of the process alone none of that is missing. After the death of the system it is a prefix, like the rest.
//
// The package starts no goroutine; Pebble starts its own and Close waits for them.
package kv

import "errors"

// ErrStop, returned by a Scan visitor, ends the scan without an error.
var ErrStop = errors.New("kv: stop")

// Reader reads one consistent or live state. Keys compare bytewise.
type Reader interface {
	// Get returns a copy of the value, or found == false.
	Get(key []byte) (value []byte, found bool, err error)
	// Lookup visits those of keys that are present, in the order of keys, which is ascending without repeats;
	// i is the number of the key. It costs less than a Get for each. The value is valid only during the call.
	// An error from visit ends the lookup and is returned, except ErrStop.
	Lookup(keys [][]byte, visit func(i int, value []byte) error) error
	// Scan visits from ≤ key < to in order; nil `to` means no upper bound. The slices are valid only
	// during the call. An error from visit ends the scan and is returned, except ErrStop.
	Scan(from, to []byte, visit func(key, value []byte) error) error
}

// Tx is a Reader that also collects writes; its reads see its own writes.
type Tx interface {
	Reader
	Set(key, value []byte) error // copies both
	Delete(key []byte) error
	// DeleteRange deletes from ≤ key < to; nil `to` means no upper bound.
	DeleteRange(from, to []byte) error
}

// Batch is a Tx that takes effect as a whole. It reads the store as it is at each call, below its own writes;
// a Scan visits the state at its begin even if visit writes. A batch is for one goroutine.
type Batch interface {
	Tx
	Commit() error // atomic; visible at once; durable only after Sync
	Discard()      // releases the batch; harmless after Commit
}

// View is a point-in-time state; it stays readable while the store goes on. Views are closed before the store.
type View interface {
	Reader
	Close() error
}

// Store is the whole state or, through Prefixed, one key prefix of it. Batches of disjoint prefixes may be
// open and committed concurrently.
type Store interface {
	Reader
	Batch() Batch
	View() View
	Sync() error // all that was committed before the call is durable when it returns
	// Through is the same store, with batches that survive the death of the process (not that of the system, which
	// takes a Sync) when Commit returns. It costs a write of the batch to a file. All batches of a prefix are of this
	// kind or none: the death of the process may take what others committed before.
	Through() Store
	// Size is about how many bytes from ≤ key < to take (nil to: no upper bound): good enough to choose by. What was
	// written most recently may be missing from it.
	Size(from, to []byte) (uint64, error)
	Close() error
}
