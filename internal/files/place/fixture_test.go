package place

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// fixture is a placer over a root and a work directory beside it.
type fixture struct {
	t          testing.TB
	root, work string
	p          *Placer
	bytes      *memory
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return openFixture(t, t.TempDir())
}

// newMemoryFixture is newFixture in memory if possible: for tests of very many small runs.
func newMemoryFixture(t testing.TB) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "place")
	if err != nil {
		return newFixture(t)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return openFixture(t, dir)
}

func openFixture(t testing.TB, dir string) *fixture {
	t.Helper()
	f := &fixture{t: t, root: dir + "/root", work: dir + "/work", bytes: &memory{}}
	for _, d := range []string{f.root, f.work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.open()
	t.Cleanup(func() { f.p.Close() })
	return f
}

func (f *fixture) config() Config {
	return Config{Root: f.root, Work: f.work, Owner: os.Geteuid() == 0}
}

func (f *fixture) open() []Kept {
	f.t.Helper()
	p, err := New(f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	kept, err := p.Recover()
	if err != nil {
		f.t.Fatal(err)
	}
	f.p = p
	return kept
}

func (f *fixture) path(rel string) string { return filepath.Join(f.root, rel) }

func (f *fixture) apply(tasks ...Task) []Result {
	f.t.Helper()
	r, _ := f.p.Apply(context.Background(), tasks, f.bytes)
	return r
}

// must applies one task and wants code.
func (f *fixture) must(code ResultCode, task Task) Result {
	f.t.Helper()
	r := f.apply(task)[0]
	if r.Code != code {
		f.t.Fatalf("%q: %v (%v), want %v", task.Path, r.Code, r.Err, code)
	}
	return r
}

// stat is how rel looks now.
func (f *fixture) stat(rel string) Stat {
	f.t.Helper()
	dir, name := filepath.Split(f.path(rel))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	defer unix.Close(fd)
	in, err := vfs.StatAt(fd, name)
	if err != nil {
		f.t.Fatal(err)
	}
	return StatOf(in)
}

// is fails unless rel is exactly n.
func (f *fixture) is(rel string, n manifest.Node) {
	f.t.Helper()
	got := f.stat(rel)
	if got.Kind != n.Kind || got.Other {
		f.t.Fatalf("%q is %v, want %v", rel, got.Kind, n.Kind)
	}
	if why := f.p.differs(got.Info(), &n); n.Kind != manifest.Absent && why != "" {
		f.t.Fatalf("%q differs in %s: %+v, want %+v", rel, why, got, n)
	}
	switch n.Kind {
	case manifest.File:
		b, err := os.ReadFile(f.path(rel))
		if err != nil {
			f.t.Fatal(err)
		}
		if blake3.Sum256(b) != n.Hash {
			f.t.Fatalf("%q has other content: %.40q", rel, b)
		}
	case manifest.Symlink:
		if target, err := os.Readlink(f.path(rel)); err != nil || target != n.Target {
			f.t.Fatalf("%q leads to %q (%v), want %q", rel, target, err, n.Target)
		}
	}
}

// clean fails if there is anything in Work/place but the intent, and returns the names in Work/kept.
func (f *fixture) clean() []string {
	f.t.Helper()
	for _, name := range names(f.t, f.work+"/place") {
		if name != intentName {
			f.t.Errorf("left in work: %s", name)
		}
	}
	return names(f.t, f.work+"/kept")
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// find returns the files under root and Work/kept that contain token.
func (f *fixture) find(token string) []string {
	f.t.Helper()
	var out []string
	for _, top := range []string{f.root, f.work + "/kept"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(token)) {
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
	return out
}

// memory is a Contents.
type memory struct {
	small  map[manifest.Hash][]byte
	large  map[manifest.Hash][]byte
	staged map[manifest.Hash]string

	retired string     // directory for what is retired; "": nothing is
	mu      sync.Mutex // workers retire
	left    []manifest.Hash
	yields  func(n int64) bool
}

func (m *memory) Small(h manifest.Hash) ([]byte, bool) { b, ok := m.small[h]; return b, ok }

func (m *memory) Open(h manifest.Hash, size int64) (io.ReadCloser, bool, error) {
	b, ok := m.large[h]
	return io.NopCloser(bytes.NewReader(b)), ok, nil
}

func (m *memory) TakeStaged(h manifest.Hash) (string, bool) { s, ok := m.staged[h]; return s, ok }

func (m *memory) Retire(h manifest.Hash, size int64, path, file string) bool {
	if m.retired == "" || os.Rename(file, filepath.Join(m.retired, strings.ReplaceAll(path, "/", "_"))) != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = append(m.left, h)
	return true
}

func (m *memory) Yield(n int64) bool { return m.yields != nil && m.yields(n) }

const someTime = 1_600_000_000_123_456_789

func me() (uid, gid uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }

func fileNode(version uint64, content string) manifest.Node {
	uid, gid := me()
	return manifest.Node{
		Kind: manifest.File, Mode: 0o640, UID: uid, GID: gid, MTime: someTime + int64(version),
		Size: int64(len(content)), Hash: blake3.Sum256([]byte(content)), Version: version,
	}
}

func dirNode(version uint64) manifest.Node {
	uid, gid := me()
	return manifest.Node{Kind: manifest.Dir, Mode: 0o751, UID: uid, GID: gid, MTime: someTime - int64(version), Version: version}
}

func linkNode(version uint64, target string) manifest.Node {
	uid, gid := me()
	return manifest.Node{
		Kind: manifest.Symlink, Mode: 0o777, UID: uid, GID: gid, MTime: someTime + 2*int64(version), Target: target,
		Version: version,
	}
}

func gone(version uint64) manifest.Node { return manifest.Node{Version: version} }

// fileTask places content.
func fileTask(path string, version uint64, content string, have Placed) Task {
	return Task{Path: path, Want: fileNode(version, content), Have: have, Inline: []byte(content)}
}

func repeat(c byte, n int) string { return strings.Repeat(string(rune(c)), n) }
