package logstore_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// FuzzStore writes bytes anywhere into the files of a store. A start refuses the store, or opens it; an inspection
// agrees; and what a start opens can be opened again.
func FuzzStore(f *testing.F) {
	files := fixture.Load(&testing.T{}, "level-2.hex")
	names := slices.Sorted(maps.Keys(files))
	f.Add(uint8(0), uint16(8), []byte{1}, uint8(1), uint16(100), []byte("x"))
	f.Add(uint8(1), uint16(24), make([]byte, 16), uint8(0), uint16(4096), files[names[0]][:200])
	f.Fuzz(func(t *testing.T, one uint8, at uint16, put []byte, two uint8, also uint16, more []byte) {
		disk := logstoretest.NewDisk(512, rand.New(rand.NewPCG(1, 1)))
		disk.Put(files)
		for _, change := range []struct {
			file uint8
			at   uint16
			put  []byte
		}{{one, at, put}, {two, also, more}} {
			content := disk.Files()[names[int(change.file)%len(names)]]
			copy(content[int(change.at)%len(content):], change.put)
		}
		o := small(disk)
		o.SegmentBytes = 32 << 10
		in, err := logstore.Inspect(disk.Clone())
		if err != nil { // of another level, say
			if s, err := logstore.OpenSegments(o); err == nil {
				t.Fatal("a start opens what an inspection does not", s.Close())
			}
			return
		}
		for _, s := range in.Segments {
			if _, _, err := in.Frames(s.Name); err != nil {
				t.Fatal(err)
			}
		}
		must(t, in.Close())
		agree(t, in, o)
		if in.Refused == nil {
			must(t, openSegments(t, o).Close())
		}
	})
}
