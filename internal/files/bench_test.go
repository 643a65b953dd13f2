package files

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// TestPace prints what a burst and a single file cost on one node, from the disk to the committed entry.
func TestPace(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	const dirs, each = 20, 250
	data := string(make([]byte, 5000))
	for d := range dirs {
		must(t, os.Mkdir(nd.path(fmt.Sprint(d)), 0o755))
		for i := range each {
			nd.write(fmt.Sprintf("%d/%d", d, i), data+fmt.Sprint(d, i))
		}
	}
	start := time.Now()
	f.up()
	f.flush()
	took := time.Since(start)
	t.Logf("%d files in %v: %.0f/s", dirs*each, took, dirs*each/took.Seconds())
	var sum time.Duration
	for i := range 50 {
		before := f.last()
		nd.write(fmt.Sprintf("single%d", i), data)
		start := time.Now()
		for f.last() == before {
			time.Sleep(20 * time.Microsecond)
		}
		sum += time.Since(start)
		f.flush()
	}
	t.Logf("one file: %v from close to commit, on average", sum/50)
}
