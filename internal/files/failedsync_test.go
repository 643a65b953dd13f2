package files

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFailedSyncIsNotRepeated: the kernel may drop what it could not write, and says so once. So a binding whose sync failed
// ends without another one, and what was placed since the last checkpoint is verified when it is opened again, in the same
// boot.
func TestFailedSyncIsNotRepeated(t *testing.T) {
	f := newFarm(t, 2)
	nd := f.nodes[1]
	var failing atomic.Bool
	var after atomic.Int64
	nd.change = func(c *Config) {
		c.syncfs = func(fd int) error {
			if failing.Load() {
				if after.Add(1) == 1 {
					return unix.EIO
				}
			}
			return unix.Syncfs(fd)
		}
	}
	f.up()
	f.nodes[0].write("before", "durable")
	f.flush()
	eventually(t, func() string {
		if nd.agent.Floor() < nd.agent.Placed() {
			return "no checkpoint"
		}
		return ""
	})
	failing.Store(true)
	f.nodes[0].write("f", "good content")
	select {
	case err := <-nd.ended:
		if !errors.Is(err, unix.EIO) {
			t.Fatalf("ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("goes on although the disk failed")
	}
	if n := after.Load(); n != 1 {
		t.Errorf("synced %d times more after it had failed", n-1)
	}
	nd.ended <- nil
	nd.stop()
	nd.down()
	failing.Store(false)
	damage(nd, "f", "\x00\x00\x00\x00 content") // what reached the disk of it
	nd.up()
	f.flush()
	f.same()
	for _, n := range f.nodes {
		if got := n.read("f"); got != "good content" {
			t.Errorf("%s has %q", n.name, got)
		}
	}
	if kept, err := os.ReadDir(nd.work + "/kept"); err != nil || len(kept) != 1 {
		t.Errorf("kept aside: %v %v", kept, err)
	}
}
