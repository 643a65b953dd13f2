package sim

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"testing"
)

var (
	oneSeed  = flag.Int64("sim.seed", -1, "run this seed only")
	seeds    = flag.Uint64("sim.seeds", 300, "how many seeds to run")
	from     = flag.Uint64("sim.from", 0, "the first seed")
	failFast = flag.Bool("sim.failfast", false, "stop at the first seed that fails")
	inShard  = flag.Bool("sim.shard", false, "this process is one of several")
)

// TestSim runs many seeds, a share in each of as many processes as there are processors: raft's randomness is
// the process's.
func TestSim(t *testing.T) {
	shards := uint64(runtime.GOMAXPROCS(0))
	switch {
	case *oneSeed >= 0:
		report, err := Run(uint64(*oneSeed))
		t.Logf("%+v", report)
		if err != nil {
			t.Fatal(err)
		}
	case *inShard || shards == 1 || *seeds < 8*shards:
		runSeeds(t, *from, *seeds)
	default:
		share := (*seeds + shards - 1) / shards
		for first := *from; first < *from+*seeds; first += share {
			t.Run(fmt.Sprintf("from %d", first), func(t *testing.T) {
				t.Parallel()
				runShard(t, first, min(share, *from+*seeds-first))
			})
		}
	}
}

func runSeeds(t *testing.T, first, count uint64) {
	var sum Report
	for seed := first; seed < first+count; seed++ {
		report, err := Run(seed)
		if err != nil {
			t.Errorf("%v\nreplay: go test ./internal/sim -run TestSim -sim.seed=%d", err, seed)
			if *failFast {
				return
			}
			continue
		}
		sum.add(report)
	}
	t.Logf("%+v", sum)
	if count >= 100 {
		wantEvents(t, sum)
	}
}

// wantEvents holds that what the simulator can do has happened, else it proves nothing.
func wantEvents(t *testing.T, sum Report) {
	for name, n := range map[string]int{
		"writes": sum.Writes, "reads": sum.Reads, "retries answered from the table": sum.Duplicates,
		"crashes": sum.Crashes, "snapshots": sum.Snapshots, "membership changes": sum.Changes,
		"conflicts": sum.Conflicts, "accepted and lost": sum.AcceptedLost, "elections": sum.Elections,
	} {
		if n == 0 {
			t.Errorf("no %s: %+v", name, sum)
		}
	}
}

func runShard(t *testing.T, first, count uint64) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestSim$", "-test.v", "-sim.shard",
		fmt.Sprint("-sim.from=", first), fmt.Sprint("-sim.seeds=", count), fmt.Sprint("-sim.failfast=", *failFast))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", regexp.MustCompile(`\{Seed.*\}`).Find(out))
}

func (r *Report) add(o Report) {
	r.Events += o.Events
	r.Seconds += o.Seconds
	r.Writes += o.Writes
	r.Reads += o.Reads
	r.Accepted += o.Accepted
	r.AcceptedLost += o.AcceptedLost
	r.Unknown += o.Unknown
	r.Duplicates += o.Duplicates
	r.Elections += o.Elections
	r.Conflicts += o.Conflicts
	r.Crashes += o.Crashes
	r.Snapshots += o.Snapshots
	r.Changes += o.Changes
}

// A seed is a history: a failure can be replayed only if nothing but the seed decides.
func TestEqualSeedsEqualHistories(t *testing.T) {
	hashes := map[uint64]uint64{}
	for seed := range uint64(6) {
		a, errA := Run(seed)
		b, errB := Run(seed)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a != b {
			t.Errorf("seed %d: two histories:\n%+v\n%+v", seed, a, b)
		}
		if other, ok := hashes[a.Hash]; ok {
			t.Errorf("seeds %d and %d have one history", seed, other)
		}
		hashes[a.Hash] = seed
	}
}
