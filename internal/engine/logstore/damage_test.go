package logstore_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// filled is a store of four groups over several segments, some of them used more than once, closed. Every batch is
// about one group.
func filled(t *testing.T, rng *rand.Rand) (*logstoretest.Disk, logstore.Options) {
	t.Helper()
	disk := logstoretest.NewDisk(512, rng)
	o := small(disk)
	o.SegmentBytes, o.CacheBytes = 32<<10, 1
	s := openSegments(t, o)
	last := map[uint64]uint64{}
	for g := uint64(1); g <= 4; g++ {
		logstoretest.Make(t, s, g)
		last[g] = 1
	}
	for i := range uint64(120) {
		g := 1 + i%4
		if g == 4 && i > 20 {
			g = 1 // the fourth group stands still
		}
		n := last[g] + 1
		if i%10 == 9 && n > 12 && g != 4 {
			must(t, s.Compact(g, n-11)) // rides with the group's own batch
		}
		es := []*raftpb.Entry{logstoretest.Entry(n, 1+i/50, strings.Repeat("data ", rng.IntN(1500))), logstoretest.Entry(n+1, 1+i/50, "x")}
		must(t, s.Write([]logstore.Write{{Group: g, Entries: es, HardState: logstoretest.Hard(1+i/50, g, n)}}))
		last[g] = n + 1
	}
	must(t, s.Close())
	return disk, o
}

// A bit that flips anywhere in the files is found and makes no groups suspect but those of its batch, whose logs are
// not handed out; or it was in nothing that counts, and changes nothing.
func TestFlippedBitsAreFound(t *testing.T) {
	rng := seeded(t)
	disk, o := filled(t, rng)
	o.Disk = disk.Clone()
	s := openSegments(t, o)
	want := dump(t, s)
	groups := splitDump(want)
	must(t, s.Close())
	names := slices.Sorted(maps.Keys(disk.Files()))
	found, harmless := map[uint64]int{}, 0
	for range 800 {
		d := disk.Clone()
		name := names[rng.IntN(len(names))]
		content := d.Files()[name]
		at, bit := rng.IntN(len(content)), byte(1)<<rng.IntN(8)
		concerned := logstore.GroupsAt(content, int64(at))
		content[at] ^= bit
		o.Disk = d
		s := openSegments(t, o)
		bad := suspects(t, s, groups)
		for _, g := range bad {
			if !slices.Contains(concerned, g) {
				t.Fatalf("bit %#x of byte %d in %s, in a batch of %v: groups %v are suspect", bit, at, name, concerned, bad)
			}
		}
		if len(bad) == 0 {
			harmless++
		} else {
			found[bad[0]]++
		}
		must(t, s.Close())
	}
	t.Logf("found by group %v, harmless %d", found, harmless)
	for g := uint64(1); g <= 4; g++ {
		if found[g] == 0 {
			t.Errorf("no bit of group %d was hit", g)
		}
	}
}

// splitDump maps group ids to their parts of a dump.
func splitDump(d string) map[uint64]string {
	out := map[uint64]string{}
	for i, part := range strings.Split("\n"+d, "\ngroup ") {
		if i > 0 {
			out[uint64(part[0]-'0')] = strings.TrimSuffix(part, "\n")
		}
	}
	return out
}

// suspects are the groups that the store refuses; all others must be what they were, and there must be no fewer.
func suspects(t *testing.T, s logstore.Store, want map[uint64]string) (bad []uint64) {
	t.Helper()
	for g, w := range want {
		l, found, err := s.Log(g)
		if errors.Is(err, logstore.ErrDamaged) {
			bad = append(bad, g)
			continue
		}
		if err != nil || !found {
			t.Fatalf("group %d: found %v, %v", g, found, err)
		}
		got, err := logstoretest.DumpLog(g, l)
		must(t, err)
		if got = strings.TrimSuffix(strings.TrimPrefix(got, "group "), "\n"); got != w {
			t.Fatalf("group %d changed in silence: %s", g, firstDifference(got, w))
		}
	}
	return bad
}

// Several bits at once: whatever is handed out is as it was. A suspect group can be removed and made anew, and that
// lasts; what is damaged stays so until then, however often the store is opened and however many segments come.
func TestManyFlippedBits(t *testing.T) {
	rng := seeded(t)
	disk, o := filled(t, rng)
	o.Disk = disk.Clone()
	s := openSegments(t, o)
	groups := splitDump(dump(t, s))
	must(t, s.Close())
	names := slices.Sorted(maps.Keys(disk.Files()))
	batch, mark := logstore.Newest(disk.Files())
	if batch.Name == "" || mark.Name != batch.Name {
		t.Fatalf("the last batch is %v, its mark %v", batch, mark)
	}
	for range 300 {
		d := disk.Clone()
		inBatch, inMark := false, false
		flip := func(name string, at int64) {
			b, m := inBatch || batch.Has(name, at), inMark || mark.Has(name, at)
			if b && m {
				return // with both gone, the batch looks as if it had never been synced (log.md)
			}
			inBatch, inMark = b, m
			d.Files()[name][at] ^= byte(1) << rng.IntN(8)
		}
		for range 1 + rng.IntN(12) {
			name := names[rng.IntN(len(names))]
			flip(name, rng.Int64N(int64(len(d.Files()[name]))))
		}
		switch rng.IntN(4) { // what few of the bits above hit
		case 0:
			flip(mark.Name, mark.From+rng.Int64N(mark.To-mark.From))
		case 1:
			flip(batch.Name, batch.From+rng.Int64N(batch.To-batch.From))
		}
		o.Disk = d
		s, err := logstore.OpenSegments(o)
		if err != nil {
			if !errors.Is(err, logstore.ErrDamaged) {
				t.Fatal(err)
			}
			continue
		}
		bad := suspects(t, s, groups)
		if len(bad) == 0 || len(bad) == len(groups) {
			must(t, s.Close())
			continue
		}
		logstoretest.Make(t, s, 9)
		for n := uint64(2); n < 40; n++ {
			must(t, s.Write([]logstore.Write{{Group: 9, Entries: []*raftpb.Entry{logstoretest.Entry(n, 1, strings.Repeat("y", 5000))}, HardState: logstoretest.Hard(1, 1, n)}}))
		}
		must(t, s.Close())
		s = openSegments(t, o)
		again := suspects(t, s, groups)
		for _, g := range bad {
			if !slices.Contains(again, g) {
				t.Fatalf("suspect %v, later %v", bad, again)
			}
		}
		must(t, s.Remove(bad[0]))
		logstoretest.Make(t, s, bad[0])
		must(t, s.Close())
		s = openSegments(t, o)
		fresh, found, err := s.Log(bad[0])
		if err != nil || !found {
			t.Fatalf("made anew: found %v, %v", found, err)
		}
		if last, err := fresh.LastIndex(); err != nil || last != 1 {
			t.Fatalf("made anew, but it ends at %d, %v", last, err)
		}
		must(t, s.Close())
	}
}

// What was damaged before a log was removed has nothing to do with the one that was made anew, also once both are in a
// full segment.
func TestMadeAnewInTheDamagedSegment(t *testing.T) {
	disk := logstoretest.NewDisk(512, seeded(t))
	o := small(disk)
	o.SegmentBytes, o.CacheBytes = 32<<10, 1
	put := func(s logstore.Store, group, index uint64, text string) {
		es := []*raftpb.Entry{logstoretest.Entry(index, 1, text)}
		must(t, s.Write([]logstore.Write{{Group: group, Entries: es, HardState: logstoretest.Hard(1, 1, index)}}))
	}
	s := openSegments(t, o)
	logstoretest.Make(t, s, 1)
	logstoretest.Make(t, s, 2)
	put(s, 1, 2, "is altered")
	put(s, 2, 2, "stays")
	must(t, s.Close())
	for _, content := range disk.Files() {
		if at := strings.Index(string(content), "is altered"); at >= 0 {
			content[at] ^= 1
		}
	}
	s = openSegments(t, o)
	if _, _, err := s.Log(1); !errors.Is(err, logstore.ErrDamaged) {
		t.Fatal("not found", err)
	}
	must(t, s.Remove(1))
	logstoretest.Make(t, s, 1)
	put(s, 1, 2, "anew")
	for n := uint64(3); n < 40; n++ {
		put(s, 2, n, strings.Repeat("z", 5000))
	}
	must(t, s.Close())
	s = openSegments(t, o)
	for g, want := range map[uint64]uint64{1: 2, 2: 39} {
		l, found, err := s.Log(g)
		if err != nil || !found {
			t.Fatalf("group %d: found %v, %v", g, found, err)
		}
		if last, err := l.LastIndex(); err != nil || last != want {
			t.Fatalf("group %d ends at %d, not %d, %v", g, last, want, err)
		}
	}
	must(t, s.Close())
}

// A segment that is gone is missed.
func TestLostSegment(t *testing.T) {
	disk, o := filled(t, seeded(t))
	o.Disk = disk.Clone()
	s := openSegments(t, o)
	groups := splitDump(dump(t, s))
	must(t, s.Close())
	missed := 0
	for name := range disk.Files() {
		d := disk.Clone()
		d.Delete(name)
		o.Disk = d
		s, err := logstore.OpenSegments(o)
		if errors.Is(err, logstore.ErrDamaged) {
			missed++
			continue
		}
		must(t, err)
		func() {
			defer func() { must(t, s.Close()) }()
			for g := range groups {
				if _, _, err := s.Log(g); errors.Is(err, logstore.ErrDamaged) {
					missed++
					return
				}
			}
		}()
	}
	if missed < 2 {
		t.Fatalf("%d lost segments were missed", missed)
	}
}

// A write that ends after any of its bytes is as if it had never been; the log heals without a word, and what is
// written next is there.
func TestTornAtEveryByte(t *testing.T) {
	for name, before := range map[string]int{"fresh segment": 3, "segment used before": 60} {
		t.Run(name, func(t *testing.T) { tornAtEveryByte(t, before) })
	}
}

func tornAtEveryByte(t *testing.T, before int) {
	disk := logstoretest.NewDisk(512, seeded(t))
	o := small(disk)
	o.SegmentBytes = 16 << 10
	s := openSegments(t, o)
	logstoretest.Make(t, s, 1)
	write := func(s logstore.Store, n uint64, size int) {
		must(t, s.Write([]logstore.Write{{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(n, 1, strings.Repeat("torn", size/4))}, HardState: logstoretest.Hard(1, 1, n-1)}}))
	}
	next := uint64(2)
	for range before {
		must(t, s.Compact(1, next-1))
		write(s, next, 300)
		next++
	}
	old := disk.Clone()
	want := dump(t, s)
	write(s, next, 700)
	full := dump(t, s)
	whole := disk.Clone()
	must(t, s.Close())
	name, from, to := changed(t, old, whole)
	for cut := from; cut <= to; cut++ {
		d := old.Clone()
		copy(d.Files()[name][from:cut], whole.Files()[name][from:cut])
		o.Disk = d
		s := openSegments(t, o)
		got := dump(t, s)
		if cut < to && got != want || cut == to && got != full {
			t.Fatalf("cut after %d of %d bytes: %s", cut-from, to-from, firstDifference(got, want))
		}
		l, _, err := s.Log(1)
		must(t, err)
		last, err := l.LastIndex()
		must(t, err)
		write(s, last+1, 200)
		after := dump(t, s)
		must(t, s.Close())
		s = openSegments(t, o)
		if got := dump(t, s); got != after {
			t.Fatalf("cut after %d bytes, written again: %s", cut-from, firstDifference(got, after))
		}
		must(t, s.Close())
	}
}

// changed is where one write changed a disk.
func changed(t *testing.T, a, b *logstoretest.Disk) (name string, from, to int) {
	t.Helper()
	before := a.Files()
	for n, content := range b.Files() {
		old, ok := before[n]
		for i := range content {
			if ok && content[i] != old[i] {
				if name == "" {
					name, from = n, i
				}
				if name != n {
					t.Fatalf("%s and %s changed", name, n)
				}
				to = i + 1
			}
		}
	}
	if to == 0 {
		t.Fatal("nothing changed")
	}
	return name, from, to
}

// A store on a disk that fails once, in whatever operation, refuses everything from then on and never tries again.
func TestDiskErrorIsFinal(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		disk := logstoretest.NewDisk(512, seeded(t))
		s := openSegments(t, small(disk))
		l := logstoretest.Make(t, s, 1)
		w := []logstore.Write{{Group: 1, Entries: logstoretest.Entries(2, 2, 1), HardState: logstoretest.Hard(1, 0, 1)}}
		failures := 0
		disk.SetFault(func(o, _ string) error {
			if o == op && failures == 0 {
				failures++
				return syscall.EIO
			}
			return nil
		})
		if err := s.Write(w); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s fails: %v", op, err)
		}
		if last, err := l.LastIndex(); err != nil || last != 1 {
			t.Fatalf("an entry whose write failed is visible: last %d, %v", last, err)
		}
		for name, call := range map[string]func() error{
			"write":   func() error { return s.Write(w) },
			"compact": func() error { return s.Compact(1, 1) },
			"remove":  func() error { return s.Remove(1) },
			"create":  func() error { _, err := s.Create(2, logstoretest.Meta(1, 1)); return err },
			"conf":    func() error { return s.SetConfState(1, 1, nil) },
			"idle":    s.Idle,
			"close":   s.Close,
		} {
			if err := call(); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s after a failed %s: %v", name, op, err)
			}
		}
	}
}

// A group that stands still does not keep the segments of groups that move on, and keeps its own entries.
func TestStillGroupDoesNotPin(t *testing.T) {
	disk := logstoretest.NewDisk(512, seeded(t))
	o := small(disk)
	o.SegmentBytes, o.CacheBytes = 64<<10, 1
	s := openSegments(t, o)
	still, busy := logstoretest.Make(t, s, 1), logstoretest.Make(t, s, 2)
	last := uint64(1)
	for i := range uint64(6000) {
		w := []logstore.Write{{Group: 2, Entries: []*raftpb.Entry{logstoretest.Entry(i+2, 1, strings.Repeat("b", 2000))}, HardState: logstoretest.Hard(1, 1, i+2)}}
		if i < 400 && i%4 == 0 {
			last++
			w = append(w, logstore.Write{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(last, 1, "still")}, HardState: logstoretest.Hard(1, 1, last)})
		}
		must(t, s.Write(w))
		if i > 20 {
			must(t, s.Compact(2, i-18))
		}
	}
	if n := len(disk.Files()); n > 4+1+o.Reserve+logstore.DefaultReserve+2 {
		t.Errorf("%d segments for 100 small entries and 20 large ones", n)
	}
	first, err := still.FirstIndex()
	must(t, err)
	es, err := still.Entries(first, last+1, 1<<20)
	if err != nil || len(es) != 100 || string(es[50].GetData()) != "still" {
		t.Fatalf("%d entries, %v", len(es), err)
	}
	want := dump(t, s)
	must(t, s.Close())
	s = openSegments(t, o)
	if got := dump(t, s); got != want {
		t.Fatalf("reopened: %s", firstDifference(got, want))
	}
	if n, err := busy.LastIndex(); err != nil || n != 6001 {
		t.Fatal(n, err)
	}
	must(t, s.Close())
}

// A record that rots while the store is open is found by the read, not handed out.
func TestRotIsFoundOnRead(t *testing.T) {
	disk := logstoretest.NewDisk(512, seeded(t))
	o := small(disk)
	o.CacheBytes = 1
	s := openSegments(t, o)
	l := logstoretest.Make(t, s, 1)
	for i := uint64(2); i < 10; i++ {
		must(t, s.Write([]logstore.Write{{Group: 1, Entries: logstoretest.Entries(i, i, 3), HardState: logstoretest.Hard(3, 1, i)}}))
	}
	if _, err := l.Entries(2, 10, 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, content := range disk.Files() {
		if i := strings.Index(string(content), "3.5"); i >= 0 {
			content[i] ^= 1
		}
	}
	var bad *logstore.Unreadable
	if _, err := l.Entries(4, 7, 1<<20); !errors.Is(err, logstore.ErrDamaged) || !errors.As(err, &bad) || bad.First != 5 || bad.Last != 5 {
		t.Fatalf("altered entry: %v, %+v", err, bad)
	}
	if es, err := l.Entries(2, 5, 1<<20); err != nil || len(es) != 3 {
		t.Fatalf("entries before it: %d, %v", len(es), err)
	}
	must(t, s.Close())
}

// A log that was condemned while it was open stays so: by the head of a later segment, if nothing else tells. What is made
// anew after it was removed is another one.
func TestCondemnedStaysSo(t *testing.T) {
	disk := logstoretest.NewDisk(512, seeded(t))
	o := small(disk)
	o.SegmentBytes = 32 << 10
	s := openSegments(t, o)
	logstoretest.Make(t, s, 1)
	logstoretest.Make(t, s, 2)
	put := func(group, from, to uint64) {
		for i := from; i <= to; i++ {
			es := []*raftpb.Entry{logstoretest.Entry(i, 1, strings.Repeat("z", 5000))}
			must(t, s.Write([]logstore.Write{{Group: group, Entries: es, HardState: logstoretest.Hard(1, 1, i)}}))
		}
	}
	reopen := func() {
		must(t, s.Close())
		s = openSegments(t, o)
	}
	put(1, 2, 4)
	s.Condemn(1, fmt.Errorf("read: %w", logstore.ErrDamaged))
	put(2, 2, 40) // a few segments
	for range 2 {
		reopen()
		if _, found, err := s.Log(1); !found || !errors.Is(err, logstore.ErrDamaged) {
			t.Fatalf("found %v, %v", found, err)
		}
		if l, _, err := s.Log(2); err != nil {
			t.Fatal(err)
		} else if last, err := l.LastIndex(); err != nil || last != 40 {
			t.Fatalf("the other group ends at %d, %v", last, err)
		}
	}
	must(t, s.Remove(1))
	logstoretest.Make(t, s, 1)
	put(1, 2, 3)
	reopen()
	if l, found, err := s.Log(1); err != nil || !found {
		t.Fatalf("made anew: %v, %v", found, err)
	} else if last, err := l.LastIndex(); err != nil || last != 3 {
		t.Fatalf("made anew: it ends at %d, %v", last, err)
	}
	must(t, s.Close())
}

// What another version or program wrote is refused, not repaired.
func TestRefusesWhatIsNotItsOwn(t *testing.T) {
	disk, o := filled(t, seeded(t))
	for name, change := range map[string]func(d *logstoretest.Disk){
		"a newer format": func(d *logstoretest.Disk) {
			for _, content := range d.Files() {
				logstore.SetLevel(content, 3)
			}
		},
		"another program's files": func(d *logstoretest.Disk) {
			f, err := d.Create("MANIFEST-000001", 10, false)
			must(t, err)
			must(t, f.Close())
		},
	} {
		o.Disk = disk.Clone()
		change(o.Disk.(*logstoretest.Disk))
		if _, err := logstore.OpenSegments(o); err == nil || errors.Is(err, logstore.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A newest segment that was cut off makes all groups suspect; what begins again afterwards is not.
func TestCutOffSegment(t *testing.T) {
	rng := seeded(t)
	disk, o := filled(t, rng)
	name, head := newestSegment(t, disk.Clone())
	for i := range 40 {
		d, name, size := disk.Clone(), name, 0
		if size = head + rng.IntN(len(d.Files()[name])-head); i%2 == 1 { // there is room to go on in what is left
			d, name, size = roomy(t, o, rng)
		}
		d.Truncate(name, size)
		o.Disk = d
		s := openSegments(t, o)
		ids, err := s.Groups()
		must(t, err)
		for _, g := range ids {
			if _, _, err := s.Log(g); !errors.Is(err, logstore.ErrDamaged) {
				t.Fatalf("group %d: %v", g, err)
			}
		}
		must(t, s.Remove(1))
		logstoretest.Make(t, s, 1)
		must(t, s.Close())
		s = openSegments(t, o)
		if _, found, err := s.Log(1); !found || err != nil {
			t.Fatalf("the group that began again: %v, %v", found, err)
		}
		if _, _, err := s.Log(2); !errors.Is(err, logstore.ErrDamaged) {
			t.Fatalf("group 2, which did not: %v", err)
		}
		must(t, s.Close())
	}
}

// roomy is a store of two groups in a segment that is nearly empty, and a size to which it can be cut without a loss.
func roomy(t *testing.T, o logstore.Options, rng *rand.Rand) (d *logstoretest.Disk, name string, size int) {
	t.Helper()
	o.Disk = logstoretest.NewDisk(512, rng)
	s := openSegments(t, o)
	logstoretest.Make(t, s, 1)
	logstoretest.Make(t, s, 2)
	must(t, s.Close())
	d = o.Disk.(*logstoretest.Disk)
	name, _ = newestSegment(t, d.Clone())
	return d, name, len(d.Files()[name]) - 4096
}

// newestSegment finds the file and how long its head is.
func newestSegment(t *testing.T, d *logstoretest.Disk) (name string, head int) {
	t.Helper()
	in, err := logstore.Inspect(d)
	must(t, err)
	for _, s := range in.Segments {
		if s.Part == logstore.PartCurrent {
			frames, _, err := in.Frames(s.Name)
			must(t, err)
			name, head = s.Name, int(frames[0].Bytes)
		}
	}
	must(t, in.Close())
	return name, head
}
