package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// dump is the state without memos.
func dump(t testing.TB, r kv.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := r.Scan(nil, nil, func(k, v []byte) error {
		if k[0] != tagDigest {
			out[string(k)] = string(v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fetch makes dst's state equal to src's, in one batch that is read while it is written.
func fetch(t testing.TB, dst, src kv.Store) DiffStats {
	t.Helper()
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ServeDiff(src, b) }()
	tx := dst.Batch()
	stats, err := FetchDiff(tx, a, tx.Set, tx.Delete)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return stats
}

func TestDiff(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for round := range 60 {
		src, dst := newRig(t, Policy{}), newRig(t, Policy{})
		common := rng.IntN(60)
		for i := range common + rng.IntN(60) {
			c := []Change{randomChange(t, rng, src.store), randomChange(t, rng, src.store)}
			author := fmt.Sprint("n", rng.IntN(3))
			src.apply(author, c...)
			if i < common {
				dst.apply(author, c...)
			}
			if rng.IntN(10) == 0 {
				memoise(t, src)
			}
			if rng.IntN(10) == 0 {
				memoise(t, dst)
			}
		}
		if rng.IntN(3) == 0 { // another history altogether
			for range rng.IntN(30) {
				dst.apply("x", randomChange(t, rng, dst.store))
			}
		}
		fetch(t, dst.store, src.store)
		want, got := dump(t, src.store), dump(t, dst.store)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("round %d: key %q", round, k)
			}
		}
		if len(got) != len(want) {
			t.Errorf("round %d: %d keys, want %d", round, len(got), len(want))
		}
		if a, b := memoise(t, src), memoise(t, dst); a != b {
			t.Errorf("round %d: digests differ", round)
		}
		if again := fetch(t, dst.store, src.store); again.Dirs+again.Puts+again.Deletes > 0 {
			t.Errorf("round %d: again %+v", round, again)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// bigTree fills r with dirs directories of files each.
func bigTree(t testing.TB, r *rig, dirs, files int) {
	for d := range dirs {
		cs := make([]Change, files)
		for f := range cs {
			cs[f] = put(fmt.Sprintf("top%d/dir%d/file%d", d%7, d, f), 0, file(fmt.Sprint(d, f)))
		}
		r.apply("a", cs...)
	}
}

// TestDiffIsProportional: what moves depends on what differs, not on what is there.
func TestDiffIsProportional(t *testing.T) {
	src, dst := newRig(t, Policy{}), newRig(t, Policy{})
	bigTree(t, src, 300, 20)
	whole := fetch(t, dst.store, src.store)
	memoise(t, src)
	memoise(t, dst)
	none := fetch(t, dst.store, src.store)
	v := src.get("top3/dir10/file5").Version
	src.apply("a", put("top3/dir10/file5", v, file("new")), put("top3/dir17/file5", v, file("new")))
	some := fetch(t, dst.store, src.store)
	t.Logf("whole %+v, none %+v, two files %+v", whole, none, some)
	if whole.Dirs != 1+7+300 || whole.Puts != 7+300+300*20 {
		t.Errorf("whole: %+v", whole)
	}
	if none.Sent+none.Received > 300 || none.Dirs != 0 {
		t.Errorf("none: %+v", none)
	}
	if some.Dirs != 4 || some.Received > 12_000 || some.Puts > 3 {
		t.Errorf("two files: %+v", some)
	}
}

// TestDiffInOneDirectory: a listing of many frames.
func TestDiffInOneDirectory(t *testing.T) {
	src, dst := newRig(t, Policy{}), newRig(t, Policy{})
	for i := range 10 {
		var cs, ds []Change
		for f := range 500 {
			c := put(fmt.Sprintf("file%d", f*10+i), 0, file(fmt.Sprint(f)))
			if f%3 > 0 {
				cs = append(cs, c)
			}
			if f%2 > 0 {
				ds = append(ds, c)
			}
		}
		src.apply("a", cs...)
		dst.apply("a", ds...)
	}
	fetch(t, dst.store, src.store)
	if a, b := memoise(t, src), memoise(t, dst); a != b {
		t.Error("digests differ")
	}
}

// script answers reads from a fixed answer, as a hostile or broken source would.
type script struct{ io.Reader }

func (script) Write(p []byte) (int, error) { return len(p), nil }

// recordSource returns everything that a real source sends a fresh learner.
func recordSource(t testing.TB) []byte {
	src := newRig(t, Policy{})
	bigTree(t, src, 3, 3)
	src.apply("b", put("top0/dir0/file0", 0, file("x")), put("l", 0, symlink("t")))
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ServeDiff(src.store, b) }()
	var sent bytes.Buffer
	_, err := FetchDiff(kv.NewMemory(), struct {
		io.Reader
		io.Writer
	}{io.TeeReader(a, &sent), a}, func(_, _ []byte) error { return nil }, func([]byte) error { return nil })
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	return sent.Bytes()
}

func FuzzFetchDiff(f *testing.F) {
	f.Add(recordSource(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		store := kv.NewMemory()
		tx := store.Batch()
		defer tx.Discard()
		if _, err := FetchDiff(tx, script{bytes.NewReader(b)}, tx.Set, tx.Delete); err != nil {
			return
		}
		tree(t, tx) // what was taken must be readable
	})
}

func FuzzServeDiff(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x13H\x01\x000123456789abcdef\x00\x00\x00\x03L\x01d\x00\x00\x00\x01B"))
	src := newRig(f, Policy{})
	bigTree(f, src, 3, 3)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = ServeDiff(src.store, script{bytes.NewReader(b)}) // must end and not panic
	})
}
