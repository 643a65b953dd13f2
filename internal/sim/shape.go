package sim

import (
	"math"
	mathrand "math/rand/v2"

	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// shape is what a seed fixes for the whole run (swarm testing, Groce et al., ISSTA 2012): every seed has its own
// cluster, its own extremes, and enables its own subset of faults, each with its own weight.
type shape struct {
	voters, observers, groups, clients int

	active            int64 // faults and new requests end here
	latency, syncTime int64 // means
	drop, duplicate   float64
	fifo              bool
	tick              int64
	election          int    // ticks
	heartbeat         int    // ticks
	retain            uint64 // entries kept by a truncation
	checkpoint        int64
	entryBytes        uint64
	uncommitted       uint64
	inflight          int
	feedFrame         uint64 // bytes of entries in one frame of a feed
	feedBacklog       int    // bytes an observer may lag behind live before it is cut off
	topology          string // of feeds, see wiring.go
	zones             int    // of hosts; 0: nobody knows of any
	tailBytes         int    // of entries that an observer remembers for others
	snapshotBytes     uint64 // what a state is said to weigh, for catchup.Decide
	cached            bool   // a source's log is in memory as a whole, for catchup.Decide
	limits            replica.Limits
	inSync            bool  // COMMITTED_ALL is about a recorded set, else about all members
	inSyncAfter       int64 // how long a member may lag before it leaves the set
	segments          bool  // logs are in the store of production on a disk in memory, else in its twin
	segmentBytes      int64 // of it
	segmentReserve    int
	logCache          int  // bytes of a group's log in memory
	ruins             bool // most logs of a group are altered, once
	driven            bool // configurations are driven towards the seats at any time: see group.driven
	mixed, raises     bool // hosts run two programs, see levels.go; and the level is raised
	differ            bool // states are compared by digests rather than streamed, where the machine can

	still bool // all clocks show the same, always

	faults  []fault
	weights []float64
	pace    int64 // mean time between faults
	think   int64 // mean time between a client's requests
}

func drawShape(r *mathrand.Rand) shape {
	pick := func(xs ...int64) int64 { return xs[r.IntN(len(xs))] }
	s := shape{
		voters:        int(pick(1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7)),
		observers:     int(pick(0, 0, 1, 1, 2, 3, 4, 6)),
		groups:        int(pick(1, 1, 1, 1, 2, 2, 3, 5)),
		clients:       int(pick(2, 4, 6)),
		active:        pick(50, 57, 57, 60) * second,
		latency:       pick(100*micro, 500*micro, 3*milli, 15*milli),
		syncTime:      pick(50*micro, 200*micro, 2*milli, 8*milli),
		drop:          float64(pick(0, 0, 1, 10, 50)) / 1000,
		duplicate:     float64(pick(0, 0, 5, 50)) / 1000,
		fifo:          r.IntN(2) == 0,
		tick:          pick(50, 100, 200, 200, 300) * milli,
		election:      int(pick(3, 10, 10)),
		retain:        uint64(pick(0, 5, 20, 100, 1000)),
		checkpoint:    pick(200*milli, second, 5*second),
		entryBytes:    uint64(pick(100, 400, 1<<20)),
		uncommitted:   uint64(pick(2000, 64<<20)),
		inflight:      int(pick(1, 2, 256)),
		feedFrame:     uint64(pick(1, 500, 1<<20)),
		feedBacklog:   int(pick(2000, 20_000, 8<<20)),
		snapshotBytes: uint64(pick(0, 0, 1<<30)),
		cached:        r.IntN(2) == 0,
		limits:        replica.Limits{Sessions: int(pick(3, 10, 10_000, 10_000)), Results: int(pick(2, 2048))},
		differ:        r.IntN(2) == 0,
		pace:          pick(500*milli, second, 3*second),
		think:         pick(200*milli, 400*milli, 900*milli),
	}
	if r.IntN(16) == 0 {
		s.groups = int(pick(10, 15, 20))
	}
	if s.groups > 3 { // many groups cost much: less of each
		s.think = 1500 * milli
		s.tick = max(s.tick, 200*milli)
	}
	s.segments, s.segmentReserve = r.IntN(2) == 0, 1+r.IntN(3)
	s.segmentBytes, s.logCache = pick(16<<10, 32<<10, 128<<10), int(pick(1, 3000, 1<<20))
	s.heartbeat = min(1+r.IntN(3), s.election/3)
	s.driven, s.ruins = r.IntN(2) == 0, s.segments && s.groups == 1 && s.voters > 2 && r.IntN(4) == 0
	s.inSync, s.inSyncAfter = r.IntN(3) > 0, pick(300*milli, second, 5*second)
	for _, f := range allFaults {
		if r.IntN(2) == 0 {
			s.faults = append(s.faults, f)
			s.weights = append(s.weights, math.Exp(r.NormFloat64()))
		}
	}
	s.topology, s.zones, s.tailBytes = topologies[r.IntN(len(topologies))], int(pick(0, 0, 2, 3)), int(pick(1, 2000, 16<<20))
	if r.IntN(16) == 0 { // so many that a path may be too long
		s.observers, s.topology = 10, ring
		s.voters, s.groups = min(s.voters, 3), min(s.groups, 2)
	}
	if r.IntN(6) == 0 {
		s.mixed, s.raises, s.ruins = true, r.IntN(4) > 0, false
		s.groups, s.voters, s.observers = max(2, min(s.groups, 5)), min(s.voters, 5), min(s.observers, 3)
	}
	return s
}

// has says whether a fault is among the seed's.
func (s *shape) has(f fault) bool {
	for _, x := range s.faults {
		if x == f {
			return true
		}
	}
	return false
}

// draw picks one of the seed's faults by weight.
func (s *shape) draw(r *mathrand.Rand) fault {
	total := 0.0
	for _, x := range s.weights {
		total += x
	}
	at := r.Float64() * total
	for i, x := range s.weights {
		if at -= x; at < 0 {
			return s.faults[i]
		}
	}
	return s.faults[len(s.faults)-1]
}
