package manifest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
	"github.com/lockstep-sync/lockstep/internal/machine/machinetest"
)

func TestMachine(t *testing.T) {
	machinetest.Run(t, machinetest.Suite{
		New:  func() machine.Machine { return New(Config{}) },
		Memo: func(key []byte) bool { return key[0] == tagDigest },
		Next: func(rng *rand.Rand, state kv.Reader, _ uint64) []byte {
			if rng.IntN(40) == 0 {
				return EncodePolicy(Policy{Rule: Rule(rng.IntN(4)), Prefer: "n1"})
			}
			b := Batch{Author: fmt.Sprintf("n%d", rng.IntN(3))}
			for range 1 + rng.IntN(6) {
				b.Changes = append(b.Changes, randomChange(t, rng, state))
			}
			return EncodeBatch(b)
		},
	})
}

// randomPath comes from few names, so that changes meet.
func randomPath(rng *rand.Rand) string {
	names := make([]string, 1+rng.IntN(3))
	for i := range names {
		names[i] = string(rune('a' + rng.IntN(3)))
	}
	return strings.Join(names, "/")
}

// randomChange is mostly sensible: its base is current, or somewhat old.
func randomChange(t testing.TB, rng *rand.Rand, state kv.Reader) Change {
	c := Change{Path: randomPath(rng)}
	cur, _, err := Get(state, c.Path)
	if err != nil {
		t.Fatal(err)
	}
	c.Base = cur.Version
	if rng.IntN(3) == 0 {
		c.Base = uint64(rng.IntN(int(cur.Version + 2)))
	}
	switch rng.IntN(8) {
	case 0, 1:
		c.Node = Node{}
	case 2:
		c.Node = dir()
		c.Node.MTime = int64(rng.IntN(5))
	case 3:
		c.Node = symlink(fmt.Sprint(rng.IntN(3)))
	default:
		c.Node = fileAt(fmt.Sprint(rng.IntN(1e6)), int64(rng.IntN(1000)))
	}
	return c
}

// TestNothingIsLost: several authors with stale bases; whatever content was accepted or conflicted stays in
// the tree until a change of the path where it is that was based on it (its very version) replaces or deletes
// it.
func TestNothingIsLost(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, policy := range []Policy{{}, {Rule: RuleFirst}, {Rule: RuleNewest}, {Rule: RulePrefer, Prefer: "n1"}} {
		r := newRig(t, policy)
		alive := map[string]Node{} // by content, where it must be found
		for range 400 {
			before := tree(t, r.store)
			var batches []Batch
			for range 1 + rng.IntN(3) {
				b := Batch{Author: fmt.Sprintf("n%d", rng.IntN(3))}
				used := map[string]bool{}
				for range 1 + rng.IntN(4) {
					if c := randomChange(t, rng, r.store); !used[c.Path] { // I2
						used[c.Path] = true
						b.Changes = append(b.Changes, c)
					}
				}
				batches = append(batches, b)
			}
			outs := r.entry(batches...)
			for i, b := range batches {
				for j, c := range b.Changes {
					o := outs[i][j]
					if old := before[c.Path]; o.Code == Accepted && c.Base == old.Version {
						delete(alive, contentOf(old))
					}
					if c.Node.Kind != Absent && c.Node.Kind != Dir && o.Code != Refused {
						alive[contentOf(c.Node)] = c.Node
					}
				}
			}
			// Within the entry an author may have replaced what it knew and lost the name right away; what
			// counts is that no content is gone that nobody based a change on.
			found := map[string]bool{}
			for _, n := range tree(t, r.store) {
				found[contentOf(n)] = true
			}
			for k, n := range alive {
				if !found[k] {
					t.Fatalf("policy %v, entry %d: %+v is gone\n%+v\n%+v", policy, r.index, n, batches, outs)
				}
			}
		}
	}
}

func contentOf(n Node) string { return fmt.Sprint(n.Kind, n.Hash, n.Target) }

// TestDigestMemos: the digest with memos from many points in time is the digest without.
func TestDigestMemos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	r := newRig(t, Policy{})
	for range 500 {
		r.apply("n1", randomChange(t, rng, r.store), randomChange(t, rng, r.store))
		if rng.IntN(3) > 0 {
			continue
		}
		with := memoise(t, r)
		tx := r.store.Batch()
		if err := tx.DeleteRange([]byte{tagDigest}, []byte{tagDigest + 1}); err != nil {
			t.Fatal(err)
		}
		without, err := r.m.Digest(tx)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := TreeDigest(tx)
		tx.Discard()
		if got, err2 := TreeDigest(r.store); err != nil || err2 != nil || got != tree || with != without {
			t.Fatalf("entry %d: %v %v, %v %v, %v %v", r.index, with, without, got, tree, err, err2)
		}
	}
}

func memoise(t testing.TB, r *rig) machine.Digest {
	t.Helper()
	tx := r.store.Batch()
	d, err := r.m.Digest(tx)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestTreeDigestIgnoresHistory: the same tree by other ways is the same tree.
func TestTreeDigestIgnoresHistory(t *testing.T) {
	a, b := newRig(t, Policy{}), newRig(t, Policy{})
	a.apply("a", put("d/f", 0, file("1")), put("g", 0, file("2")))
	b.apply("b", put("g", 0, file("3")))
	b.apply("b", put("g", 11, file("2")), put("d/f", 0, file("1")))
	da, err := TreeDigest(a.store)
	if err != nil {
		t.Fatal(err)
	}
	if db, err := TreeDigest(b.store); err != nil || da != db || memoise(t, a) == memoise(t, b) {
		t.Errorf("%v %v %v", da, db, err)
	}
	b.apply("b", put("d/f", 12, fileAt("1", 77)))
	if db, _ := TreeDigest(b.store); da == db {
		t.Error("an mtime does not count")
	}
}

// TestMemoGoesWithItsDirectory: nothing stays behind for what is no directory any more.
func TestMemoGoesWithItsDirectory(t *testing.T) {
	r := newRig(t, Policy{})
	r.apply("a", put("d", 0, dir()), put("e", 0, dir()))
	memoise(t, r)
	r.apply("a", del("d", 11), put("e", 11, file("1")))
	memoise(t, r)
	err := r.store.Scan([]byte{tagDigest}, []byte{tagDigest + 1}, func(k, _ []byte) error {
		if len(k) > 1 {
			t.Errorf("memo %q", k)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
