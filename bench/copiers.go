package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// copierPeer is a peer that copies a tree once: what the cold workloads are measured beside.
type copierPeer struct {
	peer
	copy func(ctx context.Context, from, to string) (seconds float64, err error)
}

func copiers() []copierPeer {
	return []copierPeer{
		{peer{"rsync-daemon", []string{"rsync"}, "rsync"}, rsyncDaemon},
		{peer{"rsync-a", []string{"rsync"}, "rsync"}, rsyncLocal},
	}
}

// besideCopiers has each copy a tree several times, one after the other, to empty directories: right after ours, since
// the speed of the machine and of the file system drifts.
func besideCopiers(ctx context.Context, g ground, o *outcome, from string, copies int) {
	for _, c := range copiers() {
		o.beside(ctx, c.peer, func(ctx context.Context) error {
			var all float64
			for i := range copies {
				to := filepath.Join(g.dir, fmt.Sprintf("%s-%d", c.name, i))
				if err := os.MkdirAll(to, 0o755); err != nil {
					return err
				}
				seconds, err := c.copy(ctx, from, to)
				if err != nil {
					return err
				}
				all += seconds
			}
			o.of(c.name, "seconds", all)
			return nil
		})
	}
}

// besideComparison has rsync find that two trees are the same.
func besideComparison(ctx context.Context, o *outcome, a, b string) {
	p := peer{"rsync-an", []string{"rsync"}, "rsync"}
	o.beside(ctx, p, func(ctx context.Context) error {
		seconds, err := rsync(ctx, a, b, "--dry-run")
		if err == nil {
			o.of(p.name, "restart s", seconds)
		}
		return err
	})
}

// rsync copies a tree, without what is Lockstep's in it.
func rsync(ctx context.Context, from, to string, options ...string) (seconds float64, err error) {
	began := time.Now()
	args := append([]string{"-a", "--exclude=/.lockstep"}, options...)
	out, err := exec.CommandContext(ctx, "rsync", append(args, from+"/", to)...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("rsync: %w: %s", err, out)
	}
	return time.Since(began).Seconds(), nil
}

func rsyncLocal(ctx context.Context, from, to string) (float64, error) { return rsync(ctx, from, to) }

// noDelay keeps rsync from waiting for acknowledgements that the other side delays (90 ms a file).
const noDelay = "TCP_NODELAY"

func rsyncDaemon(ctx context.Context, from, to string) (seconds float64, err error) {
	s := newServers(to + "-daemon")
	defer func() { err = errors.Join(err, s.stop()) }()
	url, err := serveRsync(ctx, s, to)
	if err != nil {
		return 0, err
	}
	return rsync(ctx, from, url, "--sockopts="+noDelay)
}

// serveRsync runs a daemon that writes to a directory, and returns the URL of the directory.
func serveRsync(ctx context.Context, s *servers, to string) (url string, err error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	address := fmt.Sprintf("127.0.0.1:%d", ports[0])
	file := filepath.Join(s.dir, "rsyncd.conf")
	config := fmt.Sprintf("address = 127.0.0.1\nport = %d\nsocket options = %s\nuse chroot = no\n[tree]\npath = %s\nread only = no\n", ports[0], noDelay, to)
	if os.Getuid() == 0 {
		config += "uid = 0\ngid = 0\n"
	}
	if err := errors.Join(os.MkdirAll(s.dir, 0o755), os.WriteFile(file, []byte(config), 0o644)); err != nil {
		return "", err
	}
	if err := s.start(nil, "rsync", "--daemon", "--no-detach", "--config="+file); err != nil {
		return "", err
	}
	return "rsync://" + address + "/tree/", s.listening(ctx, address)
}
