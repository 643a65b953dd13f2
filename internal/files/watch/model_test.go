package watch

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// view is what an agent that only follows hints knows of the tree: how each path looked when it last had a reason to
// look. If at the end it is not what the disk holds, a hint was missing.
type view struct {
	top     string
	root    *vfs.Root
	seen    map[string]string
	settle  map[string]bool // to be looked at once more, when things have settled
	rescans int
}

func newView(t *testing.T, top string) *view {
	root, err := vfs.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	v := &view{top: top, root: root, seen: map[string]string{}, settle: map[string]bool{}}
	v.rescan("")
	return v
}

// sign is how a path looks, no symlink followed on the way; "" if it is not there.
func (v *view) sign(rel string) (sign string, dir bool) {
	in, err := v.root.Stat(rel)
	switch {
	case err != nil || !in.Exists():
		return "", false
	case in.Kind == vfs.Dir:
		return fmt.Sprintf("dir %o", in.Mode), true
	}
	return fmt.Sprintf("%d %o %d %d %d", in.Kind, in.Mode, in.Size, in.Ino, in.MTime), false
}

func (v *view) follow(ev Event) {
	switch ev.Kind {
	case Settle:
		v.settle[ev.Path] = true
	case Look:
		v.look(ev.Path)
	case Rescan:
		v.rescans++
		v.rescan(ev.Path)
	}
}

// look is all that a hint at one name asks for: how it looks, and that nothing is in what is no directory.
func (v *view) look(rel string) {
	sign, dir := v.sign(rel)
	if !dir {
		v.forget(rel)
	}
	if sign == "" {
		delete(v.seen, rel)
		return
	}
	v.seen[rel] = sign
}

func (v *view) forget(rel string) {
	maps.DeleteFunc(v.seen, func(p, _ string) bool { return strings.HasPrefix(p, rel+"/") || rel == "" && p != "" })
}

func (v *view) rescan(rel string) {
	v.forget(rel)
	filepath.WalkDir(filepath.Join(v.top, rel), func(p string, _ fs.DirEntry, err error) error {
		if p, _ = filepath.Rel(v.top, p); p == "." {
			p = ""
		}
		v.look(p)
		return nil
	})
	v.look(rel)
}

// check compares with the disk.
func (v *view) check(t *testing.T) {
	t.Helper()
	for rel := range v.settle {
		v.look(rel)
	}
	disk := newView(t, v.top)
	wrong := 0
	for p, sign := range disk.seen {
		if v.seen[p] != sign && p != "" {
			if wrong++; wrong < 10 {
				t.Errorf("%q is %q, hints left us with %q", p, sign, v.seen[p])
			}
		}
	}
	for p := range v.seen {
		if _, ok := disk.seen[p]; !ok {
			if wrong++; wrong < 10 {
				t.Errorf("%q is gone, no hint said so", p)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d paths are not as the hints said", wrong)
	}
}

// vandal does random things to a tree.
type vandal struct {
	rnd      *rand.Rand
	top, out string // out: another directory on the same file system
}

func (v *vandal) name() string { return string(rune('a' + v.rnd.IntN(4))) }

// path is random, up to four names deep.
func (v *vandal) path() string {
	p := v.top
	if v.rnd.IntN(6) == 0 {
		p = v.out
	}
	for range 1 + v.rnd.IntN(4) {
		p = path.Join(p, v.name())
	}
	return p
}

// step does one thing; most errors (nothing there, not empty) are what happens to vandals.
func (v *vandal) step() {
	p := v.path()
	switch v.rnd.IntN(12) {
	case 0, 1:
		os.MkdirAll(p, 0o755)
	case 2, 3, 4:
		os.MkdirAll(path.Dir(p), 0o755)
		os.WriteFile(p, make([]byte, v.rnd.IntN(100)), 0o644)
	case 5:
		os.Remove(p)
	case 6:
		os.RemoveAll(p)
	case 7, 8:
		os.Rename(p, v.path())
	case 9:
		unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, v.path(), unix.RENAME_EXCHANGE)
	case 10:
		os.Chmod(p, fs.FileMode(0o700+v.rnd.IntN(64)))
	case 11:
		if v.rnd.IntN(2) == 0 {
			os.Symlink("a", p)
		} else {
			os.Truncate(p, int64(v.rnd.IntN(50)))
		}
	}
}

// TestNothingIsMissed lets several vandals loose on a tree while a view follows the hints.
func TestNothingIsMissed(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		for round := range 4 {
			seed := uint64(time.Now().UnixNano()) + uint64(round)
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { vandalise(t, mode, seed) })
		}
	})
}

func vandalise(t *testing.T, mode Mode, seed uint64) {
	r := newRig(t, Config{Force: mode})
	out := filepath.Join(filepath.Dir(r.top), "out")
	r.do(os.Mkdir(out, 0o755))
	seen := newView(t, r.top)
	var vandals sync.WaitGroup
	for n := range 3 {
		vandals.Go(func() {
			v := &vandal{rnd: rand.New(rand.NewPCG(seed, uint64(n))), top: r.top, out: out}
			for range 500 {
				v.step()
			}
		})
	}
	done := make(chan uint64)
	go func() {
		vandals.Wait()
		id, err := r.w.Barrier()
		if err != nil {
			t.Error(err)
		}
		done <- id
	}()
	follow(t, r.w, seen, done)
	seen.check(t)
}

// follow lets a view follow hints until the barrier comes whose id done gives.
func follow(t *testing.T, w Watcher, seen *view, done <-chan uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	last, ended := uint64(0), false
	for {
		batch, err := w.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range batch {
			seen.follow(ev)
			if ev.Kind == Barrier {
				last, ended = ev.ID, true
			}
		}
		if ended {
			if id := <-done; id != last {
				t.Fatalf("barrier %d came, not %d", last, id)
			}
			return
		}
	}
}
