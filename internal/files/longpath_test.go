package files

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// mkdirDeep makes the directory path, which no system call takes whole, and those above it.
func mkdirDeep(t *testing.T, root, path string) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for _, name := range strings.Split(path, "/") {
		if err := unix.Mkdirat(fd, name, 0o755); err != unix.EEXIST {
			must(t, err)
		}
		below, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = below
	}
	must(t, unix.Close(fd))
}

// TestLongestPath: what the longest path that a system call takes leads to is kept; what is beyond is a problem where it is,
// and holds up nobody.
func TestLongestPath(t *testing.T) {
	f := newFarm(t, 2)
	f.up()
	f.flush()
	name := strings.Repeat("n", manifest.MaxName)
	most := strings.Repeat(name+"/", 15) + name // 4,095 bytes
	beyond := strings.Repeat(name+"/", 15) + name[:100] + "/" + name[:155]
	if len(most) != 4095 || len(beyond) != 4096 {
		t.Fatal(len(most), len(beyond))
	}
	t.Cleanup(func() { // os.RemoveAll goes by descriptors
		for _, nd := range f.nodes {
			nd.down()
			must(t, os.RemoveAll(filepath.Join(nd.root, name)))
		}
	})
	mkdirDeep(t, f.nodes[0].root, most)
	mkdirDeep(t, f.nodes[0].root, beyond)
	f.nodes[0].write("other", "goes on")
	f.flush()
	if got := f.nodes[1].read("other"); got != "goes on" {
		t.Errorf("the other member has %q", got)
	}
	for path, want := range map[string]bool{most: true, beyond: false} {
		in, err := f.nodes[1].agent.root.Stat(path)
		if err != nil || in.Exists() != want {
			t.Errorf("a path of %d bytes is there: %v, %v", len(path), in.Exists(), err)
		}
	}
	eventually(t, func() string {
		st, err := f.nodes[0].agent.Status()
		if err != nil || len(st.Problems) == 0 {
			return fmt.Sprintf("no problem is said: %v", err)
		}
		return ""
	})
}
