package sim

import (
	"flag"
	"testing"
)

var (
	oneSeed = flag.Int64("sim.seed", -1, "run this seed only")
	seeds   = flag.Uint64("sim.seeds", 300, "how many seeds to run")
	from    = flag.Uint64("sim.from", 0, "the first seed")
)

func TestSim(t *testing.T) {
	if *oneSeed >= 0 {
		report, err := Run(uint64(*oneSeed))
		t.Logf("%+v", report)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var sum Report
	for seed := *from; seed < *from+*seeds; seed++ {
		report, err := Run(seed)
		if err != nil {
			t.Errorf("%v\nreplay: go test ./internal/sim -run TestSim -sim.seed=%d", err, seed)
			continue
		}
		sum.add(report)
	}
	t.Logf("%+v", sum)
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
