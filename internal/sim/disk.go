package sim

import (
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// disk keeps a host's logs. It is one of two: the twin of the log store, which knows what a crash may leave of its
// calls, or the log store itself (segments) on a platter, which knows what a crash may leave of its bytes.
type disk interface {
	logstore.Store
	// crash is the disk as it is found after the process, or the machine, went down during Write(inFlight); nil: no
	// write was under way. An error means that nothing on it can be read any more.
	crash(inFlight []logstore.Write) (disk, error)
	// fail has the next write return an error, and all after it.
	fail()
	// flip alters one bit of what is on the disk and was acknowledged; false if there is no such thing.
	flip() bool
}

// newDisk is an empty disk of the kind that the seed has chosen.
func (w *world) newDisk(host uint64) disk {
	if !w.shape.segments {
		return &twin{logstore.NewMemory(), w, false}
	}
	d, err := w.spin(newPlatter(w.dice.disk), host)
	must(err, "make log")
	return d
}

// twin is a log store's twin in memory.
type twin struct {
	*logstore.Memory
	w       *world
	failing bool
}

var errDisk = errors.New("the disk fails")

func (d *twin) Write(ws []logstore.Write) error {
	if d.failing {
		return errDisk
	}
	return d.Memory.Write(ws)
}

func (d *twin) crash(inFlight []logstore.Write) (disk, error) {
	after, err := d.Memory.Crash(inFlight, func(n int) int { return d.w.dice.disk.IntN(n + 1) })
	must(err, "crash log")
	return &twin{after, d.w, false}, nil
}

func (d *twin) fail() { d.failing = true }

func (d *twin) flip() bool { return false } // it has no bytes

// segments is the log store of production.
type segments struct {
	logstore.Store
	w    *world
	host uint64
	on   *platter
}

// spin opens the log store on a platter.
func (w *world) spin(p *platter, host uint64) (*segments, error) {
	s := &w.shape
	store, err := logstore.OpenSegments(logstore.Options{
		Disk: p, Salt: w.seed<<8 + host + 1, Owner: logstore.Owner{Node: host + 1}, SegmentBytes: s.segmentBytes, Reserve: s.segmentReserve,
		GroupCacheBytes: s.logCache, CacheBytes: 4 * s.logCache, InStep: true,
	})
	if err != nil {
		return nil, err
	}
	return &segments{store, w, host, p}, nil
}

func (d *segments) crash(inFlight []logstore.Write) (disk, error) {
	r := d.w.dice.disk
	if inFlight != nil && !d.on.failing {
		d.on.cut = true
		must(d.Write(inFlight), "write that a crash falls into")
	}
	left := d.on.crash(r.IntN(3) > 0)
	_ = d.Close() // ends its goroutine; what it writes is on a platter that nobody reads again
	for {
		after, err := d.w.spin(left, d.host)
		if err != nil {
			return nil, fmt.Errorf("start on host %d: %w", d.host, err)
		}
		if r.IntN(4) > 0 {
			return after, nil
		}
		left = left.crash(true) // the power goes again, right after the log was read
		_ = after.Close()
	}
}

func (d *segments) fail() { d.on.failing = true }

func (d *segments) flip() bool { return d.on.flip() }
