package files

import (
	"fmt"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/fixture"
)

// TestFixture reads records of the placed table as they were first written.
func TestFixture(t *testing.T) {
	made := map[string]record{
		"file": {Placed: place.Placed{Version: 900, Stat: place.Stat{Kind: manifest.File, Mode: 0o644, UID: 1000, GID: 1001, Size: 1 << 33,
			MTime: 1_700_000_000_000_000_001, CTime: 1_700_000_000_000_000_900, Ino: 6, Dev: 7, Nlink: 1}}, Hash: manifest.Hash{1, 2}, After: 300},
		"directory": {Placed: place.Placed{Version: 1, Stat: place.Stat{Kind: manifest.Dir, Mode: 0o755, MTime: -4, CTime: 5, Ino: 8, Dev: 7, Nlink: 2}}},
		"link": {Placed: place.Placed{Version: 7, Stat: place.Stat{Kind: manifest.Symlink, Mode: 0o777, MTime: 4, CTime: 5, Ino: 9, Dev: 7, Nlink: 1}},
			Hash: manifest.Hash{3, 4}},
		"other": {Placed: place.Placed{Stat: place.Stat{Other: true}}},
	}
	encoded := map[string][]byte{"key": placedKey(nil, "a/b")}
	for name, r := range made {
		encoded[name] = encodeRecord(nil, &r)
	}
	held := fixture.Check(t, "placed-1.hex", encoded)
	for name, want := range made {
		if got, err := decodeRecord(held[name]); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if path, ok := manifest.KeyPath(held["key"][1:]); !ok || path != "a/b" || held["key"][0] != tagPlaced {
		t.Errorf("key of %q, %v", path, ok)
	}
}

// TestPlacingFixture reads an announcement of placements as it was first written.
func TestPlacingFixture(t *testing.T) {
	list := []announced{
		{"a/b", manifest.Node{Kind: manifest.File, Mode: 0o644, UID: 1, GID: 2, MTime: -3, Size: 1 << 33, Hash: manifest.Hash{5}, Version: 600}},
		{"dir", manifest.Node{Kind: manifest.Dir, Mode: 0o755, MTime: 1_700_000_000_000_000_001, Version: 7}},
		{"link\xff", manifest.Node{Kind: manifest.Symlink, Mode: 0o777, Target: "../t", Version: 8}},
		{"gone", manifest.Node{}},
	}
	var made []byte
	for _, p := range list {
		made = appendAnnounced(made, p)
	}
	held := fixture.Check(t, "placing-1.hex", map[string][]byte{"key": metaKey(metaPlacing), "announcement": made})
	if got, err := decodeAnnounced(held["announcement"]); err != nil || fmt.Sprint(got) != fmt.Sprint(list) {
		t.Errorf("%v, %v", got, err)
	}
}
