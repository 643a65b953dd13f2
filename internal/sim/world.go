// Package sim runs a whole group, the production core, replica and machines, in one goroutine under seeded
// faults, and checks after every step what must never happen. One seed is one history: the cluster's shape,
// what goes wrong, what clients ask and when are all drawn from it, so a failure is replayed by its number.
//
// What is real: core.Group, replica.Replica, the machines, the in-memory twins of logstore and kv with their
// crash models. What is simulated: time, network, the order and duration of disk writes, processes (the host
// type plays the part of the engine's runner), clients.
//
// The package starts no goroutine. raft draws its election timeouts from crypto/rand.Reader and cannot be
// told otherwise, so Run replaces that for as long as it lasts: one Run at a time in a process, and none in a
// process that needs real randomness.
package sim

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"runtime/debug"
)

// Times are nanoseconds of simulated time.
const (
	micro  = int64(1000)
	milli  = 1000 * micro
	second = 1000 * milli
)

// Report says what a run came to, so that a reader sees that it did something.
type Report struct {
	Seed     uint64
	Workload string
	Hash     uint64 // of everything that happened, in order: equal seeds, equal hashes
	Seconds  int64  // simulated

	Events, Writes, Reads            int
	Accepted, AcceptedLost, Unknown  int
	Duplicates, Elections, Conflicts int
	Crashes, Snapshots, Changes      int
	Voters                           int
}

// Run simulates seed to its end. An error is a violation: it names what was seen and when.
func Run(seed uint64) (report Report, err error) {
	w := newWorld(seed)
	real := rand.Reader
	rand.Reader = mathrand.NewChaCha8(chachaSeed(seed))
	defer func() { rand.Reader = real }()
	defer func() {
		report = w.report
		report.Hash, report.Seconds = w.hash, w.now/second
		switch v := recover().(type) {
		case nil:
		case violation:
			err = fmt.Errorf("seed %d: %d.%06d s: %s", seed, w.now/second, w.now%second/micro, string(v))
		default: // a core.Fault, or a bug anywhere in what is real here
			err = fmt.Errorf("seed %d: %d.%06d s: panic: %v\n%s", seed, w.now/second, w.now%second/micro, v, debug.Stack())
		}
	}()
	w.run()
	return w.report, nil
}

func chachaSeed(seed uint64) (s [32]byte) {
	binary.LittleEndian.PutUint64(s[:], seed)
	return s
}

// violation is what a checker panics with.
type violation string

func fail(format string, args ...any) { panic(violation(fmt.Sprintf(format, args...))) }

// must is for errors that no fault of the simulation explains.
func must(err error, doing string) {
	if err != nil {
		fail("%s: %v", doing, err)
	}
}

// dice are the streams of chance, one for each cause, so that one more message does not move every crash.
type dice struct {
	net, disk, clock, work, fate *mathrand.Rand
}

type event struct {
	at  int64
	seq uint64 // ties go in the order of scheduling
	run func()
}

type world struct {
	seed   uint64
	now    int64
	seq    uint64
	queue  []event // a heap by (at, seq)
	dice   dice
	shape  shape
	hosts  []*host // host i has replica id i+1
	net    network
	work   workload
	people []*client
	ledger ledger
	nemesis
	report Report
	hash   uint64
}

func newWorld(seed uint64) *world {
	stream := func(n uint64) *mathrand.Rand { return mathrand.New(mathrand.NewPCG(seed, n)) }
	w := &world{seed: seed, dice: dice{stream(1), stream(2), stream(3), stream(4), stream(5)}}
	w.report.Seed = seed
	w.shape = drawShape(w.dice.fate)
	w.net.init(w)
	w.ledger.init(w)
	if w.shape.files {
		w.work = newFiles(w)
		w.report.Workload = "files"
	} else {
		w.work = newRegisters(w)
		w.report.Workload = "registers"
	}
	return w
}

// shape is what a seed fixes for the whole run. Every seed enables its own subset of faults, at its own
// extremes.
type shape struct {
	voters, clients   int
	files             bool
	active            int64 // faults and new requests end here
	latency, syncTime int64 // means
	drop, duplicate   float64
	fifo              bool
	retain            uint64 // entries kept by a truncation
	checkpoint        int64
	entryBytes        uint64
	uncommitted       uint64
	inflight          int
	election          int
	faults            []fault
	pace              int64 // mean time between faults
	think             int64 // mean time between a client's requests
}

func drawShape(r *mathrand.Rand) shape {
	pick := func(xs ...int64) int64 { return xs[r.IntN(len(xs))] }
	s := shape{
		voters:      int(pick(1, 2, 3, 3, 3, 3, 5, 5, 7)),
		clients:     int(pick(2, 4, 6)),
		files:       r.IntN(3) == 0,
		active:      pick(15, 25, 40) * second,
		latency:     pick(100*micro, 500*micro, 3*milli, 15*milli),
		syncTime:    pick(50*micro, 200*micro, 2*milli, 8*milli),
		drop:        float64(pick(0, 0, 1, 10, 50)) / 1000,
		duplicate:   float64(pick(0, 0, 5, 50)) / 1000,
		fifo:        r.IntN(2) == 0,
		retain:      uint64(pick(0, 5, 20, 100, 1000)),
		checkpoint:  pick(200*milli, second, 5*second),
		entryBytes:  uint64(pick(100, 400, 1<<20)),
		uncommitted: uint64(pick(2000, 64<<20)),
		inflight:    int(pick(1, 2, 256)),
		election:    int(pick(3, 10, 10)),
		pace:        pick(400*milli, second, 3*second),
		think:       pick(50*milli, 150*milli, 400*milli),
	}
	for _, f := range allFaults {
		if r.IntN(3) > 0 {
			s.faults = append(s.faults, f)
		}
	}
	return s
}

// after schedules run.
func (w *world) after(d int64, run func()) {
	w.seq++
	w.queue = append(w.queue, event{at: w.now + max(d, 0), seq: w.seq, run: run})
	for i := len(w.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !w.before(i, up) {
			break
		}
		w.queue[i], w.queue[up] = w.queue[up], w.queue[i]
		i = up
	}
}

func (w *world) before(i, j int) bool {
	a, b := &w.queue[i], &w.queue[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

// step runs the next event.
func (w *world) step() {
	e := w.queue[0]
	last := len(w.queue) - 1
	w.queue[0] = w.queue[last]
	w.queue[last] = event{}
	w.queue = w.queue[:last]
	for i := 0; ; {
		next := 2*i + 1
		if next >= last {
			break
		}
		if next+1 < last && w.before(next+1, next) {
			next++
		}
		if !w.before(next, i) {
			break
		}
		w.queue[i], w.queue[next] = w.queue[next], w.queue[i]
		i = next
	}
	w.now = e.at
	w.report.Events++
	e.run()
}

// What is traced.
const (
	traceMessage = iota + 1
	traceApply
	traceAnswer
	traceCrash
	traceFault
	traceDigest
)

// trace folds what happened into the run's hash.
func (w *world) trace(what int, words ...uint64) {
	h := w.hash ^ uint64(what)<<56 ^ uint64(w.now)
	for _, x := range words {
		h = (h ^ x) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	w.hash = (h ^ w.seq) * 0xbf58476d1ce4e5b9
}

// spread draws a duration around mean: mostly near, sometimes ten times as long.
func spread(r *mathrand.Rand, mean int64) int64 {
	d := int64(r.ExpFloat64() * float64(mean))
	return min(d, 10*mean)
}

// run plays the active part, then heals everything and waits for the cluster to converge.
func (w *world) run() {
	for range w.shape.voters {
		w.addHost(true)
	}
	w.report.Voters = w.shape.voters
	w.ledger.confs = append(w.ledger.confs, w.hosts[0].startMeta().GetConfState())
	for _, h := range w.hosts {
		h.start()
	}
	for i := range w.shape.clients {
		w.addClient(i)
	}
	w.nemesis.begin(w)
	for w.now < w.shape.active {
		w.step()
	}
	w.nemesis.heal(w)
	w.converge()
	w.finish()
}
