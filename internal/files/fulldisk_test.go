package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// small puts a node on a file system of its own of so many bytes. fill leaves no room on it, empty gives it back.
func small(t *testing.T, nd *node, size string) (fill, empty func()) {
	t.Helper()
	base := filepath.Dir(nd.root)
	if err := unix.Mount("files", base, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("CANNOT: mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		nd.down()
		if err := unix.Unmount(base, 0); err != nil {
			t.Error(err)
		}
	})
	must(t, os.Mkdir(nd.root, 0o755))
	ballast := filepath.Join(base, "ballast")
	fill = func() {
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(t, err)
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return fill, func() { must(t, os.Remove(ballast)) }
}

// TestFullDisk: a member whose disk has become full in the middle of things goes on by itself once there is room, also if it
// was started anew meanwhile, and hinders nobody.
func TestFullDisk(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			f := newFarm(t, 3)
			one, full := f.nodes[0], f.nodes[2]
			fill, empty := small(t, full, "12m")
			f.up()
			one.write("replaced", "before")
			one.write("removed", strings.Repeat("r", 300))
			one.write("grows", strings.Repeat("g", 200_000))
			full.write("own", "of the member itself")
			f.flush()

			fill()
			must(t, os.Mkdir(one.path("dir"), 0o755))
			for i := range 100 { // more than what rides in an entry: the rest is staged
				one.write(fmt.Sprintf("dir/%d", i), fmt.Sprint(i, strings.Repeat(" ", 9_000)))
			}
			one.write("large", strings.Repeat("l", 3_000_000))
			one.write("replaced", strings.Repeat("after", 100))
			one.write("grows", strings.Repeat("g", 900_000))
			must(t, os.Symlink("large", one.path("link")))
			must(t, one.agent.Flush(t.Context())) // two of three have it
			must(t, os.Remove(full.path("own")))  // what takes no room goes on
			must(t, full.agent.Flush(t.Context()))
			must(t, os.Remove(one.path("removed")))
			must(t, one.agent.Flush(t.Context()))
			eventually(t, func() string {
				st, err := full.agent.Status()
				if err != nil || !strings.Contains(fmt.Sprintf("%+v", st), "no space left") && !strings.Contains(fmt.Sprintf("%+v", st), "make room") {
					return fmt.Sprintf("the status does not say that the disk is full: %+v %v", st, err)
				}
				return ""
			})
			for _, at := range f.nodes[:2] {
				eventually(t, func() string {
					if at.read("own") == "of the member itself" || at.agent.Placed() < f.last() {
						return at.name + " is held up by a member whose disk is full"
					}
					return ""
				})
			}
			if got := full.read("replaced"); got != "before" && got != strings.Repeat("after", 100) {
				t.Errorf("neither old nor new: %.20q", got)
			}
			if restart {
				full.down()
				full.up()
			}

			empty()
			f.flush()
			f.same()
			if st, err := full.agent.Status(); err != nil || len(st.Problems) > 0 {
				t.Errorf("problems are left: %+v %v", st.Problems, err)
			}
		})
	}
}

// TestKeptAsideWhole: what is kept aside is there as a whole or not at all, however often it is tried on a full disk.
func TestKeptAsideWhole(t *testing.T) {
	f := newFarm(t, 2)
	nd := f.nodes[1]
	fill, empty := small(t, nd, "4m")
	f.up()
	f.nodes[0].write("f", strings.Repeat("good content ", 20_000))
	f.flush()
	damage(nd, "f", strings.Repeat("bad content, ", 20_000))
	fill()
	for range 3 {
		found, err := nd.agent.Verify(t.Context(), true)
		if err != nil || found.Repaired > 0 {
			t.Fatalf("%+v %v", found, err)
		}
	}
	if kept, err := os.ReadDir(filepath.Join(nd.work, "kept")); err != nil || len(kept) > 0 {
		t.Errorf("parts are kept: %v %v", kept, err)
	}
	empty()
	if found, err := nd.agent.Verify(t.Context(), true); err != nil || found.Repaired != 1 {
		t.Fatalf("%+v %v", found, err)
	}
	f.flush()
	f.same()
}
