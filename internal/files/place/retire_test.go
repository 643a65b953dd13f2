package place

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestRetire: a file whose content is known goes to Contents, itself, when it is removed, replaced, or becomes something
// else; not if nobody knows its content, if it has another name, or if Contents does not want it; and never if it was edited.
func TestRetire(t *testing.T) {
	sum := manifest.Hash(blake3.Sum256([]byte("one")))
	wants := map[string]Task{
		"nothing": {Want: gone(3)}, "a file": {Want: fileNode(3, "three"), Inline: []byte("three")},
		"a link": {Want: linkNode(3, "to")}, "a directory": {Want: dirNode(3)},
	}
	for lackName, lack := range lacks {
		for into, want := range wants {
			for how, c := range map[string]struct {
				held   manifest.Hash
				refuse bool
				do     func(t *testing.T, path string)
				code   ResultCode
				to     bool
			}{
				"removed":  {held: sum, to: true},
				"unknown":  {},
				"unwanted": {held: sum, refuse: true},
				"edited": {held: sum, code: Busy, do: func(t *testing.T, path string) {
					if err := os.WriteFile(path, []byte("two"), 0o640); err != nil {
						t.Fatal(err)
					}
				}},
			} {
				t.Run(fmt.Sprintf("%s/%s/%s", lackName, into, how), func(t *testing.T) {
					f := newMemoryFixture(t)
					f.p.learn(lack)
					if !c.refuse {
						f.bytes.retired = f.retireTo()
					}
					was := f.must(Done, Task{Path: "x", Want: fileNode(2, "one"), Inline: []byte("one")})
					if c.do != nil {
						c.do(t, f.path("x"))
					}
					task := want
					task.Path, task.Have, task.Held = "x", was.Placed, c.held
					r := f.apply(task)[0]
					if r.Code != c.code {
						t.Fatal(r.Code, r.Err)
					}
					if got := slices.Equal(f.bytes.left, []manifest.Hash{sum}); got != c.to || !c.to && len(f.bytes.left) > 0 {
						t.Fatalf("retired %x", f.bytes.left)
					}
					if c.to {
						var st unix.Stat_t
						if err := unix.Stat(filepath.Join(f.bytes.retired, "x"), &st); err != nil || st.Ino != was.Placed.Stat.Ino {
							t.Errorf("inode %d, %v; it was %d", st.Ino, err, was.Placed.Stat.Ino)
						}
					}
					if left := f.clean(); len(left) > 0 {
						t.Errorf("left in the work area: %q", left)
					}
				})
			}
		}
	}
}

// retireTo makes a directory beside the work area.
func (f *fixture) retireTo() string {
	f.t.Helper()
	dir := filepath.Join(filepath.Dir(f.work), "gone")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	return dir
}

// lingers is the task with a file that goes to Contents, where no edit must ever end: find does not look there.
func (f *fixture) lingers(task Task) Task {
	f.t.Helper()
	f.bytes.retired, task.Held = f.retireTo(), manifest.Hash{1}
	return task
}

// TestOtherNameIsNotRetired: removing one of two names makes no room, and the other one leads to the content.
func TestOtherNameIsNotRetired(t *testing.T) {
	f := newFixture(t)
	f.bytes.retired = f.retireTo()
	f.must(Done, Task{Path: "x", Want: fileNode(2, "one"), Inline: []byte("one")})
	if err := os.Link(f.path("x"), f.path("y")); err != nil {
		t.Fatal(err)
	}
	f.must(Done, Task{Path: "x", Want: gone(3), Have: Placed{2, f.stat("x")}, Held: blake3.Sum256([]byte("one"))})
	if len(f.bytes.left) > 0 {
		t.Error("retired")
	}
}

// TestYieldMakesRoom: what lingers gives way to what is placed.
func TestYieldMakesRoom(t *testing.T) {
	f := newFixture(t)
	f.p.space.reserve = 1 << 60 // more than any disk has
	asked := int64(0)
	f.bytes.yields = func(n int64) bool {
		asked = n
		f.p.space.reserve, f.p.space.read = 1, time.Time{}
		return true
	}
	f.must(Done, Task{Path: "x", Want: fileNode(2, "one"), Inline: []byte("one")})
	if asked != 3 {
		t.Errorf("asked for %d bytes", asked)
	}
	f.p.space.reserve, f.p.space.read = 1<<60, time.Time{}
	f.bytes.yields = nil
	f.must(Failed, Task{Path: "y", Want: fileNode(2, "one"), Inline: []byte("one")})
}
