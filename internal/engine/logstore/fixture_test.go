package logstore_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore/logstoretest"
	"github.com/lockstep-sync/lockstep/internal/fixture"
)

var fixtureOwner = logstore.Owner{Cluster: [16]byte{0xc1, 15: 0x05}, Node: 300}

// fixtureLog writes a store with every kind of section, over several small segments.
func fixtureLog(t *testing.T) map[string][]byte {
	disk := logstoretest.NewDisk(512, rand.New(rand.NewPCG(1, 1)))
	o := small(disk)
	o.SegmentBytes, o.Salt, o.InStep, o.Owner = 32<<10, 7, true, fixtureOwner
	s := openSegments(t, o)
	for g := uint64(1); g <= 3; g++ {
		_, err := s.Create(g, logstoretest.Meta(1, 1, 1, 2, 3))
		must(t, err)
	}
	for i := range uint64(20) {
		term := 1 + i/8
		must(t, s.Write([]logstore.Write{
			{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(2+i, term, fmt.Sprintf("entry %d", i))}, HardState: logstoretest.Hard(term, 2, 1+i)},
			{Group: 2, HardState: logstoretest.Hard(term, 1+i%3, 1)},
		}))
	}
	must(t, s.Write([]logstore.Write{{Group: 2, Snapshot: logstoretest.Meta(300, 3, 1, 2, 4), Entries: logstoretest.Entries(301, 302, 3)}}))
	must(t, s.SetConfState(1, 20, &raftpb.ConfState{Voters: []uint64{1, 2, 5}, Learners: []uint64{6}}))
	must(t, s.Compact(1, 4))
	must(t, s.Remove(3))
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(20, 4, "instead")}, HardState: logstoretest.Hard(4, 5, 19)}}))
	must(t, s.Close())
	files := map[string][]byte{}
	for name, content := range disk.Files() {
		if slices.ContainsFunc(content, func(b byte) bool { return b != 0 }) {
			files[name] = content
		}
	}
	return files
}

// opened is a store of files.
func opened(t *testing.T, files map[string][]byte) logstore.Store {
	t.Helper()
	disk := logstoretest.NewDisk(512, rand.New(rand.NewPCG(1, 1)))
	disk.Put(files)
	o := small(disk)
	o.SegmentBytes, o.Owner = 32<<10, fixtureOwner
	return openSegments(t, o)
}

// TestFixture opens a log as level 2 wrote it, reads all of it, and writes on.
func TestFixture(t *testing.T) {
	held := fixture.Check(t, "level-2.hex", fixtureLog(t))
	s := opened(t, held)
	if groups, err := s.Groups(); err != nil || !slices.Equal(groups, []uint64{1, 2}) {
		t.Fatalf("groups %v, %v", groups, err)
	}
	for _, want := range []struct {
		group, first, last, term, vote, commit uint64
		voters, learners                       []uint64
		data                                   string // of the last entry
	}{
		{1, 5, 20, 4, 5, 19, []uint64{1, 2, 5}, []uint64{6}, "instead"},
		{2, 301, 302, 3, 2, 300, []uint64{1, 2, 4}, nil, ""},
	} {
		l, found, err := s.Log(want.group)
		if !found || err != nil {
			t.Fatalf("group %d: %v, %v", want.group, found, err)
		}
		logstore.DropCache(l)
		hard, conf, err := l.InitialState()
		must(t, err)
		first, err := l.FirstIndex()
		must(t, err)
		entries, err := l.Entries(want.first, want.last+1, 1<<20)
		must(t, err)
		last := entries[len(entries)-1]
		if first != want.first || last.GetIndex() != want.last || last.GetTerm() != want.term || hard.GetTerm() != want.term || hard.GetVote() != want.vote ||
			hard.GetCommit() != want.commit || !slices.Equal(conf.GetVoters(), want.voters) || !slices.Equal(conf.GetLearners(), want.learners) {
			t.Errorf("group %d: from %d, last %v, %v, %v", want.group, first, last, hard, conf)
		}
		if want.data != "" && string(last.Data) != want.data {
			t.Errorf("group %d ends with %q", want.group, last.Data)
		}
		if want.group == 1 && (string(entries[0].Data) != "entry 3" || entries[5].GetTerm() != 2) {
			t.Errorf("entries %v", entries[:6])
		}
	}
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: []*raftpb.Entry{logstoretest.Entry(21, 4, "on")}}}))
	must(t, s.Close())
}
