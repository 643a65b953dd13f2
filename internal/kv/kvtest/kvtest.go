// Package kvtest is the conformance suite that every kv.Store passes. It starts no goroutine that outlives
// a test.
package kvtest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Run tests the stores that open makes: each one empty and closed by the suite.
func Run(t *testing.T, open func(t *testing.T) kv.Store) {
	with := func(test func(t *testing.T, s kv.Store)) func(*testing.T) {
		return func(t *testing.T) {
			s := open(t)
			test(t, s)
			must(t, s.Close())
		}
	}
	t.Run("GetSetDelete", with(getSetDelete))
	t.Run("CopiesArguments", with(copiesArguments))
	t.Run("Scan", with(scan))
	t.Run("BatchReadsItsWrites", with(batchReads))
	t.Run("DeleteRange", with(deleteRange))
	t.Run("ScanWhileWriting", with(scanWhileWriting))
	t.Run("Discard", with(discard))
	t.Run("View", with(view))
	t.Run("Prefixed", with(prefixed))
	t.Run("PrefixEdges", with(prefixEdges))
	t.Run("ConcurrentPrefixes", with(concurrentPrefixes))
	t.Run("ModelThrough", with(func(t *testing.T, s kv.Store) { model(t, kv.Prefixed(s, []byte("p/")).Through()) }))
	t.Run("Model", with(func(t *testing.T, s kv.Store) { model(t, s) }))
	t.Run("ModelPrefixed", with(func(t *testing.T, s kv.Store) {
		commit(t, s, func(b kv.Batch) { must(t, b.Set([]byte("a"), []byte("x"))); must(t, b.Set([]byte("z"), []byte("x"))) })
		model(t, kv.Prefixed(s, []byte("p/")))
		expect(t, s, "a", "x")
		expect(t, s, "z", "x")
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, s kv.Store, fill func(kv.Batch)) {
	t.Helper()
	b := s.Batch()
	fill(b)
	must(t, b.Commit())
}

func expect(t *testing.T, r kv.Reader, key, want string) {
	t.Helper()
	v, ok, err := r.Get([]byte(key))
	must(t, err)
	if !ok || string(v) != want || v == nil {
		t.Fatalf("get %q: %q (nil %v), found %v; want %q", key, v, v == nil, ok, want)
	}
}

func expectNone(t *testing.T, r kv.Reader, key string) {
	t.Helper()
	v, ok, err := r.Get([]byte(key))
	must(t, err)
	if ok || v != nil {
		t.Fatalf("get %q: %q, found %v; want none", key, v, ok)
	}
}

// dump lists from ≤ key < to as "key=value".
func dump(t *testing.T, r kv.Reader, from, to []byte) []string {
	t.Helper()
	out := []string{}
	must(t, r.Scan(from, to, func(k, v []byte) error {
		out = append(out, fmt.Sprintf("%s=%s", k, v))
		return nil
	}))
	return out
}

func expectAll(t *testing.T, r kv.Reader, want ...string) {
	t.Helper()
	if got := dump(t, r, nil, nil); !slices.Equal(got, want) {
		t.Fatalf("holds %q, want %q", got, want)
	}
}

func getSetDelete(t *testing.T, s kv.Store) {
	expectNone(t, s, "k")
	commit(t, s, func(b kv.Batch) {
		must(t, b.Set([]byte("k"), []byte("1")))
		must(t, b.Set([]byte("empty"), nil))
		must(t, b.Delete([]byte("never there")))
	})
	expect(t, s, "k", "1")
	expect(t, s, "empty", "")
	commit(t, s, func(b kv.Batch) { must(t, b.Set([]byte("k"), []byte("2"))) })
	expect(t, s, "k", "2")
	commit(t, s, func(b kv.Batch) { must(t, b.Delete([]byte("k"))) })
	expectNone(t, s, "k")
	commit(t, s, func(kv.Batch) {})
	must(t, s.Sync())
	must(t, s.Sync())
	expectAll(t, s, "empty=")
}

func copiesArguments(t *testing.T, s kv.Store) {
	k, v := []byte("key"), []byte("value")
	b := s.Batch()
	must(t, b.Set(k, v))
	k[0], v[0] = 'X', 'X'
	from, to := []byte("m"), []byte("n")
	must(t, b.Set([]byte("mm"), nil))
	must(t, b.DeleteRange(from, to))
	from[0], to[0] = 'x', 'z'
	must(t, b.Commit())
	expectAll(t, s, "key=value")
	got, _, err := s.Get([]byte("key"))
	must(t, err)
	got[0] = 'X'
	expect(t, s, "key", "value")
}

func scan(t *testing.T, s kv.Store) {
	commit(t, s, func(b kv.Batch) {
		for _, k := range []string{"a", "b", "b\x00", "c", "\xff", "\xff\xff"} {
			must(t, b.Set([]byte(k), []byte("v")))
		}
	})
	for _, c := range []struct {
		from, to string
		noTo     bool
		want     []string
	}{
		{"", "", true, []string{"a=v", "b=v", "b\x00=v", "c=v", "\xff=v", "\xff\xff=v"}},
		{"b", "c", false, []string{"b=v", "b\x00=v"}},
		{"b\x00", "\xff\xff", false, []string{"b\x00=v", "c=v", "\xff=v"}},
		{"c", "c", false, []string{}},
		{"c", "a", false, []string{}},
		{"", "", false, []string{}},
		{"d", "", true, []string{"\xff=v", "\xff\xff=v"}},
	} {
		to := []byte(c.to)
		if c.noTo {
			to = nil
		}
		if got := dump(t, s, []byte(c.from), to); !slices.Equal(got, c.want) {
			t.Errorf("scan %q to %q (none %v): %q, want %q", c.from, c.to, c.noTo, got, c.want)
		}
	}
	n := 0
	must(t, s.Scan(nil, nil, func(_, _ []byte) error {
		if n++; n == 2 {
			return kv.ErrStop
		}
		return nil
	}))
	if n != 2 {
		t.Errorf("stopped after %d, want 2", n)
	}
	mine := errors.New("mine")
	if err := s.Scan(nil, nil, func(_, _ []byte) error { return mine }); err != mine {
		t.Errorf("visitor's error came back as %v", err)
	}
}

func batchReads(t *testing.T, s kv.Store) {
	commit(t, s, func(b kv.Batch) {
		must(t, b.Set([]byte("a"), []byte("1")))
		must(t, b.Set([]byte("b"), []byte("1")))
		must(t, b.Set([]byte("c"), []byte("1")))
	})
	b := s.Batch()
	must(t, b.Set([]byte("b"), []byte("2")))
	must(t, b.Delete([]byte("c")))
	must(t, b.Set([]byte("d"), []byte("2")))
	must(t, b.Set([]byte("d"), []byte("3")))
	expectAll(t, b, "a=1", "b=2", "d=3")
	expect(t, b, "a", "1")
	expectNone(t, b, "c")
	expectAll(t, s, "a=1", "b=1", "c=1")
	stopped := 0
	must(t, b.Scan([]byte("b"), nil, func(_, _ []byte) error { stopped++; return kv.ErrStop }))
	if stopped != 1 {
		t.Errorf("visited %d after ErrStop", stopped)
	}
	commit(t, s, func(o kv.Batch) { must(t, o.Set([]byte("a"), []byte("9"))) })
	expect(t, b, "a", "9") // a batch reads the live store
	must(t, b.Commit())
	expectAll(t, s, "a=9", "b=2", "d=3")
}

func deleteRange(t *testing.T, s kv.Store) {
	commit(t, s, func(b kv.Batch) {
		for _, k := range "abcdefg" {
			must(t, b.Set([]byte(string(k)), []byte("1")))
		}
	})
	b := s.Batch()
	must(t, b.Set([]byte("c"), []byte("2")))
	must(t, b.DeleteRange([]byte("b"), []byte("e")))
	expectAll(t, b, "a=1", "e=1", "f=1", "g=1")
	expectNone(t, b, "c")
	must(t, b.Set([]byte("d"), []byte("3")))
	must(t, b.DeleteRange([]byte("f"), []byte("f")))
	must(t, b.DeleteRange([]byte("g"), []byte("f")))
	must(t, b.DeleteRange([]byte("d\x00"), []byte("f")))
	expectAll(t, b, "a=1", "d=3", "f=1", "g=1")
	must(t, b.Commit())
	expectAll(t, s, "a=1", "d=3", "f=1", "g=1")
	commit(t, s, func(b kv.Batch) {
		must(t, b.Set([]byte("h"), []byte("1")))
		must(t, b.DeleteRange([]byte("f"), nil))
		must(t, b.Set([]byte("z"), []byte("1")))
	})
	expectAll(t, s, "a=1", "d=3", "z=1")
	commit(t, s, func(b kv.Batch) { must(t, b.DeleteRange(nil, nil)); must(t, b.DeleteRange(nil, nil)) })
	expectAll(t, s)
}

func scanWhileWriting(t *testing.T, s kv.Store) {
	commit(t, s, func(b kv.Batch) {
		for i := range 10 {
			must(t, b.Set(fmt.Appendf(nil, "k%d", i), []byte("1")))
		}
	})
	b := s.Batch()
	seen := 0
	must(t, b.Scan(nil, nil, func(k, v []byte) error {
		seen++
		must(t, b.Delete(k))
		return b.Set(append(bytes.Clone(k), 'x'), v)
	}))
	if seen != 10 {
		t.Errorf("scan of a batch that was written meanwhile saw %d keys, want 10", seen)
	}
	must(t, b.Commit())
	seen = 0
	must(t, s.Scan(nil, nil, func(k, v []byte) error {
		seen++
		w := s.Batch()
		must(t, w.Set(append(bytes.Clone(k), 'y'), v))
		return w.Commit()
	}))
	if seen != 10 {
		t.Errorf("scan of a store that was written meanwhile saw %d keys, want 10", seen)
	}
	if n := len(dump(t, s, nil, nil)); n != 20 {
		t.Errorf("%d keys, want 20", n)
	}
}

func discard(t *testing.T, s kv.Store) {
	b := s.Batch()
	must(t, b.Set([]byte("a"), []byte("1")))
	b.Discard()
	b.Discard()
	b = s.Batch()
	must(t, b.Set([]byte("b"), []byte("1")))
	must(t, b.Commit())
	b.Discard()
	expectAll(t, s, "b=1")
}

func view(t *testing.T, s kv.Store) {
	commit(t, s, func(b kv.Batch) { must(t, b.Set([]byte("a"), []byte("1"))); must(t, b.Set([]byte("b"), []byte("1"))) })
	v := s.View()
	commit(t, s, func(b kv.Batch) { must(t, b.DeleteRange(nil, []byte("b"))); must(t, b.Set([]byte("c"), []byte("2"))) })
	w := s.View()
	commit(t, s, func(b kv.Batch) { must(t, b.Delete([]byte("c"))) })
	expectAll(t, v, "a=1", "b=1")
	expect(t, v, "a", "1")
	expectNone(t, v, "c")
	expectAll(t, w, "b=1", "c=2")
	expectAll(t, s, "b=1")
	must(t, v.Close())
	expectAll(t, w, "b=1", "c=2")
	must(t, w.Close())
}

func prefixed(t *testing.T, s kv.Store) {
	p, q := kv.Prefixed(s, []byte("p/")), kv.Prefixed(s, []byte("q/"))
	nested := kv.Prefixed(p, []byte("n/"))
	commit(t, p, func(b kv.Batch) {
		must(t, b.Set([]byte("k"), []byte("1")))
		must(t, b.Set(nil, []byte("root")))
		expectAll(t, b, "=root", "k=1")
		expect(t, b, "k", "1")
	})
	commit(t, q, func(b kv.Batch) { must(t, b.Set([]byte("k"), []byte("2"))) })
	commit(t, nested, func(b kv.Batch) { must(t, b.Set([]byte("k"), []byte("3"))) })
	expectAll(t, s, "p/=root", "p/k=1", "p/n/k=3", "q/k=2")
	expectAll(t, p, "=root", "k=1", "n/k=3")
	expectAll(t, q, "k=2")
	expectAll(t, nested, "k=3")
	expectAll(t, kv.PrefixedReader(s, []byte("p/n/")), "k=3")
	v := nested.View()
	commit(t, p, func(b kv.Batch) { must(t, b.DeleteRange([]byte("k"), nil)); expectAll(t, b, "=root") })
	expectAll(t, v, "k=3")
	must(t, v.Close())
	expectAll(t, nested)
	must(t, p.Sync())
	must(t, p.Close())
	expectAll(t, s, "p/=root", "q/k=2")
	commit(t, s, func(b kv.Batch) {
		x, y := kv.PrefixedTx(b, []byte("x/")), kv.PrefixedTx(b, []byte("y/"))
		must(t, x.Set([]byte("1"), nil))
		must(t, y.Set([]byte("1"), nil))
		must(t, x.Set([]byte("2"), nil))
		must(t, kv.PrefixedTx(y, []byte("z")).Set([]byte("1"), nil))
		must(t, y.Delete([]byte("1")))
		expectAll(t, x, "1=", "2=")
		must(t, x.DeleteRange([]byte("1"), []byte("2")))
	})
	expectAll(t, s, "p/=root", "q/k=2", "x/2=", "y/z1=")
}

func prefixEdges(t *testing.T, s kv.Store) {
	commit(t, s, func(b kv.Batch) {
		for _, k := range []string{"\xfe", "\xff", "\xff\x00", "\xff\xff", "\xff\xff\x01"} {
			must(t, b.Set([]byte(k), nil))
		}
	})
	expectAll(t, kv.Prefixed(s, []byte("\xff")), "=", "\x00=", "\xff=", "\xff\x01=")
	expectAll(t, kv.Prefixed(s, []byte("\xff\xff")), "=", "\x01=")
	expectAll(t, kv.Prefixed(s, []byte("\xfe")), "=")
	commit(t, kv.Prefixed(s, []byte("\xff\xff")), func(b kv.Batch) { must(t, b.DeleteRange(nil, nil)) })
	expectAll(t, s, "\xfe=", "\xff=", "\xff\x00=")
}

func concurrentPrefixes(t *testing.T, s kv.Store) {
	const writers, rounds = 4, 50
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() { errs[w] = writeRounds(kv.Prefixed(s, []byte{byte('a' + w)}), rounds) })
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	for w := range writers {
		expect(t, s, string(rune('a'+w))+"n", fmt.Sprint(rounds))
	}
}

// writeRounds keeps a count and two keys that always agree, and checks them through batches and views.
func writeRounds(s kv.Store, rounds int) error {
	for i := range rounds {
		b := s.Batch()
		n, _, err := b.Get([]byte("n"))
		if err != nil {
			return err
		}
		if i > 0 && string(n) != fmt.Sprint(i) {
			return fmt.Errorf("round %d read %q", i, n)
		}
		next := fmt.Append(nil, i+1)
		if err := errors.Join(b.Set([]byte("n"), next), b.Set([]byte("twin"), next), b.Commit()); err != nil {
			return err
		}
		v := s.View()
		x, _, err := v.Get([]byte("n"))
		y, _, err2 := v.Get([]byte("twin"))
		if err := errors.Join(err, err2, v.Close()); err != nil {
			return err
		}
		if !bytes.Equal(x, y) {
			return fmt.Errorf("view shows half a batch: %q and %q", x, y)
		}
	}
	return s.Sync()
}

// model compares the store with a map under random operations.
func model(t *testing.T, s kv.Store) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	state := map[string]string{}
	for range 60 {
		b := s.Batch()
		mine := maps.Clone(state)
		for range rng.IntN(30) {
			step(t, rng, b, mine)
		}
		compare(t, rng, b, mine)
		if rng.IntN(4) == 0 {
			b.Discard()
		} else {
			v, before := s.View(), state
			must(t, b.Commit())
			state = mine
			compare(t, rng, v, before)
			must(t, v.Close())
		}
		if rng.IntN(5) == 0 {
			must(t, s.Sync())
		}
		compare(t, rng, s, state)
	}
}

func randomKey(rng *rand.Rand) []byte {
	k := make([]byte, rng.IntN(4))
	for i := range k {
		k[i] = []byte{0, 'a', 'b', 0xff}[rng.IntN(4)]
	}
	return k
}

func step(t *testing.T, rng *rand.Rand, tx kv.Tx, m map[string]string) {
	t.Helper()
	k := randomKey(rng)
	switch rng.IntN(8) {
	case 0:
		to := randomKey(rng)
		if rng.IntN(8) == 0 {
			to = nil
		}
		must(t, tx.DeleteRange(k, to))
		maps.DeleteFunc(m, func(x, _ string) bool { return x >= string(k) && (to == nil || x < string(to)) })
	case 1, 2:
		must(t, tx.Delete(k))
		delete(m, string(k))
	default:
		v := fmt.Append(nil, rng.IntN(1000))
		must(t, tx.Set(k, v))
		m[string(k)] = string(v)
	}
}

func compare(t *testing.T, rng *rand.Rand, r kv.Reader, m map[string]string) {
	t.Helper()
	from, to := randomKey(rng), randomKey(rng)
	if rng.IntN(2) == 0 {
		from, to = nil, nil
	}
	want := []string{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k >= string(from) && (to == nil || k < string(to)) {
			want = append(want, k+"="+m[k])
		}
	}
	if got := dump(t, r, from, to); !slices.Equal(got, want) {
		t.Fatalf("scan %q to %q: %q, want %q", from, to, got, want)
	}
	k := randomKey(rng)
	if want, ok := m[string(k)]; ok {
		expect(t, r, string(k), want)
	} else {
		expectNone(t, r, string(k))
	}
	compareLookup(t, rng, r, m)
}

// compareLookup looks a random set of keys up and ends perhaps early.
func compareLookup(t *testing.T, rng *rand.Rand, r kv.Reader, m map[string]string) {
	t.Helper()
	set := map[string]bool{}
	for range rng.IntN(20) {
		set[string(randomKey(rng))] = true
	}
	var keys [][]byte
	most := 1 + rng.IntN(20)
	want, got := []string{}, []string{}
	for _, k := range slices.Sorted(maps.Keys(set)) {
		if v, ok := m[k]; ok && len(want) < most {
			want = append(want, fmt.Sprint(len(keys), "=", v))
		}
		keys = append(keys, []byte(k))
	}
	must(t, r.Lookup(keys, func(i int, v []byte) error {
		if got = append(got, fmt.Sprint(i, "=", string(v))); len(got) == most {
			return kv.ErrStop
		}
		return nil
	}))
	if !slices.Equal(got, want) {
		t.Fatalf("lookup of %q: %q, want %q", keys, got, want)
	}
	compareEach(t, rng, r, m, keys)
}

// compareEach asks for keys in a random order, some of them twice.
func compareEach(t *testing.T, rng *rand.Rand, r kv.Reader, m map[string]string, keys [][]byte) {
	t.Helper()
	for range rng.IntN(1 + len(keys)) {
		keys = append(keys, keys[rng.IntN(len(keys))])
	}
	rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	told := make([]int, len(keys))
	must(t, kv.Each(r, keys, func(i int, v []byte) error {
		told[i]++
		if want, ok := m[string(keys[i])]; ok != (v != nil) || string(v) != want {
			t.Fatalf("each of %q: %q is %q, want %q, %v", keys, keys[i], v, want, ok)
		}
		return nil
	}))
	for i, n := range told {
		if n != 1 {
			t.Fatalf("each of %q: number %d told %d times", keys, i, n)
		}
	}
}
