package scan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// asChild is the variable under which TestMain compares as another user: its value is the root.
const asChild = "LOCKSTEP_SCAN_CHILD"

func TestMain(m *testing.M) {
	top := os.Getenv(asChild)
	if top == "" {
		os.Exit(m.Run())
	}
	root, err := vfs.OpenRoot(top)
	if err != nil {
		panic(err)
	}
	placed := sliceTable{
		"":       {{"locked", place.Placed{Version: 1, Stat: place.Stat{Kind: manifest.Dir}}}},
		"locked": {{"secret", place.Placed{Version: 1, Stat: place.Stat{Kind: manifest.File}}}},
	}
	var got []string
	stats, err := Compare(context.Background(), root.Fd(), "", placed, Options{}, func(d Difference) error {
		got = append(got, d.Path)
		return nil
	})
	if err != nil {
		panic(err)
	}
	slices.Sort(got)
	fmt.Printf("%q", got)
	for _, p := range stats.Problems {
		fmt.Printf(" %s: %v", p.Path, errors.Is(p.Err, os.ErrPermission))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build makes directories (ending in '/') and files.
func build(t *testing.T, paths ...string) (top string, root int) {
	t.Helper()
	top = t.TempDir()
	for _, p := range paths {
		full := filepath.Join(top, p)
		if strings.HasSuffix(p, "/") {
			must(t, os.MkdirAll(full, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		must(t, os.WriteFile(full, []byte(p), 0o644))
	}
	return top, openRoot(t, top)
}

func compare(t *testing.T, root int, from string, placed Placed, opts Options) ([]Difference, Stats) {
	t.Helper()
	var all []Difference
	stats, err := Compare(context.Background(), root, from, placed, opts, func(d Difference) error {
		all = append(all, d)
		return nil
	})
	must(t, err)
	return all, stats
}

// summary gives each path that differs with how it is now.
func summary(all []Difference) map[string]string {
	names := [...]string{"absent", "file", "dir", "symlink"}
	m := map[string]string{}
	for _, d := range all {
		m[d.Path] = names[d.Stat.Kind]
		if d.Stat.Other {
			m[d.Path] = "other"
		}
	}
	return m
}

func TestCompareFinds(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(top string) error
		want map[string]string
	}{
		"nothing": {func(string) error { return nil }, map[string]string{}},
		"new file": {func(top string) error { return os.WriteFile(top+"/a/new", nil, 0o600) },
			map[string]string{"a": "dir", "a/new": "file"}},
		"first and last": {func(top string) error {
			return errors.Join(os.WriteFile(top+"/\x01", nil, 0o600), os.WriteFile(top+"/\xff", nil, 0o600))
		}, map[string]string{"\x01": "file", "\xff": "file"}},
		"chmod": {func(top string) error { return os.Chmod(top+"/a/f", 0o600) }, map[string]string{"a/f": "file"}},
		"same size and time": {func(top string) error {
			info, err := os.Stat(top + "/a/f")
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(top+"/a/f", []byte("x/y"), 0), os.Chtimes(top+"/a/f", info.ModTime(), info.ModTime()))
		}, map[string]string{"a/f": "file"}},
		"removed": {func(top string) error { return os.Remove(top + "/a/f") }, map[string]string{"a": "dir", "a/f": "absent"}},
		"tree removed": {func(top string) error { return os.RemoveAll(top + "/a") },
			map[string]string{"a": "absent", "a/b": "absent", "a/b/c": "absent", "a/b/c/g": "absent", "a/f": "absent"}},
		"dir to file": {func(top string) error {
			return errors.Join(os.RemoveAll(top+"/a/b"), os.WriteFile(top+"/a/b", nil, 0o600))
		}, map[string]string{"a": "dir", "a/b": "file", "a/b/c": "absent", "a/b/c/g": "absent"}},
		"file to dir": {func(top string) error {
			return errors.Join(os.Remove(top+"/z"), os.Mkdir(top+"/z", 0o755), os.WriteFile(top+"/z/in", nil, 0o600))
		}, map[string]string{"z": "dir", "z/in": "file"}},
		"dir to symlink": {func(top string) error {
			return errors.Join(os.Rename(top+"/a/b", top+"/m"), os.Symlink("../m", top+"/a/b"))
		}, map[string]string{"a": "dir", "a/b": "symlink", "a/b/c": "absent", "a/b/c/g": "absent",
			"m": "dir", "m/c": "dir", "m/c/g": "file"}},
		"fifo":    {func(top string) error { return unix.Mkfifo(top+"/p", 0o600) }, map[string]string{"p": "other"}},
		"ignored": {func(top string) error { return os.WriteFile(top+"/ign/new", nil, 0o600) }, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			top, root := build(t, "a/f", "a/b/c/g", "e/", "z", "ign/old")
			table := snapshot(t, root)
			must(t, tc.do(top))
			all, stats := compare(t, root, "", table, Options{Ignore: func(p string) bool { return p == "ign" || p == "nope" }})
			if got := summary(all); !maps.Equal(got, tc.want) {
				t.Errorf("got %v", got)
			}
			if len(stats.Problems) > 0 {
				t.Errorf("problems %v", stats.Problems)
			}
			checkOrder(t, all)
		})
	}
}

// checkOrder: what is gone comes last, deepest first; other directories before what is in them.
func checkOrder(t *testing.T, all []Difference) {
	t.Helper()
	gone, seen := false, map[string]bool{}
	for _, d := range all {
		absent := d.Stat.Kind == manifest.Absent && !d.Stat.Other
		if gone && !absent {
			t.Errorf("%q comes after what is gone", d.Path)
		}
		gone = gone || absent
		for p := path.Dir(d.Path); p != "."; p = path.Dir(p) {
			if absent && seen[p] {
				for _, up := range all {
					if up.Path == p && up.Stat.Kind == manifest.Absent {
						t.Errorf("%q is reported gone before %q", p, d.Path)
					}
				}
			}
		}
		if seen[d.Path] {
			t.Errorf("%q is reported twice", d.Path)
		}
		seen[d.Path] = true
	}
}

func TestCompareFrom(t *testing.T) {
	top, root := build(t, "a/b/f", "a/g", "z")
	table := snapshot(t, root)
	must(t, os.WriteFile(top+"/a/b/new", nil, 0o600))
	must(t, os.WriteFile(top+"/new", nil, 0o600))
	all, _ := compare(t, root, "a", table, Options{})
	if got := summary(all); !maps.Equal(got, map[string]string{"a/b": "dir", "a/b/new": "file"}) {
		t.Errorf("got %v", got)
	}
	must(t, os.RemoveAll(top+"/a"))
	all, _ = compare(t, root, "a", table, Options{})
	if got := summary(all); !maps.Equal(got, map[string]string{"a/b": "absent", "a/b/f": "absent", "a/g": "absent"}) {
		t.Errorf("gone: %v", got)
	}
	if _, err := Compare(context.Background(), root, "../x", table, Options{}, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bad path: %v", err)
	}
}

func TestSame(t *testing.T) {
	file := place.Stat{Kind: manifest.File, Mode: 0o644, Size: 3, MTime: 5, CTime: 6, Ino: 7, Dev: 8, Nlink: 1}
	dir := place.Stat{Kind: manifest.Dir, Mode: 0o755, Size: 4096, MTime: 5, CTime: 6, Ino: 7, Dev: 8, Nlink: 2}
	for name, tc := range map[string]struct {
		change     func(*place.Stat)
		file, dirs bool
	}{
		"device": {func(s *place.Stat) { s.Dev++ }, true, true},
		"mode":   {func(s *place.Stat) { s.Mode++ }, false, false},
		"mtime":  {func(s *place.Stat) { s.MTime++ }, false, false},
		"owner":  {func(s *place.Stat) { s.UID++ }, false, false},
		"group":  {func(s *place.Stat) { s.GID++ }, false, false},
		"ctime":  {func(s *place.Stat) { s.CTime++ }, false, true},
		"inode":  {func(s *place.Stat) { s.Ino++ }, false, true},
		"size":   {func(s *place.Stat) { s.Size++ }, false, true},
		"links":  {func(s *place.Stat) { s.Nlink++ }, false, true},
		"kind":   {func(s *place.Stat) { s.Kind = manifest.Symlink }, false, false},
	} {
		f, d := file, dir
		tc.change(&f)
		tc.change(&d)
		if Same(file, f) != tc.file || Same(dir, d) != tc.dirs {
			t.Errorf("%s: %v, %v", name, Same(file, f), Same(dir, d))
		}
	}
}

// TestWalkSeesAll compares with filepath.WalkDir over a random tree.
func TestWalkSeesAll(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	top, root := build(t)
	for range 500 {
		p := top
		for range 1 + rnd.IntN(5) {
			p += "/" + string(rune(1+rnd.IntN(40))) + "x"
			if strings.Contains(p[len(p)-3:], "//") {
				p = top + "/slash"
			}
		}
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, nil, 0o600)
	}
	var want []string
	must(t, filepath.WalkDir(top, func(p string, _ fs.DirEntry, err error) error {
		if p != top {
			want = append(want, strings.TrimPrefix(p, top+"/"))
		}
		return err
	}))
	for workers := range 5 {
		var got []string
		opened := map[string]bool{"": true}
		stats, err := Walk(context.Background(), root, "", Options{Workers: workers}, func(dir string, entries []Entry) error {
			if !opened[dir] {
				t.Errorf("%q comes before its parent", dir)
			}
			if !slices.IsSortedFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) }) {
				t.Errorf("%q is not sorted", dir)
			}
			for _, e := range entries {
				got = append(got, vfs.Join(dir, e.Name))
				opened[vfs.Join(dir, e.Name)] = true
			}
			return nil
		})
		must(t, err)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || stats.Files+stats.Dirs != uint64(len(want)+1) {
			t.Errorf("%d workers: %d paths, want %d; %+v", workers, len(got), len(want), stats)
		}
	}
}

func TestWalkStops(t *testing.T) {
	_, root := build(t, "a/b/c/d", "e/f", "g/h")
	boom := errors.New("boom")
	if _, err := Walk(context.Background(), root, "", Options{}, func(string, []Entry) error { return boom }); err != boom {
		t.Errorf("visit: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	_, err := Walk(ctx, root, "", Options{Workers: 1}, func(string, []Entry) error {
		if calls++; calls == 2 {
			cancel()
			<-ctx.Done()
		}
		return nil
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Walk(context.Background(), root, "none", Options{}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such directory: %v", err)
	}
}

// TestSwappedForSymlink: a directory becomes a symlink to a tree outside, again and again, during walks.
func TestSwappedForSymlink(t *testing.T) {
	outside := t.TempDir()
	must(t, os.MkdirAll(outside+"/sub/deeper", 0o755))
	must(t, os.WriteFile(outside+"/sub/secret", nil, 0o600))
	top, root := build(t, "a/sub/deeper/x", "a/sub/mine")
	must(t, os.Symlink(outside, top+"/swap"))
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, top+"/a", unix.AT_FDCWD, top+"/swap", unix.RENAME_EXCHANGE)
			}
		}
	})
	table := snapshot(t, openRoot(t, t.TempDir()))
	sawInside := false
	for range 2000 {
		all, _ := compare(t, root, "", table, Options{})
		for _, d := range all {
			if strings.HasSuffix(d.Path, "secret") {
				t.Fatalf("escaped: %q", d.Path)
			}
			sawInside = sawInside || strings.HasSuffix(d.Path, "mine")
		}
	}
	close(stop)
	swapper.Wait()
	if !sawInside {
		t.Error("the walk never came into the directory")
	}
}

// TestVanishing: trees come and go during walks; nothing fails, and what stays is never reported gone.
func TestVanishing(t *testing.T) {
	top, root := build(t, "stay/a/b/f", "stay/g")
	table := snapshot(t, root)
	stop := make(chan struct{})
	var vandal sync.WaitGroup
	vandal.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			dir := fmt.Sprintf("%s/go%d", top, n%3)
			os.RemoveAll(dir)
			os.MkdirAll(dir+"/x/y", 0o755)
			os.WriteFile(dir+"/x/y/f", nil, 0o600)
			os.WriteFile(dir+"/x/f", nil, 0o600)
		}
	})
	for range 300 {
		all, stats := compare(t, root, "", table, Options{})
		for _, d := range all {
			if strings.HasPrefix(d.Path, "stay") {
				t.Fatalf("%+v", d)
			}
		}
		for _, p := range stats.Problems {
			if !errors.Is(p.Err, errReplaced) {
				t.Fatalf("problem %q: %v", p.Path, p.Err)
			}
		}
	}
	close(stop)
	vandal.Wait()
}

// TestLargeDirectory: 100,000 entries in one.
func TestLargeDirectory(t *testing.T) {
	const many = 100_000
	if testing.Short() {
		t.Skip("makes 100,000 files")
	}
	top, root := build(t)
	dir, err := os.Open(top)
	must(t, err)
	defer dir.Close()
	must(t, os.WriteFile(top+"/first", nil, 0o600))
	for n := range many - 1 { // links are cheaper than files, but have a bound
		if n%60_000 == 0 {
			must(t, os.WriteFile(fmt.Sprint(top, "/f", n), nil, 0o600))
		} else {
			must(t, unix.Linkat(int(dir.Fd()), fmt.Sprint("f", n-n%60_000), int(dir.Fd()), fmt.Sprint("f", n), 0))
		}
	}
	table := snapshot(t, root)
	if len(table[""]) != many {
		t.Fatalf("%d entries", len(table[""]))
	}
	must(t, os.Remove(top+"/f77777"))
	all, stats := compare(t, root, "", table, Options{})
	got := summary(all)
	if stats.Files != many-1 || got["f77777"] != "absent" {
		t.Errorf("%+v, %d differences", stats, len(all))
	}
}

// TestUnreadable: what somebody who is not root may not read is a problem, and never a deletion.
func TestUnreadable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	base, err := os.MkdirTemp("", "lockstep-scan-")
	must(t, err)
	defer os.RemoveAll(base)
	must(t, os.Chmod(base, 0o755))
	must(t, os.MkdirAll(base+"/top/open/sub", 0o755))
	must(t, os.Mkdir(base+"/top/locked", 0o755))
	must(t, os.WriteFile(base+"/top/locked/secret", nil, 0o644))
	must(t, os.Chmod(base+"/top/locked", 0o700))
	data, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(base+"/test", data, 0o755))
	cmd := exec.Command(base + "/test")
	cmd.Dir, cmd.Env = base, []string{asChild + "=" + base + "/top"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := `["locked" "open" "open/sub"] locked: true`; string(out) != want {
		t.Errorf("got %s", out)
	}
}

// TestOtherFileSystem: what is mounted beneath the root is left alone.
func TestOtherFileSystem(t *testing.T) {
	top, root := build(t, "mnt/old")
	table := snapshot(t, root)
	if err := unix.Mount("none", top+"/mnt", "tmpfs", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	defer unix.Unmount(top+"/mnt", unix.MNT_DETACH)
	all, stats := compare(t, root, "", table, Options{})
	if len(all) > 0 {
		t.Errorf("got %v", summary(all))
	}
	if len(stats.Problems) != 1 || !errors.Is(stats.Problems[0].Err, ErrOtherFileSystem) {
		t.Errorf("problems %v", stats.Problems)
	}
}
