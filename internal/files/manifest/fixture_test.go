package manifest

import (
	"reflect"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/fixture"
)

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
		"batch": EncodeBatch(b), "policy": EncodePolicy(Policy{Rule: RulePrefer, Prefer: "n1"}), "outcomes": encodeOutcomes(300, outs), "record": appendRecord(nil, &r), "key": appendNodeKey(nil, "a/b/c")})
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
	if path, ok := nodePath(held["key"]); !ok || path != "a/b/c" {
		t.Errorf("key of %q, %v", path, ok)
	}
}
