package pack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

var start = time.Unix(1_700_000_000, 0)

func open(t testing.TB, dir string, rotate int64, now func() time.Time) *Log {
	t.Helper()
	l, err := Open(dir, Options{Rotate: rotate, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func at(when time.Time) func() time.Time { return func() time.Time { return when } }

func content(rng *rand.Rand, n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

func records(contents ...[]byte) []byte {
	var buf []byte
	for _, c := range contents {
		head := make([]byte, HeaderSize)
		PutHeader(head, blake3.Sum256(c), len(c))
		buf = append(append(buf, head...), c...)
	}
	return buf
}

func stage(t testing.TB, l *Log, contents ...[]byte) {
	t.Helper()
	err := l.Append(records(contents...), func(i int) { t.Errorf("record %d refused", i) })
	if err != nil {
		t.Fatal(err)
	}
}

func hashes(contents [][]byte) []manifest.Hash {
	var hs []manifest.Hash
	for _, c := range contents {
		hs = append(hs, blake3.Sum256(c))
	}
	return hs
}

func packFiles(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestAppendVerifiesEachRecord(t *testing.T) {
	l := open(t, t.TempDir(), 0, at(start))
	defer l.Close()
	buf := records([]byte("one"), []byte("two"), []byte("three"), nil)
	buf[HeaderSize+3+HeaderSize] ^= 1 // "two" becomes something else
	var refused []int
	if err := l.Append(buf, func(i int) { refused = append(refused, i) }); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(refused) != "[1]" {
		t.Errorf("refused %v, want the second", refused)
	}
	for _, c := range []string{"one", "three", ""} {
		if got, ok := l.Get(blake3.Sum256([]byte(c))); !ok || string(got) != c {
			t.Errorf("%q: got %q, %v", c, got, ok)
		}
	}
	if l.Has(blake3.Sum256([]byte("two"))) {
		t.Error("a content that did not match is there")
	}
	if err := l.Append([]byte("short"), nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
}

// TestCrash cuts the files of a log at random places, as a crash without sync may, and expects a readable
// log that holds every content whose record ends before the cut, takes new ones, and keeps them over a restart.
func TestCrash(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		l := open(t, dir, 20_000, at(start))
		var contents [][]byte
		ends := map[string]int64{}
		for range 10 {
			var batch [][]byte
			for range 1 + rng.IntN(5) {
				batch = append(batch, content(rng, rng.IntN(3000)))
			}
			stage(t, l, batch...)
			contents = append(contents, batch...)
		}
		for h, loc := range l.index {
			ends[string(h[:])] = int64(loc.offset) + HeaderSize + int64(loc.length)
		}
		newest := l.active.f.Name()
		seq := l.active.seq
		cut := rng.Int64N(l.active.size + 1)
		inNewest := map[string]bool{}
		for h, loc := range l.index {
			inNewest[string(h[:])] = loc.file == seq
		}
		if err := errors.Join(l.Close(), os.Truncate(newest, cut)); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(2) == 0 { // length without bytes
			if err := os.Truncate(newest, cut+rng.Int64N(5000)); err != nil {
				t.Fatal(err)
			}
		}
		l = open(t, dir, 20_000, at(start))
		added := content(rng, 2000)
		stage(t, l, added)
		if err := errors.Join(l.Sync(), l.Close()); err != nil {
			t.Fatal(err)
		}
		l = open(t, dir, 20_000, at(start))
		for _, c := range append(contents, added) {
			h := blake3.Sum256(c)
			got, ok := l.Get(h)
			if ok && !bytes.Equal(got, c) {
				t.Fatalf("seed %d: wrong bytes", seed)
			}
			if lost := inNewest[string(h[:])] && ends[string(h[:])] > cut; ok == lost {
				t.Fatalf("seed %d: content of %d bytes found: %v, cut off: %v", seed, len(c), ok, lost)
			}
		}
		if n := l.Stats().Damaged; n != 0 {
			t.Errorf("seed %d: a torn end counts as %d damages", seed, n)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBitFlips damages random bits, before a restart or under a running log, and expects the right bytes or
// none; and that no damage takes more than two contents with it.
func TestBitFlips(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 2))
		dir := t.TempDir()
		l := open(t, dir, 1<<20, at(start))
		var contents [][]byte
		for range 40 {
			contents = append(contents, content(rng, rng.IntN(1000)))
		}
		stage(t, l, contents...)
		path := packFiles(t, dir)[0]
		running := seed%2 == 0
		if !running {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		where := rng.Int64N(info.Size())
		if _, err := f.ReadAt(b[:], where); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1 << rng.IntN(8)
		if _, err := f.WriteAt(b[:], where); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if !running {
			l = open(t, dir, 1<<20, at(start))
		}
		lost := 0
		for _, c := range contents {
			got, ok := l.Get(blake3.Sum256(c))
			if ok && !bytes.Equal(got, c) {
				t.Fatalf("seed %d: wrong bytes after a flip at %d", seed, where)
			}
			if !ok {
				lost++
			}
		}
		if lost > 2 || lost == 0 {
			t.Errorf("seed %d: a flip at %d lost %d contents", seed, where, lost)
		}
		stage(t, l, contents...) // what was lost comes back
		for _, c := range contents {
			if got, ok := l.Get(blake3.Sum256(c)); !ok || !bytes.Equal(got, c) {
				t.Fatalf("seed %d: a damaged content cannot be staged again", seed)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecoveredIsVerifiedByHash: a record whose checksums are right but whose hash is not, as only foul play or
// a bug makes it, is not believed after a restart.
func TestRecoveredIsVerifiedByHash(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, 0, at(start))
	stage(t, l, []byte("right"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	record := records([]byte("right"))
	copy(record[HeaderSize:], "wrong")
	seal(record)
	if err := os.WriteFile(packFiles(t, dir)[0], record, 0o600); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, 0, at(start))
	defer l.Close()
	if got, ok := l.Get(blake3.Sum256([]byte("right"))); ok {
		t.Errorf("got %q", got)
	}
	if l.Stats().Damaged != 1 {
		t.Error("the damage was not counted")
	}
}

func TestReleasedFilesGo(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 3))
	l := open(t, dir, 50_000, at(start))
	defer l.Close()
	var contents [][]byte
	for range 100 {
		contents = append(contents, content(rng, 4000))
		stage(t, l, contents[len(contents)-1])
	}
	if n := len(packFiles(t, dir)); n < 8 {
		t.Fatalf("only %d files", n)
	}
	stage(t, l, contents[7]) // wanted twice
	l.Release(hashes(contents)...)
	if st := l.Stats(); st.Contents != 100 {
		t.Errorf("released, not dropped: %+v", st)
	}
	if err := l.Drop(hashes(contents)...); err != nil {
		t.Fatal(err)
	}
	if st := l.Stats(); st.Contents != 1 || st.Bytes != 4000 || st.Files != 2 || len(packFiles(t, dir)) != 2 {
		t.Errorf("after release: %+v, %d files", st, len(packFiles(t, dir)))
	}
	if _, ok := l.Get(blake3.Sum256(contents[7])); !ok {
		t.Error("a content staged twice went with the first release")
	}
	l.Release(blake3.Sum256(contents[7]))
	if err := l.Drop(blake3.Sum256(contents[7])); err != nil {
		t.Fatal(err)
	}
	if err := l.Expire(start, func(manifest.Hash) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if st := l.Stats(); st != (Stats{Unsynced: st.Unsynced}) || len(packFiles(t, dir)) != 0 {
		t.Errorf("after all: %+v, %d files", st, len(packFiles(t, dir)))
	}
	stage(t, l, []byte("and on it goes"))
	if err := l.Sync(); err != nil {
		t.Error(err)
	}
}

func TestExpire(t *testing.T) {
	now := start
	l := open(t, t.TempDir(), 0, func() time.Time { return now })
	defer l.Close()
	stage(t, l, []byte("old"), []byte("named"), []byte("again"))
	now = now.Add(time.Minute)
	stage(t, l, []byte("again"), []byte("young"))
	named := blake3.Sum256([]byte("named"))
	err := l.Expire(start, func(h manifest.Hash) bool { return h == named || l.Has(manifest.Hash{}) })
	if err != nil {
		t.Fatal(err)
	}
	for c, want := range map[string]bool{"old": false, "named": true, "again": true, "young": true} {
		if got := l.Has(blake3.Sum256([]byte(c))); got != want {
			t.Errorf("%s: kept %v", c, got)
		}
	}
}

func TestSyncIsShared(t *testing.T) {
	l := open(t, t.TempDir(), 1<<20, at(start))
	defer l.Close()
	var running sync.WaitGroup
	for g := range 32 {
		running.Go(func() {
			for i := range 10 {
				stage(t, l, fmt.Appendf(nil, "%d/%d", g, i))
				if err := l.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if st := l.Stats(); st.Syncs > 200 || st.Contents != 320 {
		t.Errorf("%d contents took %d syncs", st.Contents, st.Syncs)
	}
	if l.synced != l.appended {
		t.Errorf("%d appends synced of %d", l.synced, l.appended)
	}
}

// TestRecoveredIsSynced: what a killed process left unsynced is durable after the first sync of the next one,
// although nothing has to be written for it.
func TestRecoveredIsSynced(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, 0, at(start))
	stage(t, l, []byte("x"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, 0, at(start))
	defer l.Close()
	stage(t, l, []byte("x"))
	if n := l.Stats().Unsynced; n != 1 || len(l.dirty) != 1 {
		t.Errorf("%d appends and %d files count as not synced", n, len(l.dirty))
	}
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if st := l.Stats(); st.Unsynced != 0 || st.Syncs != 1 {
		t.Errorf("after the sync: %+v", st)
	}
}

// TestFailedSyncIsFinal: neither a later call nor one that was waiting for the failed sync may succeed.
func TestFailedSyncIsFinal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "packs")
	l := open(t, dir, 0, at(start))
	defer l.Close()
	stage(t, l, []byte("x"))
	if err := os.RemoveAll(dir); err != nil { // so that the directory cannot be synced
		t.Fatal(err)
	}
	for range 2 {
		if err := l.syncUpTo(1); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("sync: %v", err)
		}
	}
	if err := l.Append(records([]byte("y")), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("append: %v", err)
	}
}

func TestReadersRaceWithReleaseAndRotation(t *testing.T) {
	l := open(t, t.TempDir(), 8_000, at(start))
	defer l.Close()
	rng := rand.New(rand.NewPCG(4, 4))
	var contents [][]byte
	for range 50 {
		contents = append(contents, content(rng, 1500))
	}
	var running sync.WaitGroup
	for g := range 3 {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 5))
			for range 1500 {
				c := contents[rng.IntN(len(contents))]
				switch h := blake3.Sum256(c); rng.IntN(4) {
				case 0:
					stage(t, l, c)
				case 1:
					l.Release(h)
					if err := l.Drop(h); err != nil {
						t.Error(err)
					}
				default:
					if got, ok := l.Get(h); ok && !bytes.Equal(got, c) {
						t.Error("wrong bytes")
					}
				}
			}
		})
	}
	running.Go(func() {
		for range 50 {
			if err := l.Sync(); err != nil {
				t.Error(err)
			}
		}
	})
	running.Wait()
	if n := l.Stats().Damaged; n != 0 {
		t.Errorf("%d contents counted as damaged", n)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(records([]byte("a"), []byte("bc")))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, buf []byte) {
		for rest := buf; len(rest) > 0; {
			_, c, next, err := Record(rest)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if len(c)+len(next)+HeaderSize != len(rest) {
				t.Fatal("a record does not add up")
			}
			rest = next
		}
	})
}

// FuzzOpen gives Open a file of any bytes: it must come up, read only what matches, and take new contents.
func FuzzOpen(f *testing.F) {
	whole := records([]byte("a"), []byte("bc"))
	seal(whole[:HeaderSize+1])
	seal(whole[HeaderSize+1:])
	f.Add(whole)
	f.Add(append(whole[:20:20], whole...))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName(3)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir, 0, at(start))
		var found []manifest.Hash
		for h := range l.index {
			found = append(found, h)
		}
		for _, h := range found {
			if c, ok := l.Get(h); ok && blake3.Sum256(c) != h {
				t.Fatal("wrong bytes")
			}
		}
		stage(t, l, []byte("new"))
		if c, ok := l.Get(blake3.Sum256([]byte("new"))); !ok || string(c) != "new" {
			t.Fatal("a new content is not there")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkAppend5K(b *testing.B) {
	l := open(b, b.TempDir(), 0, at(start))
	defer l.Close()
	rng := rand.New(rand.NewPCG(6, 6))
	template := make([][]byte, 200)
	for i := range template {
		template[i] = content(rng, 5000)
	}
	buf := make([]byte, 0, 1<<20+1<<16)
	n := uint64(0)
	b.SetBytes(5000)
	for b.Loop() {
		if n++; n%200 != 0 {
			continue
		}
		b.StopTimer()
		buf = buf[:0]
		for _, c := range template {
			for k := range 8 {
				c[k] = byte(n >> (8 * k))
			}
			head := buf[len(buf) : len(buf)+HeaderSize]
			PutHeader(head, blake3.Sum256(c), len(c))
			buf = append(buf[:len(buf)+HeaderSize], c...)
		}
		b.StartTimer()
		if err := l.Append(buf, nil); err != nil {
			b.Fatal(err)
		}
	}
}
