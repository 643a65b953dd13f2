package engine

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// timekeeper is a counter that remembers the times of its commands.
type timekeeper struct {
	counter
	mu    sync.Mutex
	times []int64
}

func (m *timekeeper) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times = append(m.times, cmd.Time)
	return m.counter.Apply(tx, cmd)
}

// TestAClockThatJumps: writes go on whatever the leader's clock does, the log's time never goes back, and replicas are
// compared as before.
func TestAClockThatJumps(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var mu sync.Mutex
	var jump time.Duration
	set := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		jump = d
	}
	now := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(jump)
	}
	m := &mesh{nodes: map[uint64]*Engine{}}
	e := Open(Config{
		Node: 1, Logs: logstore.NewMemory(), State: kv.NewMemory(), Transport: port{m, 1}, Now: now, Tick: 20 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fault: func(err error) { t.Error(err) },
	})
	defer e.Close()
	clock := &timekeeper{}
	g, err := e.StartGroup(GroupConfig{ID: testGroup, Replica: 1, Machine: clock, Nodes: map[uint64]uint64{1: 1}, Initial: []uint64{1}})
	if err != nil {
		t.Fatal(err)
	}
	s := e.NewSession(testGroup, voters{1}, [16]byte{1})
	for i, d := range []time.Duration{0, time.Hour, -time.Hour, 24 * 365 * time.Hour, 0, -24 * 365 * time.Hour} {
		set(d)
		a, err := s.Propose(ctx, core.AckAll, []byte{byte(i)})
		if err != nil || binary.BigEndian.Uint64(a.Result) != uint64(i+1) {
			t.Fatalf("write %d with the clock at %s: %+v, %v", i, d, a, err)
		}
		if _, err := g.Barrier(ctx); err != nil {
			t.Errorf("read with the clock at %s: %v", d, err)
		}
	}
	clock.mu.Lock()
	defer clock.mu.Unlock()
	for i := 1; i < len(clock.times); i++ {
		if clock.times[i] < clock.times[i-1] {
			t.Errorf("the log's time goes back from %d to %d", clock.times[i-1], clock.times[i])
		}
	}
	if year := time.Until(time.Unix(0, clock.times[len(clock.times)-1])); year < 300*24*time.Hour {
		t.Errorf("the log's time follows the clock back: it is %s ahead", year)
	}
}
