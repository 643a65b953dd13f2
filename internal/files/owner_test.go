package files

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// bits is mode and owner of a file.
func bits(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%04o %d", st.Mode&0o7777, st.Uid)
}

// TestNobodyRunsAsAnother: n2 does not set owners. What is changed there runs as nobody else anywhere, and what comes there
// from others runs as nobody there; that the bits are missing is no edit.
func TestNobodyRunsAsAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners are set by root only")
	}
	f := newFarm(t, 3)
	n1, n2, n3 := f.nodes[0], f.nodes[1], f.nodes[2]
	n2.change = func(c *Config) { c.Owner = false }
	for _, name := range []string{"edited", "touched", "plain", "marked"} {
		n1.write(name, "text of "+name)
		must(t, os.Chown(n1.path(name), 1234, 1234))
	}
	for _, name := range []string{"edited", "touched"} {
		must(t, unix.Chmod(n1.path(name), 0o6755))
	}
	f.up()
	f.flush()
	for _, name := range []string{"edited", "touched"} {
		if got := bits(t, n3.path(name)); got != "6755 1234" {
			t.Errorf("%s at a node that sets owners: %s", name, got)
		}
		if got := bits(t, n2.path(name)); got != "0755 0" {
			t.Errorf("%s at one that does not: %s", name, got)
		}
	}
	n2.down()
	n2.up()
	f.flush()
	n2.write("edited", "another text")
	must(t, os.Chtimes(n2.path("touched"), created, created))
	beside := n2.root + ".new" // content and bits at once
	must(t, os.WriteFile(beside, []byte("another program"), 0o755))
	must(t, unix.Chmod(beside, 0o4755))
	must(t, os.Rename(beside, n2.path("plain")))
	must(t, unix.Chmod(n2.path("marked"), 0o6755))
	n2.write("own", "mine")
	must(t, unix.Chmod(n2.path("own"), 0o4755))
	f.flush()
	for name, want := range map[string]string{"edited": "0755 1234", "touched": "6755 1234", "plain": "0755 1234", "marked": "0755 1234", "own": "4755 0"} {
		for _, nd := range []*node{n1, n3} {
			eventually(t, func() string {
				if got := bits(t, nd.path(name)); got != want || nd.read(name) != n2.read(name) {
					return fmt.Sprintf("%s at %s: %s %q, want %s", name, nd.name, got, nd.read(name), want)
				}
				return ""
			})
		}
	}
	must(t, unix.Chmod(n1.path("own"), 0o755)) // taken away again
	f.flush()
	if got := bits(t, n2.path("own")); got != "0755 0" {
		t.Errorf("bits that were taken away stay where they came from: %s", got)
	}
}
