package sim

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	bubbleSeeds = flag.Int("sim.bubbles", 12, "how many seeds to run whole engines with")
	bubbleFrom  = flag.Int("sim.bubblesfrom", 0, "the first seed to run whole engines with")
	bubbleSeed  = flag.Int("sim.bubble", -1, "run whole engines with this seed only")
)

// TestBubble runs whole engines under faults, and looks for what must hold once they are over.
func TestBubble(t *testing.T) {
	first, count := *bubbleFrom, *bubbleSeeds
	if *bubbleSeed >= 0 {
		first, count = *bubbleSeed, 1
	}
	sum, plans, writes, failed, begun := map[string]int{}, map[string]int{}, 0, 0, time.Now()
	for seed := first; seed < first+count; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(uint64(seed))
				if err := b.run(t.Context()); err != nil {
					failed++
					t.Errorf("seed %d, %+v: %v", seed, b.shape, err)
				}
				for k, n := range b.faults {
					sum[k] += n
				}
				for k, n := range b.plans {
					plans[k] += n
				}
				for _, gr := range b.groups {
					writes += len(gr.acked)
				}
			})
		})
	}
	for _, event := range []string{faultFull, faultAllFull, seenMoved, seenRefused, seenResumed} {
		if first == 0 && count >= 12 && sum[event] == 0 {
			t.Errorf("in the first %d bubbles no %s", count, event)
		}
	}
	for _, fault := range []string{faultFork, faultTold} {
		if count >= 100 && sum[fault] == 0 {
			t.Errorf("in %d bubbles no %s", count, fault)
		}
	}
	for _, rule := range []string{"R1", "R3", "R4", "R6", "R7"} {
		if count >= 100 && !slices.ContainsFunc(slices.Collect(maps.Keys(plans)), func(k string) bool { return strings.HasPrefix(k, rule) }) {
			t.Errorf("in %d bubbles no catch-up by %s", count, rule)
		}
	}
	t.Logf("%d bubbles, %d writes acknowledged, faults %v, catch-up %v", count, writes, sum, plans)
	if *record {
		r := readRecord(t)
		r.Bubbles = append(r.Bubbles, RecordedBubbles{
			Commit: commit(t), Date: time.Now().UTC().Format(time.DateOnly), From: first, Seeds: count, Failed: failed,
			Seconds: math.Round(time.Since(begun).Seconds()), Writes: writes, Faults: countsOf(sum), CatchUp: countsOf(plans),
		})
		saveRecord(t, r)
	}
}

// countsOf lists what was counted, by name.
func countsOf(m map[string]int) (out []Count) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, Count{name, m[name]})
	}
	return out
}

func (b *bubble) run(ctx context.Context) (err error) {
	defer func() {
		for _, n := range b.nodes {
			n.kill(nil)
		}
		b.wait()
		if seen := b.violation(); seen != nil {
			err = seen
		}
		if v, ok := recover().(violation); ok {
			err = fmt.Errorf("%s", string(v))
		}
	}()
	if err := b.mend(true); err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for _, gr := range b.groups {
		for id := range 3 {
			clients.Go(func() { gr.client(working, id) })
		}
	}
	err = b.trouble(working)
	if err == nil && b.shape.fills {
		err = b.roomDrill(working)
	}
	stop()
	clients.Wait()
	if err == nil {
		err = b.converge(ctx)
	}
	for _, gr := range b.groups {
		if err == nil {
			err = gr.check()
		}
	}
	return err
}

// trouble lasts as long as the shape says; then everything is mended.
func (b *bubble) trouble(ctx context.Context) error {
	for end := time.Now().Add(b.shape.length); time.Now().Before(end); {
		if b.shape.forks && time.Until(end) < b.shape.length/2 {
			b.shape.forks = false
			if err := b.loseMajority(ctx); err != nil {
				return err
			}
		}
		b.strike(ctx)
		for _, gr := range b.groups {
			gr.readmit(ctx)
		}
		pause(ctx, b.spread(time.Second))
		if err := b.mend(false); err != nil {
			return err
		}
	}
	return b.mend(true)
}

func (b *bubble) converge(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := b.mend(true) // a disk that was told to fail may do so only now
		for _, gr := range b.groups {
			gr.readmit(ctx)
			if err == nil {
				err = gr.level()
			}
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not converged a minute after the last fault: %w", err)
		}
		if err != nil {
			for _, gr := range b.groups {
				gr.nudge(ctx)
			}
			pause(ctx, 4*time.Second) // time to compare, to replace what differs, and to be level
		}
	}
}
