package place

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// lacks are the file systems that every transition is tried on.
var lacks = map[string]lack{
	"all features":    0,
	"no tmpfile":      lackTmpfile,
	"no exchange":     lackExchange,
	"no noreplace":    lackNoClob,
	"nothing at all":  lackTmpfile | lackExchange | lackNoClob | lackLease,
	"only exchanging": lackTmpfile | lackNoClob,
}

func TestEveryKindToEveryKind(t *testing.T) {
	states := []struct {
		name string
		node manifest.Node
		data string
	}{
		{"absent", gone(0), ""},
		{"file", fileNode(0, "one"), "one"},
		{"other file", fileNode(0, "three"), "three"},
		{"empty file", fileNode(0, ""), ""},
		{"dir", dirNode(0), ""},
		{"symlink", linkNode(0, "somewhere"), ""},
		{"other symlink", linkNode(0, "../elsewhere/"), ""},
	}
	for lackName, lack := range lacks {
		for _, a := range states {
			for _, b := range states {
				t.Run(fmt.Sprintf("%s/%s to %s", lackName, a.name, b.name), func(t *testing.T) {
					f := newMemoryFixture(t)
					if lack == 0 {
						f = newFixture(t)
					}
					f.p.learn(lack)
					top := f.must(Done, Task{Path: "d", Want: dirNode(1)})
					from, to := a.node, b.node
					from.Version, to.Version = 2, 3
					r := f.apply(Task{Path: "d/x", Want: from, Inline: []byte(a.data)})[0]
					f.is("d/x", from)
					if r.Placed.Stat != f.stat("d/x") || r.Placed.Version != 2 {
						t.Fatalf("placed %+v, there is %+v", r.Placed, f.stat("d/x"))
					}
					rs, touched := f.p.Apply(context.Background(), []Task{{Path: "d/x", Want: to, Have: r.Placed, Inline: []byte(b.data)}}, f.bytes)
					if rs[0].Code > Adopted {
						t.Fatalf("%v: %v", rs[0].Code, rs[0].Err)
					}
					f.is("d/x", to)
					if rs[0].Placed.Stat != f.stat("d/x") || rs[0].Placed.Version != 3 {
						t.Fatalf("placed %+v, there is %+v", rs[0].Placed, f.stat("d/x"))
					}
					if got := f.stat("d").MTime; got != top.Placed.Stat.MTime {
						t.Errorf("parent's mtime is %d, was %d", got, top.Placed.Stat.MTime)
					}
					for _, c := range touched {
						if c.Path != "d" || c.Foreign || c.After != f.stat("d") {
							t.Errorf("touched %+v", c)
						}
					}
					f.must(Adopted, Task{Path: "d/x", Want: to, Have: rs[0].Placed})
					if kept := f.clean(); len(kept) > 0 {
						t.Errorf("kept %q", kept)
					}
				})
			}
		}
	}
}

func TestMetadataInPlace(t *testing.T) {
	f := newFixture(t)
	r := f.must(Done, fileTask("x", 1, "content", Placed{}))
	ino := r.Placed.Stat.Ino
	want := fileNode(2, "content")
	want.Mode, want.MTime = 0o4755, -1_500_000_001
	if os.Geteuid() == 0 {
		want.UID, want.GID = 1234, 2345
	}
	r = f.must(Done, Task{Path: "x", Want: want, Have: r.Placed, SameContent: true})
	f.is("x", want)
	if s := f.stat("x"); s != r.Placed.Stat || s.Ino != ino {
		t.Errorf("placed %+v, there is %+v; inode was %d", r.Placed.Stat, s, ino)
	}
	r = f.must(Adopted, Task{Path: "x", Want: want, Have: Placed{Version: 1, Stat: r.Placed.Stat}, SameContent: true})
	if r.Placed.Version != 2 {
		t.Errorf("adopted %+v", r)
	}
}

func TestMetadataWaitsForWriters(t *testing.T) {
	f := newFixture(t)
	r := f.must(Done, fileTask("x", 1, "content", Placed{}))
	w, err := os.OpenFile(f.path("x"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	want := fileNode(2, "content")
	f.must(Busy, Task{Path: "x", Want: want, Have: r.Placed, SameContent: true})
	if f.stat("x") != r.Placed.Stat {
		t.Error("metadata was changed under a writer")
	}
}

func TestWhatIsThereAlready(t *testing.T) {
	f := newFixture(t)
	f.must(Done, fileTask("x", 1, "content", Placed{}))
	there := f.stat("x")
	r := f.must(Adopted, fileTask("x", 7, "content", Placed{Version: 0}).at(there.MTime))
	if r.Placed.Version != 7 || r.Placed.Stat != there {
		t.Errorf("adopted %+v", r.Placed)
	}
	f.must(Busy, fileTask("x", 7, "Content", Placed{}).at(there.MTime)) // same size and time
	f.must(Busy, fileTask("x", 7, "content", Placed{}))                 // other time
	whole := there.MTime / 1e9 * 1e9
	if err := os.Chtimes(f.path("x"), time.Time{}, time.Unix(0, whole)); err != nil {
		t.Fatal(err)
	}
	f.must(Busy, fileTask("x", 7, "content", Placed{}).at(whole+1)) // not the same, unless ...
	f.p.learn(lackNanos)
	f.must(Adopted, fileTask("x", 7, "content", Placed{}).at(whole+1))
	f.must(Busy, fileTask("x", 7, "content", Placed{}).at(whole+1e9))
	if err := os.Chtimes(f.path("x"), time.Time{}, time.Unix(0, there.MTime)); err != nil {
		t.Fatal(err)
	}
	there = f.stat("x")
	f.must(Busy, Task{Path: "x", Want: dirNode(7)})
	f.must(Busy, Task{Path: "x", Want: gone(7)})
	stale := Placed{Version: 1, Stat: there}
	stale.Stat.CTime--
	f.must(Busy, fileTask("x", 7, "next", stale))
	f.must(Busy, Task{Path: "x", Want: gone(7), Have: stale})
	f.must(Busy, fileTask("y", 7, "next", stale))             // Have says it is there
	f.must(Adopted, Task{Path: "y", Want: gone(7)})           // never was
	f.must(Adopted, Task{Path: "n/o/x", Want: gone(7)})       // not even the directory
	f.must(Adopted, Task{Path: "x/o/x", Want: gone(7)})       // a file on the way
	f.must(Busy, fileTask("n/o/x", 7, "content", Placed{}))   // its directory is gone
	f.must(Missing, Task{Path: "z", Want: fileNode(7, "zz")}) // content not here
	f.must(Failed, Task{Path: "z", Want: fileNode(7, "zz"), Inline: []byte("aa")})
	f.must(Failed, Task{Path: "../z", Want: gone(7)})
	f.must(Failed, Task{Path: ".lockstep/root", Want: gone(7)})
	f.must(Failed, Task{Path: "", Want: gone(7)})
	f.is("x", fileNode(1, "content"))
	f.clean()
}

// at changes the wanted mtime.
func (t Task) at(mtime int64) Task {
	t.Want.MTime = mtime
	return t
}

func TestFIFOIsNeverReplaced(t *testing.T) {
	f := newFixture(t)
	if err := unix.Mkfifo(f.path("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	have := Placed{Version: 1, Stat: f.stat("x")}
	for _, want := range []manifest.Node{fileNode(2, ""), dirNode(2), linkNode(2, "a"), gone(2)} {
		f.must(Busy, Task{Path: "x", Want: want})
		f.must(Busy, Task{Path: "x", Want: want, Have: have})
	}
	if s := f.stat("x"); s != have.Stat {
		t.Errorf("changed: %+v", s)
	}
}

func TestTreeAtOnce(t *testing.T) {
	f := newFixture(t)
	tasks := []Task{ // children before parents: the order is ours to find
		fileTask("a/b/c/deep", 9, "deep", Placed{}),
		fileTask("a/file", 5, "file", Placed{}),
		{Path: "a/b/link", Want: linkNode(6, "c/deep")},
		{Path: "a/b/c", Want: dirNode(4)},
		{Path: "a", Want: dirNode(2)},
		{Path: "a/b", Want: dirNode(3)},
		{Path: "", Want: dirNode(1)},
	}
	for i, r := range f.apply(tasks...) {
		if r.Code != Done || r.Placed.Stat != f.stat(tasks[i].Path) {
			t.Fatalf("%q: %v %v %+v, there is %+v", tasks[i].Path, r.Code, r.Err, r.Placed.Stat, f.stat(tasks[i].Path))
		}
		tasks[i].Have = r.Placed
	}
	for _, task := range tasks {
		f.is(task.Path, task.Want)
	}
	for i, r := range f.apply(tasks...) {
		if r.Code != Adopted || r.Placed != tasks[i].Have {
			t.Errorf("again %q: %v %v", tasks[i].Path, r.Code, r.Err)
		}
	}
	// The tree becomes a file, and a file becomes a tree, in one batch.
	var next []Task
	for _, task := range tasks {
		switch task.Path {
		case "":
		case "a":
			next = append(next, fileTask("a", 20, "now a file", task.Have))
		default:
			next = append(next, Task{Path: task.Path, Want: gone(20), Have: task.Have})
		}
	}
	for i, r := range f.apply(next...) {
		if r.Code != Done {
			t.Fatalf("%q: %v %v", next[i].Path, r.Code, r.Err)
		}
	}
	f.is("a", fileNode(20, "now a file"))
	have := Placed{Version: 20, Stat: f.stat("a")}
	for i, r := range f.apply(fileTask("a/b/c", 31, "c", Placed{}), Task{Path: "a", Want: dirNode(30), Have: have}, Task{Path: "a/b", Want: dirNode(32)}) {
		if r.Code != Done {
			t.Fatalf("%d: %v %v", i, r.Code, r.Err)
		}
	}
	f.is("a", dirNode(30))
	f.is("a/b", dirNode(32))
	f.is("a/b/c", fileNode(31, "c"))
	f.clean()
}

func TestDirectoryWithLocalFilesStays(t *testing.T) {
	for _, want := range []manifest.Node{gone(2), fileNode(2, ""), linkNode(2, "t")} {
		f := newFixture(t)
		d := f.must(Done, Task{Path: "d", Want: dirNode(1)})
		if err := os.WriteFile(f.path("d/mine"), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := f.must(Busy, Task{Path: "d", Want: want, Have: d.Placed})
		if !strings.Contains(r.Err.Error(), `"mine"`) {
			t.Errorf("error %q does not name the file", r.Err)
		}
		if len(f.find("mine")) != 1 {
			t.Error("the file is gone")
		}
		f.clean()
	}
}

func TestDirectoryMetadata(t *testing.T) {
	f := newFixture(t)
	d := f.must(Done, Task{Path: "d", Want: dirNode(1)})
	if err := os.WriteFile(f.path("d/mine"), nil, 0o600); err != nil { // moves the mtime, which never conflicts
		t.Fatal(err)
	}
	want := dirNode(2)
	want.Mode = 0o700
	d = f.must(Done, Task{Path: "d", Want: want, Have: d.Placed})
	f.is("d", want)
	if err := os.Chmod(f.path("d"), 0o500); err != nil {
		t.Fatal(err)
	}
	f.must(Busy, Task{Path: "d", Want: dirNode(3), Have: d.Placed})
	want.Mode, want.Version = 0o500, 4
	f.must(Adopted, Task{Path: "d", Want: want, Have: d.Placed})
}

func TestParentWithoutTaskKeepsItsTime(t *testing.T) {
	f := newFixture(t)
	f.must(Done, Task{Path: "d", Want: dirNode(1)})
	before := f.stat("d")
	rs, touched := f.p.Apply(context.Background(), []Task{fileTask("d/x", 2, "x", Placed{}), fileTask("d/y", 3, "y", Placed{})}, f.bytes)
	after := f.stat("d")
	if after.MTime != before.MTime || after.CTime == before.CTime {
		t.Errorf("before %+v after %+v", before, after)
	}
	if len(touched) != 1 || touched[0] != (Touched{Path: "d", Before: before, After: after}) {
		t.Errorf("touched %+v", touched)
	}
	// Somebody else creates a file between two of ours.
	n := 0
	f.p.hook = func(step, path string) {
		if step == "create" {
			if n++; n == 2 {
				if err := os.WriteFile(f.path("d/mine"), nil, 0o600); err != nil {
					t.Error(err)
				}
			}
		}
	}
	rs, touched = f.p.Apply(context.Background(), []Task{
		fileTask("d/x", 4, "x4", rs[0].Placed), fileTask("d/y", 5, "y5", rs[1].Placed),
	}, f.bytes)
	for _, r := range rs {
		if r.Code != Done {
			t.Fatalf("%v %v", r.Code, r.Err)
		}
	}
	if len(touched) != 1 || !touched[0].Foreign || touched[0].After != f.stat("d") || f.stat("d").MTime == before.MTime {
		t.Errorf("touched %+v, there is %+v", touched, f.stat("d"))
	}
}

func TestContentFromEverywhere(t *testing.T) {
	big := repeat('a', 300_000) + repeat(0, 300_000) + repeat('b', 5000) + repeat(0, 123_456)
	for _, content := range []string{"tiny", repeat('x', 16<<10), big} {
		for _, replace := range []bool{false, true} {
			for _, from := range []string{"inline", "small", "open", "staged", "bad staged"} {
				t.Run(fmt.Sprintf("%s/%d/%v", from, len(content), replace), func(t *testing.T) {
					f := newFixture(t)
					n := fileNode(2, content)
					n.Mode = 0o755
					task := Task{Path: "x", Want: n}
					if replace {
						task.Have = f.must(Done, fileTask("x", 1, "before", Placed{})).Placed
					}
					f.serve(from, n.Hash, content, &task)
					r := f.must(Done, task)
					f.is("x", n)
					if r.Placed.Stat != f.stat("x") {
						t.Errorf("placed %+v", r.Placed)
					}
					if _, err := os.Lstat(f.work + "/stage"); from == "staged" && err == nil {
						t.Error("the staged file was copied")
					}
					f.clean()
				})
			}
		}
	}
}

// serve makes content available in one of the ways.
func (f *fixture) serve(how string, h manifest.Hash, content string, task *Task) {
	b := []byte(content)
	switch how {
	case "inline":
		task.Inline = b
	case "small":
		f.bytes.small = map[manifest.Hash][]byte{h: b}
	case "staged":
		f.stage(h, content)
	case "bad staged": // has another name, which may belong to anybody
		f.stage(h, content)
		if err := os.Link(f.work+"/stage", f.work+"/stage2"); err != nil {
			f.t.Fatal(err)
		}
		fallthrough
	case "open":
		f.bytes.large = map[manifest.Hash][]byte{h: b}
	}
}

func (f *fixture) stage(h manifest.Hash, content string) {
	if err := os.WriteFile(f.work+"/stage", []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.bytes.staged = map[manifest.Hash]string{h: f.work + "/stage"}
}

func TestStagedFileComesBackIfNotUsed(t *testing.T) {
	f := newFixture(t)
	content := repeat('s', 100_000)
	n := fileNode(2, content)
	f.stage(n.Hash, content)
	r := f.must(Done, fileTask("x", 1, "before", Placed{}))
	f.p.hook = func(step, _ string) {
		if step == "exchange" {
			if err := os.Remove(f.path("x")); err != nil {
				t.Error(err)
			}
		}
	}
	f.must(Busy, Task{Path: "x", Want: n, Have: r.Placed})
	if b, err := os.ReadFile(f.work + "/stage"); err != nil || string(b) != content {
		t.Errorf("staged file: %d bytes, %v", len(b), err)
	}
	f.clean()
}

func TestShortContentFails(t *testing.T) {
	f := newFixture(t)
	n := fileNode(2, repeat('s', 300_000))
	f.bytes.large = map[manifest.Hash][]byte{n.Hash: []byte("not all of it")}
	f.must(Failed, Task{Path: "x", Want: n})
	f.is("x", gone(0))
	f.clean()
}

func TestHolesStayHoles(t *testing.T) {
	f := newFixture(t)
	content := repeat(0, 4<<20) + "end"
	n := fileNode(1, content)
	f.bytes.large = map[manifest.Hash][]byte{n.Hash: []byte(content)}
	f.must(Done, Task{Path: "x", Want: n})
	f.is("x", n)
	var st unix.Stat_t
	if err := unix.Stat(f.path("x"), &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("%d bytes on disk, %v", st.Blocks*512, err)
	}
}

func TestNamesOfAnyByte(t *testing.T) {
	f := newFixture(t)
	var all []byte
	for c := 1; c < 256; c++ {
		if c != '/' {
			all = append(all, byte(c))
		}
	}
	dir := "d\xff\n"
	f.must(Done, Task{Path: dir, Want: dirNode(1)})
	for _, name := range []string{string(all), strings.Repeat("\xff", 255), " ", "...", "-rf", "a\nb", "\u202e"} {
		path := dir + "/" + name
		r := f.must(Done, fileTask(path, 2, "one", Placed{}))
		r = f.must(Done, fileTask(path, 3, "two", r.Placed))
		f.is(path, fileNode(3, "two"))
		f.must(Done, Task{Path: path, Want: gone(4), Have: r.Placed})
		f.must(Done, Task{Path: path, Want: linkNode(5, name)})
	}
	r := f.must(Failed, fileTask(strings.Repeat("n", 256), 2, "one", Placed{}))
	if !errors.Is(r.Err, unix.ENAMETOOLONG) && !errors.Is(r.Err, unix.EINVAL) {
		t.Errorf("name too long: %v", r.Err)
	}
	f.clean()
}

func TestFromGoesFirst(t *testing.T) {
	f := newFixture(t)
	r := f.must(Done, fileTask("x", 1, "precious", Placed{}))
	f.bytes.large = map[manifest.Hash][]byte{}
	var order []string
	f.p.hook = func(step, path string) {
		if step == "link" || step == "exchange" || step == "aside" {
			order = append(order, path)
		}
	}
	copied := fileTask("x.conflict", 2, "precious", Placed{})
	copied.From = "x"
	f.apply(Task{Path: "x", Want: gone(3), Have: r.Placed}, copied)
	if len(order) != 2 || order[0] != "x.conflict" {
		t.Errorf("order %q", order)
	}
}

func TestOneFailureStopsNothing(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	tasks := []Task{
		fileTask("a", 1, "a", Placed{}),
		{Path: "b", Want: fileNode(1, "b"), Inline: []byte("wrong")},
		{Path: "c", Want: linkNode(1, repeat('x', 5000))}, // longer than any symlink may be
		fileTask("d", 1, "d", Placed{}),
	}
	rs, _ := f.p.Apply(ctx, tasks, f.bytes)
	for i, want := range []ResultCode{Done, Failed, Failed, Done} {
		if rs[i].Code != want {
			t.Errorf("task %d: %v %v", i, rs[i].Code, rs[i].Err)
		}
	}
	if !errors.Is(rs[2].Err, unix.ENAMETOOLONG) {
		t.Errorf("error %v", rs[2].Err)
	}
	cancel()
	rs, _ = f.p.Apply(ctx, []Task{fileTask("e", 1, "e", Placed{})}, f.bytes)
	if rs[0].Code != Failed || !errors.Is(rs[0].Err, context.Canceled) {
		t.Errorf("cancelled: %v %v", rs[0].Code, rs[0].Err)
	}
	f.clean()
}

func TestExecutableIsNeverBusy(t *testing.T) {
	f := newFixture(t)
	n := fileNode(1, "#!/bin/sh\n")
	n.Mode = 0o755
	f.p.hook = func(step, path string) {
		if step != "linked" {
			return
		}
		// What execve asks: that nobody has it open for writing. A lease asks the same.
		fd, err := unix.Open(f.path(path), unix.O_RDONLY, 0)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
			unix.Close(fd)
		}
		if err != nil {
			t.Errorf("open for writing when it appeared: %v", err)
		}
	}
	f.must(Done, Task{Path: "x", Want: n, Inline: []byte("#!/bin/sh\n")})
}

func TestRootReplacedIsNoticed(t *testing.T) {
	f := newFixture(t)
	if err := os.Rename(f.root, f.root+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.root, 0o700); err != nil {
		t.Fatal(err)
	}
	r := f.must(Failed, fileTask("x", 1, "x", Placed{}))
	if !errors.Is(r.Err, unix.ESTALE) {
		t.Errorf("error %v", r.Err)
	}
}

func TestKindsAgreeWithVFS(t *testing.T) {
	for v, m := range map[vfs.Kind]manifest.Kind{
		vfs.Absent: manifest.Absent, vfs.File: manifest.File, vfs.Dir: manifest.Dir, vfs.Symlink: manifest.Symlink,
	} {
		if uint8(v) != uint8(m) {
			t.Errorf("%v is %d in vfs", m, v)
		}
	}
}
