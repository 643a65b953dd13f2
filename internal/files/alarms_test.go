package files

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestAlarms compares with a map that is walked.
func TestAlarms(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var a alarms
		model := map[string]time.Time{}
		now := created
		for range 2000 {
			path := fmt.Sprint(rng.IntN(50))
			switch rng.IntN(6) {
			case 0, 1, 2, 3:
				at := now.Add(time.Duration(rng.IntN(100)-10) * time.Millisecond)
				a.set(path, at)
				model[path] = at
			case 4:
				a.drop(path)
				delete(model, path)
			case 5:
				now = now.Add(time.Duration(rng.IntN(40)) * time.Millisecond)
				var due, want []string
				for path, ok := a.next(now); ok; path, ok = a.next(now) {
					due = append(due, path)
				}
				for path, at := range maps.Clone(model) {
					if !at.After(now) {
						want = append(want, path)
						delete(model, path)
					}
				}
				slices.Sort(due)
				slices.Sort(want)
				if !slices.Equal(due, want) {
					t.Fatalf("seed %d: due are %q, want %q", seed, due, want)
				}
			}
			if !maps.Equal(a.at, model) || len(a.queue) > 2*len(a.at)+64 {
				t.Fatalf("seed %d: %d wait, queue of %d, want %d", seed, len(a.at), len(a.queue), len(model))
			}
		}
	}
}

// BenchmarkDue is what the board does every 20 ms while so many paths wait to be placed again.
func BenchmarkDue(b *testing.B) {
	for _, n := range []int{0, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			board := newBoard(time.Now)
			for i := range n {
				path := fmt.Sprint("path/", i)
				board.state(path)
				board.retry.set(path, created.Add(time.Hour))
			}
			for b.Loop() {
				board.due(created)
			}
		})
	}
}
