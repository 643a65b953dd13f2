package logstore_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// benchStores are what a node's log and its oracle cost, on the disk under the temporary directory.
func benchStores(b *testing.B, run func(b *testing.B, s logstore.Store)) {
	b.Run("store=segments", func(b *testing.B) {
		d, err := logstore.OpenDisk(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		s, err := logstore.OpenSegments(logstore.Options{Disk: d, Salt: 1})
		if err != nil {
			b.Fatal(err)
		}
		run(b, s)
	})
	b.Run("store=pebble", func(b *testing.B) {
		s, err := logstore.OpenPebble(b.TempDir(), logstore.PebbleOptions{})
		if err != nil {
			b.Fatal(err)
		}
		run(b, s)
	})
}

// BenchmarkWrite is one Write after the other, its sync included, while the log is truncated: batches of a shape
// that the engine makes under light and heavy load. MB/s counts the entries' data.
func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct{ groups, entries, bytes int }{
		{1, 1, 300}, {1, 8, 300}, {1, 64, 300}, {1, 1, 20_000}, {10, 6, 1000}, {100, 1, 300}, {64, 1, 4000},
	} {
		b.Run(fmt.Sprintf("groups=%d/entries=%d/bytes=%d", c.groups, c.entries, c.bytes), func(b *testing.B) {
			benchStores(b, func(b *testing.B, s logstore.Store) { benchWrite(b, s, c.groups, c.entries, c.bytes) })
		})
	}
}

func benchWrite(b *testing.B, s logstore.Store, groups, entries, size int) {
	for g := range groups {
		if _, err := s.Create(uint64(g+1), logstoretest.Meta(1, 1, 1, 2, 3)); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(data)
	writes := make([]logstore.Write, groups)
	next := uint64(2)
	retain := uint64(32<<20/(size*groups)) + 1 // 32 MiB altogether
	var took []time.Duration
	b.SetBytes(int64(groups * entries * size))
	b.ReportAllocs()
	for b.Loop() {
		for g := range writes {
			es := make([]*raftpb.Entry, entries)
			for i := range es {
				es[i] = logstoretest.Entry(next+uint64(i), 1, string(data))
			}
			writes[g] = logstore.Write{Group: uint64(g + 1), Entries: es, HardState: logstoretest.Hard(1, 1, next-1)}
		}
		began := time.Now()
		if err := s.Write(writes); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		if err := s.Idle(); err != nil {
			b.Fatal(err)
		}
		next += uint64(entries)
		if next%(retain/4+1) < uint64(entries) && next > retain+2 {
			for g := range groups {
				if err := s.Compact(uint64(g+1), next-retain); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkEntries reads 64 recent entries, and 64 that only the disk has.
func BenchmarkEntries(b *testing.B) {
	for _, cold := range []bool{false, true} {
		b.Run(fmt.Sprintf("cold=%v", cold), func(b *testing.B) {
			benchStores(b, func(b *testing.B, s logstore.Store) { benchEntries(b, s, cold) })
		})
	}
}

func benchEntries(b *testing.B, s logstore.Store, cold bool) {
	l, err := s.Create(1, logstoretest.Meta(1, 1, 1))
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Write([]logstore.Write{{Group: 1, Entries: logstoretest.Entries(2, 1001, 1), HardState: logstoretest.Hard(1, 1, 1)}}); err != nil {
		b.Fatal(err)
	}
	if cold {
		logstore.DropCache(l)
	}
	b.ReportAllocs()
	for b.Loop() {
		if es, err := l.Entries(500, 564, 1<<20); err != nil || len(es) != 64 {
			b.Fatal(len(es), err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
