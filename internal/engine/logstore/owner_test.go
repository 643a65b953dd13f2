package logstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
)

// TestStoreOfAnotherNode: a store is opened by the node that wrote it, also after segments were used again and from the
// head before a damaged one, and by who does not say whose it is to be; another node is refused, is told both, and leaves
// every byte as it was.
func TestStoreOfAnotherNode(t *testing.T) {
	mine := logstore.Owner{Cluster: [16]byte{7}, Node: 1}
	options := func(disk logstore.Disk, o logstore.Owner) logstore.Options {
		opts := small(disk)
		opts.SegmentBytes, opts.Owner, opts.InStep = 16<<10, o, true
		return opts
	}
	disk := logstoretest.NewDisk(512, rand.New(rand.NewPCG(1, 1)))
	s := openSegments(t, options(disk, mine))
	must(t, s.Close())
	// A store in which nothing was written yet is nobody's.
	s = openSegments(t, options(disk, logstore.Owner{Node: 9}))
	must(t, s.Close())
	s = openSegments(t, options(disk, mine))
	_, err := s.Create(5, logstoretest.Meta(1, 1, 1, 2, 3))
	must(t, err)
	for i := range uint64(40) {
		must(t, s.Write([]logstore.Write{{Group: 5, Entries: []*raftpb.Entry{logstoretest.Entry(2+i, 1, fmt.Sprintf("%01000d", i))}, HardState: logstoretest.Hard(1, 2, 1)}}))
		must(t, s.Compact(5, 1+i))
	}
	must(t, s.Close())
	for _, other := range []logstore.Owner{{Cluster: mine.Cluster, Node: 2}, {Cluster: [16]byte{8}, Node: mine.Node}} {
		before := disk.Files()
		_, err := logstore.OpenSegments(options(disk, other))
		var foreign *logstore.ForeignError
		if !errors.As(err, &foreign) || foreign.Is != mine || foreign.Want != other {
			t.Fatalf("%v opens what is of %v: %v", other, mine, err)
		}
		if !reflect.DeepEqual(before, disk.Files()) {
			t.Errorf("%v has changed what is of %v", other, mine)
		}
	}
	for _, o := range []logstore.Owner{mine, {}} {
		s = openSegments(t, options(disk, o))
		must(t, s.Close())
	}
	in, err := logstore.Inspect(disk)
	must(t, err)
	if in.Owner != mine {
		t.Errorf("an inspection says that it is of %v", in.Owner)
	}
	newest := ""
	for _, seg := range in.Segments {
		if seg.Part == logstore.PartCurrent && seg.Number > 2 {
			newest = seg.Name
		}
	}
	must(t, in.Close())
	if newest == "" {
		t.Fatal("too little was written: the head of the first segment is the only one")
	}
	files := disk.Files()
	for i := range 64 { // the head does not check any more; the one before says whose it is
		files[newest][i] ^= 0xff
	}
	disk.Put(files)
	_, err = logstore.OpenSegments(options(disk, logstore.Owner{Node: 2}))
	var foreign *logstore.ForeignError
	if !errors.As(err, &foreign) || foreign.Is != mine {
		t.Errorf("with a damaged head: %v", err)
	}
}
