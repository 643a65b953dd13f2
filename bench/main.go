// Command bench reproduces the figures in the documentation: the engine alone, and whole clusters on loopback
// side by side with the peers that are installed.
//
//	go run ./bench [-runs 5] [-dir DIR] [-only engine,diff,chain,cold1,cold2,event,lsyncd,burst,kill,stop,idle,restart]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/server"
)

func main() {
	runs := flag.Int("runs", 3, "runs of each workload")
	dir := flag.String("dir", "", "where the files go (default: a temporary directory, removed at the end)")
	only := flag.String("only", "", "workloads, separated by commas (default: all)")
	binary := flag.String("lockstep", "", "the lockstep binary (default: built from this checkout)")
	seed := flag.Uint64("seed", 1, "of the contents")
	flag.Parse()
	server.SpareProcessors() // as every node does
	if err := run(*dir, *only, *binary, *runs, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// workload runs once below g.dir and returns named figures.
type workload struct {
	name string
	gib  float64 // that it leaves on the disk
	what string
	run  func(ctx context.Context, g ground) ([]figure, error)
}

type figure struct {
	name  string
	value float64
}

func workloads() []workload {
	return []workload{
		{"cold1", 3.5, "100,000 files of 5 KB on one node, until they are on one other", func(ctx context.Context, g ground) ([]figure, error) {
			return coldBesideRsync(ctx, g, 2)
		}},
		{"cold2", 5.5, "the same, until they are on two others", func(ctx context.Context, g ground) ([]figure, error) {
			return coldBesideRsync(ctx, g, 3)
		}},
		{"event", 0.2, "one new 5 KB file at a time on any of 3 nodes, until it is on the other two (200 events)", func(ctx context.Context, g ground) ([]figure, error) {
			p50, p99, err := latency(ctx, g, 200)
			return []figure{{"p50 ms", p50}, {"p99 ms", p99}}, err
		}},
		{"lsyncd", 0.1, "the same with lsyncd and rsync, delay 0, to one local directory (50 events)", func(ctx context.Context, g ground) ([]figure, error) {
			p50, p99, err := lsyncdLatency(ctx, g, 50)
			return []figure{{"p50 ms", p50}, {"p99 ms", p99}}, err
		}},
		{"burst", 1, "20,000 new 5 KB files as fast as possible on one node, from the last until all are on the other two", func(ctx context.Context, g ground) ([]figure, error) {
			c, a, err := burst(ctx, g, 20_000)
			return []figure{{"create s", c}, {"after s", a}}, err
		}},
		{"kill", 0.2, "kill -9 of the leader under steady writes: longest pause", func(ctx context.Context, g ground) ([]figure, error) {
			return gaps(failover(ctx, g, 10, false))
		}},
		{"stop", 0.2, "SIGTERM of the leader under steady writes: longest pause", func(ctx context.Context, g ground) ([]figure, error) {
			return gaps(failover(ctx, g, 10, true))
		}},
		{"idle", 3, "a node that idles with 100,000 files", func(ctx context.Context, g ground) ([]figure, error) {
			s, m, err := restart(ctx, g, 100_000, 1_000)
			return []figure{{"restart s", s}, {"RSS MiB", m}}, err
		}},
		{"restart", 10, "a node with 1,000,000 unchanged files: restart until in step, and idle memory", func(ctx context.Context, g ground) ([]figure, error) {
			s, m, err := restart(ctx, g, 1_000_000, 10_000)
			return []figure{{"restart s", s}, {"RSS MiB", m}}, err
		}},
	}
}

// coldBesideRsync runs a cold workload and has rsync copy the same tree as often right afterwards.
func coldBesideRsync(ctx context.Context, g ground, size int) ([]figure, error) {
	s, err := cold(ctx, g, size, 100_000, 200, 5<<10)
	if err != nil {
		return nil, err
	}
	r, err := rsyncCold(ctx, filepath.Join(g.dir, "n1", "tree"), filepath.Join(g.dir, "rsync"), size-1)
	return []figure{{"seconds", s}, {"rsync -a s", r}, {"ratio", s / r}}, err
}

func gaps(ms []float64, err error) ([]figure, error) {
	if err != nil {
		return nil, err
	}
	slices.Sort(ms)
	return []figure{{"p50 ms", ms[len(ms)/2]}, {"max ms", ms[len(ms)-1]}}, nil
}

func run(dir, only, binary string, runs int, seed uint64) error {
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "lockstep-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	fmt.Printf("contents of seed %d (the same again with -seed=%d)\n", seed, seed)
	wanted := func(name string) bool { return only == "" || slices.Contains(strings.Split(only, ","), name) }
	if wanted("engine") {
		if err := benchEngine(dir, runs); err != nil {
			return err
		}
	}
	for _, w := range feedWorkloads() { // in this process, too
		if wanted(w.name) {
			if err := repeat(w, ground{dir: dir, seed: seed}, runs); err != nil {
				return err
			}
		}
	}
	if binary == "" && slices.ContainsFunc(workloads(), func(w workload) bool { return wanted(w.name) }) {
		binary = filepath.Join(dir, "lockstep")
		build := exec.Command("go", "build", "-o", binary, "github.com/lockstep-sync/lockstep/cmd/lockstep")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build lockstep: %w", err)
		}
	}
	for _, w := range workloads() {
		if wanted(w.name) {
			if err := repeat(w, ground{binary: binary, dir: dir, seed: seed}, runs); err != nil {
				return err
			}
		}
	}
	return nil
}

// repeat runs a workload and prints each figure's median and range. Trees stay until the end: deleting them at
// once would slow down the creation of files in the next run (ext4 looks for recently deleted inodes).
func repeat(w workload, g ground, runs int) error {
	if err := enough(g.dir, w.gib*float64(runs)); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	values := map[string][]float64{}
	var names []string
	base := g.dir
	for i := range runs {
		g.dir = filepath.Join(base, fmt.Sprintf("%s-%d", w.name, i))
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
		figures, err := w.run(ctx, g)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		for _, f := range figures {
			if i == 0 {
				names = append(names, f.name)
			}
			values[f.name] = append(values[f.name], f.value)
		}
	}
	fmt.Printf("%s: %s\n", w.name, w.what)
	for _, name := range names {
		fmt.Printf("  %-10s %s\n", name, spread(values[name]))
	}
	return nil
}

// enough checks that dir has room for what a workload leaves there.
func enough(dir string, gib float64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if free := float64(fs.Bavail) * float64(fs.Bsize) / (1 << 30); free < gib {
		return fmt.Errorf("%s has %.1f GiB free, the runs need %.1f: name another place with -dir, or ask for fewer -runs", dir, free, gib)
	}
	return nil
}
