package manifest

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net"
	"reflect"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/fixture"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

var fixtureConflict = Conflict{Path: "a", Copy: "a.conflict-n2-1", Node: "n2", Time: 1_700_000_000_000_000_001, Index: 300}

var fixtureCounters = counters{Stats: Stats{Files: 1, Bytes: 1 << 40, Dirs: 3, Symlinks: 4, Conflicts: 5}, authors: 6, chain: chain{7}}

func storedCounters(t *testing.T, v []byte) (counters, error) {
	t.Helper()
	store := kv.NewMemory()
	b := store.Batch()
	if err := b.Set([]byte{tagStats}, v); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return readCounters(store)
}

// TestFixture reads commands, results and a record as version 1 wrote them.
func TestFixture(t *testing.T) {
	b := Batch{Author: "n1", Changes: []Change{
		{Path: "dir", Node: Node{Kind: Dir, Mode: 0o755, UID: 1, GID: 2, MTime: 1_700_000_000_000_000_001}},
		{Path: "dir/inline", Base: 300, Node: Node{Kind: File, Mode: 0o644, MTime: -1, Size: 2, Hash: Hash{1, 2}}, Inline: []byte("hi")},
		{Path: "staged\xff", Node: Node{Kind: File, Mode: 0o4755, Size: 1 << 40, Hash: Hash{3}}},
		{Path: "same", Base: 4, Node: Node{Kind: File, Mode: 0o600, Hash: Hash{5}}, SameContent: true},
		{Path: "link", Node: Node{Kind: Symlink, Target: "../x"}},
		{Path: "gone", Base: 9},
	}}
	outs := []Outcome{{Code: Accepted, Version: 300}, {Code: Accepted, Version: 300}, {Code: Conflicted, Version: 7, Copy: "a.conflict-n1-1"}, {Code: Same, Version: 5}, {Code: Refused}}
	r := record{Node: Node{Kind: File, Mode: 0o644, UID: 3, MTime: 5, Size: 6, Hash: Hash{7}, Version: 8}, author: 9}
	held := fixture.Check(t, "commands-1.hex", map[string][]byte{
		"batch": EncodeBatch(b), "policy": EncodePolicy(Policy{Rule: RulePrefer, Prefer: "n1"}), "outcomes": encodeOutcomes(300, outs), "record": appendRecord(nil, &r), "key": appendNodeKey(nil, "a/b/c"),
		"conflict": appendConflict(make([]byte, len(chain{})), &fixtureConflict), "counters": fixtureCounters.encode()})
	if got, err := DecodeBatch(held["batch"]); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("batch %+v, %v", got, err)
	}
	if p, err := ParsePolicy(string(held["policy"][1:])); err != nil || held["policy"][0] != cmdPolicy || p.String() != "prefer:n1" {
		t.Errorf("policy %q, %v", p, err)
	}
	if got, err := DecodeOutcomes(held["outcomes"]); err != nil || !reflect.DeepEqual(got, outs) {
		t.Errorf("outcomes %+v, %v", got, err)
	}
	if got, _, err := decodeRecord(held["record"]); err != nil || got != r {
		t.Errorf("record %+v, %v", got, err)
	}
	if c, _, err := decodeConflict(held["conflict"]); err != nil || c != fixtureConflict {
		t.Errorf("conflict %+v, %v", c, err)
	}
	if c, err := storedCounters(t, held["counters"]); err != nil || c != fixtureCounters {
		t.Errorf("counters %+v, %v", c, err)
	}
	if path, ok := nodePath(held["key"]); !ok || path != "a/b/c" {
		t.Errorf("key of %q, %v", path, ok)
	}
}

// TestDiffFixture has both sides of a difference of manifests speak with what the other said in version 1.
func TestDiffFixture(t *testing.T) {
	src, dst := newRig(t, Policy{}), newRig(t, Policy{})
	for _, r := range []*rig{src, dst} {
		r.apply("n1", put("same/file", 0, file("same")), put("same", 0, dir()), put("top", 0, dir()), put("top/old", 0, file("old")))
	}
	src.apply("n2", put("top/new", 0, file("new")), put("link", 0, symlink("top/new")), del("top/old", src.get("top/old").Version))
	src.apply("n1", put("link", 0, file("in conflict with the link")))
	dst.apply("n3", put("other", 0, file("of another line")))
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- ServeDiff(src.store, b) }()
	var asked, answered bytes.Buffer
	ignore := func(_, _ []byte) error { return nil }
	_, err := FetchDiff(dst.store, stream{io.TeeReader(a, &answered), io.MultiWriter(a, &asked)}, ignore, func([]byte) error { return nil })
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	held := fixture.Check(t, "difference-1.hex", map[string][]byte{"learner": asked.Bytes(), "source": answered.Bytes()})

	tx := dst.store.Batch()
	if _, err := FetchDiff(tx, stream{bytes.NewReader(held["source"]), io.Discard}, tx.Set, tx.Delete); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if want, got := dump(t, src.store), dump(t, dst.store); !maps.Equal(want, got) {
		t.Errorf("the learner has %q, the source %q", got, want)
	}
	var said bytes.Buffer
	if err := ServeDiff(src.store, stream{bytes.NewReader(held["learner"]), &said}); err != nil || !bytes.Equal(said.Bytes(), held["source"]) {
		t.Errorf("the source answers %x, %v", said.Bytes(), err)
	}
}

// stream is the two halves of a connection.
type stream struct {
	io.Reader
	io.Writer
}

// FuzzBooks reads any bytes as a conflict record and as counters.
func FuzzBooks(f *testing.F) {
	f.Add(appendConflict(make([]byte, len(chain{})), &fixtureConflict))
	f.Add(fixtureCounters.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ch, err := decodeConflict(b); err == nil {
			again, same, err := decodeConflict(appendConflict(ch[:], &c))
			if err != nil || again != c || same != ch {
				t.Fatalf("%+v became %+v, %v", c, again, err)
			}
		}
		if c, err := storedCounters(t, b); err == nil {
			if again, err := storedCounters(t, c.encode()); err != nil || again != c || !bytes.Equal(again.encode(), c.encode()) {
				t.Fatalf("%+v became %+v, %v", c, again, err)
			}
		}
	})
}
