// Package demo shows a whole cluster at work on one machine: real node processes on loopback, real files, and
// measured times. It uses only what any user has, the binary and its API, and checks the outcome with a walker
// of its own. It never writes to a directory that is not its own.
//
// Goroutines: one that starts processes (see spawner), one a process that waits for it, and short-lived ones
// that end before the function that started them returns.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Config of a run.
type Config struct {
	Binary   string   // the program to run as `BINARY serve …`
	Nodes    int      // 1 … MaxNodes
	Dir      string   // directory to copy from; empty: the Go installation's sources, or generated files
	Exit     bool     // end after the last scene instead of staying up
	Keep     bool     // leave the working directory behind
	Environ  []string // environment of the nodes
	Out      io.Writer
	Terminal bool // Out can be redrawn
}

// MaxNodes of a demo.
const MaxNodes = 7

// group is the name of the demo's files group.
const group = "demo"

// run is one demo.
type run struct {
	cfg   Config
	show  *show
	root  string // working directory
	nodes []*node
	spawn *spawner
	files tally // what node 1 began with
}

// Run plays the demo. Without cfg.Exit it stays up until ctx ends and then returns nil. It returns an error if a
// scene failed or, at the end, the trees are not identical.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return &api.Error{Code: api.CodeUsage, Op: "demo", Subject: "--nodes", Why: fmt.Sprintf("must be between 1 and %d", MaxNodes), Hint: "three show everything"}
	}
	if cfg.Dir != "" {
		if err := checkSource(cfg.Dir); err != nil {
			return err
		}
	}
	root, err := os.MkdirTemp("", "lockstep-demo-")
	if err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	r := &run{cfg: cfg, root: root, show: newShow(cfg.Out, cfg.Terminal), spawn: newSpawner()}
	defer func() { err = errors.Join(err, r.close()) }()

	scenes := []struct {
		title string
		play  func(context.Context) error
	}{
		{"Starting", r.start},
		{"Filling", r.fill},
		{"One edit", r.edit},
		{"Killing the leader", r.kill},
		{"Its return", r.comeBack},
		{"A conflict", r.conflict},
		{"Comparing", r.compare},
	}
	for _, s := range scenes {
		if cfg.Nodes == 1 && (s.title == "Killing the leader" || s.title == "Its return" || s.title == "A conflict") {
			continue
		}
		r.show.title(s.title)
		if err := s.play(ctx); err != nil {
			return r.explain(ctx, s.title, err)
		}
	}
	if cfg.Exit {
		return nil
	}
	r.lookAround()
	<-ctx.Done()
	return nil
}

// checkSource looks at the directory to copy from before anything is started.
func checkSource(dir string) error {
	e := &api.Error{Code: api.CodeUsage, Op: "demo", Subject: "--dir " + dir, Why: "it is not a directory", Hint: "give a directory whose files may be copied, or leave --dir out"}
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		e.Code, e.Why = api.CodeNotFound, "there is no such directory"
		return e
	}
	if err == nil {
		_, err = f.Readdirnames(1)
		f.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if !errors.Is(err, syscall.ENOTDIR) {
		e.Why = err.Error()
	}
	return e
}

// explain names the scene and, if a node's process died by itself, shows its last words.
func (r *run) explain(ctx context.Context, scene string, err error) error {
	if ctx.Err() != nil {
		return &api.Error{Code: api.CodeInterrupted, Op: "demo", Why: "interrupted"}
	}
	for _, n := range r.nodes {
		if n.died() {
			r.show.line("%s has stopped by itself; the end of %s:", n.name, n.logPath())
			r.show.text(n.lastWords())
		}
	}
	return fmt.Errorf("demo: %s: %w", scene, err)
}

// close stops every process and removes the working directory.
func (r *run) close() error {
	r.show.end()
	var errs []error
	for _, n := range r.nodes {
		n.terminate()
	}
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for _, n := range r.nodes {
		if err := n.wait(deadline.C); err != nil {
			errs = append(errs, err)
		}
		n.client.Close()
	}
	r.spawn.close()
	if r.cfg.Keep {
		r.show.line("everything is still in %s", r.root)
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, removeTree(r.root))...)
}

func (r *run) lookAround() {
	n := r.nodes[0]
	r.show.title("Look around")
	r.show.line("The cluster stays up until you press Ctrl-C. In another terminal:")
	for _, cmd := range []string{"status", "dir status " + group, "dir ls " + group, "dir conflicts " + group, "dir verify " + group, "group show " + group} {
		r.show.line("  %s --server %s %s", r.cfg.Binary, n.api, cmd)
	}
	r.show.line("Change files in any of these and see the others follow:")
	for _, n := range r.nodes {
		r.show.line("  %s", n.dir)
	}
	r.show.line("Logs: %s", filepath.Join(r.root, "*", "log"))
}

// alive lists the nodes whose process runs.
func (r *run) alive() []*node {
	var out []*node
	for _, n := range r.nodes {
		if n.running() {
			out = append(out, n)
		}
	}
	return out
}
