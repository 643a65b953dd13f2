package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func put(t *testing.T, s Store, key, value string) {
	t.Helper()
	b := s.Batch()
	if err := errors.Join(b.Set([]byte(key), []byte(value)), b.Commit()); err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, r Reader, key string) (n int) {
	t.Helper()
	v, ok, err := r.Get([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	if ok {
		if _, err := fmt.Sscan(string(v), &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// crash opens what a disk holds of the store of fs: all that was written if the process died, and some of what was
// not synced if the system did.
func crash(t *testing.T, fs *vfs.MemFS, lost int, rng *rand.Rand) (*vfs.MemFS, Store) {
	t.Helper()
	if lost == 0 {
		if d, err := fs.OpenDir("db"); err == nil { // a clone would bring removed files back
			if err := errors.Join(d.Sync(), d.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100 - lost, RNG: rng})
	s, err := OpenPebble("db", PebbleOptions{FS: fs, MemTableBytes: 64 << 10, OnError: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return fs, s
}

// The death of the process takes nothing that was written through; that of the system takes what was not synced,
// newest first. Batches are numbered, each in a key of its own, so that a hole would show.
func TestThroughSurvivesTheProcess(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	fs, s := crash(t, vfs.NewCrashableMem(), 0, rng)
	through, plain, synced := 0, 0, 0
	kills := 0
	for range 400 {
		switch rng.IntN(10) {
		case 0:
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			synced = through
		case 1:
			lost := 0
			if rng.IntN(3) == 0 {
				lost = rng.IntN(101)
			}
			old := s
			fs, s = crash(t, fs, lost, rng)
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			got := number(t, s, "t/last")
			if lost == 0 && got != through || got < synced || got > through {
				t.Fatalf("losing %d %%: %d of %d batches, synced %d", lost, got, through, synced)
			}
			for i := 1; i <= through; i++ {
				if _, ok, err := s.Get(fmt.Appendf(nil, "t/%d", i)); err != nil || ok != (i <= got) {
					t.Fatalf("batch %d of %d: there %v, %v", i, got, ok, err)
				}
			}
			if n := number(t, s, "plain"); n > plain {
				t.Fatalf("%d of %d plain batches", n, plain)
			}
			kills++
			through, plain, synced = got, number(t, s, "plain"), got // opening synced it
		case 2, 3:
			plain++
			put(t, s, "plain", fmt.Sprint(plain))
			put(t, s, "fill", strings.Repeat("x", rng.IntN(9000)))
		default:
			through++
			b := s.Through().Batch()
			if err := errors.Join(b.Set(fmt.Appendf(nil, "t/%d", through), nil), b.Set([]byte("t/last"), fmt.Append(nil, through)),
				b.Commit()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if kills == 0 {
		t.Fatal("nothing crashed")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Files that a power failure brings back, whole or in part, change nothing: only what follows the number in the
// database is applied.
func TestThroughIgnoresOldFilesAndGaps(t *testing.T) {
	dir := t.TempDir()
	open := func() *pebbleStore {
		s, err := OpenPebble(dir, PebbleOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s.(*pebbleStore)
	}
	file := func(n int) string { return fmt.Sprintf("%s/%s%d", dir, throughName, n) }
	s := open()
	var files [][]byte // each with one batch more
	for i := 1; i <= 3; i++ {
		put(t, s.Through(), "k", fmt.Sprint(i))
		b, err := os.ReadFile(file(1))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	if err := errors.Join(s.Close(), os.WriteFile(file(9), files[1], 0o600)); err != nil {
		t.Fatal(err)
	}
	s = open()
	if n := number(t, s, "k"); n != 3 {
		t.Fatalf("an old file has won: %d", n)
	}
	gap := append([]byte(throughMagic), files[1][len(files[0]):]...)
	at := len(throughMagic)
	binary.LittleEndian.PutUint64(gap[at+8:], 5)
	binary.LittleEndian.PutUint32(gap[at+4:], crc32.Checksum(gap[at+8:], castagnoli))
	if err := errors.Join(s.Close(), os.WriteFile(file(9), gap, 0o600)); err != nil {
		t.Fatal(err)
	}
	s = open()
	if n := number(t, s, "k"); n != 3 {
		t.Fatalf("a batch behind a gap was applied: %d", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Files of what a sync has made durable go at once, and a clean stop leaves none.
func TestThroughFilesGo(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenPebble(dir, PebbleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	files := func() (n int) {
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range names {
			if strings.HasPrefix(e.Name(), throughName) {
				n++
			}
		}
		return n
	}
	for range 3 {
		put(t, s.Through(), "k", "v")
		if n := files(); n != 1 {
			t.Fatalf("%d files after a commit", n)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		if n := files(); n != 0 {
			t.Fatalf("%d files after a sync", n)
		}
	}
	big := strings.Repeat("x", 1<<20)
	for i := range throughMax>>20 + 8 {
		put(t, s.Through(), fmt.Sprint(i%4), big)
	}
	if n := s.(*pebbleStore).through.written; n > 16<<20 {
		t.Errorf("%d bytes wait for a sync that nobody asks for", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := files(); n != 0 {
		t.Fatalf("%d files after a clean stop", n)
	}
}

// A write that fails is a failure of the store: what was acknowledged would else depend on luck.
func TestThroughErrorIsSticky(t *testing.T) {
	var failing atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && strings.Contains(op.Path, throughName) && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.EIO
		}
		return nil
	})
	told := make(chan error, 1)
	s, err := OpenPebble("db", PebbleOptions{FS: errorfs.Wrap(vfs.NewMem(), inject), OnError: func(err error) { told <- err }})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s.Through(), "k", "1")
	failing.Store(true)
	b := s.Through().Batch()
	if err := errors.Join(b.Set([]byte("k"), nil), b.Commit()); !errors.Is(err, syscall.EIO) {
		t.Fatalf("commit on a disk that fails: %v", err)
	}
	if err := <-told; !errors.Is(err, syscall.EIO) {
		t.Fatalf("told %v", err)
	}
	if err := s.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync afterwards: %v", err)
	}
}

func frame(seq uint64, repr string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(repr)))
	b = append(b, 0, 0, 0, 0)
	b = append(binary.LittleEndian.AppendUint64(b, seq), repr...)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// Whatever a file holds, only whole frames are shown, each as it was written.
func FuzzReadThrough(f *testing.F) {
	whole := append([]byte(throughMagic), append(frame(1, "one"), frame(2, "")...)...)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte(throughMagic))
	f.Add([]byte{})
	f.Add(append([]byte(throughMagic), bytes.Repeat([]byte{0xff}, 40)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		again := []byte(throughMagic)
		ok, err := readThrough(bytes.NewReader(b), int64(len(b)), func(seq uint64, repr []byte) (bool, error) {
			again = append(again, frame(seq, string(repr))...)
			return true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > len(throughMagic) && !bytes.HasPrefix(b, again) || ok != bytes.Equal(b, again) {
			t.Fatalf("whole %v: %x read as %x", ok, b, again)
		}
	})
}

func BenchmarkThrough(b *testing.B) {
	for _, records := range []int{1, 512} {
		for _, kind := range []string{"plain", "through"} {
			b.Run(fmt.Sprintf("%s-%d", kind, records), func(b *testing.B) {
				s, err := OpenPebble(b.TempDir(), PebbleOptions{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				to := s
				if kind == "through" {
					to = s.Through()
				}
				key, value := make([]byte, 60), make([]byte, 90)
				n := uint64(0)
				for b.Loop() {
					batch := to.Batch()
					for range records {
						n++
						binary.BigEndian.PutUint64(key, n*0x9e3779b97f4a7c15)
						if err := batch.Set(key, value); err != nil {
							b.Fatal(err)
						}
					}
					if err := batch.Commit(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}
