package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// sink is the cheapest machine: what is measured is the engine.
type sink struct{}

func (sink) Apply(kv.Tx, machine.Command) ([]byte, error) { return nil, nil }
func (sink) Committed(uint64)                             {}
func (sink) Restored(kv.Reader, uint64) error             { return nil }
func (sink) Digest(kv.Tx) (machine.Digest, error)         { return machine.Digest{}, nil }

const (
	benchGroup   = 2
	engineTime   = 3 * time.Second
	engineWarmup = 500 * time.Millisecond
)

// voters are three engines and groups of which each has a voter.
type voters struct {
	*bareEngines
	groups [][]*engine.Group // of each engine, in the order of their ids
}

func startVoters(dir string, groups int) (*voters, error) {
	b, err := startBare(dir, 3, nil)
	if err != nil {
		return nil, err
	}
	v := &voters{bareEngines: b, groups: make([][]*engine.Group, 3)}
	for i := range v.groups {
		for n := range groups {
			g, err := v.voter(uint64(i+1), engine.GroupConfig{ID: benchGroup + uint64(n), Machine: sink{}})
			if err != nil {
				v.stop()
				return nil, err
			}
			v.groups[i] = append(v.groups[i], g)
		}
	}
	return v, nil
}

// leader waits until a replica of the n-th group leads.
func (v *voters) leader(n int) *engine.Group {
	for {
		for _, groups := range v.groups {
			if g := groups[n]; g.Core().Role == core.Leader && g.Core().TermBegun {
				return g
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// session is one for the n-th group, on its leader's node.
func (v *voters) session(n int) *engine.Session {
	var client [16]byte
	rand.Read(client[:])
	return v.engines[v.leader(n).Replica()-1].NewSession(benchGroup+uint64(n), v, client)
}

// writing is how writers fared; p50 and p99 are in ms.
type writing struct{ perSecond, p50, p99 float64 }

// note adds the figures of a program.
func (w writing) note(o *outcome, program string) {
	o.of(program, "writes/s", w.perSecond)
	o.of(program, "p50 ms", w.p50)
	o.of(program, "p99 ms", w.p99)
}

// write has writers put 256 bytes again and again for some time, each waiting for its answer.
func write(ctx context.Context, writers int, for_ time.Duration, put func(ctx context.Context, writer int, value []byte) error) (writing, error) {
	ctx, cancel := context.WithTimeout(ctx, for_+10*time.Second)
	defer cancel()
	stop := time.Now().Add(for_)
	latencies := make([][]time.Duration, writers)
	failed := make(chan error, writers)
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() {
			value := make([]byte, 256)
			for n := uint64(1); time.Now().Before(stop); n++ {
				binary.BigEndian.PutUint64(value, n)
				began := time.Now()
				if err := put(ctx, i, value); err != nil {
					failed <- err
					return
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failed:
		return writing{}, err
	default:
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	return writing{float64(len(all)) / for_.Seconds(), ms(all[len(all)/2]), ms(all[len(all)*99/100])}, nil
}

// load is one way to write to the engine.
type load struct{ writers, sessions, groups int }

// engineWorkloads are three voters in one process, TLS on loopback, that write entries of 256 bytes with quorum ack and
// every write synced. The voters share one disk. Each run is beside one of every peer and of the disk alone, since the
// speed of the machine drifts.
func engineWorkloads() []workload {
	beside := func(writers int, aims map[string]aim) workload {
		return workload{name: fmt.Sprintf("engine-%d", writers), gib: 0.7, aims: aims,
			what: fmt.Sprintf("the engine alone, 3 voters, 256 B, quorum ack, sync on: %d writing, beside stores of three servers", writers),
			run: func(ctx context.Context, g ground, o *outcome) error {
				return engineBesideStores(ctx, g, o, writers)
			}}
	}
	return []workload{
		beside(1, map[string]aim{"writes/s": atLeast(3_500), "p50 ms": atMost(0.3)}),
		beside(64, map[string]aim{"writes/s": atLeast(35_000)}),
		beside(256, map[string]aim{"writes/s": atLeast(90_000), "p99 ms": atMost(10)}),
		{name: "engine-groups", gib: 2, what: "the same with 6,400 writing, to one group, and to 100 groups", aims: map[string]aim{"share %": atLeast(80)}, run: benchGroups},
		{name: "engine-reads", gib: 0.1, what: fmt.Sprintf("linearizable reads, %d readers", readers),
			aims: map[string]aim{"leader/s": atLeast(150_000), "follower/s": atLeast(150_000)}, run: benchReads},
		{name: "engine-idle", gib: 0.1, what: "100 groups that nobody writes to: percent of a core a node", aims: map[string]aim{"core %": atMost(2)}, run: benchIdle},
	}
}

func engineBesideStores(ctx context.Context, g ground, o *outcome, writers int) error {
	w, cost, err := measureEngine(ctx, g.dir, load{writers: writers, sessions: 1, groups: 1})
	if err != nil {
		return err
	}
	w.note(o, ours)
	o.of(ours, "cpu µs/write", cost)
	disk, err := syncTime(filepath.Join(g.dir, "sync"))
	if err != nil {
		return err
	}
	o.of("4 KiB sync alone", "p50 ms", disk)
	if writers == 1 {
		const least = "the least it takes"
		w, cost, err := measureFloor(ctx, filepath.Join(g.dir, "floor"))
		if err != nil {
			return err
		}
		w.note(o, least)
		o.of(least, "cpu µs/write", cost)
	}
	for _, s := range stores() {
		o.beside(ctx, s.peer, func(ctx context.Context) error {
			w, err := s.measure(ctx, filepath.Join(g.dir, s.name), writers)
			if err == nil {
				w.note(o, s.name)
			}
			return err
		})
	}
	return nil
}

// benchGroups compares one group with 100 that as many writers share.
func benchGroups(ctx context.Context, g ground, o *outcome) error {
	one, _, err := measureEngine(ctx, filepath.Join(g.dir, "one"), load{6400, 100, 1})
	if err != nil {
		return err
	}
	many, _, err := measureEngine(ctx, filepath.Join(g.dir, "many"), load{6400, 100, 100})
	if err != nil {
		return err
	}
	o.add("1: writes/s", one.perSecond)
	o.add("1: p50 ms", one.p50)
	o.add("1: p99 ms", one.p99)
	o.add("100: writes/s", many.perSecond)
	o.add("100: p50 ms", many.p50)
	o.add("100: p99 ms", many.p99)
	o.add("share %", many.perSecond/one.perSecond*100)
	return nil
}

// measureEngine runs one load; cost is processor time of all voters in µs a write. The writers share sessions on the
// leaders' nodes, as the writers of a node do.
func measureEngine(ctx context.Context, dir string, l load) (w writing, cost float64, err error) {
	v, err := startVoters(dir, l.groups)
	if err != nil {
		return w, 0, err
	}
	defer v.stop()
	var sessions []*engine.Session
	for n := range l.sessions {
		sessions = append(sessions, v.session(n%l.groups))
	}
	put := func(ctx context.Context, writer int, value []byte) error {
		_, err := sessions[writer%len(sessions)].Propose(ctx, core.AckQuorum, slices.Clone(value))
		return err
	}
	return writeAtCost(ctx, l.writers, put)
}

// writeAtCost measures writers that write to something in this process.
func writeAtCost(ctx context.Context, writers int, put func(ctx context.Context, writer int, value []byte) error) (w writing, cost float64, err error) {
	if _, err := write(ctx, writers, engineWarmup, put); err != nil {
		return w, 0, err
	}
	before := processorTime()
	w, err = write(ctx, writers, engineTime, put)
	cost = (processorTime() - before).Seconds() * 1e6 / (w.perSecond * engineTime.Seconds())
	return w, cost, err
}

// syncTime is the median time in ms of writing and syncing 4 KiB of a file that is there already: what no write that
// is acknowledged as durable can be faster than.
func syncTime(path string) (float64, error) {
	const count, size = 500, 4 << 10
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, count*size)); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	took := make([]time.Duration, count)
	block := make([]byte, size)
	for i := range took {
		began := time.Now()
		if _, err := unix.Pwritev2(int(f.Fd()), [][]byte{block}, int64(i*size), unix.RWF_DSYNC); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[count/2].Seconds() * 1e3, nil
}

// benchReads measures how many linearizable reads a leader and a follower serve.
func benchReads(_ context.Context, g ground, o *outcome) error {
	v, err := startVoters(g.dir, 1)
	if err != nil {
		return err
	}
	defer v.stop()
	led := v.leader(0)
	o.add("leader/s", readWorkload(led))
	o.add("follower/s", readWorkload(v.groups[led.Replica()%3][0]))
	return nil
}

const readers = 1024

// readWorkload has readers ask for a linearizable index, each again when it has its answer.
func readWorkload(g *engine.Group) (perSecond float64) {
	ctx, cancel := context.WithTimeout(context.Background(), engineTime)
	defer cancel()
	var done atomic.Int64
	var wait sync.WaitGroup
	for range readers {
		wait.Go(func() {
			for {
				if _, err := g.Barrier(ctx); err != nil {
					return // the time is up
				}
				done.Add(1)
			}
		})
	}
	wait.Wait()
	return float64(done.Load()) / engineTime.Seconds()
}

// benchIdle measures what 100 groups cost that nobody writes to.
func benchIdle(_ context.Context, g ground, o *outcome) error {
	const groups, idle = 100, 5 * time.Second
	v, err := startVoters(g.dir, groups)
	if err != nil {
		return err
	}
	defer v.stop()
	for n := range groups {
		v.leader(n)
	}
	time.Sleep(2 * time.Second) // what the elections left to do
	before := processorTime()
	time.Sleep(idle)
	o.add("core %", (processorTime()-before).Seconds()/idle.Seconds()*100/3)
	return nil
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
