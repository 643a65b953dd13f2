package place

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var created = time.Unix(1_700_000_000, 987_654_321)

func TestMarker(t *testing.T) {
	root := t.TempDir()
	check := func(group string, want error) {
		t.Helper()
		if err := CheckMarker(root, group); !errors.Is(err, want) {
			t.Errorf("check %q: %v, want %v", group, err, want)
		}
	}
	check("g1", ErrMarkerMissing)
	for range 2 {
		if err := EnsureMarker(root, "g1", created); err != nil {
			t.Fatal(err)
		}
		for path, mode := range map[string]fs.FileMode{"/.lockstep": fs.ModeDir | 0o755, "/.lockstep/root": 0o644} {
			in, err := os.Lstat(root + path)
			if err != nil || in.Mode() != mode || !in.ModTime().Equal(created) {
				t.Errorf("%s: %v %v", path, in, err)
			}
			// What somebody changed is put right by the next EnsureMarker.
			if err := os.Chmod(root+path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if got := names(t, root+"/.lockstep"); len(got) != 1 {
			t.Errorf("in .lockstep: %q", got)
		}
	}
	check("g1", nil)
	check("g", ErrMarkerForeign)
	check("g12", ErrMarkerForeign)
	if err := EnsureMarker(root, "g2", created); !errors.Is(err, ErrMarkerForeign) || !strings.Contains(err.Error(), `"g1"`) {
		t.Errorf("mark for another group: %v", err)
	}
	for _, text := range []string{"", "group g1\n", markerContent("g1") + "x"} {
		if err := os.WriteFile(root+"/.lockstep/root", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		check("g1", ErrMarkerForeign)
	}
	if err := os.Remove(root + "/.lockstep/root"); err != nil {
		t.Fatal(err)
	}
	check("g1", ErrMarkerMissing)
	if err := unix.Mkfifo(root+"/.lockstep/root", 0o644); err != nil {
		t.Fatal(err)
	}
	check("g1", ErrMarkerForeign)
	for _, group := range []string{"", "a\nb", "a\x00"} {
		if err := EnsureMarker(root, group, created); !errors.Is(err, unix.EINVAL) {
			t.Errorf("group %q: %v", group, err)
		}
	}
}

func TestMarkerOfWhatIsNoDirectory(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{file: ErrNotDirectory, dir + "/none": fs.ErrNotExist} {
		if err := CheckMarker(path, "g"); !errors.Is(err, want) {
			t.Errorf("check %s: %v", path, err)
		}
		if err := EnsureMarker(path, "g", created); !errors.Is(err, want) {
			t.Errorf("ensure %s: %v", path, err)
		}
	}
	// A marker directory that is a symlink is none.
	if err := os.Symlink(dir, dir+"/.lockstep"); err != nil {
		t.Fatal(err)
	}
	if err := CheckMarker(dir, "g"); !errors.Is(err, ErrMarkerMissing) {
		t.Errorf("symlink: %v", err)
	}
	if err := EnsureMarker(dir, "g", created); err == nil {
		t.Error("marked through a symlink")
	}
}

func TestWorkDirOnTheSameMount(t *testing.T) {
	dir := t.TempDir()
	root, data := dir+"/root", dir+"/data/work/g"
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := WorkDir(data, root); !errors.Is(err, ErrMarkerMissing) {
		t.Errorf("without a marker: %v", err)
	}
	if err := EnsureMarker(root, "g", created); err != nil {
		t.Fatal(err)
	}
	got, err := WorkDir(data, root)
	if err != nil || got != data {
		t.Errorf("%q, %v", got, err)
	}
	p, err := New(Config{Root: root, Work: got})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if in, err := os.Lstat(root + "/.lockstep"); err != nil || !in.ModTime().Equal(created) {
		t.Errorf("marker directory: %v %v", in, err)
	}
	if got := names(t, root+"/.lockstep"); len(got) != 1 {
		t.Errorf("in .lockstep: %q", got)
	}
}

func TestMountID(t *testing.T) {
	dir := t.TempDir()
	a, err := MountID(dir)
	if err != nil || a.ID == 0 || a.Ino == 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if b, err := MountID(dir); err != nil || a != b {
		t.Errorf("%+v, then %+v, %v", a, b, err)
	}
	if err := os.Mkdir(dir+"/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	if b, err := MountID(dir + "/sub"); err != nil || a == b || a.ID != b.ID {
		t.Errorf("%+v, sub %+v, %v", a, b, err)
	}
	if _, err := MountID(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
