package logstore

import (
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func TestEntrySizeIsProtobufs(t *testing.T) {
	for range 1000 {
		e := &raftpb.Entry{}
		if rand.IntN(4) > 0 {
			e.Type = raftpb.EntryType(rand.IntN(3)).Enum()
		}
		if rand.IntN(4) > 0 {
			e.Term = proto.Uint64(rand.Uint64() >> rand.IntN(64))
		}
		if rand.IntN(4) > 0 {
			e.Index = proto.Uint64(rand.Uint64() >> rand.IntN(64))
		}
		if rand.IntN(4) > 0 {
			e.Data = make([]byte, rand.IntN(1<<rand.IntN(20)))
		}
		if got, want := entrySize(e), uint64(proto.Size(e)); got != want {
			t.Fatalf("size %d, protobuf's %d of %v", got, want, e)
		}
	}
}

// The approximate sizes are exact at the start and the end of a log that is appended to and compacted, and
// never run away.
func TestSizesStayClose(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var x index
	x.reset(100, 1)
	real := map[uint64]int{}
	sum := func(lo uint64) (n uint64) {
		for i := lo; i <= x.last; i++ {
			n += uint64(real[i])
		}
		return n
	}
	for range 3000 {
		switch rng.IntN(12) {
		case 0:
			if x.last > x.start {
				x.compact(x.start + 1 + rng.Uint64N(x.last-x.start))
			}
		case 1:
			if x.last > x.start {
				x.truncate(x.last - rng.Uint64N(min(x.last-x.start, 5)))
			}
		default:
			real[x.last+1] = 100 + rng.IntN(100)
			x.append(x.last+1, 1, real[x.last+1])
			x.cache.append(&raftpb.Entry{})
		}
		if x.last == x.start {
			continue
		}
		lo := x.start + 1 + rng.Uint64N(x.last-x.start)
		got, want := x.sizes.end-x.sizes.offset(lo), sum(lo)
		if got > want+want/2+sizeBlock*100 || got+got/2+sizeBlock*100 < want {
			t.Fatalf("about %d bytes from %d to %d, really %d", got, lo, x.last, want)
		}
	}
}
