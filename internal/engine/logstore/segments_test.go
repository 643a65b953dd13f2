package logstore_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// small are segments that a few batches fill.
func small(d logstore.Disk) logstore.Options {
	return logstore.Options{Disk: d, Salt: 7, SegmentBytes: 64 << 10}
}

func openSegments(t *testing.T, o logstore.Options) logstore.Store {
	t.Helper()
	s, err := logstore.OpenSegments(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSegments(t *testing.T) {
	for name, change := range map[string]func(*logstore.Options){
		"": func(*logstore.Options) {},
		// With hardly any cache every read goes to the disk; with a small one some reads are split.
		"WithoutCache":   func(o *logstore.Options) { o.GroupCacheBytes, o.CacheBytes = 1, 1 },
		"WithSmallCache": func(o *logstore.Options) { o.GroupCacheBytes, o.CacheBytes = 500, 5000 },
		"TinySegments":   func(o *logstore.Options) { o.SegmentBytes, o.CacheBytes = 16<<10, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			logstoretest.Run(t, func(t *testing.T) logstore.Store {
				o := small(logstoretest.NewDisk(512, seeded(t)))
				change(&o)
				return openSegments(t, o)
			})
		})
	}
}

func TestSegmentsOnDisk(t *testing.T) {
	logstoretest.Run(t, func(t *testing.T) logstore.Store {
		d, err := logstore.OpenDisk(t.TempDir())
		must(t, err)
		return openSegments(t, small(d))
	})
}

// The store answers like the one in memory and like the oracle on Pebble after every call, and after reopening.
func TestSegmentsAgainstOracles(t *testing.T) {
	rng := seeded(t)
	disk := logstoretest.NewDisk(512, rng)
	o := small(disk)
	o.GroupCacheBytes, o.CacheBytes, o.SegmentBytes = 3000, 8000, 32<<10
	s, m := openSegments(t, o), logstore.NewMemory()
	p := open(t, "log", logstore.PebbleOptions{FS: vfs.NewMem(), MemTableBytes: 64 << 10, GroupCacheBytes: 3000, CacheBytes: 8000})
	for i := range 3000 {
		op, err := logstoretest.Next(rng, m)
		must(t, err)
		must(t, op.Do(m))
		must(t, op.Do(s))
		must(t, op.Do(p))
		if rng.IntN(40) == 0 {
			must(t, s.Close())
			s = openSegments(t, o)
		}
		if rng.IntN(3) == 0 {
			must(t, s.Idle())
		}
		if i%7 == 0 {
			if got, want := dump(t, s), dump(t, m); got != want {
				t.Fatalf("call %d: %s", i, firstDifference(got, want))
			}
			if got := dump(t, p); got != dump(t, m) {
				t.Fatalf("call %d, on Pebble: %s", i, firstDifference(got, dump(t, m)))
			}
		}
	}
	must(t, errors.Join(s.Close(), p.Close()))
}

// After a power cut at any time, in the middle of a write too, the store is in one of the states that Memory's crash
// model names, and healthy.
func TestSegmentsCrash(t *testing.T) {
	rng := seeded(t)
	for _, grain := range []int{1, 512, 4096} {
		crashes(t, rng, grain)
	}
}

func crashes(t *testing.T, rng *rand.Rand, grain int) {
	disk := logstoretest.NewDisk(grain, rng)
	o := small(disk)
	o.SegmentBytes, o.GroupCacheBytes = 32<<10, 3000
	s, m := openSegments(t, o), logstore.NewMemory()
	during := 0
	for range 1500 {
		op, err := logstoretest.Next(rng, m)
		must(t, err)
		crash := rng.IntN(6) == 0
		if crash && op.Write != nil {
			disk.Arm(0)
		}
		must(t, op.Do(s))
		inFlight := op.Write
		if !disk.Cut() { // the call had ended
			must(t, op.Do(m))
			inFlight = nil
			if rng.IntN(2) == 0 {
				must(t, s.Idle())
			}
		}
		if !crash {
			continue
		}
		if inFlight != nil {
			during++
		}
		disk = disk.Crash()
		must(t, s.Close())
		o.Disk = disk
		s = openSegments(t, o)
		m = matching(t, s, m, inFlight)
	}
	must(t, s.Close())
	if during == 0 {
		t.Fatal("no crash fell into a write")
	}
}
