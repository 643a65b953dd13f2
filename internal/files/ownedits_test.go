package files

import (
	"errors"
	"slices"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestOwnEdits: an edit counts as replaced only if the log proves that it was accepted: by a change that somebody based on
// it, in another entry, while nobody else changed the path in its own.
func TestOwnEdits(t *testing.T) {
	type change struct {
		index  uint64
		author string
		path   string
		base   uint64
		kind   manifest.Kind
	}
	const file = manifest.File
	for name, c := range map[string]struct {
		log  []change
		want []string
	}{
		"nobody replaced it":          {[]change{{5, "me", "f", 3, file}}, nil},
		"replaced":                    {[]change{{5, "me", "f", 3, file}, {7, "you", "f", 5, file}}, []string{"f"}},
		"removed":                     {[]change{{5, "me", "f", 3, file}, {7, "you", "f", 5, manifest.Absent}}, []string{"f"}},
		"replaced twice":              {[]change{{5, "me", "f", 3, file}, {7, "you", "f", 5, file}, {9, "you", "f", 7, file}}, []string{"f"}},
		"a link":                      {[]change{{5, "me", "f", 3, manifest.Symlink}, {7, "you", "f", 5, file}}, []string{"f"}},
		"by who did not know it":      {[]change{{5, "me", "f", 3, file}, {7, "you", "f", 3, file}}, nil},
		"edited again":                {[]change{{5, "me", "f", 3, file}, {7, "you", "f", 5, file}, {8, "me", "f", 7, file}}, nil},
		"edited again, and replaced":  {[]change{{5, "me", "f", 3, file}, {6, "me", "f", 5, file}, {7, "you", "f", 6, file}}, []string{"f"}},
		"somebody before, same entry": {[]change{{5, "you", "f", 3, file}, {5, "me", "f", 3, file}, {7, "you", "f", 5, file}}, nil},
		"somebody after, same entry":  {[]change{{5, "me", "f", 3, file}, {5, "you", "f", 3, file}, {7, "you", "f", 5, file}}, nil},
		"another path, same entry":    {[]change{{5, "me", "f", 3, file}, {5, "you", "g", 3, file}, {7, "you", "f", 5, file}}, []string{"f"}},
		"a directory":                 {[]change{{5, "me", "f", 3, manifest.Dir}, {7, "you", "f", 5, manifest.Dir}}, nil},
		"recorded":                    {[]change{{4, "me", "f", 3, file}, {7, "you", "f", 4, file}}, nil},
		"two":                         {[]change{{5, "me", "g", 0, file}, {6, "me", "f", 0, file}, {7, "you", "f", 6, file}, {8, "you", "g", 5, file}}, []string{"f", "g"}},
	} {
		o := newOwnEdits("me", func(_ string, version uint64) (bool, error) { return version > 4, nil })
		for _, ch := range c.log {
			b := manifest.Batch{Author: ch.author, Changes: []manifest.Change{{Path: ch.path, Base: ch.base, Node: manifest.Node{Kind: ch.kind}}}}
			if err := o.show(ch.index, &b); err != nil {
				t.Fatal(err)
			}
		}
		if got := o.replaced(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	broken := errors.New("broken")
	o := newOwnEdits("me", func(string, uint64) (bool, error) { return false, broken })
	if err := o.show(5, &manifest.Batch{Author: "me", Changes: []manifest.Change{{Path: "f", Node: manifest.Node{Kind: file}}}}); !errors.Is(err, broken) {
		t.Errorf("an error of the table: %v", err)
	}
}
