package vfs

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tree(t *testing.T, paths ...string) (*Root, string) {
	t.Helper()
	top := t.TempDir()
	for _, p := range paths {
		full := filepath.Join(top, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(p), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, top
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCheckRel(t *testing.T) {
	for rel, ok := range map[string]bool{
		"": true, "a": true, "a/b": true, "..a/.b": true, "\xff\n": true,
		"/": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/../b": false, "a/.": false, "a\x00": false,
	} {
		if err := CheckRel(rel); (err == nil) != ok || err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v", rel, err)
		}
	}
}

func TestSplitJoin(t *testing.T) {
	for rel, want := range map[string][2]string{"": {}, "a": {"", "a"}, "a/b": {"a", "b"}, "a/b/c": {"a/b", "c"}} {
		dir, name := Split(rel)
		if dir != want[0] || name != want[1] || Join(dir, name) != rel {
			t.Errorf("%q: %q, %q, %q", rel, dir, name, Join(dir, name))
		}
	}
}

// TestNothingLeadsOut tries every way out of a root that we know of.
func TestNothingLeadsOut(t *testing.T) {
	r, top := tree(t, "dir/file")
	must(t, os.Symlink("/etc", filepath.Join(top, "abs")))
	must(t, os.Symlink("dir", filepath.Join(top, "in")))
	must(t, os.Symlink("..", filepath.Join(top, "dir/up")))
	must(t, os.Symlink("/proc/self/root", filepath.Join(top, "magic")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(top, "file")))
	for _, rel := range []string{"abs", "in", "dir/up", "magic", "magic/etc", "..", "dir/../..", "/etc", "in/sub"} {
		if d, err := r.OpenDir(rel); err == nil {
			d.Close()
			t.Errorf("opened %q", rel)
		}
	}
	for _, rel := range []string{"abs/passwd", "in/file", "file", "dir/up/dir/file", "../x", "dir/.."} {
		if f, _, err := r.Open(rel); err == nil {
			f.Close()
			t.Errorf("read %q", rel)
		}
	}
	if in, err := r.Stat("in/file"); err != nil || in.Exists() {
		t.Errorf("through a symlink: %+v, %v", in, err)
	}
	if target, err := r.Readlink("dir/up"); err != nil || target != ".." {
		t.Errorf("readlink: %q, %v", target, err)
	}
}

func TestOpenReadsRegularFilesOnly(t *testing.T) {
	r, top := tree(t, "dir/file")
	must(t, unix.Mkfifo(filepath.Join(top, "fifo"), 0o600))
	must(t, os.Symlink("dir/file", filepath.Join(top, "link")))
	f, in, err := r.Open("dir/file")
	must(t, err)
	defer f.Close()
	data, err := io.ReadAll(f)
	must(t, err)
	if string(data) != "dir/file" || in.Kind != File || in.Size != int64(len(data)) || in.Mode != 0o640 || in.Nlink != 1 {
		t.Errorf("%q, %+v", data, in)
	}
	for _, rel := range []string{"fifo", "link", "dir"} {
		if _, _, err := r.Open(rel); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: %v", rel, err)
		}
	}
	if _, _, err := r.Open("none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	for rel, want := range map[string]Info{"fifo": {Other: true}, "link": {Kind: Symlink}, "dir": {Kind: Dir}, "none": {}, "dir/file/x": {}, "no/x": {}} {
		if in, err := r.Stat(rel); err != nil || in.Kind != want.Kind || in.Other != want.Other {
			t.Errorf("%s: %+v, %v", rel, in, err)
		}
	}
}

// TestStatWaysAgree: a directory listing, a look by name and one by descriptor say the same.
func TestStatWaysAgree(t *testing.T) {
	r, top := tree(t, "dir/file", "dir/sub/x")
	must(t, unix.Chmod(filepath.Join(top, "dir/file"), 0o4711))
	must(t, os.Chtimes(filepath.Join(top, "dir/file"), time.Unix(-5, 7), time.Unix(-5, 7)))
	d, err := r.OpenDir("dir")
	must(t, err)
	defer d.Close()
	var l Lister
	entries, err := l.List(d.Fd())
	must(t, err)
	for _, e := range entries {
		in, err := StatAt(d.Fd(), e.Name)
		must(t, err)
		if in != e.Info || e.Err != nil {
			t.Errorf("%s: %+v, %+v", e.Name, in, e.Info)
		}
	}
	if len(entries) != 2 || entries[0].Info.MTime != -5e9+7 || entries[0].Info.Mode != 0o4711 {
		t.Errorf("entries %+v", entries)
	}
}

// TestListAnyNames: all byte values, the longest name, sorted as raw bytes.
func TestListAnyNames(t *testing.T) {
	r, top := tree(t)
	var want []string
	for b := 1; b < 256; b++ {
		if b != '/' {
			want = append(want, string([]byte{byte(b), '.', byte(b)}))
		}
	}
	want = append(want, string(bytes.Repeat([]byte{0xfe}, 255)))
	for _, name := range want {
		must(t, os.WriteFile(filepath.Join(top, name), nil, 0o600))
	}
	slices.Sort(want)
	var l Lister
	for range 2 { // the second time with used buffers
		d, err := r.OpenDir("")
		must(t, err)
		entries, err := l.List(d.Fd())
		d.Close()
		must(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	}
}

func TestCheck(t *testing.T) {
	r, top := tree(t)
	must(t, r.Check())
	must(t, os.Rename(top, top+".away"))
	if err := r.Check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
	must(t, os.Mkdir(top, 0o755))
	if err := r.Check(); !errors.Is(err, unix.ESTALE) {
		t.Errorf("replaced: %v", err)
	}
}

func FuzzParseDirents(f *testing.F) {
	dir := f.TempDir()
	for _, name := range []string{"a", "somewhat longer", "\xff"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	unix.Close(fd)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(buf[:n])
	f.Fuzz(func(t *testing.T, raw []byte) {
		refs, err := parseDirents(raw, 0, nil)
		for _, ref := range refs {
			name := raw[ref.from:ref.to]
			if len(name) == 0 || bytes.IndexByte(name, 0) >= 0 || raw[ref.to] != 0 {
				t.Fatalf("name %q (%v)", name, err)
			}
		}
	})
}

// Times that do not fit are the nearest that do, before and after.
func TestNanos(t *testing.T) {
	for _, c := range []struct {
		sec, nsec, want int64
	}{
		{0, 0, 0}, {-1, 999_999_999, -1}, {1, 5, 1_000_000_005},
		{9223372036, 854775807, math.MaxInt64}, {9223372036, 854775806, math.MaxInt64 - 1}, {9223372036, 854775808, math.MaxInt64},
		{9999999999, 0, math.MaxInt64}, {math.MaxInt64, 999_999_999, math.MaxInt64},
		{-9223372036, 0, -9223372036_000_000_000}, {-9223372037, 999_999_999, math.MinInt64}, {math.MinInt64, 0, math.MinInt64},
	} {
		if got := nanos(c.sec, c.nsec); got != c.want {
			t.Errorf("%d s and %d ns: %d, want %d", c.sec, c.nsec, got, c.want)
		}
	}
}
