package replica

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/fixture"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// fixtureLine is of a group that was forked once.
var fixtureLine = Line{History: [16]byte{1, 2}, Before: [16]byte{3}, Fork: core.Position{Term: 4, Index: 5}, Start: 6, Seed: 7}

// fixtureReplica has sessions, results and a time.
func fixtureReplica(t *testing.T) (*Replica, *kv.Memory) {
	store := kv.NewMemory()
	r, err := Open(store, &tally{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.InitLine(initial, fixtureLine); err != nil {
		t.Fatal(err)
	}
	apply(t, r, entry(2, 1_700_000_000_000_000_000, write(1, 1, 1, "a"), write(2, 9, 3, "b")),
		entry(3, 1_700_000_000_000_000_300, write(1, 2, 1, "a")))
	if err := r.AddLosses(11); err != nil {
		t.Fatal(err)
	}
	if err := r.Distrust(Quarantine{Mark: 3, Want: machine.Digest{9}, Found: machine.Digest{8}, Agree: []uint64{2, 3}}); err != nil {
		t.Fatal(err)
	}
	return r, store
}

// records are all of a store, each with its lengths in front.
func storeRecords(t *testing.T, r kv.Reader) (b []byte) {
	t.Helper()
	err := r.Scan(nil, nil, func(k, v []byte) error {
		for _, field := range [][]byte{k, v} {
			b = append(binary.AppendUvarint(b, uint64(len(field))), field...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fill is the inverse of storeRecords.
func fill(t *testing.T, b []byte) *kv.Memory {
	t.Helper()
	store := kv.NewMemory()
	tx := store.Batch()
	d := reader{rest: b}
	for len(d.rest) > 0 && !d.bad {
		key := d.bytes(d.uvarint())
		if err := tx.Set(key, d.bytes(d.uvarint())); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil || d.bad {
		t.Fatal(err, d.bad)
	}
	return store
}

// TestFixtureOfState opens a state as version 2 wrote it, goes on from it, and restores a snapshot of it.
func TestFixtureOfState(t *testing.T) {
	made, store := fixtureReplica(t)
	held := fixture.Check(t, "state-2.hex", map[string][]byte{"state": storeRecords(t, store), "snapshot": snapshotOf(t, made)})
	r, err := Open(fill(t, held["state"]), &tally{})
	if err != nil {
		t.Fatal(err)
	}
	restored, _ := newReplica(t)
	restored.FollowForks()
	if err := restored.Restore(bytes.NewReader(held["snapshot"])); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*Replica{"state": r, "snapshot": restored} {
		if at := r.Applied(); at != (core.Position{Term: 1, Index: 3}) || r.Line() != fixtureLine || r.Sessions() != 2 ||
			!slices.Equal(r.ConfState().GetVoters(), []uint64{1, 2, 3}) {
			t.Errorf("%s: at %+v, line %+v, %d sessions, %v", name, at, r.Line(), r.Sessions(), r.ConfState())
		}
		out := apply(t, r, entry(4, 1_700_000_000_000_000_400, write(1, 2, 1, "a"), write(2, 10, 3, "b")))
		wantResult(t, out[0][0], 2, true, false) // answered before: the result is the stored one
		wantResult(t, out[0][1], 2, false, false)
	}
	if n, err := r.Losses(); n != 11 || err != nil {
		t.Errorf("%d losses, %v", n, err)
	}
	if q := r.Quarantine(); q == nil || q.Mark != 3 || q.Want != (machine.Digest{9}) || q.Found != (machine.Digest{8}) || !slices.Equal(q.Agree, []uint64{2, 3}) {
		t.Errorf("quarantine %+v", q)
	}
}

// TestFixtureOfCommands reads the engine's own commands and what else goes from node to node.
func TestFixtureOfCommands(t *testing.T) {
	verdict := Verdict{Mark: 300, Digest: machine.Digest{1, 2, 3}, Agree: []uint64{1, 200}}
	held := fixture.Check(t, "commands-1.hex", map[string][]byte{
		"probe": EncodeProbe(), "mark": Mark{}.Encode(), "deep mark": Mark{Deep: true}.Encode(), "verdict": verdict.Encode(), "line": fixtureLine.Append(nil)})
	for name, want := range map[string]own{"probe": {}, "mark": {mark: &Mark{}}, "deep mark": {mark: &Mark{Deep: true}}, "verdict": {verdict: &verdict}} {
		if got, err := decodeOwn(held[name]); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if l, err := ParseLine(held["line"]); err != nil || l != fixtureLine {
		t.Errorf("line %+v, %v", l, err)
	}
}

// FuzzSmall reads any bytes as a result, a line, and the note about a spare slot.
func FuzzSmall(f *testing.F) {
	f.Add(encodeResult(0, []byte("result")))
	f.Add(fixtureLine.Append(nil))
	f.Add([]byte{spareVersion, 1, 0x80, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := DecodeResult(data); err == nil && len(r.Payload) > len(data) {
			t.Fatalf("%x holds %x", data, r.Payload)
		}
		if l, err := ParseLine(data); err == nil {
			if again, err := ParseLine(l.Append(nil)); err != nil || again != l {
				t.Fatalf("%+v became %+v, %v", l, again, err)
			}
		}
		store := kv.NewMemory()
		b := store.Batch()
		if err := b.Set(spareKey, data); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		s, ok, err := readSpare(store)
		if err != nil || ok && s.slot > 1 {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

// FuzzState opens a group's records with any position, terms, line and quarantine.
func FuzzState(f *testing.F) {
	store := kv.NewMemory()
	r, err := Open(store, &tally{})
	if err == nil {
		err = r.InitLine(&raftpb.SnapshotMetadata{Index: initial.Index, Term: initial.Term, ConfState: initial.ConfState}, fixtureLine)
	}
	if err != nil {
		f.Fatal(err)
	}
	seed := func(key []byte) []byte {
		v, _, err := store.Get(key)
		if err != nil {
			f.Fatal(err)
		}
		return v
	}
	f.Add(seed(positionKey), seed(termsKey), append(make([]byte, 32), (&Verdict{Mark: 1}).Encode()...))
	f.Fuzz(func(t *testing.T, position, terms, doubtful []byte) {
		store := kv.NewMemory()
		b := store.Batch()
		for key, v := range map[string][]byte{string(positionKey): position, string(termsKey): terms, string(quarantineKey): doubtful} {
			if err := b.Set([]byte(key), v); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		r, err := Open(store, &tally{})
		if err != nil {
			return
		}
		st := r.state
		again := store.Batch()
		if err := st.writeAll(again); err != nil {
			t.Fatal(err)
		}
		if err := again.Commit(); err != nil {
			t.Fatal(err)
		}
		twice, err := Open(store, &tally{})
		if err != nil || twice.Applied() != r.Applied() || twice.Line() != r.Line() {
			t.Fatalf("%+v became %+v, %v", r.Applied(), twice, err)
		}
	})
}
