package logstore

import (
	"bytes"
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// sampleFrame is a batch with a section of every kind.
func sampleFrame(flags byte) []byte {
	conf, err := marshalConf(&raftpb.ConfState{Voters: []uint64{1, 2}})
	if err != nil {
		panic(err)
	}
	var b builder
	b.reset(census{{7, 2}}.encode(nil))
	b.owner(Owner{Cluster: [16]byte{1, 2, 3}, Node: 4})
	b.segments([]sealedSegment{{1, 2, 3}})
	b.state(7, &groupState{hard: hardState{3, 2, 9}, start: 4, startTerm: 1, confIndex: 4, conf: conf, pieces: []piece{{1, 5, 9}}})
	at := b.open(secWrite, 7)
	b.buf = append(b.buf, hasSnapshot|hasHard|isCreate)
	b.numbers(4, 1)
	b.bytes(conf)
	b.numbers(3, 2, 4, 5, 2)
	for _, e := range []*raftpb.Entry{{Term: proto.Uint64(2), Data: []byte("x")}, {Term: proto.Uint64(3), Type: raftpb.EntryConfChangeV2.Enum()}} {
		b.entry(e)
	}
	b.close(at, 7)
	b.conf(7, 5, conf)
	b.compact(7, 5, 2)
	b.close(b.open(secRemove, 8), 8)
	frame := padded(&b)
	h := header{length: uint32(len(b.buf)), flags: flags, blocks: 8, census: uint32(b.start - headerSize), sections: b.sections, store: 1, segment: 1, number: 3, synced: 2}
	h.put(frame)
	return frame
}

// FuzzFrame reads any bytes as a frame. One that checks comes out the same when it is written again.
func FuzzFrame(f *testing.F) {
	f.Add(sampleFrame(flagHead))
	f.Add(sampleFrame(0)[:headerSize])
	f.Fuzz(func(t *testing.T, data []byte) {
		h, body, err := parseFrame(data)
		if err != nil {
			if !errors.Is(err, errNoFrame) && !errors.Is(err, errBadBody) && !errors.Is(err, errNewLevel) {
				t.Fatal(err)
			}
			return
		}
		again := append(make([]byte, headerSize), body...)
		h.put(again)
		if !bytes.Equal(again, data[:h.length]) {
			t.Fatalf("%x became %x", data[:h.length], again)
		}
	})
}

// FuzzBody goes past the checksums: any bytes as the body of a frame, as a section's, as a census, as a segment.
func FuzzBody(f *testing.F) {
	frame := sampleFrame(flagHead)
	h, body, err := parseFrame(frame)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body, h.census, true)
	f.Add(frame, uint32(0), false)
	for at := int(h.census); at < len(body); {
		s, err := nextSection(body, at)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(s.body, uint32(0), false)
		at += s.size
	}
	f.Fuzz(func(t *testing.T, data []byte, split uint32, resum bool) {
		if c, err := decodeCensus(data); err == nil {
			if twice, err := decodeCensus(c.encode(nil)); err != nil || len(twice) > len(c) {
				t.Fatalf("census %v, %v", twice, err)
			}
		}
		fuzzSection(t, data)
		if resum {
			data = resummed(bytes.Clone(data), int(split))
		}
		fr := &found{header: header{length: uint32(headerSize + len(data)), census: min(split, uint32(len(data))), number: 2}, body: data}
		r := newReplay()
		r.nameOf = func(uint64) string { return "" }
		fr.each(func(s section) { r.apply(fr, s) })
		_ = fr.about()
		_ = fr.overhead()
		if d := fr.describe(); d.Batch != 2 {
			t.Fatalf("%+v", d)
		}
	})
}

// resummed gives every section in data the checksum that it should have, so that more of them are read.
func resummed(data []byte, at int) []byte {
	for at >= 0 && len(data)-at >= sectionHead {
		n := int(uint32(data[at+4]) | uint32(data[at+5])<<8 | uint32(data[at+6])<<16 | uint32(data[at+7])<<24)
		if n > len(data)-at-sectionHead {
			break
		}
		sum := crcOf(data[at+4 : at+sectionHead+n])
		data[at], data[at+1], data[at+2], data[at+3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		at += sectionHead + n
	}
	return data
}

// fuzzSection reads data as the body of each kind of section; what is read comes out the same when it is written again.
func fuzzSection(t *testing.T, data []byte) {
	if st, err := parseState(data); err == nil {
		var b builder
		b.reset(nil)
		b.state(1, &st)
		again, err := parseState(b.buf[b.start+sectionHead+2:])
		if err != nil || again.last != st.last || again.hard != st.hard || !bytes.Equal(again.conf, st.conf) {
			t.Fatalf("state %+v became %+v, %v", st, again, err)
		}
	}
	if list, err := parseSegments(data); err == nil {
		var b builder
		b.reset(nil)
		b.segments(list)
		if again, err := parseSegments(b.buf[b.start+sectionHead+2:]); err != nil || len(again) != len(list) {
			t.Fatalf("segments %v became %v, %v", list, again, err)
		}
	}
	if o, err := parseOwner(data); err == nil {
		var b builder
		b.reset(nil)
		b.owner(o)
		if again, err := parseOwner(b.buf[b.start+sectionHead+2:]); err != nil || again != o {
			t.Fatalf("owner %v became %v, %v", o, again, err)
		}
	}
	w, err := parseWrite(data)
	if err != nil {
		return
	}
	n := uint64(0)
	err = w.each(func(e storedEntry) error {
		if e.index != w.first+n {
			t.Fatalf("entry %d, want %d", e.index, w.first+n)
		}
		if got := e.entry(); got.GetIndex() != e.index || got.GetTerm() != e.term || !bytes.Equal(got.Data, e.data) {
			t.Fatalf("entry %v of %+v", got, e)
		}
		n++
		return nil
	})
	if err == nil && n != w.count {
		t.Fatalf("%d entries of %d", n, w.count)
	}
}
