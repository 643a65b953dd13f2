package kv_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/kv/kvtest"
)

func openPebble(t *testing.T, dir string, o kv.PebbleOptions) kv.Store {
	t.Helper()
	s, err := kv.OpenPebble(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPebble(t *testing.T) {
	kvtest.Run(t, func(t *testing.T) kv.Store { return openPebble(t, t.TempDir(), kv.PebbleOptions{}) })
}

func TestPebbleReopen(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		s := openPebble(t, dir, kv.PebbleOptions{})
		if n := countOf(t, s); n != i*10 {
			t.Fatalf("reopened at %d, want %d", n, i*10)
		}
		for j := range 10 {
			countUp(t, s, i*10+j+1)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A view of a store that was not closed shows what was synced, and changes nothing in its directory.
func TestViewPebbleChangesNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := kv.ViewPebble(filepath.Join(dir, "none"), kv.PebbleOptions{OnError: func(error) {}}); err == nil {
		t.Fatal("a store that is not there was opened")
	}
	s, err := kv.OpenPebble(filepath.Join(dir, "live"), kv.PebbleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := s.Batch()
	if err := errors.Join(b.Set([]byte("k"), []byte("v")), b.Commit(), s.Sync()); err != nil {
		t.Fatal(err)
	}
	crashed := filepath.Join(dir, "crashed")
	if err := errors.Join(os.CopyFS(crashed, os.DirFS(filepath.Join(dir, "live"))), s.Close()); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	for _, name := range []string{"live", "crashed"} {
		v, err := kv.ViewPebble(filepath.Join(dir, name), kv.PebbleOptions{OnError: func(error) {}})
		if err != nil {
			t.Fatal(err)
		}
		got, found, err := v.Get([]byte("k"))
		if string(got) != "v" || !found || err != nil {
			t.Errorf("%s: %q, %v, %v", name, got, found, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := listing(t, dir); after != before {
		t.Errorf("was\n%sis\n%s", before, after)
	}
}

// listing is what a directory holds: names, sizes, times.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPebbleSecondOpenFails(t *testing.T) {
	dir := t.TempDir()
	s := openPebble(t, dir, kv.PebbleOptions{})
	defer s.Close()
	if _, err := kv.OpenPebble(dir, kv.PebbleOptions{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Fatalf("opened twice: %v", err)
	}
}

// A power cut keeps what was synced, perhaps more, and never half a batch. The large values rotate the
// memtable and the log several times.
func TestPebbleCrashLeavesPrefix(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := vfs.NewCrashableMem()
	o := kv.PebbleOptions{FS: fs, MemTableBytes: 64 << 10, OnError: func(err error) { t.Error(err) }}
	s := openPebble(t, "db", o)
	synced, committed := 0, 0
	for range 150 {
		switch rng.IntN(8) {
		case 0:
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			synced = committed
		case 1:
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			o.FS = fs
			s = openPebble(t, "db", o)
			got := countOf(t, kv.Prefixed(s, []byte("c/")))
			if got < synced || got > committed {
				t.Fatalf("after the crash at %d; synced %d, committed %d", got, synced, committed)
			}
			// What recovery found is durable only with the next Sync, as for any batch.
			committed = got
		default:
			committed++
			b := s.Batch()
			if err := b.Set(fmt.Appendf(nil, "fill/%d", rng.IntN(10)), make([]byte, rng.IntN(20000))); err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			countUp(t, kv.Prefixed(s, []byte("c/")), committed)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A failed fsync of the log is an error of the Sync that asked for it, reaches the callback, and ends the
// store: a retry could succeed without the data.
func TestPebbleSyncErrorIsSticky(t *testing.T) {
	var failing atomic.Bool
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && strings.HasSuffix(op.Path, ".log") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.EIO
		}
		return nil
	})
	told := make(chan error, 8)
	s := openPebble(t, "db", kv.PebbleOptions{FS: errorfs.Wrap(vfs.NewMem(), inject), OnError: func(err error) { told <- err }})
	countUp(t, s, 1)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	failing.Store(true)
	countUp(t, s, 2)
	if err := s.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync on a failing disk: %v", err)
	}
	if err := <-told; !errors.Is(err, syscall.EIO) {
		t.Fatalf("callback was told %v", err)
	}
	failing.Store(false)
	if err := s.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the next sync: %v", err)
	}
	b := s.Batch()
	if err := b.Set([]byte("k"), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the next commit: %v", err)
	}
	if _, _, err := s.Get([]byte("a")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the next read: %v", err)
	}
}

// A million small records: the process stays small. It measures its own process, so it runs alone.
func TestPebbleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100 MB")
	}
	s := openPebble(t, t.TempDir(), kv.PebbleOptions{})
	value := make([]byte, 80)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := 0; i < 1_000_000; {
		b := s.Batch()
		for range 1000 {
			for j := range value {
				value[j] = byte(rng.Uint32())
			}
			if err := b.Set(fmt.Appendf(nil, "p/%016x", rng.Uint64()), value); err != nil {
				t.Fatal(err)
			}
			i++
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	rss := residentBytes(t)
	t.Logf("resident %d MiB", rss>>20)
	if rss > 150<<20 {
		t.Errorf("resident memory %d MiB after a million records", rss>>20)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func residentBytes(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
