package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// rsyncCold copies a tree to an empty directory with rsync -a, on the same disk: what the cold workloads are held
// against, right after each, since the speed of the machine and of the file system drifts. Skipped (0) where
// rsync is not installed.
func rsyncCold(ctx context.Context, from, to string, copies int) (seconds float64, err error) {
	if _, err := exec.LookPath("rsync"); err != nil {
		return 0, nil
	}
	began := time.Now()
	for i := range copies {
		out, err := exec.CommandContext(ctx, "rsync", "-a", "--exclude=/.lockstep", from+"/", fmt.Sprintf("%s-%d/", to, i)).CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("rsync: %w: %s", err, out)
		}
	}
	return time.Since(began).Seconds(), nil
}

// lsyncdLatency is latency's counterpart: one new 5 KB file at a time, until lsyncd with rsync and no delay has it
// in one local directory.
func lsyncdLatency(ctx context.Context, g ground, events int) (p50, p99 float64, err error) {
	if _, err := exec.LookPath("lsyncd"); err != nil {
		return 0, 0, nil
	}
	source, target := filepath.Join(g.dir, "source"), filepath.Join(g.dir, "target")
	config := filepath.Join(g.dir, "lsyncd.lua")
	lua := fmt.Sprintf("settings{nodaemon=true}\nsync{default.rsync, source=%q, target=%q, delay=0}\n", source, target)
	if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(target, 0o755), os.WriteFile(config, []byte(lua), 0o644)); err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, "lsyncd", config)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}()
	r := rand.New(rand.NewPCG(g.seed, 5))
	var all []float64
	for i := range events + 5 {
		content := make([]byte, 5<<10)
		fillRandom(content, r)
		name := fmt.Sprintf("e%05d", i)
		began := time.Now()
		if err := os.WriteFile(filepath.Join(source, name), content, 0o644); err != nil {
			return 0, 0, err
		}
		if err := arrival(ctx, filepath.Join(target, name), content); err != nil {
			return 0, 0, err
		}
		if i >= 5 {
			all = append(all, time.Since(began).Seconds()*1e3)
		}
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], nil
}
