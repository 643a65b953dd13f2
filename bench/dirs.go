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

// tree writes count files of size bytes into dirs directories below root.
func tree(root string, count, dirs, size int, r *rand.Rand) error {
	buf := make([]byte, size)
	for i := range count {
		d := filepath.Join(root, fmt.Sprintf("d%05d", i%dirs))
		if i < dirs {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		fillRandom(buf, r)
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%07d", i)), buf, 0o644); err != nil {
			return err
		}
	}
	return nil
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
	w, err := n.Client.DirWait(ctx, shared, api.DirWaitFor{Mode: api.WaitAll, Timeout: "10m"}, nil)
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

// cold measures how long a tree that is on one node already takes to be on all of size nodes.
func cold(ctx context.Context, g ground, size, count, dirs, bytes int) (seconds float64, err error) {
	f, err := farm.Start(ctx, g.binary, g.dir, size)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := tree(f.Nodes[0].Tree, count, dirs, bytes, rand.New(rand.NewPCG(g.seed, 1))); err != nil {
		return 0, err
	}
	unix.Sync() // it is there already: nobody waits for its way to the disk
	began := time.Now()
	if err := f.Share(ctx, shared, f.Nodes...); err != nil {
		return 0, err
	}
	if err := waitReady(ctx, f); err != nil {
		return 0, err
	}
	if err := waitAll(ctx, f.Nodes[0]); err != nil {
		return 0, err
	}
	seconds = time.Since(began).Seconds()
	return seconds, identical(f)
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
	err = f.Share(ctx, shared, f.Nodes...)
	if err == nil {
		err = waitReady(ctx, f)
	}
	if err == nil {
		err = waitAll(ctx, f.Nodes[0])
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// latency creates one 5 KB file at a time, on each node in turn, and measures until it is readable and identical
// on the other two.
func latency(ctx context.Context, g ground, events int) (p50, p99 float64, err error) {
	f, err := sharedFarm(ctx, g)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := rand.New(rand.NewPCG(g.seed, 2))
	var all []float64
	for i := range events + 20 {
		content := make([]byte, 5<<10)
		fillRandom(content, r)
		name := fmt.Sprintf("e%05d", i)
		from := f.Nodes[i%3]
		began := time.Now()
		if err := os.WriteFile(filepath.Join(from.Tree, name), content, 0o644); err != nil {
			return 0, 0, err
		}
		for _, n := range f.Nodes {
			if n == from {
				continue
			}
			if err := arrival(ctx, filepath.Join(n.Tree, name), content); err != nil {
				return 0, 0, err
			}
		}
		if i >= 20 { // the first ones warm up
			all = append(all, time.Since(began).Seconds()*1e3)
		}
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], nil
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

// burst writes count new 5 KB files as fast as it can on one node and measures from the last of them until all
// are on the other two.
func burst(ctx context.Context, g ground, count int) (create, after float64, err error) {
	f, err := sharedFarm(ctx, g)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	began := time.Now()
	if err := tree(f.Nodes[0].Tree, count, 20, 5<<10, rand.New(rand.NewPCG(g.seed, 3))); err != nil {
		return 0, 0, err
	}
	create = time.Since(began).Seconds()
	began = time.Now()
	if err := waitAll(ctx, f.Nodes[0]); err != nil {
		return 0, 0, err
	}
	after = time.Since(began).Seconds()
	return create, after, identical(f)
}

// failover kills (or stops) the leader under a steady stream of new files on another node and measures the
// longest pause in their arrival on the third.
func failover(ctx context.Context, g ground, times int, graceful bool) (gaps []float64, err error) {
	f, err := sharedFarm(ctx, g)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for round := range times {
		gap, err := oneFailover(ctx, f, round, graceful)
		if err != nil {
			return nil, err
		}
		gaps = append(gaps, gap)
	}
	return gaps, identical(f)
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

// restart measures how long a node that holds count unchanged files takes to be in step again, and what a node
// that idles with them keeps in memory.
func restart(ctx context.Context, g ground, count, dirs int) (seconds, idleMiB float64, err error) {
	f, err := farm.Start(ctx, g.binary, g.dir, 1)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n := f.Nodes[0]
	if err := tree(n.Tree, count, dirs, 200, rand.New(rand.NewPCG(g.seed, 4))); err != nil {
		return 0, 0, err
	}
	err = errors.Join(f.Share(ctx, shared, n), waitReady(ctx, f), waitAll(ctx, n), n.Stop())
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	err = errors.Join(f.Run(n, ""), f.WaitUp(ctx, n), waitAll(ctx, n))
	if err != nil {
		return 0, 0, err
	}
	seconds = time.Since(began).Seconds()
	time.Sleep(10 * time.Second)
	idleMiB, err = residentMiB(n.PID())
	return seconds, idleMiB, err
}

func residentMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}
