package logstore_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// A full disk: what is written goes into the reserve, and the owner is told. Once the reserve is used up, writing
// waits, for room or for the end. With room again, the store goes on and its reserve comes back.
func TestFullDisk(t *testing.T) {
	disk := logstoretest.NewDisk(512, seeded(t))
	o := small(disk)
	o.SegmentBytes, o.Reserve = 16<<10, 3
	end := make(chan struct{})
	o.GiveUp = end
	s := openSegments(t, o)
	logstoretest.Make(t, s, 1)
	next := uint64(2)
	write := func() error {
		err := s.Write(largeWrite(next))
		next++
		return err
	}
	logstoretest.Eventually(t, "the reserve is there", func() bool { return len(disk.Files()) >= 4 })
	noRoom := func(op, _ string) error {
		if op == "create" {
			return syscall.ENOSPC
		}
		return nil
	}
	disk.SetFault(noRoom)
	must(t, write())
	must(t, write()) // begins another segment
	logstoretest.Eventually(t, "the owner is told", func() bool { return errors.Is(s.Full(), syscall.ENOSPC) })
	must(t, write()) // the reserve
	disk.SetFault(nil)
	logstoretest.Eventually(t, "there is room again", func() bool { s.Retry(); return s.Full() == nil })
	if n := len(disk.Files()); n < 4 {
		t.Errorf("there is room, they say, and %d files", n)
	}
	for range 20 {
		must(t, write())
	}
	logstoretest.Eventually(t, "the reserve is there again", func() bool { return len(disk.Files()) >= 4 })
	// The reserve is used up: writing waits.
	const many = 100
	written := make(chan error, 2*many)
	var writer sync.WaitGroup
	writeMany := func() {
		for range many {
			err := write()
			written <- err
			if err != nil {
				return
			}
		}
	}
	var refused atomic.Int64
	disk.SetFault(func(op, name string) error {
		if op == "create" {
			refused.Add(1)
		}
		return noRoom(op, name)
	})
	writer.Go(writeMany)
	logstoretest.Eventually(t, "it waits for room", func() bool { return refused.Load() > 3 })
	if n := len(written); n == 0 || n == many {
		t.Errorf("%d of %d writes were done on a full disk", n, many)
	}
	disk.SetFault(nil)
	writer.Wait()
	for range many {
		must(t, <-written)
	}
	disk.SetFault(noRoom)
	writer.Go(writeMany)
	close(end)
	writer.Wait()
	close(written)
	var err error
	for err = range written {
	}
	if !errors.Is(err, syscall.ENOSPC) || s.Close() == nil {
		t.Fatalf("the reserve is used up and waiting is over: %v", err)
	}
}

// budget lets so many segments be made.
type budget struct{ left, refused atomic.Int64 }

func (b *budget) fault(op, _ string) error {
	if op == "create" && b.left.Add(-1) < 0 {
		b.refused.Add(1)
		return syscall.ENOSPC
	}
	return nil
}

// used is how many segments were begun.
func used(disk *logstoretest.Disk) (n int) {
	for _, content := range disk.Files() {
		if !bytes.Equal(content[:64], make([]byte, 64)) {
			n++
		}
	}
	return n
}

// fillReserve writes until all segments are in use.
func fillReserve(t *testing.T, s logstore.Store, disk *logstoretest.Disk, segments int) (next uint64) {
	t.Helper()
	for next = 2; used(disk) < segments; next++ {
		must(t, s.Write(largeWrite(next)))
	}
	return next
}

func largeWrite(index uint64) []logstore.Write {
	return []logstore.Write{{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(index, 1, strings.Repeat("full", 1500))}, HardState: logstoretest.Hard(1, 1, index)}}
}

// Room that comes piecemeal goes into the reserve piece by piece, and no more than the reserve lacks; the store is full
// until that is whole.
func TestRoomComesPiecemeal(t *testing.T) {
	for _, last := range []int64{1, 100} {
		disk := logstoretest.NewDisk(512, seeded(t))
		o := small(disk)
		o.SegmentBytes, o.Reserve = 16<<10, 3
		s := openSegments(t, o)
		logstoretest.Make(t, s, 1)
		logstoretest.Eventually(t, "the reserve is there", func() bool { return len(disk.Files()) == 4 })
		var room budget
		disk.SetFault(room.fault)
		fillReserve(t, s, disk, 4)
		logstoretest.Eventually(t, "it is full", func() bool { return s.Full() != nil })
		for made := 5; made < 7; made++ {
			room.left.Store(1)
			refused := room.refused.Load()
			logstoretest.Eventually(t, "what there is room for is made", func() bool {
				s.Retry()
				return len(disk.Files()) == made && room.refused.Load() > refused+1
			})
			if s.Full() == nil {
				t.Fatalf("there is room, it says, with %d of 3 segments in reserve", made-4)
			}
		}
		room.left.Store(last)
		logstoretest.Eventually(t, "there is room again", func() bool { s.Retry(); return s.Full() == nil })
		must(t, s.Close()) // the goroutine is done
		if n := len(disk.Files()); n != 7 {
			t.Errorf("%d segments in reserve, want 3", n-4)
		}
	}
}

// gatedDisk has the goroutine that makes spares wait.
type gatedDisk struct {
	*logstoretest.Disk
	gate    atomic.Pointer[chan struct{}] // nil: open
	arrived atomic.Int64
}

func (d *gatedDisk) Create(name string, size int64, written bool) (logstore.File, error) {
	if gate := d.gate.Load(); gate != nil && written {
		d.arrived.Add(1)
		<-*gate
	}
	return d.Disk.Create(name, size, written)
}

// A spare that was being made when the writer found no room does not make the reserve whole.
func TestSpareOnItsWay(t *testing.T) {
	disk := &gatedDisk{Disk: logstoretest.NewDisk(512, seeded(t))}
	var said strings.Builder
	o := small(nil)
	o.Disk, o.SegmentBytes, o.Reserve = disk, 16<<10, 3
	o.Log = slog.New(slog.NewTextHandler(&said, nil))
	s := openSegments(t, o)
	logstoretest.Make(t, s, 1)
	logstoretest.Eventually(t, "the reserve is there", func() bool { return len(disk.Files()) == 4 })
	gate := make(chan struct{})
	disk.gate.Store(&gate)
	next := fillReserve(t, s, disk.Disk, 4)
	logstoretest.Eventually(t, "a spare is on its way", func() bool { return disk.arrived.Load() == 1 })
	var room budget
	disk.SetFault(room.fault)
	wrote := make(chan error)
	go func() {
		for ; used(disk.Disk) < 5; next++ { // the last one waits for room
			if err := s.Write(largeWrite(next)); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	logstoretest.Eventually(t, "the writer found no room", func() bool { return room.refused.Load() > 0 && s.Full() != nil })
	disk.SetFault(func(op, name string) error { // room for one, which the spare gets
		if op == "create" && name != "00000005.seg" {
			return syscall.ENOSPC
		}
		return nil
	})
	disk.gate.Store(nil)
	close(gate)
	must(t, <-wrote)
	if s.Full() == nil {
		t.Error("there is room, it says")
	}
	disk.SetFault(nil)
	logstoretest.Eventually(t, "there is room again", func() bool { s.Retry(); return s.Full() == nil })
	must(t, s.Close())
	if n := strings.Count(said.String(), "room again"); n != 1 {
		t.Errorf("it said %d times that there is room\n%s", n, &said)
	}
}
