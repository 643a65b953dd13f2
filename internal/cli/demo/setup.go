package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

// generated is how many files are made if there is nothing to copy.
const generated = 8000

// startTimeout bounds the start of one node, stepTimeout anything that a healthy cluster does at once.
const (
	startTimeout = 30 * time.Second
	stepTimeout  = 60 * time.Second
	poll         = 20 * time.Millisecond
)

// start brings up node 1, then the others with a token.
func (r *run) start(ctx context.Context) error {
	if err := r.makeNodes(); err != nil {
		return err
	}
	first := r.nodes[0]
	if err := r.launch(first, ""); err != nil {
		return err
	}
	if err := r.answers(ctx, first); err != nil {
		return err
	}
	r.show.line("%s  started a new cluster of one       api %s, pid %d", first.name, first.api, first.process.Pid)
	if len(r.nodes) == 1 {
		return nil
	}
	token, err := r.token(ctx, first)
	if err != nil {
		return err
	}
	for _, n := range r.nodes[1:] {
		began := time.Now()
		if err := r.launch(n, token.Token); err != nil {
			return err
		}
		if err := r.answers(ctx, n); err != nil {
			return err
		}
		if err := r.joined(ctx, n.name); err != nil {
			return err
		}
		r.show.line("%s  joined with a token after %-7s  api %s, pid %d", n.name, ms(time.Since(began)), n.api, n.process.Pid)
	}
	return nil
}

// token has n make a token. A node that answers may not know its cluster yet.
func (r *run) token(ctx context.Context, n *node) (token api.Token, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = until(ctx, poll, n.name+" makes a token", func() (bool, error) {
		var err error
		token, err = n.client.TokenCreate(ctx, api.TokenCreate{TTL: "10m"})
		if err != nil {
			return false, errors.Join(passing(err), r.anyDied())
		}
		return true, nil
	})
	return token, err
}

// createDir binds the nodes' directories; paths has them by node. A try whose answer was lost may have done it: then the
// next one finds it there.
func (r *run) createDir(ctx context.Context, paths map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	first, retried := r.nodes[0], false
	return until(ctx, poll, "the directory is bound", func() (bool, error) {
		_, err := first.client.DirCreate(ctx, api.DirCreate{Name: group, Paths: paths})
		if err == nil || retried && errors.Is(err, &api.Error{Code: api.CodeConflict}) {
			return true, nil
		}
		retried = true
		return false, errors.Join(passing(err), r.anyDied())
	})
}

func (r *run) makeNodes() error {
	ports, err := freePorts(2 * r.cfg.Nodes)
	if err != nil {
		return err
	}
	for i := range r.cfg.Nodes {
		n := &node{name: fmt.Sprintf("n%d", i+1), listen: ports[2*i], api: ports[2*i+1]}
		n.base = filepath.Join(r.root, n.name)
		n.dir = filepath.Join(n.base, "dir")
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if n.client, err = client.New(n.api); err != nil {
			return err
		}
		r.nodes = append(r.nodes, n)
	}
	return nil
}

// answers waits until n's API answers.
func (r *run) answers(ctx context.Context, n *node) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return until(ctx, poll, n.name+" answers", func() (bool, error) {
		if !n.running() {
			return false, fmt.Errorf("%s did not start", n.name)
		}
		_, err := n.client.Version(ctx)
		return err == nil, nil
	})
}

// joined waits until node 1 sees the named node up.
func (r *run) joined(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return until(ctx, poll, name+" is up", func() (bool, error) {
		nodes, err := r.nodes[0].client.Nodes(ctx)
		if err != nil {
			return false, passing(err)
		}
		for _, n := range nodes {
			if n.Name == name && n.State == "up" {
				return true, nil
			}
		}
		return false, nil
	})
}

// passing drops errors that the next try may not meet.
func passing(err error) error {
	if errors.Is(err, &api.Error{Code: api.CodeUnavailable}) {
		return nil
	}
	return err
}

// fill gives node 1 its files, binds all directories and watches the others fill.
func (r *run) fill(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return err
	}
	names, paths := []string{}, map[string]string{}
	for _, n := range r.nodes {
		names = append(names, n.name)
		paths[n.name] = api.EscapePath(n.dir)
	}
	began := time.Now()
	if err := r.createDir(ctx, paths); err != nil {
		return err
	}
	r.show.line("lockstep dir create %s: kept in step on %s", group, strings.Join(names, ", "))

	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	err := until(ctx, poll, "every node holds every file", func() (bool, error) {
		status, err := r.nodes[0].client.DirStatus(ctx, group)
		if err != nil {
			return false, passing(err)
		}
		bars := r.fillBars(status)
		full := len(bars) == len(r.nodes)
		for _, b := range bars {
			full = full && b.finished()
		}
		r.show.bars(bars, full)
		return full, r.anyDied()
	})
	if err != nil {
		return err
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	r.show.line("all %d in step after %s: %s, %.0f files/s", len(r.nodes), took.Round(10*time.Millisecond),
		strings.TrimSpace(r.files.String()), float64(r.files.files)/took.Seconds())
	return nil
}

// prepare copies or makes node 1's files.
func (r *run) prepare(ctx context.Context) error {
	from, err := source(ctx, r.cfg.Dir)
	if err != nil {
		return err
	}
	if inside(from, r.root) || inside(r.root, from) {
		return &api.Error{Code: api.CodeUsage, Op: "demo", Subject: "--dir", Why: "must be outside of the demo's working directory " + r.root}
	}
	step := func(t tally) { r.show.counting(t, "written to n1's directory") }
	to := r.nodes[0].dir
	if from == "" {
		r.files, err = generate(ctx, to, generated, 1, step)
		from = "generated files (no Go installation found to copy from)"
	} else {
		r.files, err = copyTree(ctx, from, to, step)
	}
	r.show.uncount()
	if err != nil {
		return err
	}
	r.show.line("n1's directory holds a copy of %s: %s", from, strings.TrimSpace(r.files.String()))
	return nil
}

// inside tells whether path is dir or below it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return path != "" && err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (r *run) fillBars(s api.DirStatus) []bar {
	var out []bar
	for _, n := range s.Nodes {
		have := tally{files: s.Files - min(s.Files, n.BehindFiles), bytes: s.Bytes - min(s.Bytes, n.BehindBytes)}
		out = append(out, bar{name: n.Node, have: have, total: r.files, note: n.Mode})
	}
	return out
}

func (r *run) anyDied() error {
	for _, n := range r.nodes {
		if n.died() {
			return fmt.Errorf("%s stopped by itself", n.name)
		}
	}
	return nil
}

// settle waits until all that is on disk now is on disk everywhere.
func (r *run) settle(ctx context.Context) error {
	nodes := r.alive()
	if len(nodes) == 0 {
		return errors.New("no node is running")
	}
	w, err := nodes[0].client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitAll, Timeout: stepTimeout.String()}, nil)
	if err != nil {
		return err
	}
	if !w.Done {
		return fmt.Errorf("not in step after %s: %s", stepTimeout, strings.Join(w.Missing, ", "))
	}
	return nil
}

// write replaces or makes a file in n's directory as an editor would, in place.
func (n *node) write(name, content string) error {
	if err := os.WriteFile(filepath.Join(n.dir, name), []byte(content), 0o644); err != nil {
		return fmt.Errorf("write on %s: %w", n.name, err)
	}
	return nil
}

// read returns the content of a file in n's directory; "" if there is none.
func (n *node) read(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(n.dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read on %s: %w", n.name, err)
	}
	return string(b), nil
}
