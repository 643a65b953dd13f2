package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asChild is the variable under which TestMain does what a test wants another process to do.
const asChild = "LOCKSTEP_WATCH_CHILD"

func TestMain(m *testing.M) {
	switch what, arg, _ := strings.Cut(os.Getenv(asChild), " "); what {
	case "":
		os.Exit(m.Run())
	case "write":
		if err := os.WriteFile(arg, []byte("by a child"), 0o644); err != nil {
			panic(err)
		}
	case "open":
		childOpen(arg)
	}
}

// childOpen says what it gets where it may not watch whole file systems.
func childOpen(base string) {
	w, err := Open(Config{Root: filepath.Join(base, "root"), Work: filepath.Join(base, "work")})
	if err != nil {
		panic(err)
	}
	defer w.Close()
	if err := os.WriteFile(filepath.Join(base, "root", "new"), nil, 0o644); err != nil {
		panic(err)
	}
	if _, err := w.Barrier(); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events, err := w.Read(ctx)
	if err != nil {
		panic(err)
	}
	mode, why := w.Mode()
	fmt.Printf("%s|%s|%v", mode, why, events)
}

func (r *rig) child(what string, attr *syscall.SysProcAttr) string {
	r.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asChild+"="+what)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("child: %v\n%s", err, out)
	}
	return string(out)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestOwnEventsAreDropped(t *testing.T) {
	needRoot(t)
	r := newRig(t, Config{})
	w, err := Open(Config{Root: r.top, Work: filepath.Join(filepath.Dir(r.top), "work")})
	r.do(err)
	defer w.Close()
	if mode, why := w.Mode(); mode != "fanotify" || why != "" {
		t.Fatalf("mode %q, why %q", mode, why)
	}
	both := r.w
	r.write("mine", "x")
	r.do(os.Mkdir(r.path("dir"), 0o755))
	r.do(os.Rename(r.path("dir"), r.path("dir2"))) // a rename of ours makes others' paths wrong: the one exception
	r.child("write "+r.path("theirs"), nil)
	r.w = w
	want := []Event{{Kind: Rescan, Path: "dir2"}, {Kind: Look, Path: "theirs"}}
	if got := r.drain(); !slices.Equal(got, want) {
		t.Errorf("without our own: %v", got)
	}
	r.w = both
	if got := strongest(r.drain()); got["mine"] != Look || len(got) != 4 {
		t.Errorf("with our own: %v", got)
	}
}

func TestUnprivileged(t *testing.T) {
	needRoot(t)
	base, err := os.MkdirTemp("", "lockstep-watch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	r := &rig{t: t}
	r.do(os.Chmod(base, 0o755))
	for _, dir := range []string{"root", "work"} {
		r.do(os.Mkdir(filepath.Join(base, dir), 0o755))
		r.do(os.Chown(filepath.Join(base, dir), 65534, 65534))
	}
	self := filepath.Join(base, "test")
	data, err := os.ReadFile("/proc/self/exe")
	r.do(err)
	r.do(os.WriteFile(self, data, 0o755))
	cmd := exec.Command(self)
	cmd.Dir, cmd.Env = base, []string{asChild + "=open " + base}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	mode, rest, _ := strings.Cut(string(out), "|")
	if mode != "inotify" || !strings.Contains(rest, "CAP_SYS_ADMIN") || !strings.Contains(rest, `"new"`) {
		t.Errorf("child says %s", out)
	}
}

func TestBurst(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		dirs := 100 // of 200 files
		if mode != Fanotify {
			dirs = 10
		}
		r := newRig(t, Config{Force: mode})
		done := make(chan uint64, 1)
		go func() {
			for d := range dirs {
				dir := r.path(fmt.Sprint("dir", d))
				os.Mkdir(dir, 0o755)
				for f := range 200 {
					os.WriteFile(filepath.Join(dir, fmt.Sprint(f)), nil, 0o644)
				}
			}
			id, err := r.w.Barrier()
			if err != nil {
				t.Error(err)
			}
			done <- id
		}()
		var events []Event
		for id := uint64(0); id == 0; {
			batch, err := r.w.Read(t.Context())
			r.do(err)
			for _, ev := range batch {
				if ev.Kind == Barrier {
					id = ev.ID
				}
			}
			events = append(events, batch...)
		}
		<-done
		hinted := strongest(events)
		for d := range dirs {
			for f := range 200 {
				if p := fmt.Sprintf("dir%d/%d", d, f); hinted[p] == Rescan || !has(hinted, p) {
					t.Fatalf("no hint for %s", p)
				}
			}
		}
	})
}

func has(m map[string]Kind, p string) bool { _, ok := m[p]; return ok }

func TestDeepTreesMadeQuickly(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		r := newRig(t, Config{Force: mode})
		for n := range 50 {
			dir := fmt.Sprintf("t%d/a/b/c/d/e/f", n)
			r.do(os.MkdirAll(r.path(dir), 0o755))
			r.write(dir+"/file", "x")
		}
		events := r.drain()
		for n := range 50 {
			for _, p := range []string{"", "/a", "/a/b/c", "/a/b/c/d/e/f", "/a/b/c/d/e/f/file"} {
				if p = fmt.Sprint("t", n, p); !covered(events, p) {
					t.Errorf("no hint for %s", p)
				}
			}
		}
	})
}

// TestOverflow fills the kernel's queue, whose bound is 16384 events unless the machine was told otherwise.
func TestOverflow(t *testing.T) {
	for _, mode := range []Mode{Fanotify, Inotify} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == Fanotify {
				needRoot(t)
			}
			r := newRig(t, Config{Force: mode, boundedQueue: true})
			for n := range 17_000 {
				r.do(unix.Mknod(r.path(fmt.Sprint(n)), unix.S_IFREG|0o644, 0))
			}
			r.do(os.MkdirAll(r.path("new/sub"), 0o755)) // its event is lost
			events := r.drain()                         // and so is the first cookie of this barrier
			if !slices.Contains(events, Event{Kind: Rescan}) {
				t.Fatalf("no rescan in %d events", len(events))
			}
			if n := r.w.Overflows(); n != 1 {
				t.Errorf("%d overflows", n)
			}
			r.write("new/sub/file", "x")
			if events := r.drain(); !slices.Contains(events, Event{Kind: Look, Path: "new/sub/file"}) {
				t.Errorf("after the overflow: %v", events)
			}
		})
	}
}

func TestSiblingsDoNotSeeEachOther(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		r := newRig(t, Config{Force: mode})
		sibling := r.top + "2" // the root's path is a prefix of it
		r.do(os.Mkdir(sibling, 0o755))
		w, err := Open(Config{Root: sibling, Work: filepath.Join(filepath.Dir(r.top), "work"), Force: mode, OwnEvents: true, PollEvery: time.Hour})
		r.do(err)
		defer w.Close()
		r.write("here", "x")
		r.do(os.Mkdir(filepath.Join(sibling, "dir"), 0o755))
		r.do(os.WriteFile(filepath.Join(sibling, "dir/there"), nil, 0o644))
		if got := r.drain(); covered(got, "dir") || covered(got, "there") || covered(got, "dir/there") || !covered(got, "here") {
			t.Errorf("first: %v", got)
		}
		second := &rig{t: t, top: sibling, w: w}
		if got := second.drain(); covered(got, "here") || !covered(got, "dir/there") {
			t.Errorf("second: %v", got)
		}
	})
}

// TestBarriersComeInOrder: what was written before a barrier comes before it.
func TestBarriersComeInOrder(t *testing.T) {
	for _, mode := range []Mode{Fanotify, Inotify} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == Fanotify {
				needRoot(t)
			}
			r := newRig(t, Config{Force: mode})
			at := map[uint64]string{}
			for n := range 200 {
				name := fmt.Sprint("f", n)
				r.write(name, "x")
				id, err := r.w.Barrier()
				r.do(err)
				at[id] = name
			}
			seen := map[string]bool{}
			for len(at) > 0 {
				batch, err := r.w.Read(t.Context())
				r.do(err)
				for _, ev := range batch {
					if ev.Kind != Barrier {
						seen[ev.Path] = true
						continue
					}
					if !seen[at[ev.ID]] {
						t.Fatalf("barrier %d came before %s", ev.ID, at[ev.ID])
					}
					delete(at, ev.ID)
				}
			}
			if left, _ := os.ReadDir(filepath.Join(filepath.Dir(r.top), "work")); len(left) > 0 {
				t.Errorf("cookies are left: %v", left)
			}
		})
	}
}

func TestGone(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		for _, how := range []string{"removed", "renamed", "replaced"} {
			t.Run(how, func(t *testing.T) {
				cfg := Config{Force: mode, rootCheckEvery: time.Hour}
				if mode == Inotify && how == "removed" {
					cfg.rootCheckEvery = 20 * time.Millisecond // we hold it open, so no event comes
				}
				r := newRig(t, cfg)
				switch how {
				case "removed":
					r.do(os.Remove(r.top))
				case "renamed":
					r.do(os.Rename(r.top, r.top+".away"))
				case "replaced":
					r.do(os.Mkdir(r.top+".new", 0o755))
					r.do(unix.Renameat2(unix.AT_FDCWD, r.top, unix.AT_FDCWD, r.top+".new", unix.RENAME_EXCHANGE))
				}
				if mode == Poll {
					_, err := r.w.Barrier()
					r.do(err)
				}
				var last Event
				for last.Kind != Gone {
					batch, err := r.w.Read(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for _, ev := range batch {
						if ev.Kind != Barrier {
							last = ev
						}
					}
				}
				if _, err := r.w.Read(t.Context()); !errors.Is(err, ErrGone) {
					t.Errorf("after Gone: %v", err)
				}
			})
		}
	})
}

func TestReadEnds(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		r := newRig(t, Config{Force: mode})
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		read := func() {
			_, err := r.w.Read(ctx)
			failed <- err
		}
		go read()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		ctx = t.Context()
		r.write("after", "x")
		if got := r.drain(); !covered(got, "after") {
			t.Errorf("after a cancelled read: %v", got)
		}
		go read()
		r.do(r.w.Close())
		if err := <-failed; !errors.Is(err, os.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		if _, err := r.w.Barrier(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("barrier after close: %v", err)
		}
	})
}

// fewWatches lets inotify have n watches.
func fewWatches(n int) func(int, string, uint32) (int, error) {
	return func(fd int, path string, mask uint32) (int, error) {
		if n--; n < 0 {
			return -1, unix.ENOSPC
		}
		return unix.InotifyAddWatch(fd, path, mask)
	}
}

func TestWatchesUsedUp(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		base := t.TempDir()
		for _, dir := range []string{"root/a/b/c", "work"} {
			if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cfg := Config{Root: filepath.Join(base, "root"), Work: filepath.Join(base, "work"), Force: Inotify, addWatch: fewWatches(3)}
		if _, err := Open(cfg); !errors.Is(err, errWatches) || !strings.Contains(err.Error(), "fs.inotify.max_user_watches") {
			t.Errorf("forced: %v", err)
		}
	})
	t.Run("later", func(t *testing.T) {
		r := newRig(t, Config{Force: Inotify, addWatch: fewWatches(4)})
		r.w.(*ladder).cfg.Force = "" // as where fanotify does not work
		r.do(os.MkdirAll(r.path("a/b/c/d"), 0o755))
		r.write("a/b/c/d/file", "x")
		events := r.drain() // the barrier survives the fall
		if !slices.Contains(events, Event{Kind: Rescan}) {
			t.Errorf("events %v", events)
		}
		if mode, why := r.w.Mode(); mode != "poll" || !strings.Contains(why, "fs.inotify.max_user_watches") {
			t.Errorf("mode %q, why %q", mode, why)
		}
		if r.w.Overflows() != 1 {
			t.Errorf("%d overflows", r.w.Overflows())
		}
		r.write("a/b/c/d/file2", "x")
		if got := r.drain(); !covered(got, "a/b/c/d/file2") {
			t.Errorf("polling: %v", got)
		}
	})
}

func TestWorkBeneathTheRoot(t *testing.T) {
	allModes(t, func(t *testing.T, mode Mode) {
		top := t.TempDir()
		work := filepath.Join(top, ".own/work")
		r := &rig{t: t, top: top}
		r.do(os.MkdirAll(work, 0o755))
		w, err := Open(Config{Root: top, Work: work, Force: mode, OwnEvents: true, PollEvery: time.Hour})
		r.do(err)
		defer w.Close()
		r.w = w
		r.write(".own/work/staged", "x")
		r.write("file", "x")
		for path := range strongest(r.drain()) {
			if strings.HasPrefix(path, ".own/work") {
				t.Errorf("hint at %q", path)
			}
		}
		r.do(os.Rename(filepath.Join(work, "staged"), r.path("placed")))
		if got := r.drain(); !covered(got, "placed") {
			t.Errorf("events %v", got)
		}
	})
}

func TestBadConfig(t *testing.T) {
	dir := t.TempDir()
	for name, cfg := range map[string]Config{
		"no root":      {Root: filepath.Join(dir, "none"), Work: dir},
		"no work":      {Root: dir, Work: filepath.Join(dir, "none")},
		"work is root": {Root: dir, Work: dir},
		"unknown mode": {Root: dir, Work: t.TempDir(), Force: "guess"},
	} {
		if w, err := Open(cfg); err == nil {
			w.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

// TestPollTicks: without a barrier a pass happens at each tick.
func TestPollTicks(t *testing.T) {
	tick := make(chan time.Time)
	stopped := false
	r := newRig(t, Config{Force: Poll, Tick: func(time.Duration) (<-chan time.Time, func()) {
		return tick, func() { stopped = true }
	}})
	r.write("file", "x")
	go func() { tick <- time.Now() }()
	batch, err := r.w.Read(t.Context())
	r.do(err)
	if !covered(batch, "file") {
		t.Errorf("events %v", batch)
	}
	r.do(r.w.Close())
	if !stopped {
		t.Error("the ticker still runs")
	}
}

// TestQuiet: what is written in a quiet directory makes no events, what is named there and what is written elsewhere does.
func TestQuiet(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"root", "work", "quiet"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log, mark := filepath.Join(base, "quiet", "log"), filepath.Join(base, "root", "mark")
	write := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(log)
	cfg := Config{Root: filepath.Dir(mark), Work: filepath.Join(base, "work"), Quiet: []string{filepath.Dir(log)}, Force: Fanotify, OwnEvents: true}
	w, err := Open(cfg)
	if err != nil {
		t.Skip(err)
	}
	defer w.Close()
	write(log)
	write(mark)
	if names := namedUntil(t, w, "mark"); names["log"] {
		var uts unix.Utsname
		if unix.Uname(&uts); uts.Release[0] < '6' {
			t.Skip("this kernel cannot do it")
		}
		t.Errorf("events of %v", names)
	}
	if err := os.Rename(log, filepath.Join(filepath.Dir(mark), "moved")); err != nil {
		t.Fatal(err)
	}
	write(mark)
	if names := namedUntil(t, w, "mark"); !names["moved"] {
		t.Errorf("events of %v", names)
	}
}

// namedUntil reads the kernel's events until one is of last, and returns the names that they had.
func namedUntil(t *testing.T, w Watcher, last string) map[string]bool {
	t.Helper()
	q := w.(*ladder).source.(*fanotifyWatcher).queue
	names, buf := map[string]bool{}, make([]byte, fanBuffer)
	for !names[last] {
		n, err := q.read(t.Context(), 10*time.Second, buf)
		if err != nil || n == 0 {
			t.Fatalf("no events: %v", err)
		}
		for rest := buf[:n]; len(rest) > 0; {
			var ev fanEvent
			if ev, rest, err = parseFan(rest); err != nil {
				t.Fatal(err)
			}
			names[string(ev.name)] = true
		}
	}
	return names
}
