package sim

import (
	"context"
	"flag"
	"fmt"
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
	sum, writes := map[string]int{}, 0
	for seed := first; seed < first+count; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(uint64(seed))
				if err := b.run(t.Context()); err != nil {
					t.Errorf("seed %d, %+v: %v", seed, b.shape, err)
				}
				for k, n := range b.faults {
					sum[k] += n
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
	t.Logf("%d bubbles, %d writes acknowledged, faults %v", count, writes, sum)
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
