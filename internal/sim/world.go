// Package sim runs a whole cluster, the production core, replica, catch-up plan and machines, in one goroutine
// under seeded faults, and checks after every step what must never happen. One seed is one history: the
// cluster's shape, what goes wrong, what clients ask and when are all drawn from it, so a failure is replayed by
// its number.
//
// A cluster is a number of hosts (processes with one log, one state and one writer each), on which groups have
// members (replicas that vote or learn, fed by raft) and observers (replicas without a log, fed by a stream from a member or
// from one another).
//
// What is real: core.Group, replica.Replica with its snapshots and sessions, catchup.Decide, an observer's guard against loops
// and its order of asking, control's assignment of feeds, what relays keep (engine.Tail), the machines and
// the manifest's difference by digests, in every other seed the log store on a disk in memory that tears, forgets and
// garbles (platter), else its in-memory twin; kv's twin; control.PlanInSync and core's counting of in-sync sets;
// control.PlanMembership, and what decides whether a replica with a damaged log may begin again (core.Status.Spares,
// control.Group.Renew); in a share of the seeds the control group's machine, for a cluster that is upgraded host by host
// (levels.go).
// What is simulated: time, network, the order and duration of disk writes, processes and connections (host, member and
// observer play the part of the engine's runners), clients. The simulation of bubble runs the runners themselves.
//
// The package starts no goroutine of its own but for one end of a conversation about differences, which is a pure
// function of the two states and ends before the event that began it; that of the log store keeps in step with its
// calls. raft draws its election timeouts from crypto/rand.Reader and cannot be told otherwise, so Run replaces that
// for as long as it lasts: one Run at a time in a process, and none in a process that needs real randomness.
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

// Run simulates seed to its end. An error is a violation: it names what was seen and when.
func Run(seed uint64) (Report, error) { return run(newWorld(seed)) }

func run(w *world) (report Report, err error) {
	real := rand.Reader
	rand.Reader = mathrand.NewChaCha8(chachaSeed(w.seed))
	defer func() { rand.Reader = real }()
	defer w.close()
	defer func() {
		w.report.Hash, w.report.Simulated = w.hash, w.now/milli
		report = w.report
		at := fmt.Sprintf("seed %d: %d.%06d s", w.seed, w.now/second, w.now%second/micro)
		switch v := recover().(type) {
		case nil:
		case violation:
			err = fmt.Errorf("%s: %s", at, string(v))
		default: // a core.Fault, or a bug anywhere in what is real here
			err = fmt.Errorf("%s: panic: %v\n%s", at, v, debug.Stack())
		}
	}()
	w.run()
	return w.report, nil
}

// close ends the goroutines of the log stores, and with them what they hold on to.
func (w *world) close() {
	for _, h := range w.hosts {
		_ = h.logs.Close() // of a disk that has failed, an error
	}
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
	net, disk, clock, work, fate, roll *mathrand.Rand
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
	hosts  []*host // host i has id i+1, and so have its replicas
	groups []*group
	// cluster is the work of group 1 in a mixed seed; nil: there is no control group.
	cluster *cluster
	net     network
	nemesis
	report Report
	hash   uint64
	script workload // of every group, instead of one that is drawn; nil: there is none
}

func newWorld(seed uint64) *world {
	stream := func(n uint64) *mathrand.Rand { return mathrand.New(mathrand.NewPCG(seed, n)) }
	w := &world{seed: seed, dice: dice{stream(1), stream(2), stream(3), stream(4), stream(5), stream(6)}}
	w.report.Seed, w.report.Seeds = seed, 1
	w.net.init(w)
	w.shape = drawShape(w.dice.fate)
	return w
}

// after schedules run.
func (w *world) after(d int64, run func()) {
	w.seq++
	e := event{at: w.now + max(d, 0), seq: w.seq, run: run}
	w.queue = append(w.queue, e)
	i := len(w.queue) - 1
	for i > 0 {
		up := (i - 1) / 2
		if w.queue[up].at <= e.at {
			break
		}
		w.queue[i] = w.queue[up]
		i = up
	}
	w.queue[i] = e
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
	traceFeed
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

// populate makes the hosts, the groups on them and the clients that the shape asks for.
func (w *world) populate() {
	for range w.shape.voters + w.shape.observers {
		w.addHost()
	}
	for id := range w.shape.groups {
		w.addGroup(uint64(id + 1))
	}
	for _, h := range w.hosts {
		h.start()
	}
	for i := range max(w.shape.clients, w.shape.groups) {
		w.groups[i%len(w.groups)].addClient()
	}
}

// run plays the active part, then heals everything and waits for the cluster to converge.
func (w *world) run() {
	w.populate() // here, not in newWorld: whoever starts a core draws from raft's randomness
	w.report.shaped(&w.shape)
	w.nemesis.begin(w)
	w.watchCircles()
	if w.cluster != nil {
		w.after(spread(w.dice.roll, second), w.cluster.operate)
	}
	for w.now < w.shape.active {
		w.step()
	}
	w.nemesis.heal(w)
	w.converge()
	for _, gr := range w.groups {
		gr.finish()
	}
}
