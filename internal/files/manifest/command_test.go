package manifest

import (
	"bytes"
	"reflect"
	"testing"
)

func TestBatchRoundTrip(t *testing.T) {
	b := Batch{Author: "n1", Changes: []Change{
		put("a/b", 17, file("abc")), {Path: "e", Node: file(""), Inline: []byte{}}, {Path: "i", Node: file("xyz"), Inline: []byte("xyz")},
		put("d", 1<<40, dir()), {Path: "m", Base: 3, Node: file("m"), SameContent: true}, put("l\xff", 0, symlink("../x")), del("gone", 3), put("", 1, dir()),
	}}
	got, err := DecodeBatch(EncodeBatch(b))
	if err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("%+v %v", got, err)
	}
}

func TestOutcomesRoundTrip(t *testing.T) {
	ok := Outcome{Code: Accepted, Version: 99}
	for _, outs := range [][]Outcome{
		{}, {ok}, {ok, ok, ok}, {{Code: Same, Version: 4}}, {ok, {Code: Conflicted, Version: 98, Copy: "x"}, ok, {Code: Accepted}},
		{{Code: Refused}, {Code: Superseded, Version: 1}, ok, ok},
	} {
		got, err := DecodeOutcomes(encodeOutcomes(99, outs))
		if err != nil || !reflect.DeepEqual(got, outs) {
			t.Errorf("%+v: %+v %v", outs, got, err)
		}
	}
	many := make([]Outcome, 512)
	for i := range many {
		many[i] = ok
	}
	if n := len(encodeOutcomes(99, many)); n > 8 {
		t.Errorf("512 accepted changes take %d bytes", n)
	}
}

func TestEntrySize(t *testing.T) {
	r := record{Node: file("abc"), author: 3}
	r.Size, r.UID, r.GID, r.Version = 5000, 1000, 1000, 10_000_000
	if n := len(appendRecord(nil, &r)); n > 60 {
		t.Errorf("%d bytes", n)
	}
}

func TestPolicyText(t *testing.T) {
	for _, s := range []string{"keep-both", "first", "newest", "prefer:n1"} {
		if p, err := ParsePolicy(s); err != nil || p.String() != s {
			t.Errorf("%q: %v %v", s, p, err)
		}
	}
	for _, s := range []string{"last", "prefer:", "prefer"} {
		if _, err := ParsePolicy(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(EncodeBatch(Batch{Author: "n", Changes: []Change{{Path: "f", Base: 1, Node: file("abc"), Inline: []byte("abc")},
		put("d", 0, dir()), put("l", 0, symlink("t")), del("x", 0)}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := DecodeBatch(p)
		if err != nil {
			return
		}
		if again := EncodeBatch(b); !bytes.Equal(again, p) {
			t.Errorf("%x became %x", p, again)
		}
	})
}

func FuzzDecodeOutcomes(f *testing.F) {
	f.Add(encodeOutcomes(9, []Outcome{{Version: 9}, {Code: Conflicted, Copy: "c"}, {Version: 9}}))
	f.Fuzz(func(_ *testing.T, p []byte) { _, _ = DecodeOutcomes(p) })
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(appendRecord(nil, &record{Node: file("abc"), author: 2}))
	f.Add(appendRecord(nil, &record{Node: symlink("abc")}))
	f.Fuzz(func(t *testing.T, v []byte) {
		r, _, err := decodeRecord(v)
		if err == nil && !bytes.Equal(appendRecord(nil, &r), v) {
			t.Errorf("%x", v)
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("a/b")
	f.Add("")
	f.Fuzz(func(t *testing.T, p string) {
		if !ValidPath(p) || p == "" {
			return
		}
		if got, ok := nodePath(appendNodeKey(nil, p)); !ok || got != p {
			t.Errorf("%q became %q", p, got)
		}
		if c := conflictName(p, "n1", testTime, 0); !ValidPath(c) {
			t.Errorf("%q: conflict name %q", p, c)
		}
	})
}
