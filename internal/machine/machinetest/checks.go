package machinetest

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

func all([]byte) bool { return true }

// replay cuts the commands into other batches, and asks for no digest before the end.
func replay(t *testing.T, r *recording, rng *rand.Rand) {
	n := newReplica(t, r, kv.NewMemory())
	n.run(rng, len(r.commands))
	if !maps.Equal(n.dump(), r.states[len(r.states)-1]) {
		t.Fatal("equal digests, but the states differ")
	}
}

func replayOnPebble(t *testing.T, r *recording, rng *rand.Rand) {
	s, err := kv.OpenPebble("db", kv.PebbleOptions{FS: vfs.NewMem()})
	must(t, err)
	newReplica(t, r, s).run(rng, len(r.commands))
	must(t, s.Close())
}

// restart makes a machine without a cache every few commands.
func restart(t *testing.T, r *recording, rng *rand.Rand) {
	n := newReplica(t, r, kv.NewMemory())
	for end := 0; end < len(r.commands); {
		end = min(end+1+rng.IntN(12), len(r.commands))
		n.run(rng, end)
		n.restart()
		n.expectDigest(end - 1)
	}
}

// crash loses any number of batches that were not synced, and the work of a batch that was never committed.
func crash(t *testing.T, r *recording, rng *rand.Rand) {
	n := newReplica(t, r, kv.NewMemory())
	for n.applied() < len(r.commands) {
		n.run(rng, min(n.applied()+1+rng.IntN(30), len(r.commands)))
		if rng.IntN(3) == 0 {
			must(t, n.store.Sync())
		}
		if i := n.applied(); i < len(r.commands) && rng.IntN(2) == 0 {
			b := n.store.Batch()
			_, err := n.m.Apply(kv.PrefixedTx(b, statePrefix()), r.commands[i])
			must(t, err)
			b.Discard()
			n.restart()
		}
		if rng.IntN(2) == 0 {
			must(t, n.store.Sync()) // so that the test gets on
			n.store = n.store.(*kv.Memory).Crash(func(u int) int { return rng.IntN(u + 1) })
			n.restart()
		}
	}
	n.run(rng, len(r.commands))
}

// snapshotCopy restores copies, with and without the memos, and goes on from there. The receiving machine
// has had another state before.
func snapshotCopy(t *testing.T, r *recording, rng *rand.Rand) {
	for range 4 {
		cut := rng.IntN(len(r.commands)) + 1
		n := newReplica(t, r, kv.NewMemory())
		n.run(rng, cut)
		other := newReplica(t, r, kv.NewMemory())
		other.run(rng, rng.IntN(len(r.commands)))
		for _, keep := range []func([]byte) bool{all, func(k []byte) bool { return !r.Memo(k) }} {
			other.store = kv.NewMemory()
			n.copyTo(other.store, keep)
			must(t, other.m.Restored(kv.PrefixedReader(other.store, statePrefix()), n.index()))
			other.expectDigest(cut - 1)
			other.run(rng, len(r.commands))
		}
	}
}

// digest: equal states have equal digests, different ones different ones; asking changes nothing.
func digest(t *testing.T, r *recording, rng *rand.Rand) {
	n := newReplica(t, r, kv.NewMemory())
	empty := n.digest()
	if len(n.dump()) != 0 {
		t.Fatal("the digest of nothing wrote something")
	}
	prev, prevState := empty, map[string]string{}
	for i := range r.commands {
		if same := maps.Equal(prevState, r.states[i]); same != (prev == r.digests[i]) {
			t.Fatalf("command %d: state unchanged is %v, digest unchanged is %v", i, same, prev == r.digests[i])
		}
		prev, prevState = r.digests[i], r.states[i]
		n.run(rng, i+1)
		n.expectDigest(i)
		if !maps.Equal(n.dump(), r.states[i]) {
			t.Fatalf("command %d: computing the digest changed the state", i)
		}
	}
}

// malformed feeds two replicas what no encoder wrote.
func malformed(t *testing.T, r *recording, rng *rand.Rand) {
	a, b := newReplica(t, r, kv.NewMemory()), newReplica(t, r, kv.NewMemory())
	half := len(r.commands) / 2
	a.run(rng, half)
	b.run(rng, half)
	cmd := machine.Command{Index: a.index(), Time: r.commands[len(r.commands)-1].Time}
	for i := range 5 * len(r.commands) {
		cmd.Index++
		cmd.Payload = damage(rng, r.commands[i%len(r.commands)].Payload)
		ra, rb := applyLoose(t, a, cmd), applyLoose(t, b, cmd)
		if !bytes.Equal(ra, rb) {
			t.Fatalf("payload %q answered %q and %q", cmd.Payload, ra, rb)
		}
	}
	if da, db := a.digest(), b.digest(); da != db {
		t.Fatalf("digests %v and %v", da, db)
	}
	if !maps.Equal(a.dump(), b.dump()) {
		t.Fatal("states differ")
	}
}

func damage(rng *rand.Rand, payload []byte) []byte {
	p := bytes.Clone(payload)
	switch rng.IntN(5) {
	case 0: // cut short
		return p[:rng.IntN(len(p)+1)]
	case 1: // something behind it
		return append(p, byte(rng.Uint32()), byte(rng.Uint32()))
	case 2: // noise
		p = make([]byte, rng.IntN(64))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	default: // a few bytes changed
		for range 1 + rng.IntN(3) {
			if len(p) > 0 {
				p[rng.IntN(len(p))] = byte(rng.Uint32())
			}
		}
		return p
	}
}

func applyLoose(t *testing.T, n *replica, cmd machine.Command) []byte {
	t.Helper()
	b := n.store.Batch()
	res, err := n.m.Apply(kv.PrefixedTx(b, statePrefix()), cmd)
	if err != nil {
		t.Fatalf("payload %q: error %v; it must be a result", cmd.Payload, err)
	}
	must(t, b.Commit())
	n.m.Committed(cmd.Index)
	return bytes.Clone(res)
}

// failingStorage fails each call of some commands in turn: that must come back as the error it is.
func failingStorage(t *testing.T, r *recording, rng *rand.Rand) {
	n := newReplica(t, r, kv.NewMemory())
	for i := 0; i < len(r.commands); i += 1 + rng.IntN(2) {
		n.run(rng, i)
		for calls := 0; ; calls++ {
			b := n.store.Batch()
			tx := &failingTx{Tx: kv.PrefixedTx(b, statePrefix()), left: calls}
			_, err := n.m.Apply(tx, r.commands[i])
			b.Discard()
			n.restart() // the engine stops a replica whose storage failed
			if tx.left >= 0 {
				must(t, err)
				break
			}
			if !errors.Is(err, errStorage) {
				t.Fatalf("command %d, storage failing at call %d: error %v", i, calls+1, err)
			}
		}
	}
}
