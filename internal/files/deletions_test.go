package files

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// judge is an agent that can say which files are lost, of a binding with the file named there.
func judge(t *testing.T, there string) (a *Agent, n inode) {
	t.Helper()
	root := t.TempDir()
	must(t, os.WriteFile(filepath.Join(root, there), []byte("x"), 0o600))
	a = &Agent{cfg: Config{Now: time.Now}, board: newBoard(time.Now), table: table{newMemory()}, log: slog.New(slog.DiscardHandler)}
	var err error
	a.root, err = vfs.OpenRoot(root)
	must(t, err)
	t.Cleanup(func() { must(t, a.root.Close()) })
	in, err := a.root.Stat(there)
	must(t, err)
	s := place.StatOf(in)
	return a, inodeOf(&s)
}

// TestLostFiles: a file is not lost if it is recorded, and there, at another path. One whose inode was given to another file
// is, and one that is recorded elsewhere and not there.
func TestLostFiles(t *testing.T) {
	a, there := judge(t, "b")
	file := func(n inode, content byte) record {
		return record{Hash: manifest.Hash{content}, Placed: place.Placed{Version: 1, Stat: place.Stat{Kind: manifest.File, Ino: n.ino, Dev: n.dev, Size: 1}}}
	}
	elsewhere := inode{there.dev, there.ino + 1}
	e := a.table.edit()
	records := map[string]record{
		"a": file(there, 1), "b": file(there, 1), // moved
		"reused": file(there, 2),
		"c":      file(elsewhere, 3), "d": file(elsewhere, 3), // both names are gone
	}
	for path, rec := range records {
		must(t, e.set(path, rec))
	}
	must(t, e.commit())
	gone := []string{"a", "reused", "c", "d"}
	for most, want := range map[int64]int64{4: 4, 3: 3, 0: 3} {
		if n, err := a.countLost(gone, most); err != nil || n != want {
			t.Errorf("%d are lost, want %d: %v", n, want, err)
		}
	}
	var found []*finding
	for _, path := range append(gone, "b") { // b is back already
		found = append(found, &finding{change: manifest.Change{Path: path}, old: records[path]})
	}
	left, err := a.nowhere(found)
	must(t, err)
	var paths []string
	for _, f := range left {
		paths = append(paths, f.change.Path)
	}
	if got := fmt.Sprint(paths); got != "[reused c d b]" {
		t.Errorf("nowhere else are %s", got)
	}
}

// BenchmarkCountLost judges a tree of which everything is gone.
func BenchmarkCountLost(b *testing.B) {
	const files = 200_000
	a := &Agent{cfg: Config{Now: time.Now}, board: newBoard(time.Now), table: table{newMemory()}, log: slog.New(slog.DiscardHandler)}
	var err error
	if a.root, err = vfs.OpenRoot(b.TempDir()); err != nil {
		b.Fatal(err)
	}
	a.cfg.Table = a.table.store
	e := a.table.edit()
	gone := make([]string, files)
	for i := range gone {
		gone[i] = fmt.Sprintf("some/directory/%d/file%d", i/100, i)
		rec := record{Placed: place.Placed{Version: 1, Stat: place.Stat{Kind: manifest.File, Ino: uint64(i + 1), Size: 1}}}
		rec.Hash[0], rec.Hash[1], rec.Hash[2] = byte(i), byte(i>>8), byte(i>>16)
		must(b, e.set(gone[i], rec))
	}
	must(b, e.commit())
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		if n, err := a.countLost(gone, files/2); err != nil || n != files {
			b.Fatal(n, err)
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/files, "B/file")
	}
}
