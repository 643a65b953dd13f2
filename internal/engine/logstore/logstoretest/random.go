package logstoretest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// Op is one call that changes a store.
type Op struct {
	Write   []logstore.Write
	Create  *raftpb.SnapshotMetadata
	Compact uint64
	Conf    *raftpb.ConfState
	Remove  bool

	Group, Index uint64 // for all but Write
}

// Do carries the call out.
func (o Op) Do(s logstore.Store) error {
	switch {
	case o.Write != nil:
		return s.Write(o.Write)
	case o.Create != nil:
		_, err := s.Create(o.Group, o.Create)
		return err
	case o.Compact > 0:
		return s.Compact(o.Group, o.Compact)
	case o.Conf != nil:
		return s.SetConfState(o.Group, o.Index, o.Conf)
	case o.Remove:
		return s.Remove(o.Group)
	}
	return nil
}

// Next makes a call that raft might make on a store in the state of s: few groups, often one of them twice,
// entries that overwrite what is not committed, compaction below the commit index, resets to snapshots.
func Next(rng *rand.Rand, s logstore.Store) (Op, error) {
	group := 1 + rng.Uint64N(4)
	l, found, err := s.Log(group)
	if err != nil {
		return Op{}, err
	}
	if !found {
		start := rng.Uint64N(20)
		return Op{Group: group, Create: Meta(start, min(start, 1), 1, 2, 3)}, nil
	}
	v, err := look(l)
	if err != nil {
		return Op{}, err
	}
	switch rng.IntN(20) {
	case 0:
		if rng.IntN(4) == 0 {
			return Op{Group: group, Remove: true}, nil
		}
		return Op{Group: group, Index: v.commit, Conf: &raftpb.ConfState{Voters: []uint64{rng.Uint64N(9) + 1}}}, nil
	case 1, 2, 3:
		if v.commit >= v.first {
			return Op{Group: group, Compact: v.first + rng.Uint64N(v.commit-v.first+1)}, nil
		}
	}
	op := Op{}
	for range 1 + rng.IntN(3) {
		op.Write = append(op.Write, v.write(rng, group))
	}
	return op, nil
}

// view is what matters of a log to go on with it.
type view struct{ first, last, term, vote, commit uint64 }

func look(l logstore.Log) (v view, err error) {
	hs, _, err := l.InitialState()
	if err != nil {
		return v, err
	}
	if v.first, err = l.FirstIndex(); err != nil {
		return v, err
	}
	v.last, err = l.LastIndex()
	v.term, v.vote, v.commit = hs.GetTerm(), hs.GetVote(), hs.GetCommit()
	return v, err
}

func (v *view) write(rng *rand.Rand, group uint64) logstore.Write {
	w := logstore.Write{Group: group}
	if rng.IntN(30) == 0 {
		v.term++
		at := v.commit + 1 + rng.Uint64N(v.last-v.commit+10) // may be below a tail that conflicts with it
		w.Snapshot = Meta(at, v.term, 1, 2, 3, at)
		v.first, v.last, v.commit = at+1, at, at
	}
	from := v.last + 1
	if rng.IntN(5) == 0 {
		v.term++
		v.vote = rng.Uint64N(4)
		from = v.commit + 1 + rng.Uint64N(v.last-v.commit+1)
	}
	v.term = max(v.term, 1)
	n := rng.Uint64N(5)
	for i := range n {
		data := strings.Repeat("x", rng.IntN(300))
		w.Entries = append(w.Entries, Entry(from+i, v.term, fmt.Sprintf("%d.%d.%s", v.term, from+i, data)))
	}
	if n > 0 {
		v.last = from + n - 1
	}
	v.commit += rng.Uint64N(v.last - v.commit + 1)
	w.HardState = Hard(v.term, v.vote, v.commit)
	return w
}

// Dump describes everything that can be read from a store, group by group.
func Dump(s logstore.Store) (string, error) {
	ids, err := s.Groups()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, id := range ids {
		l, found, err := s.Log(id)
		if err != nil || !found {
			return "", fmt.Errorf("group %d: found %v: %w", id, found, err)
		}
		if err := dumpLog(&b, id, l); err != nil {
			return "", fmt.Errorf("group %d: %w", id, err)
		}
	}
	return b.String(), nil
}

// DumpLog describes everything that can be read from one log.
func DumpLog(id uint64, l logstore.Log) (string, error) {
	var b strings.Builder
	err := dumpLog(&b, id, l)
	return b.String(), err
}

func dumpLog(b *strings.Builder, id uint64, l logstore.Log) error {
	v, err := look(l)
	if err != nil {
		return err
	}
	_, cs, err := l.InitialState()
	if err != nil {
		return err
	}
	conf, err := proto.MarshalOptions{Deterministic: true}.Marshal(cs)
	if err != nil {
		return err
	}
	snap, err := l.Snapshot()
	if err != nil {
		return err
	}
	start, err := l.Term(v.first - 1)
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "group %d: %+v, start term %d, conf %x, snapshot %d term %d\n", id, v, start, conf,
		snap.GetMetadata().GetIndex(), snap.GetMetadata().GetTerm())
	if v.last < v.first {
		return nil
	}
	es, err := l.Entries(v.first, v.last+1, math.MaxUint64)
	if err != nil {
		return err
	}
	for _, e := range es {
		term, err := l.Term(e.GetIndex())
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "  %d term %d (%d) %q\n", e.GetIndex(), e.GetTerm(), term, e.GetData())
	}
	return nil
}
