package place

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Parts that need another user or mounts of their own run as child processes, which pass or fail like tests.
const (
	childEnv = "PLACE_TEST_CHILD"
	childDir = "PLACE_TEST_DIR"
)

// runChild runs test name of this binary with attr. It skips the caller if the child cannot be started.
func runChild(t *testing.T, name, dir string, attr *syscall.SysProcAttr) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	exe := dir + "/test" // where any user may execute it
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.v", "-test.run=^"+name+"$")
	cmd.Env = append(os.Environ(), childEnv+"=1", childDir+"="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr, cmd.Dir = attr, dir
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skipf("cannot start the child: %v", err)
	}
	if _, why, ok := strings.Cut(string(out), "CANNOT: "); ok {
		t.Skip(why)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// openDir is a temporary directory whose whole path others may enter and which belongs to uid.
func openDir(t *testing.T, uid int) string {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sub := dir + "/sub"
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(sub, uid, uid); err != nil {
		t.Skip(err)
	}
	return sub
}

const nobody = 65534

func TestNotRoot(t *testing.T) {
	runChild(t, "TestNotRootChild", openDir(t, nobody), &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}})
}

func TestNotRootChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("only as a child of TestNotRoot")
	}
	f := openFixture(t, os.Getenv(childDir)+"/work")
	foreign := func(n manifest.Node) manifest.Node {
		n.UID, n.GID = 0, 0
		return n
	}
	readonly := foreign(dirNode(1))
	readonly.Mode = 0o555
	rs := f.apply(
		Task{Path: "d", Want: readonly},
		Task{Path: "d/x", Want: foreign(fileNode(2, "x")), Inline: []byte("x")},
		Task{Path: "d/l", Want: foreign(linkNode(3, "x"))},
	)
	for i, r := range rs {
		if r.Code != Done || r.Placed.Stat.UID != nobody {
			t.Fatalf("task %d: %+v", i, r)
		}
	}
	f.is("d", readonly)
	f.is("d/x", foreign(fileNode(2, "x")))
	if len(f.p.Problems()) != 1 || !strings.Contains(f.p.Problems()[0], "owners") {
		t.Errorf("problems %q", f.p.Problems())
	}
	f.must(Adopted, Task{Path: "d/x", Want: foreign(fileNode(2, "x"))})
	// A directory that we may not write to.
	r := f.must(Failed, Task{Path: "d/y", Want: fileNode(4, "y"), Inline: []byte("y")})
	if !errors.Is(r.Err, unix.EACCES) {
		t.Errorf("error %v", r.Err)
	}
	// A file that we may not read has no lease, but is replaced and removed all the same.
	n := fileNode(5, "secret")
	n.Mode = 0o200
	r = f.must(Done, Task{Path: "s", Want: n, Inline: []byte("secret")})
	n.MTime, n.Version = n.MTime+1, 6
	r = f.must(Done, Task{Path: "s", Want: n, Have: r.Placed, SameContent: true})
	r = f.must(Done, fileTask("s", 7, "other", r.Placed))
	f.must(Done, Task{Path: "s", Want: gone(7), Have: r.Placed})
	if len(f.p.Problems()) != 2 {
		t.Errorf("problems %q", f.p.Problems())
	}
	// One that is staged and cannot take its place can still be read: it is wanted again.
	n.MTime, n.Version = n.MTime+1, 8
	staged := filepath.Join(os.Getenv(childDir), "staged")
	for _, have := range []Placed{{}, r.Placed} {
		if err := errors.Join(os.WriteFile(staged, []byte("secret"), 0o600), os.WriteFile(f.root+"/s", []byte("an edit"), 0o600)); err != nil {
			t.Fatal(err)
		}
		f.bytes.staged = map[manifest.Hash]string{n.Hash: staged}
		f.must(Busy, Task{Path: "s", Want: n, Have: have})
		if got, err := os.ReadFile(staged); string(got) != "secret" {
			t.Errorf("staged is %q: %v", got, err)
		}
	}
	if err := errors.Join(os.Remove(staged), os.Remove(f.root+"/s")); err != nil {
		t.Error(err)
	}
	f.clean()
}

func TestFullDisk(t *testing.T) {
	runChild(t, "TestFullDiskChild", openDir(t, 0), &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS})
}

func TestFullDiskChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("only as a child of TestFullDisk")
	}
	dir := os.Getenv(childDir) + "/mnt"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("place", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("CANNOT: mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for _, reserve := range []int64{0, -1, 512 << 10} {
		sub := t.TempDir()
		f := openFixture(t, strings.Replace(sub, os.Getenv(childDir), dir, 1))
		cfg := f.config()
		cfg.Reserve = reserve
		f.p.Close()
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.p = p
		if _, err := p.Recover(); err != nil {
			t.Fatal(err)
		}
		fillDisk(t, f, reserve)
		os.RemoveAll(f.root)
	}
}

// fillDisk fills up until it fails, and sees what was there still there, and space come back.
func fillDisk(t *testing.T, f *fixture, reserve int64) {
	content := repeat('c', 100_000)
	var have []Placed
	for i := 0; ; i++ {
		r := f.apply(fileTask("x"+string(rune('a'+i)), 1, content, Placed{}))[0]
		if r.Code == Done {
			have = append(have, r.Placed)
			continue
		}
		if r.Code != Failed || !errors.Is(r.Err, unix.ENOSPC) || !strings.Contains(r.Err.Error(), `"x`) {
			t.Fatalf("reserve %d: %v %v", reserve, r.Code, r.Err)
		}
		break
	}
	if n := len(have); reserve > 0 && n > 5 || n > 10 || n < 3 {
		t.Errorf("reserve %d: %d files fitted", reserve, n)
	}
	r := f.must(Failed, fileTask("xa", 2, repeat('d', 900_000), have[0]))
	if !errors.Is(r.Err, unix.ENOSPC) {
		t.Error(r.Err)
	}
	f.is("xa", fileNode(1, content))
	f.clean()
	f.must(Done, Task{Path: "xa", Want: gone(3), Have: have[0]})
	f.must(Done, fileTask("xa", 4, content, Placed{}))
}

func TestOtherMounts(t *testing.T) {
	runChild(t, "TestOtherMountsChild", openDir(t, 0), &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS})
}

func TestOtherMountsChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("only as a child of TestOtherMounts")
	}
	root, data := os.Getenv(childDir)+"/mnt", os.Getenv(childDir)+"/data"
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	before, err := MountID(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("place", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("CANNOT: mount a tmpfs: %v", err)
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	if after, err := MountID(root); err != nil || after == before {
		t.Errorf("mounted over %+v: %+v, %v", before, after, err)
	}
	if err := EnsureMarker(root, "g", created); err != nil {
		t.Fatal(err)
	}
	work, err := WorkDir(data, root)
	if err != nil || work != root+"/.lockstep/work" {
		t.Fatalf("%q, %v", work, err)
	}
	if in, err := os.Lstat(root + "/.lockstep"); err != nil || !in.ModTime().Equal(created) {
		t.Errorf("marker directory: %v %v", in, err)
	}
	if got := names(t, data); len(got) != 0 {
		t.Errorf("left in %s: %q", data, got)
	}
	f := &fixture{t: t, root: root, work: work, bytes: &memory{}}
	f.open()
	defer f.p.Close()
	// A staged file on another file system is copied.
	content := repeat('s', 50_000)
	n := fileNode(1, content)
	f.bytes.staged = map[manifest.Hash]string{n.Hash: data + "/stage"}
	f.bytes.large = map[manifest.Hash][]byte{n.Hash: []byte(content)}
	if err := os.WriteFile(data+"/stage", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	r := f.must(Done, Task{Path: "x", Want: n})
	f.is("x", n)
	// The mount goes away beneath us.
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if r := f.must(Failed, Task{Path: "x", Want: gone(2), Have: r.Placed}); !errors.Is(r.Err, unix.ESTALE) {
		t.Errorf("error %v", r.Err)
	}
}

// TestMayChown: a root alone in its user namespace, whose system knows no other, may not give files away.
func TestMayChown(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if may, err := MayChown(t.TempDir()); !may || err != nil {
		t.Errorf("root: %v, %v", may, err)
	}
	alone := []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
	runChild(t, "TestMayChownChild", openDir(t, nobody), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: alone, GidMappings: alone,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{}})
}

func TestMayChownChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("only as a child of TestMayChown")
	}
	dir := os.Getenv(childDir)
	if os.Geteuid() != 0 {
		t.Fatalf("user %d", os.Geteuid())
	}
	if may, err := MayChown(dir); may || err != nil {
		t.Errorf("%v, %v", may, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 { // this program
		t.Errorf("left: %v, %v", left, err)
	}
}
