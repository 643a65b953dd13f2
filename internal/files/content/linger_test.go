package content

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/content/chunk"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// retire has a file leave its path, as the placer does, and returns where it was.
func (m *member) retire(path string, data []byte) (file string, taken bool) {
	m.rig.t.Helper()
	m.place(path, data)
	m.mu.Lock()
	delete(m.local, blake3.Sum256(data))
	m.mu.Unlock()
	file = filepath.Join(m.tree, path)
	return file, m.Retire(blake3.Sum256(data), int64(len(data)), path, file)
}

// lingering are the files in WORK/gone.
func (m *member) lingering() (names []string) {
	m.rig.t.Helper()
	left, err := os.ReadDir(filepath.Join(m.dir, "gone"))
	if err != nil {
		m.rig.t.Fatal(err)
	}
	for _, e := range left {
		names = append(names, e.Name())
	}
	return names
}

// reuses is what becomes of an offered content, or one that has to be fetched.
func (m *member) reuses(t *testing.T, w Want, offered bool) bool {
	t.Helper()
	end, err := m.coming(t.Context(), w.Hash)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	return m.reuse(t.Context(), w, offered)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// A file that was removed is offered under another name: the file itself is what is staged, if nobody else can reach it,
// else a copy, and if it does not hold the content any more nothing of it.
func TestOfferedLingeringFile(t *testing.T) {
	open := func(flags int) func(t *testing.T, path string) func() {
		return func(t *testing.T, path string) func() {
			f, err := os.OpenFile(path, flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			return func() {}
		}
	}
	for name, c := range map[string]struct {
		before func(t *testing.T, path string) (after func()) // before it is removed, and afterwards
		itself bool                                           // it becomes the staged file
		sent   bool                                           // the content is sent
	}{
		"alone":   {before: func(*testing.T, string) func() { return func() {} }, itself: true},
		"read":    {before: open(os.O_RDONLY)},
		"written": {before: open(os.O_RDWR)},
		"altered": {sent: true, before: func(t *testing.T, path string) func() {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if _, err := f.WriteAt([]byte("too late"), 2<<20); err != nil {
					t.Error(err)
				}
				t.Cleanup(func() { _ = f.Close() })
			}
		}},
		"altered before, closed": {sent: true, before: func(t *testing.T, path string) func() {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if _, err := f.WriteAt([]byte("too late"), 0); err != nil {
					t.Error(err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		}},
		"mapped": {before: func(t *testing.T, path string) func() {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Munmap(page) })
			return func() {}
		}},
		"two names": {before: func(t *testing.T, path string) func() {
			if err := os.Link(path, filepath.Join(t.TempDir(), "other")); err != nil {
				t.Skip(err)
			}
			return func() {}
		}},
		"with attributes": {before: func(t *testing.T, path string) func() {
			if err := unix.Setxattr(path, "user.secret", []byte("x"), 0); err != nil {
				t.Skipf("no attributes here: %v", err)
			}
			return func() {}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 2)
			m, data := r.members[2], randomBytes(3<<20)
			m.place("old", data)
			after := c.before(t, filepath.Join(m.tree, "old"))
			ino := inode(t, filepath.Join(m.tree, "old"))
			m.local = map[manifest.Hash]string{}
			if !m.Retire(blake3.Sum256(data), int64(len(data)), "old", filepath.Join(m.tree, "old")) {
				t.Fatal("the file does not linger")
			}
			after()
			if err := r.members[1].Pusher(2).Push(t.Context(), []Item{fileItem(writeFile(t, data), data)}); err != nil {
				t.Fatal(err)
			}
			m.holds(data)
			if itself := inode(t, m.largeName(blake3.Sum256(data))) == ino; itself != c.itself && !c.sent { // else the number is free
				t.Errorf("the staged file is the one that lingered: %v", itself)
			}
			moved := m.Stats().Traffic
			if sent := moved.Received > 0; sent != c.sent || !c.sent && moved.Reused != int64(len(data)) {
				t.Errorf("received %d, reused %d bytes", moved.Received, moved.Reused)
			}
			if (c.itself || c.sent) && len(m.lingering()) > 0 {
				t.Errorf("of no more use, and there: %q", m.lingering())
			}
		})
	}
}

// Where files can share blocks a copy needs no room, and is verified as well.
func TestClonedNeedsNoRoom(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(clone *os.File) error
		ok    bool
	}{
		"as it is": {func(*os.File) error { return nil }, true},
		"longer":   {func(f *os.File) error { return f.Truncate(5 << 20) }, true},
		"altered":  {func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 1<<20); return err }, false},
		"shorter":  {func(f *os.File) error { return f.Truncate(1 << 20) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRig(t, 1).members[1]
			data := randomBytes(4 << 20)
			m.place("here", data)
			m.free.Store(1 << 20)
			m.opts.Clone = func(dst, src *os.File) error {
				if _, err := io.Copy(dst, io.NewSectionReader(src, 0, 4<<20)); err != nil {
					return err
				}
				return c.spoil(dst)
			}
			if ok := m.reuses(t, wantOf(data, "other"), true); ok != c.ok {
				t.Fatalf("reused: %v", ok)
			}
			if m.Has(blake3.Sum256(data)) != c.ok || m.promised != 0 {
				t.Errorf("staged %v, %d bytes promised", !c.ok, m.promised)
			}
			if c.ok {
				m.holds(data)
			}
		})
	}
}

// What opens the lingering file for writing while it is read sees to it that the file is not used.
func TestTakenUnderOurHands(t *testing.T) {
	m := newRig(t, 1).members[1]
	data := randomBytes(1 << 20)
	m.retire("old", data)
	l := m.lingers(blake3.Sum256(data))
	path := m.goneName(l.name)
	m.opts.Sync = func(*os.File) error { // all was read
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0) // breaks the lease, and comes back later
		if err == nil {
			t.Error("opened in spite of the lease")
			return f.Close()
		}
		return nil
	}
	if m.reuses(t, Want{Hash: l.hash, Size: l.size}, false) {
		t.Error("used")
	}
	if m.Has(l.hash) {
		t.Error("staged")
	}
}

// A lingering file that cannot be synced is not tried again: memory shows it whole, and the next sync would say nothing.
func TestLingeringIsNotSynced(t *testing.T) {
	m := newRig(t, 1).members[1]
	data := randomBytes(1 << 20)
	m.retire("old", data)
	failed := false
	m.opts.Sync = func(*os.File) error {
		if !failed {
			failed = true
			return unix.EIO
		}
		return nil
	}
	for range 2 {
		if m.reuses(t, Want{Hash: blake3.Sum256(data), Size: int64(len(data))}, true) {
			t.Error("what could not be synced was taken for durable")
		}
	}
	if left := m.lingering(); len(left) > 0 {
		t.Errorf("%q", left)
	}
}

// A content that has to be fetched is looked for in what lingers, by whoever comes first.
func TestFetchedFromLingering(t *testing.T) {
	m := newRig(t, 1).members[1]
	data := randomBytes(2 << 20)
	m.retire("old", data)
	var fetching sync.WaitGroup
	for range 4 {
		fetching.Go(func() {
			missing, err := m.Fetch(context.WithoutCancel(t.Context()), nil, []Want{{Hash: blake3.Sum256(data), Size: int64(len(data))}})
			if err != nil || len(missing) > 0 {
				t.Error(missing, err)
			}
		})
	}
	fetching.Wait()
	m.holds(data)
	if moved := m.Stats().Traffic; moved.Reused != int64(len(data)) {
		t.Errorf("%d bytes reused", moved.Reused)
	}
	if _, ok := m.TakeStaged(blake3.Sum256(data)); !ok {
		t.Error("the placer cannot have it")
	}
}

// A content that is placed at another path is not sent, also if its chunks were never recorded.
func TestOfferedIsPlaced(t *testing.T) {
	r := newRig(t, 2)
	data := randomBytes(3 << 20)
	r.members[2].place("elsewhere", data)
	if err := r.members[1].Pusher(2).Push(t.Context(), []Item{fileItem(writeFile(t, data), data)}); err != nil {
		t.Fatal(err)
	}
	r.members[2].holds(data)
	if moved := r.members[2].Stats().Traffic; moved.Received > 0 {
		t.Errorf("%d bytes received", moved.Received)
	}
	if _, known := r.members[2].recipes.get(blake3.Sum256(data)); !known {
		t.Error("its chunks are not known")
	}
}

// How long a file lingers.
func TestLingeringEnds(t *testing.T) {
	m := newRig(t, 1).members[1]
	m.age.Store(0)
	begin := m.now()
	at := func(d time.Duration) { m.Sweep(begin.Add(d)) }
	stays := func(what string, want int) {
		t.Helper()
		if got := len(m.lingering()); got != want {
			t.Errorf("%s: %d files linger, want %d", what, got, want)
		}
		if got := m.Stats().Lingering > 0; got != (want > 0) {
			t.Errorf("%s: %d bytes are said to linger", what, m.Stats().Lingering)
		}
	}
	little, other := randomBytes(200_000), randomBytes(200_001)
	m.retire("little", little)
	m.retire("other", other)
	stays("at first", 2)
	at(lingerTime - time.Second)
	stays("before its time", 2)
	m.age.Store(int64(lingerTime - time.Second)) // one is of use
	if !m.reuses(t, Want{Hash: blake3.Sum256(other), Size: int64(len(other))}, true) {
		t.Fatal("of no use")
	}
	at(lingerTime + time.Second)
	stays("after the other one was of use", 1)
	at(2*lingerTime - 2*time.Second)
	stays("a little later", 1)
	at(2*lingerTime + time.Second)
	stays("after its time", 0)
	if n := len(m.gone.byName) + len(m.gone.byPath); n > 0 {
		t.Errorf("%d are remembered", n)
	}

	m.age.Store(0)
	m.retire("little", little)
	for d := time.Duration(0); d < lingerMost; d += lingerTime / 2 { // something else always is of use
		m.age.Store(int64(d))
		m.served()
		at(d)
	}
	stays("of use for an hour", 1)
	at(lingerMost + time.Second)
	stays("after more than an hour", 0)
}

// A file that its author reads for minutes lingers for as long.
func TestHugeLingersLonger(t *testing.T) {
	m := newRig(t, 1).members[1]
	f, err := os.Create(filepath.Join(m.tree, "huge"))
	if err == nil {
		err = errors.Join(f.Truncate(1000*lingerRead), f.Close()) // a hole
	}
	if err != nil {
		t.Fatal(err)
	}
	begin := m.now()
	if !m.Retire(manifest.Hash{1}, 1000*lingerRead, "huge", f.Name()) {
		t.Fatal("not retired")
	}
	m.Sweep(begin.Add(lingerTime + 999*time.Second))
	if len(m.lingering()) != 1 {
		t.Error("gone before its author can have read it")
	}
	m.Sweep(m.now().Add(lingerTime + 1001*time.Second))
	if len(m.lingering()) != 0 {
		t.Error("lingers for ever")
	}
}

// Nothing lingers where there is little room, and what does gives way to whatever needs room.
func TestLingeringGivesWay(t *testing.T) {
	const mib = 1 << 20
	m := newRig(t, 1).members[1]
	m.opts.Reserve, m.opts.Roomy = mib, 4*mib
	one, two, three := randomBytes(2*mib), randomBytes(2*mib), randomBytes(2*mib)
	m.free.Store(16 * mib)
	m.retire("one", one)
	m.age.Store(int64(time.Second))
	m.retire("two", two)
	if err := m.room(11*mib + 1); err != nil { // 16 are free without what lingers: 12 with both, and 1 is the reserve
		t.Error(err)
	}
	if got := m.lingering(); len(got) != 1 || !strings.HasPrefix(got[0], hexName(blake3.Sum256(two))) {
		t.Errorf("the younger one should be left, there is %q", got)
	}
	if m.Yield(mib) {
		t.Error("gave way without need")
	}
	if !m.Yield(14*mib) || len(m.lingering()) > 0 {
		t.Errorf("%q is left", m.lingering())
	}
	m.retire("one", one)
	m.free.Store(5 * mib) // somebody else fills the disk
	m.Sweep(m.now())
	if len(m.lingering()) > 0 {
		t.Error("lingers on a disk that is nearly full")
	}
	m.free.Store(3 * mib)
	if file, ok := m.retire("three", three); ok || inode(t, file) == 0 {
		t.Error("lingers without room")
	}
	if m.gone.bytes != 0 {
		t.Errorf("%d bytes counted", m.gone.bytes)
	}
}

// Of a file that is replaced again and again one version lingers; what is small never does.
func TestOneLingersAPath(t *testing.T) {
	m := newRig(t, 1).members[1]
	for range 3 {
		m.retire("log", randomBytes(200_000))
	}
	if got := m.lingering(); len(got) != 1 || m.gone.bytes != 200_000 {
		t.Errorf("%q, %d bytes", got, m.gone.bytes)
	}
	if _, ok := m.retire("small", randomBytes(SmallMax)); ok {
		t.Error("a small content lingers")
	}
}

// A lingering file is one that lingers only as long as the process.
func TestLingeringIsClearedAtTheStart(t *testing.T) {
	r := newRig(t, 2)
	m, data := r.members[2], randomBytes(2<<20)
	m.recorded(t, "old", data)
	m.retire("old", data)
	if err := m.ForgetPlaced("old"); err != nil {
		t.Fatal(err)
	}
	table := m.opts.Chunks
	left := m.goneName(m.lingering()[0])
	r.restart(2)
	if err := os.WriteFile(left, data, 0o600); err != nil { // as if it had been killed
		t.Fatal(err)
	}
	if got := m.lingering(); len(got) != 1 {
		t.Fatal(got)
	}
	m.opts.Chunks, m.Store.table = table, chunkTable{table}
	if err := m.openGone(); err != nil {
		t.Fatal(err)
	}
	if got := m.lingering(); len(got) != 0 {
		t.Errorf("%q are left", got)
	}
	m.knowsNothing(t)
}

// recorded places a file whose chunks are known.
func (m *member) recorded(t *testing.T, path string, data []byte) {
	t.Helper()
	m.place(path, data)
	recipe, err := chunk.NewSplitter(bytes.NewReader(data)).Segment(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.RecordPlaced(path, blake3.Sum256(data), recipe); err != nil {
		t.Fatal(err)
	}
}

// knowsNothing fails the test if anything is in the table of chunks.
func (m *member) knowsNothing(t *testing.T) {
	t.Helper()
	err := m.table.store.Scan([]byte{0}, []byte{0xff}, func(k, _ []byte) error {
		t.Errorf("the table of chunks has %q", k)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A log is appended to, renamed and begun anew: only its new end moves. What was altered in the file that lingers is not
// believed. Once the renamed file is placed the table knows its chunks, and after all is gone nothing. It is the same if what
// came in its place is not recorded yet.
func TestChunksOfLingeringFile(t *testing.T) {
	for name, c := range map[string]struct{ altered, late bool }{
		"as it was": {}, "altered": {altered: true}, "before the new one is recorded": {late: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 2)
			m := r.members[2]
			data := randomBytes(8 << 20)
			m.recorded(t, "app.log", data)
			f, err := os.OpenFile(filepath.Join(m.tree, "app.log"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m.local = map[manifest.Hash]string{}
			if !m.Retire(blake3.Sum256(data), int64(len(data)), "app.log", f.Name()) {
				t.Fatal("not retired")
			}
			record := func() {
				if err := m.RecordPlaced("app.log", manifest.Hash{}, chunk.Recipe{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(m.tree, "app.log"), []byte("a new day\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if !c.late {
				record()
			}
			if c.altered {
				if _, err := f.WriteAt(make([]byte, 8), 4<<20); err != nil {
					t.Fatal(err)
				}
			}
			longer := append(bytes.Clone(data), randomBytes(100_000)...)
			item := fileItem(writeFile(t, longer), longer)
			item.PathHint = "app.log.1"
			if err := r.members[1].Pusher(2).Push(t.Context(), []Item{item}); err != nil {
				t.Fatal(err)
			}
			m.holds(longer)
			if c.late {
				record()
			}
			most := int64(100_000 + chunk.Max)
			if c.altered {
				most += chunk.Max
			}
			if got := m.Stats().Traffic.Received; got < 100_000 || got > most {
				t.Errorf("%d bytes received, want up to %d", got, most)
			}
			if err := m.RecordPlaced("app.log.1", item.Hash, nil); err != nil {
				t.Fatal(err)
			}
			if !m.table.knows("app.log.1") {
				t.Error("the chunks at the new name are not known")
			}
			m.Sweep(m.now().Add(time.Hour))
			if err := m.ForgetPlaced("app.log.1"); err != nil {
				t.Fatal(err)
			}
			m.knowsNothing(t)
		})
	}
}

// A file that lingered and became what another path has takes its chunks along.
func TestChunksFollowTheFile(t *testing.T) {
	m := newRig(t, 1).members[1]
	data := randomBytes(3 << 20)
	m.recorded(t, "old", data)
	m.retire("old", data)
	if err := m.ForgetPlaced("old"); err != nil {
		t.Fatal(err)
	}
	if !m.reuses(t, Want{Hash: blake3.Sum256(data), Size: int64(len(data))}, true) {
		t.Fatal("of no use")
	}
	if err := m.RecordPlaced("new", blake3.Sum256(data), nil); err != nil {
		t.Fatal(err)
	}
	recipe, err := chunk.NewSplitter(bytes.NewReader(data)).Segment(1)
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := m.table.find(recipe[0].Hash); !ok || at.path != "new" {
		t.Errorf("the first chunk is known at %q, %v", at.path, ok)
	}
	m.Sweep(m.now().Add(time.Hour))
	if at, ok := m.table.find(recipe[0].Hash); !ok || at.path != "new" {
		t.Errorf("afterwards it is known at %q, %v", at.path, ok)
	}
}
