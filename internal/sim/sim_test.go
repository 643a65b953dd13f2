package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var (
	oneSeed  = flag.Int64("sim.seed", -1, "run this seed only")
	seeds    = flag.Uint64("sim.seeds", 300, "how many seeds to run")
	from     = flag.Uint64("sim.from", 0, "the first seed")
	failFast = flag.Bool("sim.failfast", false, "stop at the first seed that fails")
	record   = flag.Bool("sim.record", false, "go on where docs/track-record.json ends, and write the run into it")
	rewrite  = flag.Bool("sim.rewrite", false, "make docs/TRACK_RECORD.md anew")
	inShard  = flag.Bool("sim.shard", false, "this process is one of several")
)

// TestSim runs many seeds, a share in each of as many processes as there are processors: raft's randomness is
// the process's.
func TestSim(t *testing.T) {
	shards := uint64(runtime.GOMAXPROCS(0))
	if *record {
		*from = readRecord(t).Next()
	}
	switch {
	case *oneSeed >= 0:
		report, err := Run(uint64(*oneSeed))
		t.Log(&report)
		if err != nil {
			t.Fatal(err)
		}
	case *inShard || shards == 1 && !*record || *seeds < 8*shards:
		runSeeds(t, *from, *seeds)
	default:
		runShards(t, shards)
	}
}

// runShards gives each process its share.
func runShards(t *testing.T, shards uint64) {
	reports := make([]Report, shards)
	share := (*seeds + shards - 1) / shards // the last one's may be smaller
	begun := time.Now()
	t.Run("shards", func(t *testing.T) {
		for i := range shards {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				first := *from + i*share
				reports[i] = runShard(t, first, min(share, *from+*seeds-first))
			})
		}
	})
	var sum Report
	for _, r := range reports {
		sum.Add(r)
	}
	sum.Seed = *from
	wall := time.Since(begun).Seconds()
	t.Logf("%s\n%.0f s, %.1f seeds/s, %.0f simulated s/s", &sum, wall, float64(sum.Seeds)/wall, float64(sum.Simulated)/1000/wall)
	if sum.Seeds >= 100 {
		wantEvents(t, sum)
	}
	run := RecordedRun{
		From: *from, Seeds: *seeds, Failed: *seeds - sum.Seeds, Seconds: math.Round(wall),
		Simulated: sum.Simulated / 1000, Groups: sum.Groups, Tables: sum.Tables(),
	}
	line, err := json.Marshal(run)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("json %s", line)
	if *record {
		writeRecord(t, run)
	}
}

const recordFile, recordPage = "../../docs/track-record.json", "../../docs/TRACK_RECORD.md"

func readRecord(t *testing.T) *Record {
	r, err := ReadRecord(recordFile)
	if err != nil {
		t.Fatal(err)
	}
	return &r
}

func writeRecord(t *testing.T, run RecordedRun) {
	run.Commit, run.Date = commit(t), time.Now().UTC().Format(time.DateOnly)
	r := readRecord(t)
	r.Runs = append(r.Runs, run)
	saveRecord(t, r)
}

// commit names the sources.
func commit(t *testing.T) string {
	out, err := exec.CommandContext(t.Context(), "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		t.Fatalf("which sources are these? %v", err)
	}
	return strings.TrimSpace(string(out))
}

func saveRecord(t *testing.T, r *Record) {
	b, err := r.Encode()
	if err == nil {
		err = errors.Join(os.WriteFile(recordFile, b, 0o644), os.WriteFile(recordPage, []byte(r.Page()), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The page that people read is made from the record and from nothing else.
func TestTrackRecord(t *testing.T) {
	r := readRecord(t)
	if *rewrite {
		if err := os.WriteFile(recordPage, []byte(r.Page()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(recordPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != r.Page() {
		t.Errorf("docs/TRACK_RECORD.md is not what docs/track-record.json says: go test ./internal/sim -run TestTrackRecord -sim.rewrite")
	}
	next := uint64(0)
	for _, run := range r.Runs {
		if run.From < next {
			t.Errorf("the run from seed %d overlaps an earlier one", run.From)
		}
		next = run.From + run.Seeds
	}
}

// wantEvents holds that what the simulator can do has happened, else it proves nothing.
func wantEvents(t *testing.T, sum Report) {
	for _, c := range sum.counters() {
		if *c.at == 0 {
			t.Errorf("no %s", c.name)
		}
	}
	for f, n := range sum.Faults {
		if n == 0 {
			t.Errorf("no fault %q", fault(f))
		}
	}
	for i, byMode := range sum.Plans {
		if sum.Seeds >= 1000 && byMode == [modes]int{} {
			t.Errorf("no catch-up by %s", ruleNames[i])
		}
	}
}

func runShard(t *testing.T, first, count uint64) Report {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestSim$", "-test.v", "-test.timeout=0", "-sim.shard",
		fmt.Sprint("-sim.from=", first), fmt.Sprint("-sim.seeds=", count), fmt.Sprint("-sim.failfast=", *failFast))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	_, line, found := bytes.Cut(out, []byte("report {"))
	if !found {
		t.Fatalf("no report\n%s", out)
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	report, err := DecodeReport(append([]byte("{"), line...))
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func runSeeds(t *testing.T, first, count uint64) {
	frugal(t)
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
		sum.Add(report)
	}
	line, err := sum.Encode()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("report %s", line)
	t.Log(&sum)
}

// frugal collects garbage seldom: what a run leaves is small, and gone with the next.
func frugal(t *testing.T) {
	percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(192<<20)
	t.Cleanup(func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) })
}

// A run leaves nothing behind: thousands of them follow one another in a process.
func TestRunsEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	for seed := range uint64(8) {
		if _, err := Run(seed); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
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
