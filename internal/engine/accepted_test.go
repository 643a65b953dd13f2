package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// TestAcceptedIsExecuted: once the table of sessions is full, `local` of a session that was forgotten is not answered
// before it is known that nobody executes it; a session in use goes on being answered by one disk.
func TestAcceptedIsExecuted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFarm(t, 3, nil)
		defer f.close()
		f.write(1, 8)
		forgotten, ctx := f.fabric.engine(2).NewSession(testGroup, f.voters, [16]byte{2}), context.Background()
		for range 2 {
			if a, err := forgotten.Propose(ctx, core.AckLocal, []byte("early")); err != nil || a.Code != core.Accepted {
				t.Fatalf("a young session: %v, %v", a.Code, err)
			}
		}
		others := replica.DefaultLimits().Sessions
		manyWrite(t, f, others)
		if a, err := forgotten.Propose(ctx, core.AckLocal, []byte("late")); !errors.Is(err, ErrSessionExpired) {
			t.Errorf("a forgotten session: %v, %v", a.Code, err)
		}
		known := f.fabric.engine(3).NewSession(testGroup, f.voters, [16]byte{3})
		accepted := 0
		for i := range 20 {
			a, err := known.Propose(ctx, core.AckLocal, fmt.Appendf(nil, "known %d", i))
			if err != nil {
				t.Fatal(err)
			}
			if f.index = max(f.index, a.Position.Index); a.Code == core.Accepted {
				accepted++
			}
		}
		if accepted < 19 { // the second is early: the first, which began the session, may not be executed yet
			t.Errorf("%d of 20 were accepted of a session in use", accepted)
		}
		f.count += 2 + uint64(others) + 20
		for node := range f.groups {
			f.reaches(node)
		}
	})
}

// manyWrite commits one write each of n sessions of their own.
func manyWrite(t *testing.T, f *farm, n int) {
	t.Helper()
	leader := f.groups[f.groups[1].Core().Leader]
	var writers sync.WaitGroup
	for i := range n {
		var client [16]byte
		binary.BigEndian.PutUint64(client[8:], uint64(i))
		client[0] = 9
		writers.Go(func() {
			p := core.Proposal{Client: client, Seq: 1, Floor: 1, Payload: fmt.Appendf(nil, "one of many %d", i)}
			if a := leader.Propose(context.Background(), p); a.Code != core.Committed {
				t.Errorf("write of session %d: %v", i, a.Code)
			}
		})
	}
	writers.Wait()
}

// TestSessionWaitsForTheLowest: however many writes above it are answered, the lowest one that is not keeps its place
// in the replicas' tables.
func TestSessionWaitsForTheLowest(t *testing.T) {
	if n := replica.DefaultLimits().Results; maxOutstanding > n {
		t.Fatalf("the replicas remember %d results, a session has up to %d", n, maxOutstanding)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := (&Engine{}).NewSession(testGroup, voters{1}, [16]byte{1})
		next := func(want uint64) {
			t.Helper()
			if seq, err := s.begin(ctx); err != nil || seq != want {
				t.Fatalf("number %d, %v; want %d", seq, err, want)
			}
		}
		for seq := uint64(1); seq <= maxOutstanding; seq++ {
			next(seq)
			if seq != 3 {
				s.finish(seq)
			}
		}
		next(maxOutstanding + 1)
		next(maxOutstanding + 2)
		if got := s.Backlog(); got != 3 {
			t.Errorf("%d writes in flight, want 3", got)
		}
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if seq, err := s.begin(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("number %d, %v: 3 was left behind", seq, err)
		}
		got := make(chan uint64, 2)
		for range cap(got) {
			go func() {
				seq, _ := s.begin(ctx)
				got <- seq
			}()
		}
		synctest.Wait()
		s.finish(maxOutstanding + 1)
		if synctest.Wait(); len(got) > 0 {
			t.Fatalf("number %d: 3 was left behind", <-got)
		}
		s.finish(3)
		if sum := <-got + <-got; sum != 2*maxOutstanding+7 {
			t.Errorf("the numbers after that add up to %d", sum)
		}
		if floor := s.answered(); floor != maxOutstanding+2 {
			t.Errorf("everything below %d is answered", floor)
		}
	})
}
