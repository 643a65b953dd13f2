package logstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dump(t *testing.T, s logstore.Store) string {
	t.Helper()
	d, err := logstoretest.Dump(s)
	must(t, err)
	return d
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// The store on Pebble and the one in memory answer alike after every call, and after reopening. The small
// memtable flushes and rotates its log often.
func TestPebbleAgainstMemory(t *testing.T) {
	rng := seeded(t)
	o := logstore.Options{FS: vfs.NewMem(), MemTableBytes: 64 << 10, GroupCacheBytes: 3000, CacheBytes: 8000}
	p, m := open(t, "log", o), logstore.NewMemory()
	for i := range 1500 {
		op, err := logstoretest.Next(rng, m)
		must(t, err)
		must(t, op.Do(m))
		must(t, op.Do(p))
		if rng.IntN(40) == 0 {
			must(t, p.Close())
			p = open(t, "log", o)
		}
		if i%7 == 0 {
			if got, want := dump(t, p), dump(t, m); got != want {
				t.Fatalf("call %d: %s", i, firstDifference(got, want))
			}
		}
	}
	must(t, p.Close())
}

// After a power cut at any time, in the middle of a Write too, the store holds every acknowledged write, of
// the one in flight all or nothing, and of the compactions since the last sync a prefix: one of the states
// that Memory's crash model names.
func TestPebbleCrash(t *testing.T) {
	rng := seeded(t)
	disk := newPowerCut(vfs.NewCrashableMem(), rng)
	o := logstore.Options{FS: disk.fs(), MemTableBytes: 64 << 10, GroupCacheBytes: 3000, OnError: func(err error) { t.Error(err) }}
	p, m := open(t, "log", o), logstore.NewMemory()
	during := 0
	for range 500 {
		op, err := logstoretest.Next(rng, m)
		must(t, err)
		crash := rng.IntN(6) == 0
		if crash && op.Write != nil {
			disk.arm(rng.IntN(4))
		}
		must(t, op.Do(p))
		inFlight := op.Write
		if !disk.cut() { // the call had ended
			must(t, op.Do(m))
			inFlight = nil
		}
		if !crash {
			continue
		}
		if inFlight != nil {
			during++
		}
		after := disk.crash()
		must(t, p.Close())
		disk = newPowerCut(after, rng)
		o.FS = disk.fs()
		p = open(t, "log", o)
		m = matching(t, p, m, inFlight)
	}
	must(t, p.Close())
	if during == 0 {
		t.Fatal("no crash fell into a write")
	}
}

// powerCut takes the disk as a crash leaves it before one of the next operations on a write-ahead log.
type powerCut struct {
	mem *vfs.MemFS
	rng *rand.Rand

	mu    sync.Mutex
	armed bool
	left  int // operations until the cut
	clone *vfs.MemFS
}

func newPowerCut(mem *vfs.MemFS, rng *rand.Rand) *powerCut { return &powerCut{mem: mem, rng: rng} }

func (c *powerCut) fs() vfs.FS {
	return errorfs.Wrap(c.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.HasSuffix(op.Path, ".log") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			c.operation()
		}
		return nil
	}))
}

func (c *powerCut) operation() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.armed {
		return
	}
	if c.left--; c.left < 0 {
		c.armed, c.clone = false, c.take()
	}
}

func (c *powerCut) take() *vfs.MemFS {
	return c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.rng.IntN(101), RNG: c.rng})
}

func (c *powerCut) arm(operations int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed, c.left = true, operations
}

// cut says whether it has happened.
func (c *powerCut) cut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	return c.clone != nil
}

// crash is the disk after the cut, or after one now.
func (c *powerCut) crash() *vfs.MemFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clone == nil {
		c.clone = c.take()
	}
	return c.clone
}

// firstDifference shows where two dumps part, and to which group's line the place belongs.
func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	group := ""
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("in %s\n got %.200s\nwant %.200s", group, g[i], w[i])
		}
		if strings.HasPrefix(g[i], "group") {
			group = g[i]
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// matching is the state among those that a crash may leave which p is in.
func matching(t *testing.T, p logstore.Store, m *logstore.Memory, inFlight []logstore.Write) *logstore.Memory {
	t.Helper()
	got := dump(t, p)
	var candidates []string
	for k, n := 0, 0; k <= n; k++ {
		c, err := m.Crash(inFlight, func(unsynced int) int { n = unsynced; return k })
		must(t, err)
		want := dump(t, c)
		if got == want {
			return c
		}
		candidates = append(candidates, firstDifference(got, want))
	}
	t.Fatalf("the state after the crash is none of the %d that are allowed:\n%s", len(candidates), strings.Join(candidates, "\nnor\n"))
	return nil
}

func TestReopenKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, logstore.Options{})
	for g := uint64(1); g <= 3; g++ {
		logstoretest.Make(t, s, g)
	}
	must(t, s.Write([]logstore.Write{
		{Group: 1, Entries: logstoretest.Entries(2, 300, 4), HardState: logstoretest.Hard(4, 2, 200)},
		{Group: 3, Snapshot: logstoretest.Meta(50, 7, 1, 9), HardState: logstoretest.Hard(7, 9, 50)}}))
	must(t, s.Compact(1, 150))
	must(t, s.Remove(2))
	// A snapshot in the middle of a log replaces all of it, the tail behind it too.
	logstoretest.Make(t, s, 4)
	must(t, s.Write([]logstore.Write{{Group: 4, Entries: logstoretest.Entries(2, 300, 1), HardState: logstoretest.Hard(1, 1, 100)}}))
	must(t, s.Write([]logstore.Write{{Group: 4, Snapshot: logstoretest.Meta(200, 2, 1, 2), HardState: logstoretest.Hard(2, 0, 200)}}))
	want := dump(t, s)
	must(t, s.Close())
	s = open(t, dir, logstore.Options{})
	if got := dump(t, s); got != want {
		t.Fatalf("reopened:\n%s\nwant:\n%s", got, want)
	}
	must(t, s.Close())
}

// A store on a failing disk fails the write, tells its owner, and refuses everything afterwards.
func TestWriteErrorIsSticky(t *testing.T) {
	var failing atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && strings.HasSuffix(op.Path, ".log") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.EIO
		}
		return nil
	})
	told := make(chan error, 8)
	s := open(t, "log", logstore.Options{FS: errorfs.Wrap(vfs.NewMem(), inject), OnError: func(err error) { told <- err }})
	l := logstoretest.Make(t, s, 1)
	w := []logstore.Write{{Group: 1, Entries: logstoretest.Entries(2, 2, 1), HardState: logstoretest.Hard(1, 0, 1)}}
	failing.Store(true)
	if err := s.Write(w); !errors.Is(err, syscall.EIO) {
		t.Fatalf("write on a failing disk: %v", err)
	}
	if err := <-told; !errors.Is(err, syscall.EIO) {
		t.Fatalf("callback was told %v", err)
	}
	failing.Store(false)
	if last, err := l.LastIndex(); err != nil || last != 1 {
		t.Fatalf("an entry whose write failed is visible: last %d, %v", last, err)
	}
	for name, call := range map[string]func() error{
		"write":   func() error { return s.Write(w) },
		"compact": func() error { return s.Compact(1, 1) },
		"remove":  func() error { return s.Remove(1) },
		"create":  func() error { _, err := s.Create(2, logstoretest.Meta(1, 1)); return err },
		"conf":    func() error { return s.SetConfState(1, 1, nil) },
	} {
		if err := call(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s after the failure: %v", name, err)
		}
	}
}

// Whatever record is altered or lost, its group is found damaged and the others are not.
func TestDamageIsFoundOnOpen(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "log", logstore.Options{FS: fs})
	logstoretest.Make(t, s, 1)
	logstoretest.Make(t, s, 2)
	must(t, s.Write([]logstore.Write{
		{Group: 1, Entries: logstoretest.Entries(2, 9, 3), HardState: logstoretest.Hard(3, 1, 9)},
		{Group: 2, Entries: logstoretest.Entries(2, 9, 3), HardState: logstoretest.Hard(3, 1, 9)}}))
	must(t, s.Close())
	for _, key := range groupKeys(t, fs, 1) {
		for name, change := range map[string]func(value []byte) []byte{
			"lost":    func([]byte) []byte { return nil },
			"flipped": func(v []byte) []byte { v[len(v)-1] ^= 1; return v },
			"short":   func(v []byte) []byte { return v[:len(v)-1] },
			"empty":   func([]byte) []byte { return []byte{} },
		} {
			t.Run(fmt.Sprintf("%s %x", name, key), func(t *testing.T) {
				damaged := vfs.NewMem()
				if ok, err := vfs.Clone(fs, damaged, "log", "log"); !ok || err != nil {
					t.Fatal(err)
				}
				alter(t, damaged, key, change)
				s := open(t, "log", logstore.Options{FS: damaged})
				if _, found, err := s.Log(1); !found || !errors.Is(err, logstore.ErrDamaged) {
					t.Errorf("found %v, error %v", found, err)
				}
				if _, found, err := s.Log(2); !found || err != nil {
					t.Errorf("the other group: found %v, error %v", found, err)
				}
				// It may come back under another replica id, once its log is gone.
				must(t, s.Remove(1))
				logstoretest.Make(t, s, 1)
				must(t, s.Close())
			})
		}
	}
}

// groupKeys lists the keys of a group's records, which all end in or contain its number.
func groupKeys(t *testing.T, fs vfs.FS, group byte) (keys [][]byte) {
	t.Helper()
	withDB(t, fs, func(db *pebble.DB) {
		it, err := db.NewIter(nil)
		must(t, err)
		for ok := it.First(); ok; ok = it.Next() {
			if k := it.Key(); len(k) > 8 && k[8] == group {
				keys = append(keys, bytes.Clone(k))
			}
		}
		must(t, it.Close())
	})
	if len(keys) != 3+8 {
		t.Fatalf("%d records, want 3 and 8 entries", len(keys))
	}
	return keys
}

func alter(t *testing.T, fs vfs.FS, key []byte, change func([]byte) []byte) {
	t.Helper()
	withDB(t, fs, func(db *pebble.DB) {
		v, c, err := db.Get(key)
		must(t, err)
		v = bytes.Clone(v)
		must(t, c.Close())
		if v = change(v); v == nil {
			must(t, db.Delete(key, pebble.Sync))
		} else {
			must(t, db.Set(key, v, pebble.Sync))
		}
	})
}

func withDB(t *testing.T, fs vfs.FS, use func(*pebble.DB)) {
	t.Helper()
	db, err := pebble.Open("log", &pebble.Options{FS: fs, Logger: silent{}, FormatMajorVersion: pebble.FormatValueSeparation})
	must(t, err)
	use(db)
	must(t, db.Close())
}

type silent struct{}

func (silent) Infof(string, ...any)         {}
func (silent) Errorf(string, ...any)        {}
func (silent) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }

// A record that rots while the store is open is found by the read, not handed out.
func TestDamageIsFoundOnRead(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "log", logstore.Options{FS: fs})
	logstoretest.Make(t, s, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: logstoretest.Entries(2, 9, 3), HardState: logstoretest.Hard(3, 1, 9)}}))
	key, value := logstore.EntryRecord(1, logstoretest.Entry(5, 3, "3.5"))
	value[len(value)-1] ^= 1
	must(t, logstore.PutRaw(s, key, value))
	l, _, err := s.Log(1)
	must(t, err)
	if _, err := l.Entries(4, 7, 1<<20); err != nil {
		t.Fatalf("cached entries: %v", err)
	}
	logstore.DropCache(l)
	if _, err := l.Entries(4, 7, 1<<20); !errors.Is(err, logstore.ErrDamaged) {
		t.Fatalf("altered entry: %v", err)
	}
	if es, err := l.Entries(2, 5, 1<<20); err != nil || len(es) != 3 {
		t.Fatalf("entries before it: %d, %v", len(es), err)
	}
	must(t, logstore.PutRaw(s, key, nil))
	if _, err := l.Entries(4, 7, 1<<20); !errors.Is(err, logstore.ErrDamaged) {
		t.Fatalf("lost entry: %v", err)
	}
	must(t, s.Close())
}

// Damage to the files themselves: a byte changed inside the write-ahead log, below what was synced later.
func TestDamagedFile(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "log", logstore.Options{FS: fs})
	logstoretest.Make(t, s, 1)
	for i := uint64(2); i < 40; i++ {
		must(t, s.Write([]logstore.Write{{Group: 1, HardState: logstoretest.Hard(1, 1, 1),
			Entries: []*raftpb.Entry{logstoretest.Entry(i, 1, strings.Repeat("needle", 1000))}}}))
	}
	must(t, s.Close())
	changeByte(t, fs, "needle")
	s, err := logstore.OpenPebble("log", logstore.Options{FS: fs})
	if err == nil {
		l, found, lerr := s.Log(1)
		if lerr == nil && found {
			last, _ := l.LastIndex()
			t.Fatalf("opened with a log up to %d of 39: acknowledged entries are gone in silence", last)
		}
		err = lerr
		must(t, s.Close())
	}
	if !errors.Is(err, logstore.ErrDamaged) {
		t.Fatalf("damaged file: %v", err)
	}
}

// changeByte alters one byte of the first write-ahead log that holds mark, a third into it.
func changeByte(t *testing.T, fs vfs.FS, mark string) {
	t.Helper()
	names, err := fs.List("log")
	must(t, err)
	for _, name := range slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".log") }) {
		f, err := fs.OpenReadWrite(fs.PathJoin("log", name), vfs.WriteCategoryUnspecified)
		must(t, err)
		content := make([]byte, 1<<20)
		n, err := f.ReadAt(content, 0)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		i := bytes.Index(content[n/3:n], []byte(mark))
		if i >= 0 {
			_, err = f.WriteAt([]byte{mark[0] ^ 1}, int64(n/3+i))
			must(t, err)
		}
		must(t, f.Close())
		if i >= 0 {
			return
		}
	}
	t.Fatalf("no log holds %q", mark)
}

func TestRefusesOtherFormat(t *testing.T) {
	fs := vfs.NewMem()
	must(t, open(t, "log", logstore.Options{FS: fs}).Close())
	alter(t, fs, []byte("m"), func([]byte) []byte { return []byte("lockstep log 2") })
	if _, err := logstore.OpenPebble("log", logstore.Options{FS: fs}); err == nil || errors.Is(err, logstore.ErrDamaged) {
		t.Fatalf("newer format: %v", err)
	}
}

// Compaction gives the space back although it deletes lazily.
func TestCompactionReclaims(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "log", logstore.Options{FS: fs, GroupCacheBytes: 1})
	logstoretest.Make(t, s, 1)
	for i := uint64(0); i < 12; i++ {
		from := 2 + i*1000
		must(t, s.Write([]logstore.Write{{Group: 1, Entries: logstoretest.Entries(from, from+999, 1), HardState: logstoretest.Hard(1, 0, from+999)}}))
		for to := from; to < from+1000; to += 100 {
			must(t, s.Compact(1, to))
		}
	}
	must(t, s.Close())
	entries := 0
	withDB(t, fs, func(db *pebble.DB) {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("e"), UpperBound: []byte("f")})
		must(t, err)
		for ok := it.First(); ok; ok = it.Next() {
			entries++
		}
		must(t, it.Close())
	})
	if entries > 4096+1000 {
		t.Fatalf("%d entries left of 12000", entries)
	}
	s = open(t, "log", logstore.Options{FS: fs})
	l, _, err := s.Log(1)
	must(t, err)
	if first, _ := l.FirstIndex(); first != 2+11*1000+900+1 {
		t.Fatalf("first index %d", first)
	}
	must(t, s.Compact(1, 12000))
	must(t, s.Close())
}
