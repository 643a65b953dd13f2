package files

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestRandomPolicies: nodes that cannot talk for a while edit the same few files; whichever wins, every content that the
// manifest names in the end is on every node.
func TestRandomPolicies(t *testing.T) {
	for _, policy := range []manifest.Policy{{Rule: manifest.RuleNewest}, {Rule: manifest.RulePrefer, Prefer: "n2"}} {
		t.Run(policy.String(), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			f := newFarm(t, 3)
			f.policy = policy
			f.up()
			f.flush()
			for range 6 {
				f.quarrel(rng)
				f.flush()
				f.same()
				f.complete()
			}
			if copies := f.conflicts(); copies == 0 {
				t.Error("there was no conflict")
			}
		})
	}
}

// quarrel has all nodes edit, some of them cut off, one of them down and up again in the end.
func (f *farm) quarrel(rng *rand.Rand) {
	for _, nd := range f.nodes {
		nd.setCut(rng.IntN(3) > 0)
	}
	for range 30 {
		nd := f.nodes[rng.IntN(len(f.nodes))]
		name := string(rune('a' + rng.IntN(3)))
		size := []int{20, 2_000, 200_000}[rng.IntN(3)]
		data := strings.Repeat(fmt.Sprint(rng.Uint64(), " "), size/20+1)
		nd.replace(name, data, time.Unix(2_000_000_000+rng.Int64N(1000), 0))
	}
	away := f.nodes[rng.IntN(len(f.nodes))]
	if rng.IntN(2) == 0 {
		away.down()
	}
	for _, i := range rng.Perm(len(f.nodes)) {
		f.nodes[i].setCut(false)
	}
	f.up()
}

// complete checks that every node has what the manifest says.
func (f *farm) complete() {
	f.t.Helper()
	for _, nd := range f.nodes {
		v, err := nd.View()
		must(f.t, err)
		must(f.t, manifest.Walk(v, "", "", func(path string, n manifest.Node) error {
			if n.Kind == manifest.File && manifest.Hash(blake3.Sum256([]byte(nd.read(path)))) != n.Hash {
				f.t.Errorf("%s has %.30q at %s", nd.name, nd.read(path), path)
			}
			return nil
		}))
		v.Close()
	}
}

func (f *farm) conflicts() (n int) {
	f.t.Helper()
	tree, err := snapshot(f.nodes[0].root)
	must(f.t, err)
	for path := range tree {
		if strings.Contains(path, ".conflict-") {
			n++
		}
	}
	return n
}
