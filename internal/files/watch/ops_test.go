package watch

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOperations says for each operation which paths must be hinted at, how strongly, and that nothing else is.
func TestOperations(t *testing.T) {
	before := []string{"file", "other", "dir/in", "dir/sub/deep", "empty/", "ign/x"}
	for _, tc := range []struct {
		name string
		do   func(r *rig)
		want map[string]Kind // by the kernel's events
		poll map[string]Kind // by polling; nil: as want
	}{
		{"create and close", func(r *rig) { r.write("new", "x") },
			map[string]Kind{"new": Look}, map[string]Kind{"new": Settle, "": Look}},
		{"create and keep open", func(r *rig) { r.keepOpen("new", os.O_CREATE|os.O_WRONLY) },
			map[string]Kind{"new": Settle}, map[string]Kind{"new": Settle, "": Look}},
		{"write and keep open", func(r *rig) { r.keepOpen("file", os.O_WRONLY) },
			map[string]Kind{"file": Settle}, nil},
		{"rewrite", func(r *rig) { r.write("dir/in", "changed") },
			map[string]Kind{"dir/in": Look}, map[string]Kind{"dir/in": Settle}},
		{"truncate by path", func(r *rig) { r.do(os.Truncate(r.path("file"), 1)) },
			map[string]Kind{"file": Settle}, nil},
		{"chmod", func(r *rig) { r.do(os.Chmod(r.path("file"), 0o600)) },
			map[string]Kind{"file": Look}, nil},
		{"chmod directory", func(r *rig) { r.do(os.Chmod(r.path("dir/sub"), 0o700)) },
			map[string]Kind{"dir/sub": Look}, nil},
		{"chmod root", func(r *rig) { r.do(os.Chmod(r.top, 0o700)) },
			map[string]Kind{"": Look}, nil},
		{"remove", func(r *rig) { r.do(os.Remove(r.path("dir/in"))) },
			map[string]Kind{"dir/in": Look}, map[string]Kind{"dir/in": Look, "dir": Look}},
		{"mkdir", func(r *rig) { r.do(os.Mkdir(r.path("d2"), 0o755)) },
			map[string]Kind{"d2": Look}, map[string]Kind{"d2": Look, "": Look}},
		{"rmdir", func(r *rig) { r.do(os.Remove(r.path("empty"))) },
			map[string]Kind{"empty": Look}, map[string]Kind{"empty": Rescan, "": Look}},
		{"symlink", func(r *rig) { r.do(os.Symlink("dir", r.path("link"))) },
			map[string]Kind{"link": Look}, map[string]Kind{"link": Look, "": Look}},
		{"hard link", func(r *rig) { r.do(os.Link(r.path("file"), r.path("hard"))) },
			map[string]Kind{"hard": Look}, map[string]Kind{"hard": Look, "file": Look, "": Look}},
		{"fifo", func(r *rig) { r.do(unix.Mkfifo(r.path("fifo"), 0o600)) },
			map[string]Kind{"fifo": Look}, map[string]Kind{"fifo": Look, "": Look}},
		{"rename", func(r *rig) { r.do(os.Rename(r.path("file"), r.path("dir/f"))) },
			map[string]Kind{"file": Look, "dir/f": Look}, map[string]Kind{"file": Look, "dir/f": Look, "": Look, "dir": Look}},
		{"rename over", func(r *rig) { r.do(os.Rename(r.path("file"), r.path("other"))) },
			map[string]Kind{"file": Look, "other": Look}, map[string]Kind{"file": Look, "other": Look, "": Look}},
		{"exchange", func(r *rig) { r.exchange("file", "other") },
			map[string]Kind{"file": Look, "other": Look}, map[string]Kind{"file": Look, "other": Look, "": Look}},
		{"rename directory", func(r *rig) { r.do(os.Rename(r.path("dir"), r.path("d2"))) },
			map[string]Kind{"dir": Rescan, "d2": Rescan},
			map[string]Kind{"": Look, "dir": Rescan, "d2": Look, "d2/in": Look, "d2/sub": Look, "d2/sub/deep": Look}},
		{"move out", func(r *rig) { r.do(os.Rename(r.path("dir"), r.top+".out")) },
			map[string]Kind{"dir": Rescan}, map[string]Kind{"": Look, "dir": Rescan}},
		{"ignored", func(r *rig) { r.write("ign/x", "y"); r.write("ign/z", "y") }, map[string]Kind{}, nil},
		{"no change", func(r *rig) { _, err := os.ReadFile(r.path("file")); r.do(err) }, map[string]Kind{}, nil},
		{"any byte in a name", func(r *rig) { r.write("\xff\n\x01 \\\"", "x") },
			map[string]Kind{"\xff\n\x01 \\\"": Look}, map[string]Kind{"\xff\n\x01 \\\"": Settle, "": Look}},
		{"O_TMPFILE, linked", func(r *rig) { r.tmpfile("dir", "dir/tmp", true) },
			map[string]Kind{"dir/tmp": Settle}, map[string]Kind{"dir/tmp": Settle, "dir": Look}},
		{"O_TMPFILE, never linked", func(r *rig) { r.tmpfile("dir", "", false) }, map[string]Kind{}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			allModes(t, func(t *testing.T, mode Mode) {
				r := prefilled(t, Config{Force: mode, Ignore: func(rel string) bool { return rel == "ign" }}, before...)
				tc.do(r)
				want := tc.want
				if mode == Poll && tc.poll != nil {
					want = tc.poll
				}
				if mode == Inotify && tc.name == "rmdir" {
					want = map[string]Kind{"empty": Rescan}
				}
				events := r.drain()
				got := strongest(events)
				for path, kind := range want {
					if have, ok := got[path]; !ok || have != kind {
						t.Errorf("%q: want kind %v; events %v", path, kind, events)
					}
				}
				for path := range got {
					if _, ok := want[path]; !ok {
						t.Errorf("%q is hinted at for nothing; events %v", path, events)
					}
				}
			})
		})
	}
}

// TestWriteAfterLink: what is written to an O_TMPFILE after it got its name is reported under the old one.
func TestWriteAfterLink(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("fanotify is for root")
	}
	r := prefilled(t, Config{Force: Fanotify}, "dir/")
	f := r.tmpfileOpen("dir")
	r.link(f, "dir/tmp")
	r.drain()
	_, err := f.WriteString("late")
	r.do(err)
	r.do(f.Close())
	if got := strongest(r.drain()); len(got) != 1 || got["dir/tmp"] != Look {
		t.Errorf("events %v", got)
	}
}

func (r *rig) keepOpen(rel string, flags int) {
	f, err := os.OpenFile(r.path(rel), flags, 0o644)
	r.do(err)
	r.t.Cleanup(func() { f.Close() })
	_, err = f.WriteString("some")
	r.do(err)
}

func (r *rig) exchange(a, b string) {
	r.do(unix.Renameat2(unix.AT_FDCWD, r.path(a), unix.AT_FDCWD, r.path(b), unix.RENAME_EXCHANGE))
}

// tmpfile writes a file without a name and may link it before it is closed.
func (r *rig) tmpfile(dir, as string, link bool) {
	f := r.tmpfileOpen(dir)
	defer f.Close()
	if link {
		r.link(f, as)
	}
}

func (r *rig) tmpfileOpen(dir string) *os.File {
	fd, err := unix.Open(r.path(dir), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	r.do(err)
	f := os.NewFile(uintptr(fd), "tmpfile")
	_, err = f.WriteString("some")
	r.do(err)
	return f
}

func (r *rig) link(f *os.File, as string) {
	r.do(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, r.path(as), unix.AT_SYMLINK_FOLLOW))
}
