package replica

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// weighed is a store that remembers its heaviest batch.
type weighed struct {
	*kv.Memory
	heaviest int
}

type weighedBatch struct {
	kv.Batch
	w     *weighed
	bytes int
}

func (w *weighed) Batch() kv.Batch { return &weighedBatch{Batch: w.Memory.Batch(), w: w} }

func (b *weighedBatch) Set(k, v []byte) error {
	b.bytes += len(k) + len(v)
	b.w.heaviest = max(b.w.heaviest, b.bytes)
	return b.Batch.Set(k, v)
}

// streamOf is the engine's part of a snapshot of src.
func streamOf(t *testing.T, src *Replica) *bytes.Reader {
	t.Helper()
	view := src.StateView()
	defer view.Close()
	var b bytes.Buffer
	if err := src.WriteEngineState(view, &b); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

// executed is a replica that has executed a number of commands.
func executed(t *testing.T, store kv.Store, n int) *Replica {
	t.Helper()
	r := open(t, store)
	execute(t, r, n)
	return r
}

func execute(t *testing.T, r *Replica, n int) {
	t.Helper()
	for range n {
		at := r.Applied()
		e := entry(at.Index+1, int64(at.Index), write(1, at.Index, 0, fmt.Sprint("c", at.Index)))
		if _, err := r.Apply([]*raftpb.Entry{e}, func(*raftpb.Entry) *raftpb.ConfState { return initial.ConfState }); err != nil {
			t.Fatal(err)
		}
	}
}

const pieces = 40 // of 512 KiB

func piece(i int) ([]byte, []byte) {
	return fmt.Appendf(nil, "piece%03d", i), bytes.Repeat([]byte{byte(i)}, 512<<10)
}

var errBroken = errors.New("broken")

// fetchPieces writes pieces that local lacks, and breaks before the given one.
func fetchPieces(fetched *int, brk int) func(kv.Reader, Writer) error {
	return func(local kv.Reader, w Writer) error {
		for i := range pieces {
			k, v := piece(i)
			if have, ok, err := local.Get(k); err != nil || ok && bytes.Equal(have, v) {
				if err != nil {
					return err
				}
				continue
			}
			if i == brk {
				return errBroken
			}
			*fetched++
			if err := w.Set(k, v); err != nil {
				return err
			}
		}
		return w.Delete([]byte("c3"))
	}
}

func hasPieces(t *testing.T, r *Replica) (n int) {
	t.Helper()
	v := r.View()
	defer v.Close()
	for i := range pieces {
		k, want := piece(i)
		if got, ok, err := v.Get(k); err != nil {
			t.Fatal(err)
		} else if ok && bytes.Equal(got, want) {
			n++
		}
	}
	return n
}

// TestABrokenTransferContinues: the old state stays whole, also over a crash; what has come is not fetched again; and
// at no time a batch holds it all.
func TestABrokenTransferContinues(t *testing.T) {
	src := executed(t, kv.NewMemory(), 30)
	store := &weighed{Memory: kv.NewMemory()}
	dst := executed(t, store, 10)
	before := digests(t, dst)
	fetched := 0
	for _, brk := range []int{25, 35} {
		if err := dst.RestoreDiff(streamOf(t, src), fetchPieces(&fetched, brk)); !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
		if got := digests(t, dst); got != before || hasPieces(t, dst) != 0 {
			t.Fatalf("a transfer that broke shows: %d pieces", hasPieces(t, dst))
		}
		if err := store.Sync(); err != nil {
			t.Fatal(err)
		}
		// The process dies and comes back.
		store = &weighed{Memory: store.Memory.Crash(func(int) int { return 0 })}
		var err error
		if dst, err = Open(store, &tally{}); err != nil {
			t.Fatal(err)
		}
		if got := digests(t, dst); got != before || dst.Applied().Index != 11 {
			t.Fatalf("after a crash the state is another one, at %v", dst.Applied())
		}
	}
	if err := dst.RestoreDiff(streamOf(t, src), fetchPieces(&fetched, -1)); err != nil {
		t.Fatal(err)
	}
	if fetched != pieces {
		t.Errorf("%d pieces were fetched, there are %d", fetched, pieces)
	}
	if n := hasPieces(t, dst); n != pieces || dst.Applied() != src.Applied() {
		t.Errorf("%d pieces at %v, want %d at %v", n, dst.Applied(), pieces, src.Applied())
	}
	if dst.EngineDigest() != src.EngineDigest() {
		t.Error("the sessions are not the source's")
	}
	if store.heaviest > restoreChunk+(1<<20) {
		t.Errorf("a batch of %d bytes", store.heaviest)
	}
	again, err := Open(store.Memory.Crash(func(int) int { return 0 }), &tally{})
	if err != nil || again.Applied() != src.Applied() || hasPieces(t, again) != pieces {
		t.Errorf("what was installed is not durable: %v, %v", again.Applied(), err)
	}
	left := 0
	if err := store.Scan(slot(0).machine(), kv.PrefixEnd(slot(0).machine()), func(_, _ []byte) error { left++; return nil }); err != nil || left > 0 {
		t.Errorf("%d keys are left in the old slot, %v", left, err)
	}
}

// TestStageAtEveryCrash: whatever a crash in the middle of a transfer leaves is the old state or the new one.
func TestStageAtEveryCrash(t *testing.T) {
	src := executed(t, kv.NewMemory(), 30)
	for keep := 0; ; keep++ {
		store := kv.NewMemory()
		dst := executed(t, store, 10)
		if err := store.Sync(); err != nil {
			t.Fatal(err)
		}
		before := digests(t, dst)
		fetched := 0
		if err := dst.RestoreDiff(streamOf(t, src), fetchPieces(&fetched, 39)); !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
		all := 0
		crashed := store.Crash(func(n int) int { all = n; return keep })
		r, err := Open(crashed, &tally{})
		if err != nil {
			t.Fatal(err)
		}
		if digests(t, r) != before {
			t.Fatalf("after %d of %d batches the old state is gone", keep, all)
		}
		if err := r.RestoreDiff(streamOf(t, src), fetchPieces(&fetched, -1)); err != nil {
			t.Fatal(err)
		}
		if hasPieces(t, r) != pieces || r.EngineDigest() != src.EngineDigest() {
			t.Fatalf("after %d of %d batches the new state is not whole", keep, all)
		}
		v := r.View()
		if _, ok, err := v.Get([]byte("c2")); !ok || err != nil {
			t.Fatalf("after %d of %d batches what was there before is lost: %v", keep, all, err)
		}
		v.Close()
		if keep > all {
			return
		}
	}
}

// TestStaleSpareIsDropped: once the state has moved on, what a transfer left is no base any more, nor kept.
func TestStaleSpareIsDropped(t *testing.T) {
	src := executed(t, kv.NewMemory(), 30)
	store := kv.NewMemory()
	dst := executed(t, store, 10)
	fetched := 0
	if err := dst.RestoreDiff(streamOf(t, src), fetchPieces(&fetched, 30)); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	execute(t, dst, 1)
	if err := dst.RestoreDiff(streamOf(t, src), func(local kv.Reader, _ Writer) error {
		k, _ := piece(3)
		if _, ok, err := local.Get(k); ok || err != nil {
			t.Errorf("a stale spare is the base: %v", err)
		}
		if _, ok, err := local.Get([]byte("c11")); !ok || err != nil {
			t.Errorf("the base lacks what was executed since: %v", err)
		}
		return errBroken
	}); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if _, err := Open(store, &tally{}); err != nil {
		t.Fatal(err)
	}
	left := 0
	if err := store.Scan(slot(1).machine(), kv.PrefixEnd(slot(1).machine()), func(_, _ []byte) error { left++; return nil }); err != nil || left > 0 {
		t.Errorf("%d keys are left in the spare slot, %v", left, err)
	}
}

// TestDoubtfulStateIsNoBase: of a state in quarantine nothing is kept, although it may look the same.
func TestDoubtfulStateIsNoBase(t *testing.T) {
	src := executed(t, kv.NewMemory(), 10)
	dst := executed(t, kv.NewMemory(), 10)
	if err := dst.Distrust(Quarantine{Mark: 10}); err != nil {
		t.Fatal(err)
	}
	err := dst.RestoreDiff(streamOf(t, src), func(local kv.Reader, w Writer) error {
		if err := local.Scan(nil, nil, func(k, _ []byte) error { return fmt.Errorf("%q is taken over", k) }); err != nil {
			return err
		}
		return w.Set([]byte("new"), nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	v := dst.View()
	defer v.Close()
	if _, ok, err := v.Get([]byte("c2")); ok || err != nil || dst.Quarantine() != nil {
		t.Errorf("the doubtful state is still there: %v, %v", err, dst.Quarantine())
	}
}

// TestInstalledIsRemembered: where a state was installed is part of it, on the disk too, and stays what it was when more is
// applied.
func TestInstalledIsRemembered(t *testing.T) {
	from, _ := newReplica(t)
	if err := from.Init(initial); err != nil {
		t.Fatal(err)
	}
	apply(t, from, entry(2, 1, write(1, 1, 1, "a")), entry(3, 2, write(1, 2, 1, "b")))
	if st := from.Standing(); st.Installed != (core.Position{}) {
		t.Errorf("nothing was installed, yet %+v", st.Installed)
	}
	store := kv.NewMemory()
	r, err := Open(store, &tally{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Restore(bytes.NewReader(snapshotOf(t, from))); err != nil {
		t.Fatal(err)
	}
	want := from.Applied()
	if st := r.Standing(); st.Installed != want || st.At != want {
		t.Errorf("installed at %+v: %+v", want, st)
	}
	apply(t, r, entry(4, 3, write(1, 3, 1, "c")))
	st, err := ReadStanding(store)
	if err != nil || st.Installed != want || st.At.Index != 4 || r.Standing().Installed != want {
		t.Errorf("%+v, %v", st, err)
	}
	if err := r.Settled(); err != nil {
		t.Fatal(err)
	}
	store = store.Crash(func(int) int { return 0 })
	if st, err := ReadStanding(store); err != nil || st.Installed != (core.Position{}) || r.Standing().Installed != (core.Position{}) || st.At.Index != 4 {
		t.Errorf("the log leads to it: %+v, %v", st, err)
	}
}
