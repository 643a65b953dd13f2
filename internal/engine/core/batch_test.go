package core

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

var sampleBatch = Batch{Proposer: 3, ID: 9, Time: 1_700_000_000_000_000_000, Proposals: []Proposal{
	{Client: [16]byte{1, 2}, Seq: 300, Floor: 7, Payload: []byte("hello")},
	{Payload: []byte{}},
	{Ack: AckLocal, Payload: []byte("early")},
	{Engine: true, Client: [16]byte{9}, Seq: 1, Floor: 1, Payload: []byte{1}},
	{Client: [16]byte{15: 1}, Payload: make([]byte, 300)},
}}

func TestBatchRoundTrip(t *testing.T) {
	for _, b := range []Batch{sampleBatch, {Time: -5}} {
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
		"version":    append([]byte{2}, data[1:]...),
		"huge count": {batchVersion, 1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"flag":       {batchVersion, 1, 1, 0, 1, flagsEnd, 0},
	} {
		if _, err := DecodeBatch(bad); !errors.Is(err, ErrBatch) {
			t.Errorf("%s: error %v", name, err)
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
