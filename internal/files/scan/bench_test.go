package scan

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// sliceTable is a fast Placed: children by directory, sorted.
type sliceTable map[string][]placedChild

type placedChild struct {
	name string
	p    place.Placed
}

func (t sliceTable) Children(dir string, fn func(string, place.Placed) error) error {
	for _, c := range t[dir] {
		if err := fn(c.name, c.p); err != nil {
			return err
		}
	}
	return nil
}

// snapshot makes the table that says: everything is as it is now.
func snapshot(tb testing.TB, root int) sliceTable {
	tb.Helper()
	t := sliceTable{}
	_, err := Walk(context.Background(), root, "", Options{}, func(dir string, entries []Entry) error {
		for _, e := range entries {
			t[dir] = append(t[dir], placedChild{e.Name, place.Placed{Version: 1, Stat: e.Stat}})
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

func openRoot(tb testing.TB, path string) int {
	tb.Helper()
	r, err := vfs.OpenRoot(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r.Fd()
}

// BenchmarkCompareUnchanged compares unchanged empty files, 100 a directory, with a table in memory. Set
// LOCKSTEP_SCAN_FILES to choose how many (default 50,000).
func BenchmarkCompareUnchanged(b *testing.B) {
	files := 50_000
	if s := os.Getenv("LOCKSTEP_SCAN_FILES"); s != "" {
		fmt.Sscan(s, &files)
	}
	top := b.TempDir()
	for d := range files / 100 {
		dir := filepath.Join(top, fmt.Sprint("d", d%97), fmt.Sprint("e", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range 100 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%03d.txt", f)), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	root := openRoot(b, top)
	table := snapshot(b, root)
	b.ReportAllocs()
	for b.Loop() {
		began := time.Now()
		stats, err := Compare(context.Background(), root, "", table, Options{}, func(d Difference) error {
			return fmt.Errorf("unexpected difference %+v", d)
		})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(stats.Files+stats.Dirs)/time.Since(began).Seconds(), "entries/s")
	}
}
