package logstore_test

import (
	"bytes"
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// BenchmarkWrite is one Write at a time, on the disk under the temporary directory: its sync included.
func BenchmarkWrite(b *testing.B) {
	data := string(bytes.Repeat([]byte("x"), 256))
	for _, c := range []struct{ groups, entries int }{{1, 1}, {1, 64}, {16, 4}} {
		b.Run(fmt.Sprintf("groups=%d/entries=%d", c.groups, c.entries), func(b *testing.B) {
			s, err := logstore.OpenPebble(b.TempDir(), logstore.Options{})
			if err != nil {
				b.Fatal(err)
			}
			for g := range c.groups {
				if _, err := s.Create(uint64(g+1), logstoretest.Meta(1, 1, 1, 2, 3)); err != nil {
					b.Fatal(err)
				}
			}
			writes := make([]logstore.Write, c.groups)
			next := uint64(2)
			b.ReportAllocs()
			for b.Loop() {
				for g := range writes {
					es := make([]*raftpb.Entry, c.entries)
					for i := range es {
						es[i] = logstoretest.Entry(next+uint64(i), 1, data)
					}
					writes[g] = logstore.Write{Group: uint64(g + 1), Entries: es, HardState: logstoretest.Hard(1, 1, next-1)}
				}
				if err := s.Write(writes); err != nil {
					b.Fatal(err)
				}
				next += uint64(c.entries)
				if next%1024 < uint64(c.entries) && next > 4096 {
					for g := range c.groups {
						if err := s.Compact(uint64(g+1), next-4096); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkEntries reads 64 recent entries, and 64 that only the database has.
func BenchmarkEntries(b *testing.B) {
	for name, cache := range map[string]int{"cached": 0, "cold": 1} {
		b.Run(name, func(b *testing.B) {
			s, err := logstore.OpenPebble(b.TempDir(), logstore.Options{GroupCacheBytes: cache})
			if err != nil {
				b.Fatal(err)
			}
			l, err := s.Create(1, logstoretest.Meta(1, 1, 1))
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Write([]logstore.Write{{Group: 1, Entries: logstoretest.Entries(2, 1001, 1), HardState: logstoretest.Hard(1, 1, 1)}}); err != nil {
				b.Fatal(err)
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
		})
	}
}
