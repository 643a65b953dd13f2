package replica

import (
	"math/rand/v2"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

func openLimited(t *testing.T, store kv.Store, limits Limits) *Replica {
	t.Helper()
	r, err := OpenLimited(store, &tally{}, limits)
	if err == nil {
		err = r.Init(initial)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What is said to be certain happens, whatever clients send: proposals of random sessions, some with numbers and floors
// that no honest client has, are foretold with some others in front of them, and then applied.
func TestWhatIsCertainIsExecuted(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 1))
		pick := func(xs ...int) int { return xs[rng.IntN(len(xs))] }
		limits := Limits{Sessions: pick(1, 2, 3, 5, 8), Results: pick(1, 2, 4)}
		store := kv.NewMemory()
		r := openLimited(t, store, limits)
		numbers := make([]uint64, limits.Sessions+pick(0, 1, 3)+1)
		propose := func() core.Proposal {
			c := rng.IntN(len(numbers))
			numbers[c]++
			seq := numbers[c] - min(numbers[c]-1, uint64(pick(0, 0, 0, 0, 1, 3)))
			floor := seq - min(seq-1, uint64(pick(0, 0, 0, 1, 2, 100)))
			if rng.IntN(30) == 0 {
				floor += uint64(rng.IntN(4))
			}
			if rng.IntN(8) == 0 { // a new one under the same name, as if it had another
				numbers[c], seq, floor = 1, 1, 1
			}
			return write(byte(c+1), seq, floor, "x")
		}
		executed := map[[2]uint64]bool{}
		certain, index := 0, uint64(2)
		for range 200 {
			if rng.IntN(40) == 0 {
				r = openLimited(t, store, limits)
			}
			var ps []core.Proposal
			for range 1 + rng.IntN(5) {
				ps = append(ps, propose())
			}
			last := &ps[len(ps)-1]
			sure := r.Executes(last, aheadOf(ps))
			res := apply(t, r, entry(index, 1, ps...))
			index++
			for i, p := range ps {
				if got, err := DecodeResult(res[0][i]); err != nil || !got.Expired {
					executed[[2]uint64{uint64(p.Client[0]), p.Seq}] = true
				}
			}
			if sure {
				certain++
			}
			if sure && !executed[[2]uint64{uint64(last.Client[0]), last.Seq}] {
				t.Fatalf("seed %d, %+v: write %d of session %d, floor %d, was certain, and is not executed", seed, limits, last.Seq, last.Client[0], last.Floor)
			}
		}
		if certain < 20 {
			t.Errorf("seed %d, %+v: of 200 writes %d were certain", seed, limits, certain)
		}
	}
}

// aheadOf is what the last of ps has in front of it.
func aheadOf(ps []core.Proposal) (a core.Ahead) {
	p, others := ps[len(ps)-1], map[[16]byte]bool{}
	for _, q := range ps[:len(ps)-1] {
		if q.Client != p.Client {
			others[q.Client] = true
			continue
		}
		a.Floor, a.Top = max(a.Floor, q.Floor), max(a.Top, q.Seq)
	}
	a.Sessions = len(others)
	return a
}

// Sessions in use are certain although the table is full.
func TestExecutes(t *testing.T) {
	limits := Limits{Sessions: 6, Results: 4}
	store := kv.NewMemory()
	r := openLimited(t, store, limits)
	if !r.Executes(new(write(1, 2, 2, "")), core.Ahead{Sessions: 5}) || r.Executes(new(write(1, 2, 2, "")), core.Ahead{Sessions: 6}) {
		t.Error("in an empty table there is room for six")
	}
	for c := range byte(7) { // 1 is evicted; 5, 6 and 7 are young
		apply(t, r, entry(uint64(c)+2, 1, write(c+1, 1, 1, "x"), write(c+1, 5, 2, "x")))
	}
	for _, c := range []struct {
		what  string
		p     core.Proposal
		ahead core.Ahead
		want  bool
	}{
		{"evicted", write(1, 6, 6, ""), core.Ahead{}, false},
		{"begins anew", write(1, 1, 1, ""), core.Ahead{Sessions: 100}, true},
		{"never seen", write(9, 6, 6, ""), core.Ahead{}, false},
		{"used last", write(7, 6, 6, ""), core.Ahead{Sessions: 3}, true},
		{"used last, much ahead", write(7, 6, 6, ""), core.Ahead{Sessions: 4}, false},
		{"young", write(5, 6, 6, ""), core.Ahead{Sessions: 3}, true},
		{"next to go", write(2, 6, 6, ""), core.Ahead{}, true},
		{"next to go, one more ahead", write(2, 6, 6, ""), core.Ahead{Sessions: 1}, false},
		{"answered before", write(7, 1, 1, ""), core.Ahead{}, false},
		{"said to be answered ahead", write(7, 6, 6, ""), core.Ahead{Floor: 7, Top: 7}, false},
		{"said by itself to be answered", write(7, 6, 7, ""), core.Ahead{}, false},
		{"executed, to be answered again", write(7, 5, 2, ""), core.Ahead{}, true},
		{"a gap that results may fill", write(7, 3, 2, ""), core.Ahead{Top: 7}, true},
		{"a gap that more results may fill", write(7, 3, 2, ""), core.Ahead{Top: 8}, false},
	} {
		if got := r.Executes(&c.p, c.ahead); got != c.want {
			t.Errorf("%s: certain: %v", c.what, got)
		}
	}
	limits.Sessions = 10 // room again, but some are forgotten
	if r = openLimited(t, store, limits); r.Executes(new(write(1, 6, 6, "")), core.Ahead{}) || !r.Executes(new(write(2, 6, 6, "")), core.Ahead{}) {
		t.Error("with more room than before: who was evicted, or who was not")
	}
}
