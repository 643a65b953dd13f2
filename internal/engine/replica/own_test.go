package replica

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

func TestCommandsOfTheEngineRoundTrip(t *testing.T) {
	v := Verdict{Mark: 1 << 40, Digest: machine.Digest{1, 2, 31: 9}, Agree: []uint64{1, 300, 5}}
	if o, err := decodeOwn(v.Encode()); err != nil || !reflect.DeepEqual(*o.verdict, v) || o.mark != nil {
		t.Errorf("verdict: %+v, %v", o, err)
	}
	for _, deep := range []bool{false, true} {
		if o, err := decodeOwn(Mark{Deep: deep}.Encode()); err != nil || o.mark.Deep != deep || o.verdict != nil {
			t.Errorf("mark: %+v, %v", o, err)
		}
	}
	if o, err := decodeOwn(EncodeProbe()); err != nil || o != (own{}) {
		t.Errorf("probe: %+v, %v", o, err)
	}
	whole := v.Encode()
	for n := range whole {
		if o, err := decodeOwn(whole[:n]); err == nil {
			t.Errorf("the first %d bytes of a verdict: %+v", n, o)
		}
	}
	for _, bad := range [][]byte{nil, {0}, {9}, {cmdMark}, {cmdMark, 2}, {cmdMark, 0, 0}, append(whole, 0)} {
		if o, err := decodeOwn(bad); err == nil {
			t.Errorf("%x: %+v", bad, o)
		}
	}
}

func FuzzCommandsOfTheEngine(f *testing.F) {
	f.Add((&Verdict{Mark: 7, Agree: []uint64{1}}).Encode())
	f.Add(Mark{Deep: true}.Encode())
	f.Add(EncodeProbe())
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeOwn(b)
		if err != nil || o.verdict == nil {
			return
		}
		again, err := decodeOwn(o.verdict.Encode())
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("%x: %+v became %+v, %v", b, o.verdict, again.verdict, err)
		}
	})
}

// A quarantine that cannot be read is damage, not the absence of one.
func TestQuarantineIsReadBackOrDamage(t *testing.T) {
	store := kv.NewMemory()
	put := func(v []byte) {
		t.Helper()
		b := store.Batch()
		if err := b.Set(quarantineKey, v); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	q := Quarantine{Mark: 9, Want: machine.Digest{1}, Found: machine.Digest{2}, Agree: []uint64{1, 2}}
	whole := append(bytes.Clone(q.Found[:]), (&Verdict{Mark: q.Mark, Digest: q.Want, Agree: q.Agree}).Encode()...)
	put(whole)
	if got, err := readQuarantine(store); err != nil || !reflect.DeepEqual(*got, q) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{{}, whole[:31], whole[:40], append(bytes.Clone(q.Found[:]), EncodeProbe()...)} {
		put(bad)
		if got, err := readQuarantine(store); err == nil {
			t.Errorf("%x was read as %+v", bad, got)
		}
	}
}
