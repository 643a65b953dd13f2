package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
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

// engineWorkload has proposers write 256-byte entries with quorum ack for some time, each waiting for its answer.
// They share sessions on the leaders' nodes, as the writers of a node do.
func engineWorkload(sessions []*engine.Session, proposers int, for_ time.Duration) (perSecond float64, p50, p99 time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), for_+10*time.Second)
	defer cancel()
	stop := time.Now().Add(for_)
	latencies := make([][]time.Duration, proposers)
	var failed atomic.Int64
	var wait sync.WaitGroup
	for i := range proposers {
		s := sessions[i%len(sessions)]
		wait.Go(func() {
			payload := make([]byte, 256)
			for seq := uint64(1); time.Now().Before(stop); seq++ {
				binary.BigEndian.PutUint64(payload, seq)
				began := time.Now()
				if _, err := s.Propose(ctx, core.AckQuorum, slices.Clone(payload)); err != nil {
					failed.Add(1)
					continue
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	if n := failed.Load(); n > 0 {
		return 0, 0, 0, fmt.Errorf("%d writes were not committed", n)
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return float64(len(all)) / for_.Seconds(), all[len(all)/2], all[len(all)*99/100], nil
}

// load is one way to write to the engine.
type load struct{ proposers, sessions, groups int }

// benchEngine prints the engine's figures: three voters in one process, TLS on loopback, one disk, sync on. Each run is
// beside one of etcd and one of the disk alone, since the speed of the machine drifts.
func benchEngine(dir string, runs int) error {
	fmt.Println("engine: 3 voters in one process, TLS on loopback, 256 B, quorum ack, sync on; the voters share one disk")
	for _, l := range []load{{1, 1, 1}, {64, 1, 1}, {256, 1, 1}, {6400, 100, 1}, {6400, 100, 100}} {
		var rates, p50s, p99s, costs, theirs, theirP50s, syncs []float64
		for run := range runs {
			here := filepath.Join(dir, fmt.Sprintf("engine-%d-%d-%d", l.proposers, l.groups, run))
			rate, p50, p99, cost, err := measureEngine(here, l)
			if err != nil {
				return err
			}
			rates, p50s, p99s, costs = append(rates, rate), append(p50s, p50), append(p99s, p99), append(costs, cost)
			disk, err := syncTime(filepath.Join(here, "sync"))
			if err != nil {
				return err
			}
			syncs = append(syncs, disk)
			if l.proposers > 256 {
				continue
			}
			rate, p50, err = measureEtcd(filepath.Join(here, "etcd"), l.proposers)
			if err != nil {
				return err
			}
			theirs, theirP50s = append(theirs, rate), append(theirP50s, p50)
		}
		fmt.Printf("%4d proposers, %3d groups: %s writes/s, p50 %s ms, p99 %s ms, %s µs of processor time a write; a 4 KiB sync alone %s ms\n",
			l.proposers, l.groups, spread(rates), spread(p50s), spread(p99s), spread(costs), spread(syncs))
		if len(theirs) > 0 {
			fmt.Printf("                 etcd beside it: %s writes/s, p50 %s ms\n", spread(theirs), spread(theirP50s))
		}
	}
	return errors.Join(benchReads(dir, runs), benchIdle(dir, runs))
}

// measureEngine runs one load; p50 and p99 are in ms, cost is processor time of all voters in µs a write.
func measureEngine(dir string, l load) (rate, p50, p99, cost float64, err error) {
	v, err := startVoters(dir, l.groups)
	if err != nil {
		return 0, 0, 0, 0, err
	}
	defer v.stop()
	var sessions []*engine.Session
	for n := range l.sessions {
		sessions = append(sessions, v.session(n%l.groups))
	}
	if _, _, _, err = engineWorkload(sessions, l.proposers, engineWarmup); err != nil {
		return 0, 0, 0, 0, err
	}
	before := processorTime()
	rate, half, most, err := engineWorkload(sessions, l.proposers, engineTime)
	cost = (processorTime() - before).Seconds() * 1e6 / (rate * engineTime.Seconds())
	return rate, half.Seconds() * 1e3, most.Seconds() * 1e3, cost, err
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

// benchReads prints how many linearizable reads a leader and a follower serve.
func benchReads(dir string, runs int) error {
	var leader, follower []float64
	for run := range runs {
		v, err := startVoters(filepath.Join(dir, fmt.Sprintf("reads-%d", run)), 1)
		if err != nil {
			return err
		}
		led := v.leader(0)
		leader = append(leader, readWorkload(led))
		follower = append(follower, readWorkload(v.groups[led.Replica()%3][0]))
		v.stop()
	}
	fmt.Printf("linearizable reads, %d readers: %s/s on the leader, %s/s on a follower\n", readers, spread(leader), spread(follower))
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

// benchIdle prints what 100 groups cost that nobody writes to.
func benchIdle(dir string, runs int) error {
	const groups, idle = 100, 5 * time.Second
	var shares []float64
	for run := range runs {
		v, err := startVoters(filepath.Join(dir, fmt.Sprintf("idle-%d", run)), groups)
		if err != nil {
			return err
		}
		for n := range groups {
			v.leader(n)
		}
		time.Sleep(2 * time.Second) // what the elections left to do
		before := processorTime()
		time.Sleep(idle)
		shares = append(shares, (processorTime()-before).Seconds()/idle.Seconds()*100/3)
		v.stop()
	}
	fmt.Printf("%d idle groups: %s %% of a core a node\n", groups, spread(shares))
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

// spread is median [min–max].
func spread(v []float64) string {
	v = slices.Sorted(slices.Values(v))
	f := "%.2f [%.2f–%.2f]"
	if v[len(v)/2] > 100 {
		f = "%.0f [%.0f–%.0f]"
	}
	return fmt.Sprintf(f, v[len(v)/2], v[0], v[len(v)-1])
}
