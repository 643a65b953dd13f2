package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

func feedWorkloads() []workload {
	return []workload{
		{name: "diff", gib: 1, what: "an observer that lacks 64 MiB of entries (256 KiB each) of a group of 3 voters, by DIFF over TLS on loopback",
			aims: map[string]aim{"MB/s": atLeast(200)}, run: benchDiff},
		{name: "chain", gib: 1, what: "the last of three observers in a chain, 200 writes/s of 256 B: its lag behind the leader, then the middle is killed",
			aims: map[string]aim{"p99 ms": atMost(20), "killed ms": atMost(2000)}, run: benchChain},
	}
}

// stamps is a machine that notes when each index was applied.
type stamps struct {
	sink
	at   []atomic.Int64 // by index, Unix ns
	last uint64
}

func (s *stamps) Committed(index uint64) {
	now := time.Now().UnixNano()
	for i := s.last + 1; i <= index && i < uint64(len(s.at)); i++ {
		s.at[i].CompareAndSwap(0, now)
	}
	s.last = index
}

func newStamps() *stamps { return &stamps{at: make([]atomic.Int64, 1<<16)} }

// heavy is a store that says it holds much: then the plan is to send entries, however many, and not the state.
type heavy struct{ kv.Store }

func (heavy) Size([]byte, []byte) (uint64, error) { return 16 << 30, nil }

// feedFarm is three voters, and engines for observers.
type feedFarm struct {
	*bareEngines
	groups []*engine.Group
	stamps []*stamps // of each engine
}

const feedNodes = 6

func startFeedFarm(dir string, retain uint64) (*feedFarm, error) {
	b, err := startBare(dir, feedNodes, func(s kv.Store) kv.Store { return heavy{s} })
	if err != nil {
		return nil, err
	}
	f := &feedFarm{bareEngines: b}
	for range feedNodes {
		f.stamps = append(f.stamps, newStamps())
	}
	for i := range 3 {
		g, err := f.voter(uint64(i+1), engine.GroupConfig{ID: benchGroup, Machine: f.stamps[i], RetainBytes: retain})
		if err != nil {
			return nil, errors.Join(err, f.clear())
		}
		f.groups = append(f.groups, g)
	}
	return f, nil
}

// clear ends all nodes and removes their files.
func (f *feedFarm) clear() error {
	f.stop()
	return os.RemoveAll(f.dir)
}

func (f *feedFarm) observe(node uint64, sources ...uint64) (*engine.Observer, error) {
	return f.engines[node-1].Observe(engine.ObserverConfig{
		ID: benchGroup, Machine: f.stamps[node-1], Members: f, Sources: func() []uint64 { return sources },
	})
}

// leads waits until a voter leads.
func (f *feedFarm) leads() *engine.Group {
	for {
		for _, g := range f.groups {
			if g.Core().Role == core.Leader && g.Core().TermBegun {
				return g
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (f *feedFarm) session() *engine.Session {
	return f.engines[f.leads().Replica()-1].NewSession(benchGroup, f, [16]byte{1})
}

// benchDiff measures from an observer's start to its last entry.
func benchDiff(ctx context.Context, g ground, o *outcome) error {
	const entries, size = 256, 256 << 10
	f, err := startFeedFarm(g.dir, 1<<30)
	if err != nil {
		return err
	}
	defer f.clear()
	s := f.session()
	seen, err := f.observe(4, 1) // it has a position in the log, so that it is fed by entries
	if err != nil {
		return err
	}
	a, err := s.Propose(ctx, core.AckQuorum, make([]byte, size))
	if err == nil {
		err = seen.WaitApplied(ctx, a.Position.Index)
	}
	seen.Close()
	if err != nil {
		return err
	}
	for range entries {
		payload := make([]byte, size)
		rand.Read(payload)
		if a, err = s.Propose(ctx, core.AckQuorum, payload); err != nil {
			return err
		}
	}
	if err := f.groups[0].WaitApplied(ctx, a.Position.Index); err != nil {
		return err
	}
	began, used := time.Now(), processorTime()
	if seen, err = f.observe(4, 1); err != nil {
		return err
	}
	defer seen.Close()
	if err := seen.WaitApplied(ctx, a.Position.Index); err != nil {
		return err
	}
	took, cost := time.Since(began), processorTime()-used
	if c := seen.Catchup(); c.By != engine.ModeDiff {
		return fmt.Errorf("the observer was fed by %s: %s %s", c.By, c.Rule, c.Why)
	}
	const megabytes = float64(entries * size / 1e6)
	o.add("MB/s", megabytes/took.Seconds())
	o.add("cpu ms/MB", cost.Seconds()*1e3/megabytes)
	return nil
}

// benchChain measures how long after the leader the last of a chain applies each entry.
func benchChain(ctx context.Context, g ground, o *outcome) error {
	const quiet, killed = 5 * time.Second, 5 * time.Second
	f, err := startFeedFarm(g.dir, 64<<20)
	if err != nil {
		return err
	}
	defer f.clear()
	s, leader := f.session(), f.leads().Replica()
	sources := [][]uint64{{leader}, {4, leader}, {5, 4, leader}}
	var observers []*engine.Observer
	for i, from := range sources {
		next, err := f.observe(uint64(4+i), from...)
		if err != nil {
			return err
		}
		defer next.Close()
		for next.Catchup().Hops != i+1 || next.Catchup().Mode != engine.ModeLive {
			time.Sleep(10 * time.Millisecond)
		}
		observers = append(observers, next)
	}
	from, to, err := writeSteadily(ctx, s, quiet)
	if err != nil {
		return err
	}
	if err := observers[2].WaitApplied(ctx, to); err != nil {
		return err
	}
	calm := f.lags(leader, 6, from, to)
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		time.Sleep(killed / 2)
		observers[1].Close()
		f.kill(5)
	}()
	from, to, err = writeSteadily(ctx, s, killed)
	<-dead
	if err != nil {
		return err
	}
	if err := observers[2].WaitApplied(ctx, to); err != nil {
		return err
	}
	broken := f.lags(leader, 6, from, to)
	o.add("p50 ms", calm[len(calm)/2])
	o.add("p99 ms", calm[len(calm)*99/100])
	o.add("killed ms", broken[len(broken)-1])
	return nil
}

// writeSteadily writes 200 entries a second for some time.
func writeSteadily(ctx context.Context, s *engine.Session, for_ time.Duration) (from, to uint64, err error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for stop := time.Now().Add(for_); time.Now().Before(stop); <-tick.C {
		a, err := s.Propose(ctx, core.AckQuorum, make([]byte, 256))
		if err != nil {
			return 0, 0, err
		}
		if from == 0 {
			from = a.Position.Index
		}
		to = a.Position.Index
	}
	return from, to, nil
}

// lags is how many milliseconds after one node another one applied each entry, sorted.
func (f *feedFarm) lags(first, second, from, to uint64) (ms []float64) {
	for i := from; i <= to; i++ {
		a, b := f.stamps[first-1].at[i].Load(), f.stamps[second-1].at[i].Load()
		ms = append(ms, float64(b-a)/1e6)
	}
	slices.Sort(ms)
	return ms
}
