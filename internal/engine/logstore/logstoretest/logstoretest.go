// Package logstoretest is the conformance suite that every logstore.Store passes, and the random workload
// that compares two of them. It starts no goroutine that outlives a test.
package logstoretest

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// Run tests the stores that open makes: each one empty and closed by the suite.
func Run(t *testing.T, open func(t *testing.T) logstore.Store) {
	for name, test := range map[string]func(*testing.T, logstore.Store){
		"Create":            create,
		"CreateFromNothing": createFromNothing,
		"AppendAndRead":     appendAndRead,
		"SizeLimit":         sizeLimit,
		"ConflictingTail":   conflictingTail,
		"Compact":           compact,
		"SnapshotResets":    snapshotResets,
		"ManyGroups":        manyGroups,
		"OneGroupTwice":     oneGroupTwice,
		"Configuration":     configuration,
		"Remove":            remove,
		"Condemn":           condemn,
		"LikeRaftsStorage":  likeRaft,
		"RoundTrip":         roundTrip,
		"Concurrent":        concurrent,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			test(t, s)
			must(t, s.Close())
		})
	}
	for name, w := range map[string]logstore.Write{
		"Gap":          {Group: 1, Entries: Entries(8, 9, 2)},
		"OutOfOrder":   {Group: 1, Entries: append(Entries(6, 6, 2), Entries(8, 8, 2)...)},
		"TermGoesBack": {Group: 1, Entries: append(Entries(6, 6, 3), Entries(7, 7, 2)...)},
		"CommitBeyond": {Group: 1, HardState: Hard(2, 0, 6)},
		"NoSuchGroup":  {Group: 9, Entries: Entries(2, 2, 1)},
	} {
		t.Run("Refuses"+name, func(t *testing.T) {
			s := open(t)
			l := Make(t, s, 1)
			must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 5, 1), HardState: Hard(1, 1, 1)}}))
			err := s.Write([]logstore.Write{w})
			if err == nil {
				t.Fatal("accepted")
			}
			if again := s.Write([]logstore.Write{{Group: 1, Entries: Entries(6, 6, 1)}}); again == nil {
				t.Fatal("a store that refused a write must refuse what follows")
			}
			expect(t, l, 2, 5)
			_ = s.Close() // repeats the failure
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Entries makes entries from ≤ index ≤ to of a term; their data says which they are.
func Entries(from, to, term uint64) (es []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		es = append(es, Entry(i, term, fmt.Sprintf("%d.%d", term, i)))
	}
	return es
}

// Entry makes a normal entry.
func Entry(index, term uint64, data string) *raftpb.Entry {
	return &raftpb.Entry{Index: proto.Uint64(index), Term: proto.Uint64(term),
		Type: raftpb.EntryNormal.Enum(), Data: []byte(data)}
}

// Hard makes a hard state.
func Hard(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: proto.Uint64(term), Vote: proto.Uint64(vote), Commit: proto.Uint64(commit)}
}

// Meta makes a snapshot position with these voters.
func Meta(index, term uint64, voters ...uint64) *raftpb.SnapshotMetadata {
	return &raftpb.SnapshotMetadata{Index: proto.Uint64(index), Term: proto.Uint64(term),
		ConfState: &raftpb.ConfState{Voters: voters}}
}

// Make creates a group's log that starts after index 1 of term 1.
func Make(t *testing.T, s logstore.Store, group uint64) logstore.Log {
	t.Helper()
	l, err := s.Create(group, Meta(1, 1, 1, 2, 3))
	must(t, err)
	return l
}

func bounds(t *testing.T, l logstore.Log, first, last uint64) {
	t.Helper()
	f, err := l.FirstIndex()
	must(t, err)
	e, err := l.LastIndex()
	must(t, err)
	if f != first || e != last {
		t.Fatalf("log from %d to %d, want %d to %d", f, e, first, last)
	}
}

// expect checks that the log holds exactly first ≤ index ≤ last, each readable with its term.
func expect(t *testing.T, l logstore.Log, first, last uint64) []*raftpb.Entry {
	t.Helper()
	bounds(t, l, first, last)
	if first > last {
		return nil
	}
	es, err := l.Entries(first, last+1, math.MaxUint64)
	must(t, err)
	if len(es) != int(last-first+1) {
		t.Fatalf("%d entries, want %d to %d", len(es), first, last)
	}
	for i, e := range es {
		term, err := l.Term(e.GetIndex())
		must(t, err)
		if e.GetIndex() != first+uint64(i) || e.GetTerm() != term {
			t.Fatalf("entry %d is %v; Term says %d", first+uint64(i), e, term)
		}
	}
	return es
}

func data(es []*raftpb.Entry) (out []string) {
	for _, e := range es {
		out = append(out, string(e.GetData()))
	}
	return out
}

func create(t *testing.T, s logstore.Store) {
	if _, found, err := s.Log(7); found || err != nil {
		t.Fatalf("found %v, error %v in an empty store", found, err)
	}
	l, err := s.Create(7, Meta(5, 2, 1, 2))
	must(t, err)
	bounds(t, l, 6, 5)
	if term, err := l.Term(5); term != 2 || err != nil {
		t.Fatalf("term of the start: %d, %v", term, err)
	}
	hs, cs, err := l.InitialState()
	must(t, err)
	if !proto.Equal(hs, Hard(2, 0, 5)) || !slices.Equal(cs.GetVoters(), []uint64{1, 2}) {
		t.Fatalf("initial state %v %v", hs, cs)
	}
	snap, err := l.Snapshot()
	must(t, err)
	if m := snap.GetMetadata(); m.GetIndex() != 5 || m.GetTerm() != 2 || !slices.Equal(m.GetConfState().GetVoters(), []uint64{1, 2}) {
		t.Fatalf("snapshot %v", snap)
	}
	if _, err := s.Create(7, Meta(5, 2)); err == nil {
		t.Fatal("created twice")
	}
	if _, found, err := s.Log(7); !found || err != nil {
		t.Fatalf("found %v, error %v", found, err)
	}
}

// createFromNothing is a replica that joins: it may vote, and then raft gives it entries or a snapshot.
func createFromNothing(t *testing.T, s logstore.Store) {
	l, err := s.Create(7, &raftpb.SnapshotMetadata{})
	must(t, err)
	bounds(t, l, 1, 0)
	hs, cs, err := l.InitialState()
	must(t, err)
	if !raft.IsEmptyHardState(hs) || cs == nil || len(cs.GetVoters()) > 0 {
		t.Fatalf("initial state %v %v", hs, cs)
	}
	if term, err := l.Term(0); term != 0 || err != nil {
		t.Fatalf("term of nothing: %d, %v", term, err)
	}
	must(t, s.Write([]logstore.Write{{Group: 7, HardState: Hard(3, 2, 0)}}))
	must(t, s.Write([]logstore.Write{{Group: 7, Entries: Entries(1, 3, 3)}}))
	expect(t, l, 1, 3)
	must(t, s.Write([]logstore.Write{{Group: 7, Snapshot: Meta(20, 3, 1)}}))
	bounds(t, l, 21, 20)
}

func appendAndRead(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 4, 1), HardState: Hard(1, 2, 1)}}))
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(5, 6, 3), HardState: Hard(3, 1, 4)}}))
	must(t, s.Write([]logstore.Write{{Group: 1, HardState: Hard(4, 0, 5)}}))
	must(t, s.Write([]logstore.Write{{Group: 1}}))
	if got := data(expect(t, l, 2, 6)); !slices.Equal(got, []string{"1.2", "1.3", "1.4", "3.5", "3.6"}) {
		t.Fatalf("read %q", got)
	}
	hs, _, err := l.InitialState()
	must(t, err)
	if !proto.Equal(hs, Hard(4, 0, 5)) {
		t.Fatalf("hard state %v", hs)
	}
	es, err := l.Entries(3, 6, math.MaxUint64)
	must(t, err)
	if got := data(es); !slices.Equal(got, []string{"1.3", "1.4", "3.5"}) {
		t.Fatalf("read %q", got)
	}
	_ = append(es, Entry(99, 99, "mine"))
	es[0] = nil // the slice is the caller's
	expect(t, l, 2, 6)
	// Entries below the log's start are left out, as raft.MemoryStorage does.
	must(t, s.Compact(1, 3))
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 4, 1)}}))
	if got := data(expect(t, l, 4, 4)); !slices.Equal(got, []string{"1.4"}) {
		t.Fatalf("read %q", got)
	}
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 3, 1)}}))
	expect(t, l, 4, 4)
}

func sizeLimit(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	es := Entries(2, 9, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: es, HardState: Hard(1, 0, 1)}}))
	one := uint64(proto.Size(es[0]))
	for _, c := range []struct {
		max  uint64
		want int
	}{{0, 1}, {1, 1}, {one, 1}, {2*one - 1, 1}, {2 * one, 2}, {5*one + 1, 5}, {8 * one, 8}, {math.MaxUint64, 8}} {
		got, err := l.Entries(2, 10, c.max)
		must(t, err)
		if len(got) != c.want {
			t.Errorf("limit %d: %d entries, want %d", c.max, len(got), c.want)
		}
	}
}

func conflictingTail(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 9, 1), HardState: Hard(1, 0, 3)}}))
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(5, 6, 2), HardState: Hard(2, 0, 3)}}))
	if got := data(expect(t, l, 2, 6)); !slices.Equal(got, []string{"1.2", "1.3", "1.4", "2.5", "2.6"}) {
		t.Fatalf("read %q", got)
	}
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 12, 3), HardState: Hard(3, 0, 3)}}))
	expect(t, l, 2, 12)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(12, 12, 4), HardState: Hard(4, 0, 3)}}))
	if got := data(expect(t, l, 2, 12)); got[0] != "3.2" || got[9] != "3.11" || got[10] != "4.12" {
		t.Fatalf("read %q", got)
	}
}

func compact(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: append(Entries(2, 5, 1), Entries(6, 9, 2)...), HardState: Hard(2, 0, 8)}}))
	before := l.Bytes(2)
	must(t, s.Compact(1, 1))
	expect(t, l, 2, 9)
	must(t, s.Compact(1, 5))
	expect(t, l, 6, 9)
	must(t, s.Compact(1, 3))
	expect(t, l, 6, 9)
	if term, err := l.Term(5); term != 1 || err != nil {
		t.Fatalf("term of the start: %d, %v", term, err)
	}
	if after := l.Bytes(6); after == 0 || after >= before {
		t.Fatalf("%d bytes before, %d after", before, after)
	}
	if a, b := l.Bytes(0), l.Bytes(6); a != b {
		t.Fatalf("bytes below the start are %d, from it %d", a, b)
	}
	if n := l.Bytes(10); n != 0 {
		t.Fatalf("%d bytes behind the end", n)
	}
	if err := s.Compact(1, 10); err == nil {
		t.Fatal("compacted beyond the end")
	}
	must(t, s.Compact(1, 9))
	bounds(t, l, 10, 9)
	if term, err := l.Term(9); term != 2 || err != nil {
		t.Fatalf("term of the start: %d, %v", term, err)
	}
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(10, 11, 2)}}))
	expect(t, l, 10, 11)
}

func snapshotResets(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 9, 1), HardState: Hard(1, 1, 8)}}))
	must(t, s.SetConfState(1, 8, &raftpb.ConfState{Voters: []uint64{9}}))
	must(t, s.Write([]logstore.Write{{Group: 1, Snapshot: Meta(20, 4, 1, 2), Entries: Entries(21, 22, 4), HardState: Hard(4, 0, 20)}}))
	expect(t, l, 21, 22)
	if _, err := l.Term(19); err != raft.ErrCompacted {
		t.Fatalf("term below the start: %v", err)
	}
	_, cs, err := l.InitialState()
	must(t, err)
	if !slices.Equal(cs.GetVoters(), []uint64{1, 2}) {
		t.Fatalf("configuration %v", cs)
	}
	// A repair resets the log without a hard state: what the snapshot covers is committed.
	must(t, s.Write([]logstore.Write{{Group: 1, Snapshot: Meta(30, 5, 1, 2)}}))
	bounds(t, l, 31, 30)
	hs, _, err := l.InitialState()
	must(t, err)
	if !proto.Equal(hs, Hard(5, 0, 30)) {
		t.Fatalf("hard state %v", hs)
	}
}

func manyGroups(t *testing.T, s logstore.Store) {
	var writes []logstore.Write
	for g := uint64(1); g <= 50; g++ {
		Make(t, s, g*3)
		writes = append(writes, logstore.Write{Group: g * 3, Entries: Entries(2, 1+g, 1), HardState: Hard(1, g, 1)})
	}
	must(t, s.Write(writes))
	ids, err := s.Groups()
	must(t, err)
	if len(ids) != 50 || !slices.IsSorted(ids) || ids[0] != 3 {
		t.Fatalf("groups %v", ids)
	}
	for g := uint64(1); g <= 50; g++ {
		l, _, err := s.Log(g * 3)
		must(t, err)
		expect(t, l, 2, 1+g)
		hs, _, err := l.InitialState()
		must(t, err)
		if hs.GetVote() != g {
			t.Fatalf("group %d: hard state %v", g, hs)
		}
	}
}

func oneGroupTwice(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	must(t, s.Write([]logstore.Write{
		{Group: 1, Entries: Entries(2, 6, 1), HardState: Hard(1, 1, 1)},
		{Group: 1, Entries: Entries(4, 4, 2), HardState: Hard(2, 2, 2)},
		{Group: 1, Entries: Entries(5, 5, 2), HardState: Hard(2, 2, 4)},
	}))
	if got := data(expect(t, l, 2, 5)); !slices.Equal(got, []string{"1.2", "1.3", "2.4", "2.5"}) {
		t.Fatalf("read %q", got)
	}
}

func configuration(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 9, 1), HardState: Hard(1, 1, 8)}}))
	want := &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{7}, VotersOutgoing: []uint64{1}, AutoLeave: proto.Bool(true)}
	given := proto.CloneOf(want)
	must(t, s.SetConfState(1, 6, given))
	given.Voters[0] = 99
	_, cs, err := l.InitialState()
	must(t, err)
	if !proto.Equal(cs, want) {
		t.Fatalf("configuration %v", cs)
	}
	snap, err := l.Snapshot()
	must(t, err)
	if m := snap.GetMetadata(); m.GetIndex() != 6 || m.GetTerm() != 1 || !proto.Equal(m.GetConfState(), want) {
		t.Fatalf("snapshot %v", snap)
	}
	must(t, s.Compact(1, 8))
	snap, err = l.Snapshot()
	must(t, err)
	if m := snap.GetMetadata(); m.GetIndex() != 8 || !proto.Equal(m.GetConfState(), want) {
		t.Fatalf("snapshot %v", snap)
	}
	if err := s.SetConfState(5, 1, want); err == nil {
		t.Fatal("configuration of no group")
	}
}

func remove(t *testing.T, s logstore.Store) {
	old := Make(t, s, 1)
	other := Make(t, s, 2)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 9, 1), HardState: Hard(1, 3, 1)},
		{Group: 2, Entries: Entries(2, 3, 1), HardState: Hard(1, 0, 1)}}))
	must(t, s.Remove(1))
	must(t, s.Remove(1))
	if _, found, err := s.Log(1); found || err != nil {
		t.Fatalf("found %v, error %v", found, err)
	}
	if _, err := old.Entries(2, 5, math.MaxUint64); err == nil {
		t.Fatal("a removed log is read")
	}
	expect(t, other, 2, 3)
	l := Make(t, s, 1)
	bounds(t, l, 2, 1)
	hs, _, err := l.InitialState()
	must(t, err)
	if hs.GetVote() != 0 {
		t.Fatalf("vote of the removed log: %v", hs)
	}
}

// condemn: a log that was condemned is not handed out again until it was removed; what runs on it comes to its end.
func condemn(t *testing.T, s logstore.Store) {
	why := fmt.Errorf("read: %w", logstore.ErrDamaged)
	s.Condemn(1, why) // there is none
	old := Make(t, s, 1)
	other := Make(t, s, 2)
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(2, 5, 1), HardState: Hard(1, 3, 1)},
		{Group: 2, Entries: Entries(2, 3, 1), HardState: Hard(1, 0, 1)}}))
	s.Condemn(1, why)
	if _, found, err := s.Log(1); !found || !errors.Is(err, logstore.ErrDamaged) {
		t.Fatalf("found %v, error %v", found, err)
	}
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: Entries(6, 6, 1), HardState: Hard(1, 3, 1)},
		{Group: 2, Entries: Entries(4, 4, 1), HardState: Hard(1, 0, 1)}}))
	expect(t, old, 2, 6)
	expect(t, other, 2, 4)
	if all, err := s.Groups(); err != nil || !slices.Equal(all, []uint64{1, 2}) {
		t.Fatalf("groups %v, %v", all, err)
	}
	must(t, s.Remove(1))
	if _, found, err := s.Log(1); found || err != nil {
		t.Fatalf("removed: found %v, error %v", found, err)
	}
	bounds(t, Make(t, s, 1), 2, 1)
}

// likeRaft compares every answer and error at the edges with raft's own storage.
func likeRaft(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	m := raft.NewMemoryStorage()
	must(t, m.ApplySnapshot(&raftpb.Snapshot{Metadata: Meta(1, 1, 1, 2, 3)}))
	same := func(when string) {
		t.Helper()
		for i := uint64(0); i < 14; i++ {
			a, aerr := l.Term(i)
			b, berr := m.Term(i)
			if a != b || !errors.Is(aerr, berr) {
				t.Fatalf("%s: term of %d: %d %v, raft's storage %d %v", when, i, a, aerr, b, berr)
			}
		}
		last, err := m.LastIndex()
		must(t, err)
		for lo := uint64(0); lo <= last; lo++ {
			for hi := lo; hi <= last+1; hi++ {
				a, aerr := l.Entries(lo, hi, 40)
				b, berr := m.Entries(lo, hi, 40)
				if !errors.Is(aerr, berr) || !slices.Equal(data(a), data(b)) {
					t.Fatalf("%s: entries %d to %d: %q %v, raft's storage %q %v", when, lo, hi, data(a), aerr, data(b), berr)
				}
			}
		}
		if _, err := l.Entries(last, last+2, 40); last > 1 && err != raft.ErrUnavailable && err != raft.ErrCompacted {
			t.Fatalf("%s: entries behind the end: %v", when, err)
		}
	}
	same("empty")
	write := func(es []*raftpb.Entry) {
		must(t, s.Write([]logstore.Write{{Group: 1, Entries: es, HardState: Hard(9, 0, 1)}}))
		must(t, m.Append(es))
	}
	write(Entries(2, 10, 1))
	same("appended")
	write(Entries(6, 8, 2))
	same("overwritten")
	must(t, s.Compact(1, 4))
	must(t, m.Compact(4))
	same("compacted")
	must(t, s.Compact(1, 8))
	must(t, m.Compact(8))
	same("compacted to the end")
	write(Entries(9, 12, 4))
	same("appended again")
}

func roundTrip(t *testing.T, s logstore.Store) {
	l := Make(t, s, 1)
	es := []*raftpb.Entry{
		{Index: proto.Uint64(2), Term: proto.Uint64(1)},
		{Index: proto.Uint64(3), Term: proto.Uint64(1), Data: []byte{}},
		{Index: proto.Uint64(4), Term: proto.Uint64(1 << 40), Type: raftpb.EntryConfChange.Enum(), Data: []byte{0}},
		{Index: proto.Uint64(5), Term: proto.Uint64(1 << 40), Type: raftpb.EntryConfChangeV2.Enum()},
		{Index: proto.Uint64(6), Term: proto.Uint64(1 << 62), Type: raftpb.EntryNormal.Enum(), Data: make([]byte, 1<<20)},
	}
	must(t, s.Write([]logstore.Write{{Group: 1, Entries: es, HardState: Hard(1<<62, 1<<63, 1)}}))
	for i, e := range expect(t, l, 2, 6) {
		if !proto.Equal(e, es[i]) {
			t.Fatalf("entry %d changed", i)
		}
	}
}

// concurrent reads two logs while they are appended to, overwritten and compacted: a reader sees a log as it
// was at some time, whole and without gaps.
func concurrent(t *testing.T, s logstore.Store) {
	logs := []logstore.Log{Make(t, s, 1), Make(t, s, 2)}
	done := make(chan struct{})
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = readUntil(done, logs[i%2]) })
	}
	next, term := uint64(2), uint64(1)
	for i := uint64(0); i < 400; i++ {
		if i%5 == 4 && next > 8 {
			next, term = next-6, term+1 // overwrite six by four
		}
		commit := next - 1
		var ws []logstore.Write
		for g := uint64(1); g <= 2; g++ {
			ws = append(ws, logstore.Write{Group: g, Entries: Entries(next, next+3, term), HardState: Hard(term, 0, commit)})
		}
		must(t, s.Write(ws))
		next += 4
		if i%7 == 6 && commit > 60 {
			must(t, s.Compact(1+i%2, commit-50))
		}
	}
	close(done)
	wg.Wait()
	must(t, errors.Join(errs...))
}

func readUntil(done <-chan struct{}, l logstore.Log) error {
	for {
		select {
		case <-done:
			return nil
		default:
		}
		first, err := l.FirstIndex()
		if err != nil {
			return err
		}
		last, err := l.LastIndex()
		if err != nil {
			return err
		}
		es, err := l.Entries(first, last+1, math.MaxUint64)
		if errors.Is(err, raft.ErrCompacted) || errors.Is(err, raft.ErrUnavailable) {
			continue // the log moved on in between
		}
		if err != nil {
			return err
		}
		for i, e := range es {
			if e.GetIndex() != first+uint64(i) || i > 0 && e.GetTerm() < es[i-1].GetTerm() {
				return fmt.Errorf("entry %d of term %d at place %d from %d", e.GetIndex(), e.GetTerm(), i, first)
			}
			if want := fmt.Sprintf("%d.%d", e.GetTerm(), e.GetIndex()); string(e.GetData()) != want {
				return fmt.Errorf("entry %s holds %q", want, e.GetData())
			}
		}
	}
}
