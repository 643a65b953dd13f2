package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// tally is a machine that counts how often each payload was executed: the result is the count.
type tally struct {
	committed uint64
	restored  uint64
	last      int64
}

func (t *tally) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	if cmd.Time < t.last {
		return nil, errors.New("time went back")
	}
	t.last = cmd.Time
	v, _, err := tx.Get(cmd.Payload)
	if err != nil {
		return nil, err
	}
	n, _ := binary.Uvarint(v)
	v = binary.AppendUvarint(nil, n+1)
	return v, tx.Set(cmd.Payload, v)
}

func (t *tally) Committed(index uint64) { t.committed = index }

func (t *tally) Restored(_ kv.Reader, index uint64) error {
	t.restored = index
	return nil
}

func (t *tally) Digest(tx kv.Tx) (d machine.Digest, err error) {
	h := blake3.New()
	err = tx.Scan(nil, nil, func(k, v []byte) error {
		fmt.Fprintf(h, "%d %s %d %s ", len(k), k, len(v), v)
		return nil
	})
	return machine.Digest(h.Sum(nil)), err
}

var initial = &raftpb.SnapshotMetadata{
	Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}},
}

func open(t *testing.T, store kv.Store) *Replica {
	t.Helper()
	r, err := Open(store, &tally{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Init(initial); err != nil {
		t.Fatal(err)
	}
	return r
}

func newReplica(t *testing.T) (*Replica, *kv.Memory) {
	store := kv.NewMemory()
	return open(t, store), store
}

func write(client byte, seq, floor uint64, payload string) core.Proposal {
	return core.Proposal{Client: [16]byte{client}, Seq: seq, Floor: floor, Payload: []byte(payload)}
}

func entry(index uint64, time int64, ps ...core.Proposal) *raftpb.Entry {
	b := core.Batch{Proposer: 1, ID: index, Time: time, Proposals: ps}
	return &raftpb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(1), Data: core.EncodeBatch(&b)}
}

func confEntry(index uint64) *raftpb.Entry {
	return &raftpb.Entry{
		Index: proto.Uint64(index), Term: proto.Uint64(1), Type: raftpb.EntryConfChangeV2.Enum(), Data: []byte{},
	}
}

func apply(t *testing.T, r *Replica, entries ...*raftpb.Entry) [][][]byte {
	t.Helper()
	results, err := r.Apply(entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func wantResult(t *testing.T, raw []byte, count uint64, duplicate, expired bool) {
	t.Helper()
	got, err := DecodeResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := binary.Uvarint(got.Payload)
	if n != count || got.Duplicate != duplicate || got.Expired != expired {
		t.Errorf("result %d %+v, want %d, duplicate %v, expired %v", n, got, count, duplicate, expired)
	}
}

// digests are the machine's and the engine's.
func digests(t *testing.T, r *Replica) [2]machine.Digest {
	t.Helper()
	d, err := r.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return [2]machine.Digest{d, r.EngineDigest()}
}

func TestWritesAreExecutedOnce(t *testing.T) {
	r, store := newReplica(t)
	res := apply(t, r,
		entry(2, 10, write(1, 1, 1, "a"), write(1, 2, 1, "a"), write(1, 1, 1, "a")),
		entry(3, 5, write(1, 2, 1, "a"), core.Proposal{Payload: []byte("a")}))
	wantResult(t, res[0][0], 1, false, false)
	wantResult(t, res[0][1], 2, false, false)
	wantResult(t, res[0][2], 1, true, false)
	wantResult(t, res[1][0], 2, true, false)
	wantResult(t, res[1][1], 3, false, false)

	r = open(t, store) // the table is not only in memory
	if r.Applied() != (core.Position{Term: 1, Index: 3}) {
		t.Fatalf("applied %+v", r.Applied())
	}
	res = apply(t, r,
		entry(4, 11, write(1, 2, 2, "a")), // known still
		entry(5, 11, write(1, 1, 2, "a")), // said to be answered: forgotten, and not executed again
		entry(6, 11, write(2, 7, 5, "a"))) // a new one; its first writes never came
	wantResult(t, res[0][0], 2, true, false)
	wantResult(t, res[1][0], 0, false, true)
	wantResult(t, res[2][0], 4, false, false)
	if got := r.machine.(*tally).committed; got != 6 {
		t.Errorf("machine was told %d, want 6", got)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	r, _ := newReplica(t)
	client := func(i uint64) (c [16]byte) {
		binary.BigEndian.PutUint64(c[:], i+1)
		return c
	}
	index := uint64(2)
	step := func(i, seq, floor uint64) []byte {
		p := core.Proposal{Client: client(i), Seq: seq, Floor: floor, Payload: []byte("x")}
		res := apply(t, r, entry(index, 1, p))
		index++
		return res[0][0]
	}
	for i := range uint64(maxSessions) {
		step(i, 1, 1)
	}
	step(0, 2, 2)           // used: not the oldest any more
	step(maxSessions, 1, 1) // evicts client 1
	wantResult(t, step(1, 2, 2), 0, false, true)
	wantResult(t, step(maxSessions+1, 9, 9), 0, false, true) // new perhaps, perhaps evicted
	wantResult(t, step(0, 2, 2), maxSessions+1, true, false)
	if len(r.sessions.by) != maxSessions {
		t.Errorf("%d sessions", len(r.sessions.by))
	}
	again := open(t, r.store)
	if digests(t, r) != digests(t, again) {
		t.Error("the table on disk is not the one in memory")
	}
	for i := range uint64(maxResults) {
		step(0, 3+i, 2)
	}
	s := r.sessions.by[client(0)]
	if len(s.results) != maxResults || s.floor != 3 {
		t.Errorf("%d results, floor %d", len(s.results), s.floor)
	}
}

// history makes entries with retries, new sessions, empty and configuration entries.
func history(rng *rand.Rand, n uint64) []*raftpb.Entry {
	var out []*raftpb.Entry
	next, floor := map[byte]uint64{}, map[byte]uint64{}
	for i := range n {
		index := 2 + i
		switch rng.IntN(12) {
		case 0:
			out = append(out, &raftpb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(1)})
			continue
		case 1:
			out = append(out, confEntry(index))
			continue
		}
		var ps []core.Proposal
		for range rng.IntN(4) + 1 {
			c := byte(rng.IntN(5) + 1)
			seq := next[c] + 1
			if rng.IntN(3) == 0 && next[c] > 0 {
				seq = uint64(rng.IntN(int(next[c]))) + 1
			}
			next[c] = max(next[c], seq)
			if rng.IntN(4) == 0 {
				floor[c] = uint64(rng.IntN(int(next[c]))) + 1
			}
			ps = append(ps, write(c, seq, floor[c], fmt.Sprint("k", rng.IntN(20))))
		}
		out = append(out, entry(index, int64(rng.IntN(50)), ps...))
	}
	return out
}

func confOf(e *raftpb.Entry) *raftpb.ConfState {
	return &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{e.GetIndex()}}
}

func mustApply(t *testing.T, r *Replica, entries []*raftpb.Entry) {
	t.Helper()
	if _, err := r.Apply(entries, confOf); err != nil {
		t.Fatal(err)
	}
}

func TestReplayAfterACrashEndsInTheSameState(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		entries := history(rng, 60)
		whole, _ := newReplica(t)
		mustApply(t, whole, entries)
		want := digests(t, whole)

		store := kv.NewMemory()
		r := open(t, store)
		for i := 0; i < len(entries); {
			n := min(rng.IntN(7)+1, len(entries)-i)
			mustApply(t, r, entries[i:i+n])
			i += n
			if rng.IntN(4) == 0 {
				if err := store.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(5) == 0 {
				store = store.Crash(func(n int) int { return rng.IntN(n + 1) })
				r = open(t, store)
				i = int(r.Applied().Index - 1) // entry i has index i+2
			}
		}
		if got := digests(t, r); got != want || !proto.Equal(r.ConfState(), whole.ConfState()) {
			t.Fatalf("seed %d: state after crashes differs", seed)
		}
	}
}

// TestWrittenLeavesOutTheEnginesOwn: marks and verdicts give no reason for the next ones.
func TestWrittenLeavesOutTheEnginesOwn(t *testing.T) {
	r, store := newReplica(t)
	own := core.Proposal{Engine: true, Payload: Mark{}.Encode()}
	for i, c := range []struct {
		entry *raftpb.Entry
		want  uint64
	}{
		{entry(2, 1, write(1, 1, 1, "a")), 2},
		{entry(3, 2, own), 2},
		{&raftpb.Entry{Index: proto.Uint64(4), Term: proto.Uint64(1)}, 2},
		{entry(5, 3, own, write(1, 2, 1, "b"), own), 5},
		{confEntry(6), 6},
		{entry(7, 4, own), 6},
	} {
		mustApply(t, r, []*raftpb.Entry{c.entry})
		if got := r.Written(); got != c.want {
			t.Errorf("entry %d: written up to %d, want %d", i, got, c.want)
		}
	}
	if again := open(t, store); again.Written() != 7 {
		t.Errorf("opened again at %d: what is not known counts as written", again.Written())
	}
}

func TestEntriesThatAreCoveredAreSkippedExceptForTheirConfiguration(t *testing.T) {
	r, _ := newReplica(t)
	mustApply(t, r, []*raftpb.Entry{confEntry(2), entry(3, 1, write(1, 1, 1, "a"))})
	before, conf := digests(t, r), r.ConfState()
	var called []uint64
	res, err := r.Apply([]*raftpb.Entry{confEntry(2), entry(3, 1, write(9, 1, 1, "b"))},
		func(e *raftpb.Entry) *raftpb.ConfState {
			called = append(called, e.GetIndex())
			return &raftpb.ConfState{}
		})
	if err != nil || len(called) != 1 || res[1] != nil {
		t.Fatalf("error %v, called for %v, results %v", err, called, res)
	}
	if digests(t, r) != before || r.ConfState() != conf {
		t.Error("a covered entry changed the state")
	}
}

func TestApplyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		entries []*raftpb.Entry
		want    error
	}{
		"a gap":                      {[]*raftpb.Entry{entry(3, 1)}, ErrDamaged},
		"a broken entry":             {[]*raftpb.Entry{{Index: proto.Uint64(2), Data: []byte{core.FirstLevel}}}, ErrDamaged},
		"an interrupted conf change": {[]*raftpb.Entry{entry(2, 1), confEntry(3)}, ErrInterrupted},
	} {
		r, store := newReplica(t)
		_, err := r.Apply(c.entries, func(*raftpb.Entry) *raftpb.ConfState { return nil })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v", name, err)
		}
		if at := open(t, store).Applied().Index; at != 1 {
			t.Errorf("%s: applied up to %d all the same", name, at)
		}
	}
}

func snapshotOf(t *testing.T, r *Replica) []byte {
	t.Helper()
	view := r.StateView()
	defer view.Close()
	var buf bytes.Buffer
	if err := r.WriteSnapshot(view, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSnapshotCarriesEverything(t *testing.T) {
	entries := history(rand.New(rand.NewPCG(1, 2)), 100)
	src, _ := newReplica(t)
	var snap []byte

	dst, store := newReplica(t)
	mustApply(t, dst, entries[:20])
	for round, part := range [][]*raftpb.Entry{entries[:70], entries[70:90]} { // the second goes into the other slot
		mustApply(t, src, part)
		snap = snapshotOf(t, src)
		if err := dst.Restore(bytes.NewReader(snap)); err != nil {
			t.Fatal(err)
		}
		again := open(t, store.Crash(func(int) int { return 0 })) // durable
		for _, r := range []*Replica{dst, again} {
			if digests(t, r) != digests(t, src) || !proto.Equal(r.SnapshotMeta(), src.SnapshotMeta()) {
				t.Fatalf("round %d: restored state differs", round)
			}
			if got := r.machine.(*tally).restored; got != src.Applied().Index {
				t.Errorf("round %d: machine was told %d", round, got)
			}
		}
		if !bytes.Equal(snapshotOf(t, dst), snap) {
			t.Errorf("round %d: the snapshot of the copy differs", round)
		}
	}
	mustApply(t, src, entries[90:])
	mustApply(t, dst, entries[90:])
	if digests(t, src) != digests(t, dst) {
		t.Error("states differ after further entries")
	}
	n := 0
	if err := store.Scan(slot(1).machine(), kv.PrefixEnd(slot(1).machine()), func(_, _ []byte) error { n++; return nil }); err != nil || n != 0 {
		t.Errorf("%d records left in the unused slot, %v", n, err)
	}
	if err := dst.Restore(bytes.NewReader(snap)); err != nil || digests(t, src) != digests(t, dst) {
		t.Errorf("an older snapshot: %v; or it was installed", err)
	}
}

func TestBadSnapshotsLeaveTheStateAlone(t *testing.T) {
	entries := history(rand.New(rand.NewPCG(3, 4)), 40)
	src, _ := newReplica(t)
	mustApply(t, src, entries)
	snap := snapshotOf(t, src)
	dst, store := newReplica(t)
	mustApply(t, dst, entries[:10])
	before := digests(t, dst)
	check := func(what string, at int, err error) {
		t.Helper()
		if err != nil && !errors.Is(err, ErrSnapshot) && !errors.Is(err, ErrOtherHistory) {
			t.Fatalf("%s at %d: error %v", what, at, err)
		}
		if digests(t, dst) != before || digests(t, open(t, store)) != before {
			t.Fatalf("%s at %d: the state changed", what, at)
		}
	}
	for n := 0; n < len(snap); n += 7 {
		check("cut", n, dst.Restore(bytes.NewReader(snap[:n])))
		bad := bytes.Clone(snap)
		bad[n] ^= 0x10
		check("altered", n, dst.Restore(io.MultiReader(bytes.NewReader(bad))))
	}
	if err := dst.Restore(bytes.NewReader(snap)); err != nil {
		t.Fatal(err)
	}
	if digests(t, dst) != digests(t, src) {
		t.Error("restored state differs")
	}
}

// crashing fails its nth commit and keeps what was committed before.
type crashing struct {
	*kv.Memory
	left int
}

var errCrash = errors.New("crash")

func (c *crashing) Batch() kv.Batch { return &crashingBatch{c.Memory.Batch(), c} }

type crashingBatch struct {
	kv.Batch
	c *crashing
}

func (b *crashingBatch) Commit() error {
	if b.c.left--; b.c.left < 0 {
		return errCrash
	}
	return b.Batch.Commit()
}

func TestInterruptedRestoreLeavesTheOldOrTheNewState(t *testing.T) {
	src, _ := newReplica(t)
	for i := range uint64(12) { // enough for several chunks
		apply(t, src, entry(2+i, 1, write(1, 1+i, 1, string(byte('a'+i))+string(make([]byte, 900_000)))))
	}
	snap := snapshotOf(t, src)
	for commits := 0; ; commits++ {
		dst, store := newReplica(t)
		apply(t, dst, entry(2, 1, write(2, 1, 1, "old")))
		before := digests(t, dst)
		dst.store = &crashing{store, commits}
		err := dst.Restore(bytes.NewReader(snap))
		again := open(t, store.Crash(func(n int) int { return n }))
		if err == nil {
			if commits < 3 {
				t.Errorf("restored in %d commits: the snapshot is too small for this test", commits)
			}
			if digests(t, again) != digests(t, src) {
				t.Error("restored state differs")
			}
			return
		}
		if !errors.Is(err, errCrash) || errors.Is(err, ErrSnapshot) {
			t.Fatalf("error %v", err)
		}
		if digests(t, again) != before {
			t.Fatalf("interrupted after %d commits: the state is half", commits)
		}
		if err := again.Restore(bytes.NewReader(snap)); err != nil || digests(t, again) != digests(t, src) {
			t.Fatalf("second attempt after %d commits: %v", commits, err)
		}
	}
}

func TestRestoreDiff(t *testing.T) {
	entries := history(rand.New(rand.NewPCG(5, 6)), 50)
	src, _ := newReplica(t)
	mustApply(t, src, entries)
	dst, store := newReplica(t)
	mustApply(t, dst, entries[:25])
	view := src.StateView()
	defer view.Close()
	var stream bytes.Buffer
	if err := src.WriteEngineState(view, &stream); err != nil {
		t.Fatal(err)
	}
	stream.WriteString("what follows")
	remote, err := src.MachineView(view)
	if err != nil {
		t.Fatal(err)
	}
	err = dst.RestoreDiff(&stream, func(local kv.Reader, tx Writer) error {
		return remote.Scan(nil, nil, func(k, v []byte) error {
			if old, found, err := local.Get(k); err != nil || found && bytes.Equal(old, v) {
				return err
			}
			return tx.Set(k, v)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if stream.String() != "what follows" {
		t.Errorf("left in the stream: %q", stream.String())
	}
	if got := open(t, store.Crash(func(int) int { return 0 })); digests(t, got) != digests(t, src) {
		t.Error("state differs")
	}
}

func TestViewsAreOfOneMoment(t *testing.T) {
	r, _ := newReplica(t)
	apply(t, r, entry(2, 1, write(1, 1, 1, "a")))
	whole, part := r.StateView(), r.View()
	apply(t, r, entry(3, 1, write(1, 2, 1, "a")))
	if at, err := r.PositionOf(whole); err != nil || at.Index != 2 {
		t.Errorf("position %+v, %v", at, err)
	}
	if v, _, err := part.Get([]byte("a")); err != nil || !bytes.Equal(v, []byte{1}) {
		t.Errorf("value %v, %v", v, err)
	}
	for _, v := range []kv.View{whole, part} {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	for name, spoil := range map[string]func(kv.Tx) error{
		"version": func(tx kv.Tx) error { return tx.Set(positionKey, []byte{9}) },
		"empty":   func(tx kv.Tx) error { return tx.Set(positionKey, nil) },
		"session": func(tx kv.Tx) error { return tx.Set(append(slot(0).sessions(), make([]byte, 16)...), []byte{1, 1}) },
	} {
		store := kv.NewMemory()
		b := store.Batch()
		if err := errors.Join(spoil(b), b.Commit()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(store, &tally{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzRestore(f *testing.F) {
	t := &testing.T{}
	src, _ := newReplica(t)
	mustApply(t, src, history(rand.New(rand.NewPCG(7, 8)), 10))
	f.Add(snapshotOf(t, src))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _ := newReplica(t)
		if err := r.Restore(bytes.NewReader(data)); err != nil && !errors.Is(err, ErrSnapshot) && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeSession(f *testing.F) {
	s := session{floor: 3, used: use{index: 9, ordinal: 1}, results: []stored{{seq: 3, result: []byte("x")}, {seq: 9}}}
	f.Add(s.encode(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeSession(make([]byte, 16), data)
		if err != nil {
			return
		}
		again, err := decodeSession(make([]byte, 16), s.encode(nil))
		if err != nil || !bytes.Equal(again.encode(nil), s.encode(nil)) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}
