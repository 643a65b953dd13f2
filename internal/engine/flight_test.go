package engine

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

func TestFlight(t *testing.T) {
	small := []*waiter{{proposal: core.Proposal{Ack: core.AckQuorum, Payload: make([]byte, 100)}}}
	large := []*waiter{{proposal: core.Proposal{Ack: core.AckQuorum, Payload: make([]byte, flightBytes)}}}
	local := []*waiter{{proposal: core.Proposal{Ack: core.AckLocal}}}
	now := time.Unix(100, 0)
	var f flight
	expect := func(when string, held []*waiter, want bool) {
		t.Helper()
		if got := f.due(held); got != want {
			t.Errorf("%s: due is %v", when, got)
		}
	}
	expect("nothing waits", nil, false)
	expect("nothing is on its way", small, true)
	f.left(1, now)
	expect("one is on its way", small, false)
	expect("one is on its way, much waits", large, true)
	expect("one is on its way, one waits for one disk only", local, true)
	now = now.Add(2 * flightStep)
	f.landed(0, now)
	expect("it has arrived", small, true)
	f.left(2, now)
	expect("two are on a way of 10 ms", small, true)
	f.left(3, now)
	expect("three are on a way of 10 ms", small, false)
	now = now.Add(flightStep / 5)
	f.landed(0, now)
	f.left(1, now)
	expect("one is on a way of 1 ms", small, false)
	now = now.Add(time.Minute)
	f.landed(0, now)
	f.left(100, now)
	expect("the way was long for a while", small, true)
	now = now.Add(-time.Hour)
	f.landed(0, now)
	expect("nothing is on its way, and the clock was set back", small, true)
	f.left(1, now)
	expect("one is on its way since", small, false)
	now = now.Add(2 * flightStep)
	f.landed(0, now)
	now = now.Add(-time.Hour)
	f.left(1, now)
	now = now.Add(2 * flightStep)
	f.landed(0, now)
	f.left(2, now)
	expect("two are on a way of 10 ms, as the clock has it now", small, true)
}

// TestProposalsShareEntries: what comes while an entry is on its way goes together, and one that gives up meanwhile
// is answered.
func TestProposalsShareEntries(t *testing.T) {
	logs := &gate{Store: logstore.NewMemory()}
	m := &mesh{nodes: map[uint64]*Engine{}}
	one := boot(t, m, 1, []uint64{1}, logs, kv.NewMemory())
	defer one.engine.Close()
	if _, err := one.group.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	logs.shut.Lock()
	before := one.group.Fresh().Last

	answers := make(chan core.Answer, 101)
	propose := func(ctx context.Context) {
		answers <- one.group.Propose(ctx, core.Proposal{Ack: core.AckQuorum, Payload: []byte("x")})
	}
	ctx, giveUp := context.WithCancel(t.Context())
	go propose(t.Context())
	inLoop(one.group, 1, func() int { return one.group.core.InFlight() })
	for range 99 {
		go propose(t.Context())
	}
	go propose(ctx)
	inLoop(one.group, 100, func() int { return len(one.group.held) })
	giveUp()
	if a := <-answers; a.Code != core.Unknown {
		t.Fatalf("the one that gave up: %v", a.Code)
	}
	logs.shut.Unlock()
	for range 100 {
		if a := <-answers; a.Code != core.Committed {
			t.Fatalf("answer %v", a.Code)
		}
	}
	if n := one.group.Fresh().Last - before; n != 2 {
		t.Errorf("100 proposals took %d entries, want 2", n)
	}
}

// inLoop waits until f, run on the loop, returns n.
func inLoop(g *Group, n int, f func() int) {
	reply := make(chan int, 1)
	for {
		g.box.call(func() { reply <- f() })
		if <-reply == n {
			return
		}
		runtime.Gosched()
	}
}

// gate is a log store whose writes wait while it is shut.
type gate struct {
	logstore.Store
	shut sync.RWMutex
}

func (g *gate) Write(w []logstore.Write) error {
	g.shut.RLock()
	defer g.shut.RUnlock()
	return g.Store.Write(w)
}
