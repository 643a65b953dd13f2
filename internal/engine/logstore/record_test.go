package logstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func FuzzDecodeEntry(f *testing.F) {
	for _, e := range []*raftpb.Entry{
		{Index: proto.Uint64(1), Term: proto.Uint64(1)},
		{Index: proto.Uint64(1 << 40), Term: proto.Uint64(1 << 50), Type: raftpb.EntryConfChangeV2.Enum(), Data: []byte("data")},
	} {
		key, value := entryKey(7, e.GetIndex()), make([]byte, entryValueLen(e))
		putEntry(key, value, e)
		f.Add(key, value, true)
		f.Add(key, value[4:], false)
	}
	f.Fuzz(func(t *testing.T, key, value []byte, seal bool) {
		if seal && len(value) >= 4 { // reach the fields behind the checksum
			value = sealed(key, value[4:])
		}
		e, err := decodeEntry(key, value)
		if err != nil {
			if !errors.Is(err, errRecord) {
				t.Fatalf("error %v", err)
			}
			return
		}
		again := make([]byte, entryValueLen(e))
		putEntry(key, again, e)
		back, err := decodeEntry(key, again)
		if err != nil || !proto.Equal(back, e) {
			t.Fatalf("%v came back as %v, %v", e, back, err)
		}
	})
}

func FuzzDecodeGroupRecords(f *testing.F) {
	conf, err := encodeConf(groupKey(1, kindConf), 9, &raftpb.ConfState{Voters: []uint64{1, 2}, AutoLeave: proto.Bool(true)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(conf[4:])
	f.Add(encodeHard(groupKey(1, kindHard), hardState{1, 2, 3})[4:])
	f.Add(encodeStart(groupKey(1, kindStart), 1<<63, 5)[4:])
	f.Fuzz(func(t *testing.T, body []byte) {
		key := groupKey(1, kindStart)
		value := sealed(key, body)
		if index, term, err := decodeStart(key, value); err == nil {
			if i, u, err := decodeStart(key, encodeStart(key, index, term)); err != nil || i != index || u != term {
				t.Fatalf("start %d %d came back as %d %d, %v", index, term, i, u, err)
			}
		}
		if h, err := decodeHard(key, value); err == nil {
			if g, err := decodeHard(key, encodeHard(key, h)); err != nil || g != h {
				t.Fatalf("hard state %+v came back as %+v, %v", h, g, err)
			}
		}
		if index, cs, err := decodeConf(key, value); err == nil {
			v, err := encodeConf(key, index, cs)
			if err != nil {
				t.Fatal(err)
			}
			if i, back, err := decodeConf(key, v); err != nil || i != index || !proto.Equal(back, cs) {
				t.Fatalf("configuration %d %v came back as %d %v, %v", index, cs, i, back, err)
			}
		}
		for i := range value { // any altered byte is found
			value[i] ^= 0x10
			if _, _, err := decodeStart(key, value); !errors.Is(err, errRecord) {
				t.Fatalf("byte %d altered: %v", i, err)
			}
			value[i] ^= 0x10
		}
	})
}

func TestEntryBelongsToItsKey(t *testing.T) {
	e := &raftpb.Entry{Index: proto.Uint64(5), Term: proto.Uint64(1), Data: []byte("x")}
	value := make([]byte, entryValueLen(e))
	putEntry(entryKey(1, 5), value, e)
	for _, key := range [][]byte{entryKey(1, 6), entryKey(2, 5), entryKey(1, 5)[:16]} {
		if _, err := decodeEntry(key, value); !errors.Is(err, errRecord) {
			t.Errorf("under %x: %v", key, err)
		}
	}
	got, err := decodeEntry(entryKey(1, 5), value)
	if err != nil || !proto.Equal(got, e) {
		t.Fatalf("%v, %v", got, err)
	}
	clear(value)
	if !bytes.Equal(got.Data, []byte("x")) {
		t.Fatal("an entry shares the record's memory")
	}
}

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
