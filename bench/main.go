// Command bench reproduces the figures in the documentation: the engine alone, and whole clusters on loopback, side by
// side with the peers that are installed.
//
//	go run ./bench [-runs 3] [-dir DIR] [-o text|json] [-only engine,diff,chain,event,burst,kill,stop,cold1,cold2,idle,restart]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
	b := bench{text: os.Stdout}
	flag.IntVar(&b.runs, "runs", 3, "runs of each workload")
	flag.StringVar(&b.dir, "dir", "", "where the directory of a run is made, which then stays (default: with the temporary files, removed at the end)")
	only := flag.String("only", "", "workloads, separated by commas; engine stands for all whose names begin with it (default: all)")
	flag.StringVar(&b.binary, "lockstep", "", "the lockstep binary (default: built from this checkout)")
	flag.Uint64Var(&b.report.Seed, "seed", 1, "of the contents")
	format := flag.String("o", "text", "text, or json: then standard output has one document at the end, and standard error the text")
	flag.Parse()
	if *format == "json" {
		b.text = os.Stderr
	}
	server.SpareProcessors() // as every node does
	err := b.run(*only)
	if *format == "json" {
		err = errors.Join(err, b.report.write(os.Stdout))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// workload is something that is measured, in a directory of its own for each run.
type workload struct {
	name string
	gib  float64 // that a run leaves on the disk
	what string
	aims map[string]aim // of figures of ours
	late bool           // it starts no sooner than what others left is removed: it may be slow to make its files
	once bool           // a single run measures several times
	run  func(ctx context.Context, g ground, o *outcome) error
}

// workloads are in the order in which they run. Removing many files slows the making of new ones for minutes (ext4
// looks for recently deleted inodes), so that what a run made stays until nothing is measured any more that makes files.
func workloads() []workload {
	return slices.Concat(engineWorkloads(), feedWorkloads(), []workload{
		{name: "event", gib: 0.4, what: "one new 5 KB file at a time on any of 3 nodes until it is on the other two (200), beside one to one other directory",
			aims: map[string]aim{"p50 ms": atMost(6), "p99 ms": atMost(25)}, run: latency},
		{name: "burst", gib: 2, what: "20,000 new 5 KB files as fast as possible on one of 3 nodes: from the last until all are on the other two, beside one other directory",
			aims: map[string]aim{"after s": atMost(4)}, run: burst},
		{name: "kill", gib: 0.2, what: "kill -9 of the leader under steady writes, 10 times: longest pause",
			aims: map[string]aim{"p50 ms": atMost(250), "max ms": atMost(1000)},
			run:  func(ctx context.Context, g ground, o *outcome) error { return failovers(ctx, g, o, false) }},
		{name: "stop", gib: 0.2, what: "SIGTERM of the leader under steady writes, 10 times: longest pause",
			aims: map[string]aim{"max ms": atMost(50)},
			run:  func(ctx context.Context, g ground, o *outcome) error { return failovers(ctx, g, o, true) }},
		{name: "cold1", gib: 4.3, what: "100,000 files of 5 KB on one node, until they are on one other",
			aims: map[string]aim{"seconds": atMost(8)},
			run:  func(ctx context.Context, g ground, o *outcome) error { return cold(ctx, g, o, 2) }},
		{name: "cold2", gib: 7.1, what: "the same, until they are on two others",
			aims: map[string]aim{"seconds": atMost(12)},
			run:  func(ctx context.Context, g ground, o *outcome) error { return cold(ctx, g, o, 3) }},
		{name: "idle", gib: 4, late: true, once: true, what: "one of 3 nodes that hold 100,000 unchanged files of 200 bytes: restart until in step, and idle memory",
			aims: map[string]aim{"idle MiB": atMost(60), "reads/file": atMost(0.1)},
			run:  func(ctx context.Context, g ground, o *outcome) error { return restart(ctx, g, o, 100_000, 1_000) }},
		{name: "restart", gib: 24, late: true, once: true, what: "the same with 1,000,000 files in 10,000 directories",
			aims: map[string]aim{"restart s": atMost(10), "idle MiB": atMost(300), "reads/file": atMost(0.1)},
			run:  func(ctx context.Context, g ground, o *outcome) error { return restart(ctx, g, o, 1_000_000, 10_000) }},
	})
}

// bench runs workloads one after the other.
type bench struct {
	runs   int
	dir    string
	binary string
	text   io.Writer
	report report
	left   []string // directories of earlier runs
}

func (b *bench) run(only string) error {
	dir, err := os.MkdirTemp(b.dir, "lockstep-bench-") // of its own: an engine would go on from an earlier run's log
	if err != nil {
		return err
	}
	if b.dir == "" {
		defer os.RemoveAll(dir)
	}
	if b.dir, err = filepath.Abs(dir); err != nil { // peers have directories of their own to work in
		return err
	}
	wanted, err := choose(workloads(), only)
	if err != nil {
		return err
	}
	if b.binary == "" {
		b.binary = filepath.Join(b.dir, "lockstep")
		build := exec.Command("go", "build", "-o", b.binary, "github.com/lockstep-sync/lockstep/cmd/lockstep")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build lockstep: %w", err)
		}
	}
	fmt.Fprintf(b.text, "contents of seed %d (the same again with -seed=%[1]d)\n", b.report.Seed)
	for _, w := range wanted {
		if err := b.measure(w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// choose picks workloads by name, or by what their names begin with before a dash.
func choose(all []workload, only string) ([]workload, error) {
	if only == "" {
		return all, nil
	}
	var chosen []workload
	for name := range strings.SplitSeq(only, ",") {
		before := len(chosen)
		for _, w := range all {
			if w.name == name || strings.HasPrefix(w.name, name+"-") {
				chosen = append(chosen, w)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("there is no workload %s: -help lists them", name)
		}
	}
	return chosen, nil
}

// limit of a single run. A million files take minutes to fill three nodes.
const limit = 40 * time.Minute

// measure runs a workload and prints its outcome.
func (b *bench) measure(w workload) error {
	runs := b.runs
	if w.once {
		runs = 1
	}
	if w.late {
		if err := b.clear(); err != nil {
			return err
		}
	}
	if err := enough(b.dir, w.gib*float64(runs)); err != nil {
		return err
	}
	o := &outcome{Name: w.name, What: w.what, Figures: []*figure{}, Without: []string{}}
	var err error
	if o.Load, err = loadAverage(); err != nil {
		return err
	}
	all, stolen, err := processorTicks()
	if err != nil {
		return err
	}
	for i := range runs {
		g := ground{binary: b.binary, dir: filepath.Join(b.dir, fmt.Sprintf("%s-%d", w.name, i)), seed: b.report.Seed}
		b.left = append(b.left, g.dir)
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err := w.run(ctx, g, o)
		cancel()
		if err != nil {
			return err
		}
	}
	allThen, stolenThen, err := processorTicks()
	if err != nil {
		return err
	}
	o.Steal = (stolenThen - stolen) / (allThen - all) * 100
	o.judge(w.aims)
	b.report.Workloads = append(b.report.Workloads, o)
	return o.print(b.text)
}

// clear removes what earlier runs left.
func (b *bench) clear() error {
	var errs []error
	for _, dir := range b.left {
		errs = append(errs, os.RemoveAll(dir))
	}
	b.left = nil
	return errors.Join(errs...)
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
