package place

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Readers of a path that is replaced all the time never miss it and never see anything but one version.
func TestReadersNeverSeeABadFile(t *testing.T) {
	for _, swapKinds := range []bool{false, true} {
		f := newFixture(t)
		f.must(Done, Task{Path: "d", Want: dirNode(1)})
		have := f.must(Done, fileTask("d/x", 2, repeat('a', 5000), Placed{})).Placed
		var stop atomic.Bool
		var reads atomic.Int64
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for !stop.Load() {
					if err := readOnce(f.path("d/x"), swapKinds); err != nil {
						t.Error(err)
						return
					}
					reads.Add(1)
				}
			})
		}
		for v := uint64(3); v < 500 || reads.Load() < 500 && !t.Failed(); v++ {
			task := fileTask("d/x", v, repeat('a'+byte(v%26), 5000), have)
			if kind := v % 3; swapKinds && kind > 0 {
				task = Task{Path: "d/x", Want: []manifest.Node{linkNode(v, "target"), dirNode(v)}[kind-1], Have: have}
			}
			// A reader may hold the directory open or be in it; a file it has open does not stand in the way.
			have = f.must(Done, task).Placed
		}
		stop.Store(true)
		wg.Wait()
		f.clean()
	}
}

// readOnce opens path, or, where it may be of any kind, looks at it.
func readOnce(path string, anyKind bool) error {
	if anyKind {
		var st unix.Stat_t
		return unix.Lstat(path, &st)
	}
	b, err := os.ReadFile(path)
	if err == nil && (len(b) != 5000 || strings.Count(string(b), string(b[0])) != 5000) {
		err = fmt.Errorf("%d bytes, mixed or short", len(b))
	}
	return err
}

// editor is somebody else at work on a path, at one chosen step of the placer.
type editor struct {
	t     *testing.T
	f     *fixture
	path  string // absolute
	token string
	held  *os.File // opened for writing, or (a directory) for making files in it, before the placer came
	wrote bool     // the token was written, or will be
	waits bool     // it will be: a lease stands in the way
	later sync.WaitGroup
}

// edits are what it can do.
var edits = map[string]func(*editor){
	"write in place":      (*editor).writeInPlace,
	"rename over":         (*editor).renameOver,
	"write to held":       (*editor).writeHeld,
	"remove":              func(e *editor) { os.Remove(e.path) },
	"replace by dir":      (*editor).replaceByDir,
	"chmod":               func(e *editor) { unix.Fchmodat(unix.AT_FDCWD, e.path, 0o604, unix.AT_SYMLINK_NOFOLLOW) },
	"link elsewhere":      (*editor).linkElsewhere,
	"write, restore time": (*editor).writeQuietly,
}

// writeInPlace opens the path for writing and writes. If a lease stands in the way it waits, as anybody would
// who has resolved the name already: for the file, wherever that goes.
func (e *editor) writeInPlace() {
	ref, err := unix.Open(e.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		defer func() {
			if ref >= 0 {
				unix.Close(ref)
			}
		}()
	}
	fd, err := unix.Open(e.path, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == unix.EAGAIN {
		e.wrote, e.waits = true, true
		found := ref
		ref = -1
		e.later.Go(func() {
			defer unix.Close(found)
			fd, err := unix.Open(procFd(found), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				e.t.Errorf("open after a lease: %v", err)
				return
			}
			unix.Write(fd, []byte(e.token))
			unix.Close(fd)
		})
		return
	}
	if err != nil {
		return // a directory or symlink
	}
	n, err := unix.Write(fd, []byte(e.token))
	e.wrote = err == nil && n == len(e.token)
	unix.Close(fd)
}

func (e *editor) writeQuietly() {
	var st unix.Stat_t
	if unix.Lstat(e.path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	e.writeInPlace()
	if e.wrote {
		unix.UtimesNanoAt(unix.AT_FDCWD, e.path, []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
}

func (e *editor) renameOver() {
	tmp := e.path + ".tmp"
	if err := os.WriteFile(tmp, []byte(e.token), 0o600); err != nil {
		e.t.Error(err)
	}
	e.wrote = true // left beside it if it cannot be renamed over a directory
	os.Rename(tmp, e.path)
}

// writeHeld writes with a descriptor that was opened before, or creates a file in a directory opened before.
func (e *editor) writeHeld() {
	if e.held == nil {
		return
	}
	if _, err := e.held.WriteString(e.token); err == nil {
		e.wrote = true
		return
	}
	fd, err := unix.Openat(int(e.held.Fd()), "inside", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return // the directory was removed: nothing can be created in it
	}
	n, err := unix.Write(fd, []byte(e.token))
	e.wrote = err == nil && n == len(e.token)
	unix.Close(fd)
}

func (e *editor) replaceByDir() {
	if os.Remove(e.path) != nil || os.Mkdir(e.path, 0o700) != nil {
		return
	}
	e.wrote = os.WriteFile(e.path+"/inside", []byte(e.token), 0o600) == nil
}

func (e *editor) linkElsewhere() {
	e.writeInPlace()
	os.Link(e.path, e.path+".link")
}

// raceCase is a task in whose way an editor gets.
type raceCase struct {
	name string
	have func(*fixture) Placed
	task func(Placed) Task
}

func raceCases() []raceCase {
	none := func(*fixture) Placed { return Placed{} }
	file := func(f *fixture) Placed { return f.must(Done, fileTask("d/x", 2, repeat('o', 5000), Placed{})).Placed }
	link := func(f *fixture) Placed { return f.must(Done, Task{Path: "d/x", Want: linkNode(2, "t")}).Placed }
	dir := func(f *fixture) Placed { return f.must(Done, Task{Path: "d/x", Want: dirNode(2)}).Placed }
	to := func(n manifest.Node, data string) func(Placed) Task {
		return func(h Placed) Task { return Task{Path: "d/x", Want: n, Have: h, Inline: []byte(data)} }
	}
	toFile := to(fileNode(3, repeat('n', 6000)), repeat('n', 6000))
	return []raceCase{
		{"create file", none, toFile},
		{"create link", none, to(linkNode(3, "t"), "")},
		{"create dir", none, to(dirNode(3), "")},
		{"replace file", file, toFile},
		{"file to link", file, to(linkNode(3, "t"), "")},
		{"file to dir", file, to(dirNode(3), "")},
		{"link to file", link, toFile},
		{"dir to file", dir, toFile},
		{"delete file", file, to(gone(3), "")},
		{"delete link", link, to(gone(3), "")},
		{"delete dir", dir, to(gone(3), "")},
		{"metadata", file, func(h Placed) Task {
			return Task{Path: "d/x", Want: fileNode(3, repeat('o', 5000)), Have: h, SameContent: true}
		}},
	}
}

// Whatever somebody does, and at whichever step of ours: every byte written is still somewhere, in place or
// in kept, and if it is in place the result does not describe it as ours.
func TestEditorsRace(t *testing.T) {
	for _, c := range raceCases() {
		for name, edit := range edits {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				for k := 0; raceOnce(t, c, name, edit, k); k++ {
				}
			})
		}
	}
}

// raceOnce runs c with an edit at step k and says whether there was a step k.
func raceOnce(t *testing.T, c raceCase, name string, edit func(*editor), k int) bool {
	f := newMemoryFixture(t)
	defer f.p.Close()
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	have := c.have(f)
	e := &editor{t: t, f: f, path: f.path("d/x"), token: "TOKEN OF THE EDITOR"}
	if name == "write to held" {
		e.held = openHeld(e.path)
		defer e.held.Close()
	}
	n, at := 0, ""
	f.p.hook = func(step, path string) {
		if n++; n == k+1 {
			at = step
			edit(e)
		}
	}
	r := f.apply(f.lingers(c.task(have)))[0]
	f.p.hook = nil
	e.later.Wait()
	if at == "" {
		return false
	}
	found := f.find(e.token)
	inKept := len(f.clean()) > 0
	now := f.stat("d/x")
	switch {
	case t.Failed():
	case e.wrote && len(found) == 0:
		t.Fatalf("at %q: what was written is gone; result %v %v", at, r.Code, r.Err)
	case inKept && r.Kept == "":
		t.Fatalf("at %q: kept and not said; result %v %v", at, r.Code, r.Err)
	case r.Code > Busy:
		t.Fatalf("at %q: %v %v", at, r.Code, r.Err)
	case r.Code <= Adopted && len(found) > 0 && found[0] == e.path && now == r.Placed.Stat:
		t.Fatalf("at %q: an edit is described as placed: %+v", at, now)
	case at == "metadata": // the one place where an edit, of the metadata alone, is overwritten: see DESIGN.md
	case r.Code <= Adopted && name == "chmod" && now.Kind == manifest.File && now.Mode == 0o604 && now == r.Placed.Stat:
		t.Fatalf("at %q: a changed mode is described as placed", at)
	}
	return true
}

func openHeld(path string) *os.File {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, unix.EISDIR) {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil
	}
	return f
}

// A second edit gets in the way of putting the first one back.
func TestTwoEditorsRace(t *testing.T) {
	for _, first := range []string{"write in place", "rename over", "write to held"} {
		for _, second := range []string{"write in place", "rename over", "remove", "replace by dir", "write, restore time"} {
			for _, c := range raceCases()[3:11] {
				t.Run(c.name+"/"+first+"/"+second, func(t *testing.T) {
					for k := 0; raceTwice(t, c, edits[first], edits[second], k); k++ {
					}
				})
			}
		}
	}
}

// raceTwice edits at the exchange (or move aside) and again k steps later.
func raceTwice(t *testing.T, c raceCase, first, second func(*editor), k int) bool {
	f := newMemoryFixture(t)
	defer f.p.Close()
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	have := c.have(f)
	a := &editor{t: t, f: f, path: f.path("d/x"), token: "TOKEN OF THE FIRST"}
	b := &editor{t: t, f: f, path: f.path("d/x"), token: "TOKEN OF THE SECOND, WHICH IS LONGER"}
	a.held = openHeld(a.path)
	defer a.held.Close()
	n, at, began, overwrote := 0, "", false, false
	f.p.hook = func(step, path string) {
		switch {
		case step == "exchange" || step == "aside" || step == "rmdir":
			began = true
			first(a)
		case began:
			if n++; n == k+1 {
				at = step
				before := f.find(a.token)
				second(b)
				// The second editor may destroy what the first one wrote: its right.
				overwrote = len(before) > 0 && len(f.find(a.token)) == 0
			}
		}
	}
	r := f.apply(f.lingers(c.task(have)))[0]
	a.later.Wait()
	b.later.Wait()
	if at == "" {
		return false
	}
	f.clean()
	if a.wrote && !overwrote && len(f.find(a.token)) == 0 {
		t.Fatalf("at %q: the first editor's bytes are gone; result %v %v", at, r.Code, r.Err)
	}
	if b.wrote && len(f.find(b.token)) == 0 {
		t.Fatalf("at %q: the second editor's bytes are gone; result %v %v", at, r.Code, r.Err)
	}
	return true
}

// An edit that was not in the way of anything is seen as one afterwards.
func TestEditAfterPlacingIsSeen(t *testing.T) {
	f := newFixture(t)
	f.p.hook = func(step, path string) {
		if step == "linked" {
			if err := os.WriteFile(f.path("x"), []byte("mine"), 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	r := f.must(Done, fileTask("x", 1, "ours", Placed{}))
	if r.Placed.Stat == f.stat("x") || r.Placed.Stat.Size != 4 || r.Placed.Stat.MTime != someTime+1 {
		t.Errorf("placed %+v, there is %+v", r.Placed.Stat, f.stat("x"))
	}
}

// A writer that works all the time with a descriptor it opened once: its file is left alone until it closes.
func TestWriterKeepsItsFile(t *testing.T) {
	f := newFixture(t)
	r := f.must(Done, fileTask("log", 1, "line\n", Placed{}))
	w, err := os.OpenFile(f.path("log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	for v := uint64(2); v < 10; v++ {
		b := f.must(Busy, fileTask("log", v, "other", r.Placed))
		if !strings.Contains(b.Err.Error(), "open for writing") && !strings.Contains(b.Err.Error(), "another entry") {
			t.Error(b.Err)
		}
		r.Placed.Stat = f.stat("log")
	}
	f.must(Busy, Task{Path: "log", Want: gone(10), Have: r.Placed})
	r.Placed.Stat = f.stat("log")
	if _, err := w.WriteString("written after all that"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if len(f.find("written after all that")) != 1 {
		t.Error("bytes lost")
	}
	r.Placed.Stat = f.stat("log")
	f.must(Done, fileTask("log", 11, "other", r.Placed))
	f.clean()
}

// Many editors and the placer at full speed, no seam: whatever an editor's last successful write was is found.
func TestManyEditorsAtFullSpeed(t *testing.T) {
	f := newFixture(t)
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	const files = 8
	have := make([]Placed, files)
	var stop atomic.Bool
	var wg sync.WaitGroup
	tokens := make([][]string, files)
	for i := range files {
		path := f.path(fmt.Sprintf("d/%d", i))
		wg.Go(func() {
			for n := 0; !stop.Load() && n < 400; n++ {
				token := fmt.Sprintf("<file %d edit %d>", i, n)
				if n%2 == 0 {
					w, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
					if err != nil {
						continue
					}
					_, err = w.WriteString(token)
					w.Close()
					if err != nil {
						continue
					}
				} else if os.WriteFile(path+"."+token[1:5]+fmt.Sprint(n), []byte(token), 0o600) != nil {
					continue
				}
				tokens[i] = append(tokens[i], token)
			}
		})
	}
	for v := uint64(2); v < 60; v++ {
		var tasks []Task
		for i := range files {
			tasks = append(tasks, fileTask(fmt.Sprintf("d/%d", i), v, fmt.Sprintf("version %d", v), have[i]))
		}
		rs, _ := f.p.Apply(context.Background(), tasks, f.bytes)
		for i, r := range rs {
			switch r.Code {
			case Done, Adopted:
				have[i] = r.Placed
			case Busy: // as the agent would: keep the edit elsewhere, then let it be replaced
				have[i] = f.preserve(tasks[i].Path)
			default:
				t.Fatal(r.Err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	all := f.everything()
	lost, written := 0, 0
	for _, list := range tokens {
		for _, token := range list {
			written++
			if !strings.Contains(all, token) {
				lost++
				t.Logf("lost %s", token)
			}
		}
	}
	// An open(2) that has resolved a name and not finished when the lease ends is not protected: DESIGN.md.
	if lost > 1+written/1000 {
		t.Errorf("%d of %d edits lost", lost, written)
	}
	f.clean()
}

// preserve copies what is at path to a file beside it, if it can be read without change, and returns the
// record that lets it be replaced.
func (f *fixture) preserve(path string) Placed {
	before := f.stat(path)
	b, err := os.ReadFile(f.path(path))
	if err != nil || f.stat(path) != before {
		return Placed{Version: 1, Stat: Stat{Kind: manifest.File}} // not stable: equals nothing
	}
	w, err := os.CreateTemp(f.root+"/d", "saved")
	if err != nil {
		f.t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		f.t.Fatal(err)
	}
	return Placed{Stat: before}
}

func (f *fixture) everything() string {
	var all strings.Builder
	for _, path := range f.find("") {
		b, err := os.ReadFile(path)
		if err != nil {
			f.t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
