package kv_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/kv/kvtest"
)

func TestMemory(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store { return kv.NewMemory() })
}

// A crash leaves every synced batch and a prefix of the others: each batch counts up in two keys and one
// that it deletes again, so a state tells which batches it holds.
func TestMemoryCrashLeavesPrefix(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	m := kv.NewMemory()
	synced, committed := 0, 0
	for range 300 {
		switch rng.IntN(6) {
		case 0:
			if err := m.Sync(); err != nil {
				t.Fatal(err)
			}
			synced = committed
		case 1:
			k := -1
			c := m.Crash(func(n int) int {
				if n != committed-synced {
					t.Fatalf("%d unsynced batches, want %d", n, committed-synced)
				}
				k = rng.IntN(n + 1)
				return k
			})
			if got := countOf(t, c); got != synced+k {
				t.Fatalf("after the crash %d batches, want %d synced and %d more", got, synced, k)
			}
			if rng.IntN(2) == 0 {
				m, committed, synced = c, synced+k, synced+k
			}
		default:
			committed++
			countUp(t, m, committed)
		}
		if got := countOf(t, m); got != committed {
			t.Fatalf("live store at %d, want %d", got, committed)
		}
	}
}

func countUp(t *testing.T, s kv.Store, n int) {
	t.Helper()
	b := s.Batch()
	v := fmt.Append(nil, n)
	for _, err := range []error{b.DeleteRange([]byte("l/"), []byte("l0")), b.Set([]byte("a"), v),
		b.Set(fmt.Appendf(nil, "l/%d", n), v), b.Set([]byte("z"), v), b.Commit()} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// countOf is the number of the last batch in the store, which must hold all of it and nothing else.
func countOf(t *testing.T, r kv.Reader) (n int) {
	t.Helper()
	var got []string
	if err := r.Scan(nil, nil, func(k, v []byte) error {
		got = append(got, string(k)+"="+string(v))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) == 0 {
		return 0
	}
	if _, err := fmt.Sscanf(got[0], "a=%d", &n); err != nil {
		t.Fatal(err)
	}
	want := []string{fmt.Sprintf("a=%d", n), fmt.Sprintf("l/%d=%d", n, n), fmt.Sprintf("z=%d", n)}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("half a batch: %q, want %q", got, want)
	}
	return n
}

func TestMemoryCrashClampsKeep(t *testing.T) {
	m := kv.NewMemory()
	countUp(t, m, 1)
	if n := countOf(t, m.Crash(func(int) int { return 99 })); n != 1 {
		t.Errorf("kept %d", n)
	}
	if n := countOf(t, m.Crash(func(int) int { return -1 })); n != 0 {
		t.Errorf("kept %d", n)
	}
}

func TestMemoryClosed(t *testing.T) {
	m := kv.NewMemory()
	b, v := m.Batch(), m.View()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Get([]byte("k")); err == nil {
		t.Error("a closed store answers Get")
	}
	if err := m.Sync(); err == nil {
		t.Error("a closed store syncs")
	}
	if err := b.Commit(); err == nil {
		t.Error("a closed store commits")
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

func TestPrefixEnd(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "b", "a\xff": "b", "\xff\xff": "", "a\xff\x00": "a\xff\x01"} {
		got := kv.PrefixEnd([]byte(in))
		if string(got) != want || (got == nil) != (want == "") {
			t.Errorf("end of %q is %q, want %q", in, got, want)
		}
	}
}
