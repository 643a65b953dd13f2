package place

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

const crashEnv = "PLACE_TEST_CRASH" // CASE/EDIT/EDITSTEP/CRASHSTEP/LACKS of the child, directory in PLACE_TEST_DIR

// TestCrashChild is the process that is killed; it does nothing when run by itself.
func TestCrashChild(t *testing.T) {
	what := os.Getenv(crashEnv)
	if what == "" {
		t.Skip("only as a child of TestCrashAtEveryStep")
	}
	part := strings.Split(what, "/")
	number := func(i int) int {
		n, err := strconv.Atoi(part[i])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	c, editAt, crashAt := raceCases()[number(0)], number(2), number(3)
	f := openFixture(t, os.Getenv("PLACE_TEST_DIR"))
	f.p.learn(lack(number(4)))
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	task := f.lingers(c.task(c.have(f)))
	e := &editor{t: t, f: f, path: f.path("d/x"), token: crashToken}
	n := 0
	f.p.hook = func(step, path string) {
		n++
		if n == editAt {
			edits[part[1]](e)
			if e.wrote && !e.waits {
				os.WriteFile(f.work+"/wrote", nil, 0o600)
			}
		}
		if n == crashAt {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
	f.apply(task)
	e.later.Wait()
}

const crashToken = "TOKEN OF THE EDITOR"

// The process is killed at every step of every task, also with an edit in the way; then it recovers and tries
// again, and in the end the disk is as wanted, or the edit is there.
func TestCrashAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a few hundred processes")
	}
	for i, c := range raceCases() {
		for _, edit := range []string{"", "rename over", "write in place"} {
			for _, lack := range []lack{0, lackTmpfile | lackExchange | lackNoClob} {
				if lack != 0 && edit != "" {
					continue // then a rename onto the path may be lost, and is said to be
				}
				for editAt := 3; editAt < 8; editAt++ {
					crashes(t, i, c, edit, editAt, lack)
					if edit == "" {
						break
					}
				}
			}
		}
	}
}

func crashes(t *testing.T, i int, c raceCase, edit string, editAt int, lack lack) {
	for crashAt := max(editAt, 3); ; crashAt++ { // before that the case is being set up
		if edit == "" {
			editAt = 0
		}
		what := fmt.Sprintf("%d/%s/%d/%d/%d", i, edit, editAt, crashAt, lack)
		dir := memoryDir(t)
		child := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
		child.Env = append(os.Environ(), crashEnv+"="+what, "PLACE_TEST_DIR="+dir)
		out, err := child.CombinedOutput()
		if err == nil {
			return // there is no such step
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.String() != "signal: killed" {
			t.Fatalf("%s (%s): %v\n%s", what, c.name, err, out)
		}
		afterCrash(t, what, dir, c, lack)
		os.RemoveAll(dir)
	}
}

func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "place")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func afterCrash(t *testing.T, what, dir string, c raceCase, lack lack) {
	t.Helper()
	f := &fixture{t: t, root: dir + "/root", work: dir + "/work", bytes: &memory{}}
	kept := f.open()
	defer f.p.Close()
	f.clean()
	_, err := os.Stat(f.work + "/wrote")
	found := f.find(crashToken)
	if err == nil && len(found) == 0 {
		t.Fatalf("%s (%s): the edit is gone", what, c.name)
	}
	for _, k := range kept {
		if k.Origin != "d/x" {
			t.Errorf("%s (%s): kept %+v", what, c.name, k)
		}
	}
	if len(found) > 0 && found[0] == f.path("d/x") {
		return // the agent would propose it first
	}
	if len(kept) > 0 && len(found) == 0 && lack&lackExchange == 0 {
		t.Errorf("%s (%s): kept without an edit: %+v", what, c.name, kept)
	}
	// The agent looks again and finds what was there before, with another ctime, or what is wanted, or nothing.
	task := c.task(Placed{Version: 2, Stat: f.stat("d/x")})
	task.SameContent = c.name == "metadata"
	if task.Have.Stat.Kind == manifest.Absent {
		task.Have = Placed{}
	}
	if r := f.apply(task)[0]; r.Code > Adopted {
		t.Fatalf("%s (%s): again: %v %v", what, c.name, r.Code, r.Err)
	}
	f.is("d/x", task.Want)
	if len(f.clean()) != len(kept) {
		t.Errorf("%s: more was kept", what)
	}
}

// Killed when our object was just taken back out of its place, with somebody waiting to write to it: the write
// goes to the file in Work, and is kept.
func TestWriteToWhatWasTakenBack(t *testing.T) {
	f := newFixture(t)
	r := f.must(Done, fileTask("x", 1, "before", Placed{}))
	e := &editor{t: t, f: f, path: f.path("x"), token: "racing edit"}
	f.p.hook = func(step, path string) {
		switch step {
		case "exchange":
			e.renameOver()
		case "look back":
			panic("killed")
		}
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("not killed")
			}
		}()
		f.apply(fileTask("x", 2, "after", r.Placed))
	}()
	f.p.Close() // with which the lease ends
	in := names(t, f.work+"/place")
	if err := os.WriteFile(f.work+"/place/"+in[0], []byte(crashToken), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := f.open()
	if len(kept) != 1 || kept[0].Origin != "x" || len(f.find(crashToken)) != 1 || len(f.find("racing edit")) != 1 {
		t.Errorf("kept %+v; %q, %q", kept, f.find(crashToken), f.find("racing edit"))
	}
}

// What a power failure leaves, when the intent is lost: nothing is dropped that may be somebody's.
func TestRecoverWithoutIntent(t *testing.T) {
	f := newFixture(t)
	place := f.work + "/place/"
	write := func(name, content string) uint64 {
		if err := os.WriteFile(place+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(place+name, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	write("new-1", "ours")
	ino := write("tmp", "ours")
	if err := os.Rename(place+"tmp", place+workNameIno(prefixSwap, 2, ino)); err != nil {
		t.Fatal(err)
	}
	write("swap-3-1", "theirs A")
	write("old-4", "theirs B")
	ino = write("tmp", "theirs C")
	if err := os.Rename(place+"tmp", place+workNameIno(prefixBack, 5, ino)); err != nil {
		t.Fatal(err)
	}
	write("old-zz", "not ours")
	f.p.Close()
	kept := f.open()
	if len(kept) != 3 {
		t.Errorf("kept %+v", kept)
	}
	for _, token := range []string{"theirs A", "theirs B", "theirs C"} {
		if len(f.find(token)) != 1 {
			t.Errorf("%s is gone", token)
		}
	}
	if got := names(t, place); len(got) != 2 || got[0] != "intent" || got[1] != "old-zz" {
		t.Errorf("in work: %q", got)
	}
	for _, k := range kept {
		if k.Origin != "" {
			t.Errorf("origin made up: %+v", k)
		}
	}
}

func TestApplyNeedsRecover(t *testing.T) {
	f := newFixture(t)
	f.p.Close()
	p, err := New(f.config())
	if err != nil {
		t.Fatal(err)
	}
	f.p = p
	if r := f.must(Failed, fileTask("x", 1, "x", Placed{})); !errors.Is(r.Err, errNotRecovered) {
		t.Error(r.Err)
	}
}

func TestKeptNames(t *testing.T) {
	f := newFixture(t)
	long := strings.Repeat("n", 255)
	for _, name := range []string{"x", "x", "x", long, long} {
		from := filepath.Base(workName(prefixOld, 77))
		if err := os.WriteFile(f.work+"/place/"+from, []byte("bytes"), 0o600); err != nil {
			t.Fatal(err)
		}
		path := f.p.keep(from, name)
		if b, err := os.ReadFile(path); err != nil || string(b) != "bytes" {
			t.Errorf("%q: %v", path, err)
		}
	}
	if got := names(t, f.work+"/kept"); len(got) != 5 {
		t.Errorf("kept %q", got)
	}
}

func TestIntentRoundTrip(t *testing.T) {
	want := map[uint64]intended{
		0:              {path: "a/\xff\n", kind: manifest.File, mode: 0o4755, size: 1 << 40, mtime: -1},
		math.MaxUint64: {path: strings.Repeat("d/", 2000) + "x", kind: manifest.Symlink, mtime: math.MaxInt64},
		7:              {path: "gone"},
	}
	buf := make([]byte, intentHeader)
	for seq, in := range want {
		buf = appendIntent(buf, seq, in)
	}
	sealIntent(buf)
	for _, tail := range []string{"", "left from a longer one"} {
		got, err := parseIntent(append(bytes.Clone(buf), tail...))
		if err != nil || len(got) != len(want) {
			t.Fatalf("%v, %v", got, err)
		}
		for seq, in := range want {
			if got[seq] != in {
				t.Errorf("%d: %+v, want %+v", seq, got[seq], in)
			}
		}
	}
	for i := range buf { // any flipped bit is noticed
		bad := bytes.Clone(buf)
		bad[i] ^= 1
		if _, err := parseIntent(bad); err == nil {
			t.Fatalf("byte %d flipped: not noticed", i)
		}
		if _, err := parseIntent(buf[:i]); err == nil {
			t.Fatalf("cut at %d: not noticed", i)
		}
	}
}

func FuzzParseIntent(f *testing.F) {
	good := appendIntent(nil, 3, intended{path: "a/b", kind: manifest.File, mode: 0o644, size: 5, mtime: 6})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		buf := append(make([]byte, intentHeader), body...)
		sealIntent(buf)
		got, err := parseIntent(buf)
		if err != nil {
			return
		}
		again := make([]byte, intentHeader)
		for seq, in := range got {
			if !manifest.ValidPath(in.path) {
				t.Fatalf("path %q", in.path)
			}
			again = appendIntent(again, seq, in)
		}
		sealIntent(again)
		if back, err := parseIntent(again); err != nil || len(back) != len(got) {
			t.Fatalf("%v written and read is %v, %v", got, back, err)
		}
	})
}

func FuzzParseWorkName(f *testing.F) {
	for _, name := range []string{"new-1", "swap-a-ff", "back-0-1", "old-10", "old-1-2", "swap-1", "intent", "new-"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		prefix, seq, ino, ok := parseWorkName(name)
		if !ok {
			return
		}
		again := workName(prefix, seq)
		if prefix == prefixSwap || prefix == prefixBack {
			again = workNameIno(prefix, seq, ino)
		}
		p, s, i, ok := parseWorkName(again)
		if !ok || p != prefix || s != seq || i != ino {
			t.Fatalf("%q: %q %d %d, and %q: %q %d %d %v", name, prefix, seq, ino, again, p, s, i, ok)
		}
	})
}
