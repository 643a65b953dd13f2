package watch

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkLatency measures from the start of a chmod to the return of Read with its hint.
func BenchmarkLatency(b *testing.B) {
	for _, mode := range []Mode{Fanotify, Inotify} {
		b.Run(string(mode), func(b *testing.B) { benchmarkLatency(b, mode) })
	}
}

func benchmarkLatency(b *testing.B, mode Mode) {
	base := b.TempDir()
	for _, dir := range []string{"root", "work"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	file := filepath.Join(base, "root", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	w, err := Open(Config{Root: filepath.Join(base, "root"), Work: filepath.Join(base, "work"), Force: mode, OwnEvents: true})
	if err != nil {
		b.Skip(err)
	}
	defer w.Close()
	began, took := make(chan time.Time, 1), []time.Duration{}
	changes := make(chan struct{})
	go func() {
		for range changes {
			began <- time.Now()
			if err := os.Chmod(file, 0o600); err != nil {
				b.Error(err)
			}
		}
	}()
	for b.Loop() {
		changes <- struct{}{}
		if _, err := w.Read(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(<-began))
	}
	close(changes)
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}
