package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"reflect"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

func TestWireRoundTrips(t *testing.T) {
	p := core.Proposal{Ack: core.AckAll, Client: [16]byte{1, 2}, Seq: 7, Floor: 5, Payload: []byte("payload")}
	for _, p.Engine = range []bool{false, true} {
		group, q, err := decodePropose(encodePropose(9, p))
		if err != nil || group != 9 || !reflect.DeepEqual(q, p) {
			t.Errorf("proposal: %d %+v %v", group, q, err)
		}
	}
	a := served{core.Answer{Code: core.CommittedAll, Position: core.Position{Term: 3, Index: 4}, Place: 5, Set: 6,
		Missing: []uint64{7, 8}, Result: []byte("r")}, 11, [16]byte{12, 15: 13}}
	b, err := decodeAnswer(a.encode())
	if err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("answer: %+v %v", b, err)
	}
	bad := encodePropose(9, p)
	bad[8] = 200
	if _, _, err := decodePropose(bad); err == nil {
		t.Error("an unknown ack was taken")
	}
}

func FuzzWire(f *testing.F) {
	f.Add(encodePropose(1, core.Proposal{Seq: 1, Payload: []byte("x")}))
	f.Add(served{Answer: core.Answer{Code: core.Committed}, node: 1}.encode())
	f.Add(append(make([]byte, 16), 3, 8, 1, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		if group, p, err := decodePropose(b); err == nil && !bytes.Equal(encodePropose(group, p), b) {
			t.Errorf("proposal changes when encoded again: %x", b)
		}
		if a, err := decodeAnswer(b); err == nil && !bytes.Equal(a.encode(), b) {
			t.Errorf("answer changes when encoded again: %x", b)
		}
		if n, entries, err := decodeEntries(b); err == nil {
			again, err := encodeEntries(n, entries)
			if err != nil {
				t.Fatal(err)
			}
			if m, twice, err := decodeEntries(again); err != nil || m != n || len(twice) != len(entries) {
				t.Errorf("entries change when encoded again: %x", b)
			}
		}
		if applied, durable, err := decodeAck(b); err == nil && !bytes.Equal(encodeAck(applied, durable), b) {
			t.Errorf("acknowledgement changes when encoded again: %x", b)
		}
		if _, body, err := readFrame(bytes.NewReader(b), 1<<20); err == nil && len(body) > len(b) {
			t.Errorf("a frame longer than what came: %x", b)
		}
		var h hello
		_ = readJSON(bytes.NewReader(b), &h) // must not panic
	})
}

// TestALostLogIsDamage: a replica whose log vanished may have voted and acknowledged what it no longer knows.
func TestALostLogIsDamage(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	s := members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	a, err := s.Propose(ctx, core.AckQuorum, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := members[2].group.WaitApplied(ctx, a.Position.Index); err != nil {
		t.Fatal(err)
	}
	m.kill(2)
	e := Open(Config{
		Node: 2, Logs: logstore.NewMemory(), State: members[2].state, Transport: port{m, 2}, Now: time.Now,
		Log: members[1].engine.cfg.Log, Fault: func(err error) { t.Error(err) },
	})
	defer e.Close()
	if _, err := e.StartGroup(GroupConfig{ID: testGroup, Replica: 2, Machine: counter{}, Initial: []uint64{1, 2, 3}}); err == nil {
		t.Fatal("a replica started with its state but without its log")
	}
}

func TestReplayShowsWhatWasProposed(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, members := cluster(t, 1)
	s := members[1].engine.NewSession(testGroup, voters{1}, [16]byte{1})
	var from, to uint64
	for i := range 10 {
		a, err := s.Propose(ctx, core.AckQuorum, binary.BigEndian.AppendUint32(nil, uint32(i)))
		if err != nil {
			t.Fatal(err)
		}
		if i == 4 {
			from = a.Position.Index
		}
		to = a.Position.Index
	}
	want := uint32(5)
	err := members[1].group.Replay(ctx, from, to, func(_ uint64, payload []byte) error {
		if got := binary.BigEndian.Uint32(payload); got != want {
			t.Errorf("replayed %d, want %d", got, want)
		}
		want++
		return nil
	})
	if err != nil || want != 10 {
		t.Fatalf("replayed up to %d: %v", want, err)
	}
}
