package watch

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// captured returns what the kernel really sends for a few operations.
func captured(tb testing.TB, mode Mode) []byte {
	tb.Helper()
	base := tb.TempDir()
	for _, dir := range []string{"root/a", "work"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	w, err := Open(Config{Root: filepath.Join(base, "root"), Work: filepath.Join(base, "work"), Force: mode, OwnEvents: true})
	if err != nil {
		tb.Skip(err)
	}
	defer w.Close()
	if err := os.WriteFile(filepath.Join(base, "root/a/file"), nil, 0o644); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(filepath.Join(base, "root/a"), filepath.Join(base, "root/a much longer name")); err != nil {
		tb.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	queue := w.(*ladder).source
	var n int
	switch q := queue.(type) {
	case *fanotifyWatcher:
		n, err = q.queue.read(tb.Context(), time.Minute, buf)
	case *inotifyWatcher:
		n, err = q.queue.read(tb.Context(), time.Minute, buf)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return buf[:n]
}

func FuzzParseFan(f *testing.F) {
	f.Add(captured(f, Fanotify))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for len(buf) > 0 {
			ev, rest, err := parseFan(buf)
			if err != nil {
				return
			}
			if len(rest) >= len(buf) {
				t.Fatal("no progress")
			}
			if bytes.ContainsAny(ev.name, "/\x00") {
				t.Fatalf("name %q", ev.name)
			}
			if ev.handle != nil {
				h := fileHandle(ev.handle)
				if !bytes.Equal(rawHandle(h), ev.handle) {
					t.Fatalf("handle %x became %x", ev.handle, rawHandle(h))
				}
			}
			buf = rest
		}
	})
}

func FuzzParseIno(f *testing.F) {
	f.Add(captured(f, Inotify))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for len(buf) > 0 {
			ev, rest, err := parseIno(buf)
			if err != nil {
				return
			}
			if len(rest) >= len(buf) {
				t.Fatal("no progress")
			}
			if bytes.ContainsAny(ev.name, "/\x00") {
				t.Fatalf("name %q", ev.name)
			}
			buf = rest
		}
	})
}

// TestMalformedIsLost: what cannot be parsed is made up for like an overflow.
func TestMalformedIsLost(t *testing.T) {
	needRoot(t)
	r := newRig(t, Config{Force: Fanotify})
	w := r.w.(*ladder).source.(*fanotifyWatcher)
	w.process([]byte{1, 2, 3})
	if len(w.out.events) != 1 || w.out.events[0] != (Event{Kind: Rescan}) || r.w.Overflows() != 1 {
		t.Errorf("events %v, %d overflows", w.out.events, r.w.Overflows())
	}
}

func TestUnnamed(t *testing.T) {
	for name, want := range map[string]bool{"#12": true, "#": false, "12": false, "#1x": false, "#-1": false, "a": false} {
		if unnamed(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func TestBeneath(t *testing.T) {
	for _, tc := range []struct {
		top, full, rel string
		ok             bool
	}{
		{"/a", "/a", "", true}, {"/a", "/a/b/c", "b/c", true}, {"/a", "/ab", "", false}, {"/a", "/b", "", false},
		{"/", "/a", "a", true}, {"/", "/", "", true},
	} {
		if tc.top == "/" {
			tc.rel, tc.ok = tc.full[1:], true
		}
		if rel, ok := beneath(tc.top, tc.full); rel != tc.rel && tc.ok || ok != tc.ok {
			t.Errorf("beneath(%q, %q) = %q, %v", tc.top, tc.full, rel, ok)
		}
	}
}

// BenchmarkForeign measures what an event costs that is none of ours.
func BenchmarkForeign(b *testing.B) {
	buf := captured(b, Fanotify)
	base := b.TempDir()
	for _, dir := range []string{"root", "work"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	w, err := Open(Config{Root: filepath.Join(base, "root"), Work: filepath.Join(base, "work"), Force: Fanotify, OwnEvents: true})
	if err != nil {
		b.Skip(err)
	}
	defer w.Close()
	src := w.(*ladder).source.(*fanotifyWatcher)
	foreign, err := handleOf(unix.AT_FDCWD)
	if err != nil {
		b.Fatal(err)
	}
	ev, _, err := parseFan(buf)
	if err != nil {
		b.Fatal(err)
	}
	ev.handle = foreign
	b.ReportAllocs()
	for b.Loop() {
		if err := src.event(&ev); err != nil {
			b.Fatal(err)
		}
	}
}
