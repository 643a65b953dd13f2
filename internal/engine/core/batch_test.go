package core

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

var sampleBatch = Batch{Level: 1, Proposer: 3, ID: 9, Time: 1_700_000_000_000_000_000, Proposals: []Proposal{
	{Client: [16]byte{1, 2}, Seq: 300, Floor: 7, Payload: []byte("hello")},
	{Payload: []byte{}},
	{Ack: AckLocal, Payload: []byte("early")},
	{Engine: true, Client: [16]byte{9}, Seq: 1, Floor: 1, Payload: []byte{1}},
	{Client: [16]byte{15: 1}, Payload: make([]byte, 300)},
}}

func TestBatchRoundTrip(t *testing.T) {
	for _, b := range []Batch{sampleBatch, {Level: 1, Time: -5}, {Level: 300}} {
		got, err := DecodeBatch(EncodeBatch(&b))
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("got %+v, %v, want %+v", got, err, b)
		}
	}
}

func TestDecodeBatchRefusesDamage(t *testing.T) {
	data := EncodeBatch(&sampleBatch)
	for n := range data {
		if _, err := DecodeBatch(data[:n]); !errors.Is(err, ErrBatch) {
			t.Errorf("first %d bytes: error %v", n, err)
		}
	}
	for name, bad := range map[string][]byte{
		"tail":       append(bytes.Clone(data), 0),
		"level 0":    append([]byte{0}, data[1:]...),
		"huge count": {FirstLevel, 1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"flag":       {FirstLevel, 1, 1, 0, 1, flagsEnd, 0},
	} {
		if _, err := DecodeBatch(bad); !errors.Is(err, ErrBatch) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// A program of a lower level reads the level of what it does not know, and nothing else.
func TestBatchLevelWithoutTheRest(t *testing.T) {
	if level, err := BatchLevel([]byte{2, 0xff, 0xff}); level != 2 || err != nil {
		t.Errorf("level %d, %v", level, err)
	}
	for _, bad := range [][]byte{nil, {0}, {0x80}} {
		if _, err := BatchLevel(bad); !errors.Is(err, ErrBatch) {
			t.Errorf("%x: error %v", bad, err)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(EncodeBatch(&sampleBatch))
	f.Add(EncodeBatch(&Batch{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBatch(data)
		if err != nil {
			return
		}
		again, err := DecodeBatch(EncodeBatch(&b))
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Fatalf("%+v became %+v, %v", b, again, err)
		}
	})
}
