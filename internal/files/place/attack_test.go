package place

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// outside is a directory beside the root with one file, whose every property is to stay as it is.
type outside struct {
	f      *fixture
	dir    string
	before unix.Stat_t
}

func newOutside(f *fixture) *outside {
	o := &outside{f: f, dir: filepath.Join(filepath.Dir(f.root), "outside")}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(o.dir+"/x", []byte("secret"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := unix.Lstat(o.dir+"/x", &o.before); err != nil {
		f.t.Fatal(err)
	}
	return o
}

func (o *outside) untouched(context string) {
	o.f.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(o.dir+"/x", &st); err != nil || st.Ctim != o.before.Ctim || st.Ino != o.before.Ino {
		o.f.t.Fatalf("%s: the file outside was changed: %v", context, err)
	}
	if got := names(o.f.t, o.dir); !slices.Equal(got, []string{"x"}) {
		o.f.t.Fatalf("%s: outside there is now %q", context, got)
	}
}

// everyTask are tasks of every sort on d/x and a sibling, after set-up by the placer itself.
func everyTask(f *fixture) []Task {
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	var out []Task
	for _, c := range raceCases() {
		task := c.task(c.have(f))
		out = append(out, task)
		os.RemoveAll(f.path("d/x"))
	}
	return out
}

// A directory on the way, or the last name, that is a symlink leads nowhere.
func TestSymlinksAreNotFollowed(t *testing.T) {
	f := newFixture(t)
	o := newOutside(f)
	tasks := everyTask(f)
	if err := os.Remove(f.path("d")); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{o.dir, "../outside", "."} {
		if err := os.Symlink(target, f.path("d")); err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if r := f.apply(task)[0]; r.Code != Busy && !(r.Code == Adopted && task.Want.Kind == 0) {
				t.Errorf("d -> %s: %+v", target, r)
			}
			o.untouched("d -> " + target)
		}
		f.must(Busy, Task{Path: "d", Want: dirNode(2), Have: Placed{Version: 1, Stat: Stat{Kind: 2}}})
		os.Remove(f.path("d"))
	}
	for _, task := range tasks {
		if err := os.Mkdir(f.path("d"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(o.dir+"/x", f.path("d/x")); err != nil {
			t.Fatal(err)
		}
		f.apply(task)
		o.untouched("d/x -> outside/x")
		os.RemoveAll(f.path("d"))
	}
}

// At each step of each task the directory is swapped for a symlink that leads out, or for another directory.
func TestDirectorySwapped(t *testing.T) {
	t.Run("for a symlink", func(t *testing.T) {
		swapDirectory(t, func(f *fixture, o *outside) error { return os.Symlink(o.dir, f.path("d")) })
	})
	t.Run("for a directory", func(t *testing.T) {
		swapDirectory(t, func(f *fixture, o *outside) error { return os.Mkdir(f.path("d"), 0o700) })
	})
}

func swapDirectory(t *testing.T, by func(*fixture, *outside) error) {
	for i, c := range raceCases() {
		for k := 0; ; k++ {
			f := newMemoryFixture(t)
			o := newOutside(f)
			f.must(Done, Task{Path: "d", Want: dirNode(1)})
			task := c.task(c.have(f))
			n, at := 0, ""
			f.p.hook = func(step, path string) {
				if n++; n == k+1 {
					at = step
					if os.Rename(f.path("d"), f.path("moved")) != nil || by(f, o) != nil {
						t.Error("cannot swap")
					}
				}
			}
			r := f.apply(task)[0]
			o.untouched(fmt.Sprintf("%s, swapped at %q", c.name, at))
			if at == "" {
				break
			}
			_, err := os.Lstat(f.path("d/x"))
			if (r.Code == Done || r.Code == Adopted) && task.Want.Kind != manifest.Absent && err != nil {
				t.Errorf("task %d, %s, swapped at %q: said to be %v, but there is nothing", i, c.name, at, r.Code)
			}
			f.p.Close()
		}
	}
}

// The same at full speed.
func TestDirectorySwappedForSymlinkAllTheTime(t *testing.T) {
	f := newFixture(t)
	o := newOutside(f)
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	if err := os.Symlink(o.dir, f.path("s")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, f.path("d"), unix.AT_FDCWD, f.path("s"), unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	placed := 0
	for n := 0; n < 300; n++ {
		path := fmt.Sprintf("d/%d", n)
		r := f.apply(fileTask(path, 2, "one", Placed{}))[0]
		if r.Code == Done {
			placed++
			f.apply(fileTask(path, 3, "two", r.Placed), Task{Path: "d/y", Want: linkNode(3, "y")})
			f.apply(Task{Path: path, Want: gone(4), Have: r.Placed})
		}
	}
	stop.Store(true)
	wg.Wait()
	o.untouched("swapping")
	t.Logf("%d of 300 placed", placed)
}

// A work directory inside the binding that its owner replaced by a symlink is refused.
func TestWorkDirectoryIsNotFollowed(t *testing.T) {
	f := newFixture(t)
	o := newOutside(f)
	if err := os.MkdirAll(f.path(".lockstep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(o.dir, f.path(".lockstep/work")); err != nil {
		t.Fatal(err)
	}
	if p, err := New(Config{Root: f.root, Work: f.path(".lockstep/work")}); err == nil {
		p.Close()
		t.Fatal("a symlink was taken for the work directory")
	}
	open := f.path("open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if p, err := New(Config{Root: f.root, Work: open}); err == nil {
		p.Close()
		t.Fatal("a work directory that anybody may write to was taken")
	}
	o.untouched("work directory")
}
