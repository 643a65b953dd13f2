package logstore_test

import (
	"runtime"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// A lone writer leaves a log of many small writes, thousands in a segment. What opening does for one must not grow with
// the others: it took 1.1 MiB a write when each was put into a copy of all before it in its segment.
func TestOpeningIsLinearInWrites(t *testing.T) {
	const writes, enough = 16_000, 40 << 10
	if a := openingAllocates(t, writes) / writes; a > enough {
		t.Errorf("opening a log of %d writes allocates %d bytes for each, of which %d are enough", writes, a, enough)
	} else {
		t.Logf("%d bytes a write", a)
	}
}

func openingAllocates(t *testing.T, writes uint64) uint64 {
	t.Helper()
	o := logstore.Options{Disk: logstoretest.NewDisk(512, seeded(t)), Salt: 7, SegmentBytes: 16 << 20, Reserve: 1}
	s := openSegments(t, o)
	_, err := s.Create(1, nil)
	must(t, err)
	for i := uint64(1); i <= writes; i++ {
		e := &raftpb.Entry{Term: proto.Uint64(1), Index: proto.Uint64(i), Data: make([]byte, 100)}
		must(t, s.Write([]logstore.Write{{Group: 1, Entries: []*raftpb.Entry{e}, HardState: &raftpb.HardState{Term: proto.Uint64(1)}}}))
	}
	must(t, s.Close())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s = openSegments(t, o)
	runtime.ReadMemStats(&after)
	must(t, s.Close())
	return after.TotalAlloc - before.TotalAlloc
}
