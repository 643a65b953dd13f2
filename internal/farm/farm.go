// Package farm runs a cluster of real lockstep processes on loopback for benchmarks and process tests: one data
// directory and one binding a node below a temporary directory, free ports, joined by token.
//
// It starts no goroutine of its own; every process that it starts is ended by Close.
package farm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

// Farm is a cluster whose nodes are called n1, n2 …
type Farm struct {
	Binary string // of lockstep
	Dir    string // everything is below it
	Nodes  []*Node
}

// Node is one process.
type Node struct {
	Name    string
	Data    string // data directory
	Tree    string // the directory that it binds
	Listen  string
	API     string
	Client  *client.Client
	cmd     *exec.Cmd
	exited  chan error
	logFile string
	args    []string
	under   []string
	env     []string
}

// Place is where a node runs; the zero value is beside the others, below the farm's directory.
type Place struct {
	Dir    string   // everything of the node is below it
	Listen string   // HOST:PORT
	Under  []string // a command that runs the node's, as in `ip netns exec NAME`
	Env    []string // in addition to this process's
}

// Start runs size nodes with n1 as the first and waits until all are up.
func Start(ctx context.Context, binary, dir string, size int, args ...string) (*Farm, error) {
	f := &Farm{Binary: binary, Dir: dir}
	for range size {
		if _, err := f.Add(ctx, args...); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// Add starts one more node; the first makes the cluster, others join it.
func (f *Farm) Add(ctx context.Context, args ...string) (*Node, error) {
	return f.AddAt(ctx, Place{}, args...)
}

// AddAt is Add at a place of the caller's choice.
func (f *Farm) AddAt(ctx context.Context, at Place, args ...string) (*Node, error) {
	name := fmt.Sprintf("n%d", len(f.Nodes)+1)
	if at.Dir == "" {
		at.Dir = filepath.Join(f.Dir, name)
	}
	n := &Node{
		Name: name, Data: filepath.Join(at.Dir, "data"), Tree: filepath.Join(at.Dir, "tree"), Listen: at.Listen,
		logFile: filepath.Join(f.Dir, name+".log"), args: args, under: at.Under, env: at.Env,
	}
	if err := os.MkdirAll(n.Tree, 0o755); err != nil {
		return nil, err
	}
	var err error
	if n.Listen == "" {
		if n.Listen, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	if n.API, err = FreeAddress(); err != nil {
		return nil, err
	}
	var join string
	if len(f.Nodes) > 0 {
		if join, err = f.Token(ctx); err != nil {
			return nil, err
		}
	}
	f.Nodes = append(f.Nodes, n)
	if err := f.Run(n, join); err != nil {
		return nil, err
	}
	return n, f.WaitUp(ctx, n)
}

// Adopt starts a node on a data directory that holds its identity already, and counts it as one of the farm.
func (f *Farm) Adopt(name, data, tree string) (*Node, error) {
	n := &Node{Name: name, Data: data, Tree: tree, logFile: data + ".log"}
	var err error
	if n.Listen, err = FreeAddress(); err != nil {
		return nil, err
	}
	if n.API, err = FreeAddress(); err != nil {
		return nil, err
	}
	f.Nodes = append(f.Nodes, n)
	return n, f.Run(n, "")
}

// Token asks the first node that runs for a join token.
func (f *Farm) Token(ctx context.Context) (string, error) {
	for _, n := range f.Nodes {
		if n.cmd != nil {
			t, err := n.Client.TokenCreate(ctx, api.TokenCreate{TTL: "1h"})
			return t.Token, err
		}
	}
	return "", errors.New("farm: no node runs")
}

// Run starts the process of a node; join is a token or empty.
func (f *Farm) Run(n *Node, join string, extra ...string) error {
	args := append([]string{"serve", "--data", n.Data, "--name", n.Name, "--listen", n.Listen, "--api", n.API}, n.args...)
	if join != "" {
		args = append(args, "--join", join)
	}
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	line := slices.Concat(n.under, []string{f.Binary}, args, extra)
	n.cmd = exec.Command(line[0], line[1:]...)
	n.cmd.Env = append(os.Environ(), n.env...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		return err
	}
	n.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(n.cmd, n.exited)
	if n.Client == nil { // it stays good over restarts
		n.Client, err = client.New("unix://" + filepath.Join(n.Data, "lockstep.sock"))
	}
	return err
}

// WaitUp waits until the node is ready. It asks often, and so for no more than that: a status is what all nodes have to say.
func (f *Farm) WaitUp(ctx context.Context, n *Node) error {
	return Poll(ctx, 10*time.Millisecond, func() error {
		select {
		case err := <-n.exited:
			n.exited <- err
			return Final(fmt.Errorf("farm: %s ended: %v\n%s", n.Name, err, n.Log()))
		default:
		}
		now, err := n.Client.Ready(ctx)
		if err != nil {
			return err
		}
		if !now.Ready {
			return fmt.Errorf("farm: %s is not ready: %v", n.Name, now.Checks)
		}
		return nil
	})
}

// Kill ends a node's process with SIGKILL and reaps it.
func (n *Node) Kill() error { return n.Signal(syscall.SIGKILL, true) }

// Stop ends a node's process with SIGTERM and waits for it.
func (n *Node) Stop() error { return n.Signal(syscall.SIGTERM, true) }

// Signal sends sig; with wait it then waits for the process to end.
func (n *Node) Signal(sig syscall.Signal, wait bool) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if !wait {
		return nil
	}
	<-n.exited
	n.cmd = nil
	return nil
}

// Running reports whether the process was started and not yet ended by us.
func (n *Node) Running() bool { return n.cmd != nil }

// Ended reports whether the process has ended by itself, and reaps it.
func (n *Node) Ended() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		n.cmd = nil
		return true
	default:
		return false
	}
}

// PID of the process, 0 if it does not run.
func (n *Node) PID() int {
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// Log is what the node's processes wrote.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.logFile)
	if err != nil {
		return err.Error()
	}
	const most = 16 << 10
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}

// Close stops every process; files stay.
func (f *Farm) Close() error {
	var errs []error
	for _, n := range f.Nodes {
		errs = append(errs, n.Signal(syscall.SIGTERM, false))
	}
	for _, n := range f.Nodes {
		if n.cmd == nil {
			continue
		}
		select {
		case <-n.exited:
			n.cmd = nil
		case <-time.After(15 * time.Second):
			errs = append(errs, fmt.Errorf("farm: %s did not stop on SIGTERM", n.Name), n.Kill())
		}
	}
	return errors.Join(errs...)
}

// Share makes a files group over the trees of the given nodes.
func (f *Farm) Share(ctx context.Context, group string, nodes ...*Node) error {
	paths := map[string]string{}
	for _, n := range nodes {
		paths[n.Name] = n.Tree
	}
	_, err := nodes[0].Client.DirCreate(ctx, api.DirCreate{Name: group, Paths: paths})
	return err
}

// WaitVoting waits until the first five nodes vote in the control group: before, one that dies may take the majority
// with it.
func (f *Farm) WaitVoting(ctx context.Context) error {
	return Poll(ctx, 10*time.Millisecond, func() error {
		g, err := f.Nodes[0].Client.Group(ctx, "control")
		if err != nil {
			return err
		}
		voters := 0
		for _, r := range g.Replicas {
			if r.Role == "leader" || r.Role == "follower" {
				voters++
			}
		}
		if want := min(len(f.Nodes), 5); voters < want {
			return fmt.Errorf("farm: %d of %d nodes vote", voters, want)
		}
		return nil
	})
}

// Leader is the node that leads a group, as any running node sees it.
func (f *Farm) Leader(ctx context.Context, group string) (*Node, error) {
	var leader *Node
	err := Poll(ctx, 20*time.Millisecond, func() error {
		for _, n := range f.Nodes {
			if n.cmd == nil {
				continue
			}
			g, err := n.Client.Group(ctx, group)
			if err != nil {
				return err
			}
			for _, m := range f.Nodes {
				if m.Name == g.Leader && m.cmd != nil {
					leader = m
					return nil
				}
			}
		}
		return fmt.Errorf("farm: group %s has no leader", group)
	})
	return leader, err
}

// Same compares two trees with rsync, an independent judge; it returns what rsync would do.
func Same(a, b string) (string, error) {
	cmd := exec.Command("rsync", "-nicaHAX", "--delete", a+"/", b+"/")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("farm: rsync: %w: %s", err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// final marks an error that polling cannot cure.
type final struct{ error }

// Final wraps err so that Poll ends with it.
func Final(err error) error { return final{err} }

// Poll calls try every interval until it returns nil, a Final error, or ctx ends (then with the last error).
func Poll(ctx context.Context, every time.Duration, try func() error) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		if f, ok := err.(final); ok {
			return f.error
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Ports of nodes are below those that Linux gives to outgoing connections (ip_local_port_range, 32768 and above): one of
// these would take a node's port between two starts of it, or before the first.
const (
	portsFrom = 20_000
	portsTo   = 32_000
)

// FreeAddress is one on loopback on which nobody listens.
func FreeAddress() (string, error) {
	var err error
	for range 100 {
		address := fmt.Sprint("127.0.0.1:", portsFrom+rand.IntN(portsTo-portsFrom))
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", fmt.Errorf("farm: no free port: %w", err)
}
