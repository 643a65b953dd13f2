package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func claimed(t *testing.T, root, group string) *Claim {
	t.Helper()
	c, err := Take(root, group)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func let(t *testing.T, c *Claim) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestClaim: one keeps a directory at a time, whatever group it is for; who holds it is said, and nothing of it is changed.
func TestClaim(t *testing.T) {
	root := t.TempDir()
	if err := EnsureMarker(root, "g1", created); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(markerPath(root))
	if err != nil {
		t.Fatal(err)
	}
	c := claimed(t, root, "g1")
	if !c.Locked() || !c.Current() {
		t.Fatalf("locked %t, current %t", c.Locked(), c.Current())
	}
	held := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = Take(root, "g1")
	held("the same group", err)
	_, err = TakeOver(root, "g2", created)
	held("another group", err)
	held("asked", Held(root))
	if now, err := os.Stat(markerPath(root)); err != nil || !os.SameFile(before, now) || CheckMarker(root, "g1") != nil {
		t.Errorf("the marker of a held directory was changed: %v", err)
	}
	let(t, c)
	let(t, c)
	if err := Held(root); err != nil {
		t.Errorf("let go, and yet: %v", err)
	}
	if _, err := Take(root, "g2"); !errors.Is(err, ErrMarkerForeign) {
		t.Errorf("another group's: %v", err)
	}
	let(t, claimed(t, root, "g1"))
}

// TestClaimTakesOver: by its own word only is another group's directory taken, and whoever kept it finds that out.
func TestClaimTakesOver(t *testing.T) {
	root := t.TempDir()
	if _, err := TakeOver(root, "g2", created); !errors.Is(err, ErrMarkerMissing) {
		t.Errorf("no binding: %v", err)
	}
	if err := EnsureMarker(root, "g1", created); err != nil {
		t.Fatal(err)
	}
	c, err := TakeOver(root, "g2", created)
	if err != nil {
		t.Fatal(err)
	}
	if Marked(root) != "g2" || CheckMarker(root, "g2") != nil || !c.Current() {
		t.Errorf("marked %q, current %t", Marked(root), c.Current())
	}
	if err := Held(root); !errors.Is(err, ErrHeld) {
		t.Errorf("taken over and not held: %v", err)
	}
	let(t, c)
	if _, err := Take(root, "g1"); !errors.Is(err, ErrMarkerForeign) {
		t.Errorf("the group of before: %v", err)
	}
	if c, err = TakeOver(root, "g2", created); err != nil { // again, after a crash
		t.Fatal(err)
	}
	let(t, c)
	if err := os.WriteFile(markerPath(root), []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if Marked(root) != "?" {
		t.Errorf("nonsense is marked %q", Marked(root))
	}
	if c, err = TakeOver(root, "g2", created); err != nil {
		t.Fatal(err)
	}
	let(t, c)
}

// TestClaimOfAReplacedMarker: who put the marker back in another file is not held off by the lock on the old one.
func TestClaimOfAReplacedMarker(t *testing.T) {
	root := t.TempDir()
	if err := EnsureMarker(root, "g1", created); err != nil {
		t.Fatal(err)
	}
	c := claimed(t, root, "g1")
	defer c.Close()
	if err := os.Remove(markerPath(root)); err != nil {
		t.Fatal(err)
	}
	if c.Current() {
		t.Error("a removed marker is current")
	}
	if err := EnsureMarker(root, "g1", created); err != nil {
		t.Fatal(err)
	}
	if c.Current() {
		t.Error("another file is current")
	}
	if err := c.RemoveMarker(); err == nil || CheckMarker(root, "g1") != nil {
		t.Errorf("a marker that is not held was removed: %v", err)
	}
}

// TestClaimRemovesTheMarker leaves the directory's own time as it was, and what was kept aside.
func TestClaimRemovesTheMarker(t *testing.T) {
	root := t.TempDir()
	if err := EnsureMarker(root, "g1", created); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	c := claimed(t, root, "g1")
	if err := c.RemoveMarker(); err != nil {
		t.Fatal(err)
	}
	let(t, c)
	if _, err := os.Stat(filepath.Dir(markerPath(root))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	if after, err := os.Stat(root); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the directory's time is %v, was %v (%v)", after.ModTime(), before.ModTime(), err)
	}
	if Marked(root) != "" || Held(root) != nil {
		t.Errorf("marked %q, held %v", Marked(root), Held(root))
	}
}

// TestClaimIsNotInherited: what the process runs does not hold the directory on behalf of one that is gone.
func TestClaimIsNotInherited(t *testing.T) {
	root := t.TempDir()
	if err := EnsureMarker(root, "g1", created); err != nil {
		t.Fatal(err)
	}
	c := claimed(t, root, "g1")
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	let(t, c)
	if err := Held(root); err != nil {
		t.Error(err)
	}
	if err := errors.Join(in.Close(), child.Wait()); err != nil {
		t.Error(err)
	}
}

func TestHolder(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF
2: FLOCK  ADVISORY  READ  12 08:01:77 0 EOF
3: FLOCK  ADVISORY  WRITE 13 08:02:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 14 fd:1a:77 0 EOF
4: FLOCK  ADVISORY  WRITE 15 fd:1a:77 0 EOF
5: FLOCK  ADVISORY  WRITE -1 fd:1a:78 0 EOF
6: FLOCK
`
	for _, c := range []struct {
		major, minor uint32
		ino          uint64
		pid          int
	}{{8, 1, 77, 0}, {8, 2, 77, 13}, {0xfd, 0x1a, 77, 15}, {0xfd, 0x1a, 78, 0}, {1, 1, 1, 0}} {
		if pid, ok := holder(strings.NewReader(locks), c.major, c.minor, c.ino); ok != (c.pid > 0) || ok && pid != c.pid {
			t.Errorf("%x:%x:%d is held by %d, %t", c.major, c.minor, c.ino, pid, ok)
		}
	}
}
