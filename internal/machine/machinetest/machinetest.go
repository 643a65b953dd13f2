// Package machinetest is the conformance suite of machine.Machine: what the engine relies on in every kind.
//
//   - the same commands give the same results and the same digest, however they are cut into batches;
//   - a restart, a crash at any batch and a snapshot's copy change nothing;
//   - the digest tells states apart, and neither computing it nor its memos change it;
//   - malformed commands are results, never errors; failing storage is an error, never a result.
//
// It is no substitute for a kind's own tests of what its commands do. It starts no goroutine.
package machinetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// Suite describes a kind.
type Suite struct {
	// New makes a machine without any cached state; the suite calls Restored before it applies.
	New func() machine.Machine
	// Next makes the payload of a command, for the entry at index, from the state that the commands before
	// it left. Most of them should be acceptable; a share that is refused is welcome.
	Next func(rng *rand.Rand, state kv.Reader, index uint64) []byte
	// Memo says whether a key holds a memo of Digest: not state, rebuilt if absent. nil: there are none.
	Memo func(key []byte) bool
	// Commands of a run; 0: 200.
	Commands int
}

// Run tests the kind with one random run of commands, whose seed it logs.
func Run(t *testing.T, s Suite) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	RunSeed(t, s, seed)
}

// RunSeed is Run with a seed, to replay a failure.
func RunSeed(t *testing.T, s Suite, seed uint64) {
	if s.Memo == nil {
		s.Memo = func([]byte) bool { return false }
	}
	if s.Commands == 0 {
		s.Commands = 200
	}
	r := record(t, s, rand.New(rand.NewPCG(seed, 0)))
	for i, test := range []struct {
		name string
		run  func(*testing.T, *recording, *rand.Rand)
	}{
		{"Replay", replay},
		{"ReplayOnPebble", replayOnPebble},
		{"Restart", restart},
		{"Crash", crash},
		{"SnapshotCopy", snapshotCopy},
		{"Digest", digest},
		{"Malformed", malformed},
		{"FailingStorage", failingStorage},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, r, rand.New(rand.NewPCG(seed, uint64(i+1)))) })
	}
}

// recording is the reference run: every command alone in its batch, one machine, no restart.
type recording struct {
	Suite
	commands []machine.Command
	payloads [][]byte         // copies, to see that nobody wrote to a payload
	results  [][]byte         // per command
	digests  []machine.Digest // after each command
	states   []map[string]string
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func record(t *testing.T, s Suite, rng *rand.Rand) *recording {
	t.Helper()
	r := &recording{Suite: s}
	n := newReplica(t, r, kv.NewMemory())
	now := int64(1_700_000_000_000_000_000)
	index := uint64(1)
	for range s.Commands {
		index += uint64(rng.IntN(3)) // several commands may share an index, and indexes may be skipped
		now += int64(rng.IntN(3)) * rng.Int64N(int64(time.Minute))
		if rng.IntN(20) == 0 { // things expire
			now += rng.Int64N(int64(24 * time.Hour))
		}
		payload := s.Next(rng, kv.PrefixedReader(n.store, statePrefix()), index)
		r.commands = append(r.commands, machine.Command{Index: index, Time: now, Payload: payload})
		r.payloads = append(r.payloads, bytes.Clone(payload))
		r.results = append(r.results, nil)
		i := len(r.commands) - 1
		r.results[i] = n.apply(i, 1)[0]
		r.digests = append(r.digests, n.digest())
		r.states = append(r.states, n.dump())
	}
	return r
}

func statePrefix() []byte { return []byte("m/") }

// replica is a machine on a store, laid out and driven as the engine does it.
type replica struct {
	t     *testing.T
	rec   *recording
	store kv.Store
	m     machine.Machine
}

func newReplica(t *testing.T, r *recording, store kv.Store) *replica {
	t.Helper()
	n := &replica{t: t, rec: r, store: store}
	n.restart()
	return n
}

// applied is how many commands the store holds.
func (n *replica) applied() int {
	n.t.Helper()
	v, found, err := n.store.Get([]byte("e/applied"))
	must(n.t, err)
	if !found {
		return 0
	}
	var i int
	_, err = fmt.Sscan(string(v), &i)
	must(n.t, err)
	return i
}

func (n *replica) index() uint64 {
	if i := n.applied(); i > 0 {
		return n.rec.commands[i-1].Index
	}
	return 0
}

func (n *replica) restart() {
	n.t.Helper()
	n.m = n.rec.New()
	must(n.t, n.m.Restored(kv.PrefixedReader(n.store, statePrefix()), n.index()))
}

// apply runs count commands from the i-th on in one batch.
func (n *replica) apply(i, count int) (results [][]byte) {
	n.t.Helper()
	b := n.store.Batch()
	defer b.Discard()
	tx := kv.PrefixedTx(b, statePrefix())
	for k := i; k < i+count; k++ {
		res, err := n.m.Apply(tx, n.rec.commands[k])
		if err != nil {
			n.t.Fatalf("command %d: %v", k, err)
		}
		if !bytes.Equal(n.rec.commands[k].Payload, n.rec.payloads[k]) {
			n.t.Fatalf("command %d: the machine wrote to its payload", k)
		}
		results = append(results, bytes.Clone(res))
	}
	must(n.t, b.Set([]byte("e/applied"), fmt.Append(nil, i+count)))
	must(n.t, b.Commit())
	n.m.Committed(n.rec.commands[i+count-1].Index)
	return results
}

// run applies the commands up to (not including) end in random batches and compares with the recording.
func (n *replica) run(rng *rand.Rand, end int) {
	n.t.Helper()
	for i := n.applied(); i < end; {
		count := min(1+rng.IntN(8), end-i)
		for k, res := range n.apply(i, count) {
			if !bytes.Equal(res, n.rec.results[i+k]) {
				n.t.Fatalf("command %d answered %q, in the first run %q", i+k, res, n.rec.results[i+k])
			}
		}
		i += count
	}
	if end > 0 {
		n.expectDigest(end - 1)
	}
}

func (n *replica) expectDigest(i int) {
	n.t.Helper()
	if d := n.digest(); d != n.rec.digests[i] {
		n.t.Fatalf("digest %v after command %d, in the first run %v", d, i, n.rec.digests[i])
	}
}

// digest asks in a batch that is committed, so that memos stay.
func (n *replica) digest() machine.Digest {
	n.t.Helper()
	b := n.store.Batch()
	d, err := n.m.Digest(kv.PrefixedTx(b, statePrefix()))
	must(n.t, err)
	must(n.t, b.Commit())
	return d
}

// dump is the state without memos.
func (n *replica) dump() map[string]string {
	n.t.Helper()
	out := map[string]string{}
	must(n.t, n.store.Scan(statePrefix(), kv.PrefixEnd(statePrefix()), func(k, v []byte) error {
		if k = k[len(statePrefix()):]; !n.rec.Memo(k) {
			out[string(k)] = string(v)
		}
		return nil
	}))
	return out
}

// copyTo takes a snapshot the way the engine does: by scanning a view.
func (n *replica) copyTo(store kv.Store, keep func(key []byte) bool) {
	n.t.Helper()
	v := n.store.View()
	b := store.Batch()
	must(n.t, v.Scan(nil, nil, func(k, val []byte) error {
		if m, ok := bytes.CutPrefix(k, statePrefix()); ok && !keep(m) {
			return nil
		}
		return b.Set(k, val)
	}))
	must(n.t, b.Commit())
	must(n.t, v.Close())
}

// failingTx fails from its n-th call on.
type failingTx struct {
	kv.Tx
	left int
}

var errStorage = errors.New("planted storage failure")

func (f *failingTx) next() error {
	if f.left--; f.left < 0 {
		return errStorage
	}
	return nil
}

func (f *failingTx) Get(key []byte) ([]byte, bool, error) {
	if err := f.next(); err != nil {
		return nil, false, err
	}
	return f.Tx.Get(key)
}

func (f *failingTx) Lookup(keys [][]byte, visit func(i int, value []byte) error) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.Tx.Lookup(keys, visit)
}

func (f *failingTx) Scan(from, to []byte, visit func(key, value []byte) error) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.Tx.Scan(from, to, visit)
}

func (f *failingTx) Set(key, value []byte) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.Tx.Set(key, value)
}

func (f *failingTx) Delete(key []byte) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.Tx.Delete(key)
}

func (f *failingTx) DeleteRange(from, to []byte) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.Tx.DeleteRange(from, to)
}
