package engine

import (
	"bytes"
	"reflect"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture reads what engines say to each other as version 1 wrote it.
func TestFixture(t *testing.T) {
	p := core.Proposal{Ack: core.AckAll, Engine: true, Client: [16]byte{1, 2}, Seq: 7, Floor: 5, Payload: []byte("payload")}
	a := served{core.Answer{Code: core.CommittedAll, Position: core.Position{Term: 3, Index: 4}, Place: 5, Set: 6, Missing: []uint64{7, 8}, Result: []byte("r")}, 11, [16]byte{12}}
	said := news{applied: 9, commit: 10, at: 11}
	e := &raftpb.Entry{Term: proto.Uint64(2), Index: proto.Uint64(300), Type: raftpb.EntryNormal.Enum(), Data: []byte("data")}
	line := replica.Line{History: [16]byte{1}, Before: [16]byte{2}, Fork: core.Position{Term: 3, Index: 4}, Start: 5, Seed: 6}
	ask := hello{Version: 1, Cluster: [16]byte{9}, Group: 2, Line: line, Index: 3, Term: 4, Oldest: 1, Whole: true}
	reply := welcome{Plan: catchup.Plan{Mode: catchup.Diff, From: 4, To: 9, Bytes: 100}, Voter: true, Line: line, Path: []uint64{1, 2}, At: core.Position{Term: 4, Index: 9}}
	entries, err := encodeEntries(said, []*raftpb.Entry{e})
	var first, second bytes.Buffer
	for _, err := range []error{err, writeJSON(&first, frameHello, ask), writeJSON(&second, frameHello, reply)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	held := fixture.Check(t, "wire-1.hex", map[string][]byte{
		"propose": encodePropose(9, p), "answer": a.encode(), "entries": entries, "acknowledgement": encodeAck(12, 13), "hello": first.Bytes(), "welcome": second.Bytes()})

	if group, got, err := decodePropose(held["propose"]); err != nil || group != 9 || !reflect.DeepEqual(got, p) {
		t.Errorf("propose: %d, %+v, %v", group, got, err)
	}
	if got, err := decodeAnswer(held["answer"]); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("answer: %+v, %v", got, err)
	}
	if got, list, err := decodeEntries(held["entries"]); err != nil || got != said || len(list) != 1 || !proto.Equal(list[0], e) {
		t.Errorf("entries: %+v, %v, %v", got, list, err)
	}
	if applied, durable, err := decodeAck(held["acknowledgement"]); err != nil || applied != 12 || durable != 13 {
		t.Errorf("acknowledgement: %d, %d, %v", applied, durable, err)
	}
	var h hello
	if err := readJSON(bytes.NewReader(held["hello"]), &h); err != nil || h != ask {
		t.Errorf("hello: %+v, %v", h, err)
	}
	var w welcome
	if err := readJSON(bytes.NewReader(held["welcome"]), &w); err != nil || !reflect.DeepEqual(w, reply) {
		t.Errorf("welcome: %+v, %v", w, err)
	}
}
