package files

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/files/watch"
)

// countedWatcher counts the watchers that are open.
type countedWatcher struct {
	watch.Watcher
	open *atomic.Int64
}

func (w countedWatcher) Close() error {
	w.open.Add(-1)
	return w.Watcher.Close()
}

// refusing is a group that cannot be reached.
type refusing struct{ *node }

var errRefusing = errors.New("no leader")

func (refusing) Barrier(context.Context) (uint64, error) { return 0, errRefusing }

// TestFailedStartClosesWatcher: an owner that opens the agent again and again must not collect watchers.
func TestFailedStartClosesWatcher(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	var open, opened atomic.Int64
	nd.change = func(c *Config) {
		c.Log = refusing{nd}
		next := c.Watch
		c.Watch = func(wc watch.Config) (watch.Watcher, error) {
			w, err := next(wc)
			open.Add(1)
			opened.Add(1)
			return countedWatcher{w, &open}, err
		}
	}
	nd.up()
	if err := <-nd.ended; !errors.Is(err, errRefusing) {
		t.Fatal(err)
	}
	nd.ended <- nil
	if open.Load() != 0 || opened.Load() != 1 {
		t.Errorf("%d of %d watchers are open", open.Load(), opened.Load())
	}
}
