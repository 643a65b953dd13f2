package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

const shared = "web"

// ground is what a workload on directories needs.
type ground struct {
	binary string
	dir    string
	seed   uint64
}

// eachFile yields count files of size bytes in dirs directories. The content is valid during the call.
func eachFile(count, dirs, size int, r *rand.Rand, do func(path string, content []byte) error) error {
	content := make([]byte, size)
	for i := range count {
		fillRandom(content, r)
		if err := do(filepath.Join(fmt.Sprintf("d%05d", i%dirs), fmt.Sprintf("f%07d", i)), content); err != nil {
			return err
		}
	}
	return nil
}

// tree writes eachFile below root.
func tree(root string, count, dirs, size int, r *rand.Rand) error {
	made := 0
	return eachFile(count, dirs, size, r, func(path string, content []byte) error {
		path = filepath.Join(root, path)
		if made < dirs {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			made++
		}
		return os.WriteFile(path, content, 0o644)
	})
}

// timed is how many seconds something takes.
func timed(do func() error) (seconds float64, err error) {
	began := time.Now()
	err = do()
	return time.Since(began).Seconds(), err
}

func fillRandom(buf []byte, r *rand.Rand) {
	for i := 0; i+8 <= len(buf); i += 8 {
		v := r.Uint64()
		for k := range 8 {
			buf[i+k] = byte(v >> (8 * k))
		}
	}
}

// waitAll waits until everything that is on any node's disk now is on every node's.
func waitAll(ctx context.Context, n *farm.Node) error {
	w, err := n.Client.DirWait(ctx, shared, api.DirWaitFor{Mode: api.WaitAll, Timeout: "30m"}, nil)
	if err == nil && len(w.Missing) > 0 {
		err = fmt.Errorf("not in step: %v", w.Missing)
	}
	return err
}

func identical(f *farm.Farm) error {
	for _, n := range f.Nodes[1:] {
		diff, err := farm.Same(f.Nodes[0].Tree, n.Tree)
		if err != nil {
			return err
		}
		if diff != "" {
			return fmt.Errorf("n1 and %s differ:\n%.2000s", n.Name, diff)
		}
	}
	return nil
}

// cold measures how long a tree that is on one node already takes to be on all of size nodes, beside peers that copy it
// to as many directories.
func cold(ctx context.Context, g ground, o *outcome, size int) error {
	if err := coldFarm(ctx, g, o, size); err != nil {
		return err
	}
	besideCopiers(ctx, g, o, filepath.Join(g.dir, "n1", "tree"), size-1)
	return nil
}

func coldFarm(ctx context.Context, g ground, o *outcome, size int) (err error) {
	f, err := farm.Start(ctx, g.binary, g.dir, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := tree(f.Nodes[0].Tree, 100_000, 200, 5<<10, rand.New(rand.NewPCG(g.seed, 1))); err != nil {
		return err
	}
	unix.Sync() // it is there already: nobody waits for its way to the disk
	seconds, err := timed(func() error { return fill(ctx, f) })
	if err != nil {
		return err
	}
	o.add("seconds", seconds)
	return identical(f)
}

// fill shares the trees, and waits until what is in any is in all.
func fill(ctx context.Context, f *farm.Farm) error {
	if err := f.Share(ctx, shared, f.Nodes...); err != nil {
		return err
	}
	if err := waitReady(ctx, f); err != nil {
		return err
	}
	return waitAll(ctx, f.Nodes[0])
}

// waitReady waits until every node has taken its binding up.
func waitReady(ctx context.Context, f *farm.Farm) error {
	for _, n := range f.Nodes {
		if err := f.WaitUp(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// sharedFarm is a farm of three whose empty trees are in step.
func sharedFarm(ctx context.Context, g ground) (*farm.Farm, error) {
	f, err := farm.Start(ctx, g.binary, g.dir, 3)
	if err != nil {
		return nil, err
	}
	if err := fill(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// latency measures one new file at a time, made on each node in turn.
func latency(ctx context.Context, g ground, o *outcome) error {
	if err := farmEvents(ctx, g, o); err != nil {
		return err
	}
	besideMirrorsEvents(ctx, g, o)
	return nil
}

func farmEvents(ctx context.Context, g ground, o *outcome) (err error) {
	f, err := sharedFarm(ctx, g)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var trees []string
	for _, n := range f.Nodes {
		trees = append(trees, n.Tree)
	}
	p50, p99, err := events(ctx, rand.New(rand.NewPCG(g.seed, 2)), 200, trees, trees)
	o.add("p50 ms", p50)
	o.add("p99 ms", p99)
	return err
}

// events creates one 5 KB file at a time, in each of the directories from in turn, and measures in ms until it is
// readable and identical in all that have to have it.
func events(ctx context.Context, r *rand.Rand, count int, from, all []string) (p50, p99 float64, err error) {
	const warmup = 5 // for each directory
	var took []float64
	for i := range count + warmup*len(from) {
		content := make([]byte, 5<<10)
		fillRandom(content, r)
		name := fmt.Sprintf("e%05d", i)
		began := time.Now()
		if err := os.WriteFile(filepath.Join(from[i%len(from)], name), content, 0o644); err != nil {
			return 0, 0, err
		}
		for _, dir := range all {
			if err := arrival(ctx, filepath.Join(dir, name), content); err != nil {
				return 0, 0, err
			}
		}
		if i >= warmup*len(from) {
			took = append(took, time.Since(began).Seconds()*1e3)
		}
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}

// arrival polls until a file holds content.
func arrival(ctx context.Context, path string, content []byte) error {
	for {
		b, err := os.ReadFile(path)
		if err == nil && bytes.Equal(b, content) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s did not arrive: %w", path, ctx.Err())
		}
		time.Sleep(100 * time.Microsecond)
	}
}

const burstFiles, burstDirs = 20_000, 20

// burst writes new 5 KB files as fast as it can on one node and measures from the last of them until all are on the
// other two.
func burst(ctx context.Context, g ground, o *outcome) error {
	if err := farmBurst(ctx, g, o); err != nil {
		return err
	}
	besideMirrorsBurst(ctx, g, o)
	return nil
}

func farmBurst(ctx context.Context, g ground, o *outcome) (err error) {
	f, err := sharedFarm(ctx, g)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	create, err := timed(func() error {
		return tree(f.Nodes[0].Tree, burstFiles, burstDirs, 5<<10, rand.New(rand.NewPCG(g.seed, 3)))
	})
	if err != nil {
		return err
	}
	after, err := timed(func() error { return waitAll(ctx, f.Nodes[0]) })
	if err != nil {
		return err
	}
	o.burst(ours, create, after)
	return identical(f)
}

// burst notes how long many files took to be made, and then to arrive. Who slows the maker down has less to do after, so
// that only their sum compares programs.
func (o *outcome) burst(program string, create, after float64) {
	o.of(program, "create s", create)
	o.of(program, "after s", after)
	o.of(program, "all s", create+after)
}

// failovers kills (or stops) the leader ten times under a steady stream of new files on another node and measures the
// longest pause in their arrival on the third.
func failovers(ctx context.Context, g ground, o *outcome, graceful bool) (err error) {
	const times = 10
	f, err := sharedFarm(ctx, g)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var gaps []float64
	for round := range times {
		gap, err := oneFailover(ctx, f, round, graceful)
		if err != nil {
			return err
		}
		gaps = append(gaps, gap)
	}
	o.add("p50 ms", median(gaps))
	o.add("max ms", slices.Max(gaps))
	return identical(f)
}

func oneFailover(ctx context.Context, f *farm.Farm, round int, graceful bool) (gap float64, err error) {
	leader, err := f.Leader(ctx, shared)
	if err != nil {
		return 0, err
	}
	rest := slices.DeleteFunc(slices.Clone(f.Nodes), func(n *farm.Node) bool { return n == leader })
	content := bytes.Repeat([]byte("x"), 1000)
	ended := make(chan error, 1)
	last := time.Now()
	for i := range 200 {
		if i == 40 {
			go func() {
				if graceful {
					ended <- leader.Stop()
				} else {
					ended <- leader.Kill()
				}
			}()
		}
		name := fmt.Sprintf("k%d-%d", round, i)
		if err := os.WriteFile(filepath.Join(rest[0].Tree, name), content, 0o644); err != nil {
			return 0, err
		}
		if err := arrival(ctx, filepath.Join(rest[1].Tree, name), content); err != nil {
			return 0, err
		}
		if i > 5 {
			gap = max(gap, time.Since(last).Seconds()*1e3)
		}
		last = time.Now()
	}
	if err := <-ended; err != nil {
		return 0, err
	}
	if err := f.Run(leader, ""); err != nil {
		return 0, err
	}
	if err := f.WaitUp(ctx, leader); err != nil {
		return 0, err
	}
	return gap, waitAll(ctx, rest[0])
}

// restart measures how long one of three nodes that hold count unchanged files takes to be in step with the others again,
// how often it reads meanwhile, and what it keeps in memory when it idles: several times of one farm, since filling it takes
// longest. That no content is read shows in the calls of the process that read, as the kernel counts them: a content takes
// one at least.
func restart(ctx context.Context, g ground, o *outcome, count, dirs int) (err error) {
	const times, idle = 3, 10 * time.Second
	f, err := farm.Start(ctx, g.binary, g.dir, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := tree(f.Nodes[0].Tree, count, dirs, 200, rand.New(rand.NewPCG(g.seed, 4))); err != nil {
		return err
	}
	seconds, err := timed(func() error { return fill(ctx, f) })
	if err != nil {
		return err
	}
	o.add("fill s", seconds)
	time.Sleep(idle)
	for _, n := range f.Nodes {
		if err := noteMemory(o, "filled MiB", n); err != nil {
			return err
		}
	}
	n := f.Nodes[2]
	for range times {
		if err := n.Stop(); err != nil {
			return err
		}
		seconds, err := timed(func() error { return errors.Join(f.Run(n, ""), f.WaitUp(ctx, n), waitAll(ctx, n)) })
		if err != nil {
			return err
		}
		reads, err := readCalls(n.PID())
		if err != nil {
			return err
		}
		o.add("restart s", seconds)
		o.add("reads/file", reads/float64(count))
		time.Sleep(idle)
		if err := noteMemory(o, "idle MiB", n); err != nil {
			return err
		}
		besideComparison(ctx, o, f.Nodes[0].Tree, n.Tree)
	}
	return identical(f)
}

func noteMemory(o *outcome, figure string, n *farm.Node) error {
	mib, err := residentMiB(n.PID())
	if err == nil {
		o.add(figure, mib)
	}
	return err
}

func residentMiB(pid int) (float64, error) {
	kib, err := processFigure(pid, "status", "VmRSS:")
	return kib / 1024, err
}

// readCalls is how often a process has called read, pread and the like since it started.
func readCalls(pid int) (float64, error) { return processFigure(pid, "io", "syscr:") }

func processFigure(pid int, file, name string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}
