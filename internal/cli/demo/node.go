package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/client"
)

// node is one server of the demo.
type node struct {
	name        string
	base        string // its part of the working directory
	dir         string // the directory that is kept in step
	listen, api string
	client      *client.Client

	mu      sync.Mutex
	process *os.Process
	exited  chan struct{} // closed when process has been waited for
	meant   bool          // its end is our doing
}

func (n *node) logPath() string { return filepath.Join(n.base, "log") }

// spawner starts processes from one thread that lives as long as they shall: the kernel's parent-death signal
// goes out when the thread ends that made the child, not the process.
type spawner struct {
	jobs chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.jobs <- func() { result <- cmd.Start() }
	return <-result
}

func (s *spawner) close() {
	close(s.jobs)
	<-s.done
}

// launch starts n's process. token is for the first start of a node that joins.
func (r *run) launch(n *node, token string) error {
	args := []string{"serve", "--data", filepath.Join(n.base, "data"), "--name", n.name, "--listen", n.listen, "--api", n.api}
	if token != "" {
		args = append(args, "--join", token)
	}
	log, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", n.name, err)
	}
	defer log.Close()
	cmd := exec.Command(r.cfg.Binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = r.cfg.Environ
	// A group of its own: an interrupt from the terminal is for the demo, which then stops its nodes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.spawn.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	exited := make(chan struct{})
	n.mu.Lock()
	n.process, n.exited, n.meant = cmd.Process, exited, false
	n.mu.Unlock()
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended shows in died and in its log
	}()
	return nil
}

func (n *node) running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// died tells whether the process ended without being asked to.
func (n *node) died() bool {
	n.mu.Lock()
	started, meant := n.process != nil, n.meant
	n.mu.Unlock()
	return started && !meant && !n.running()
}

func (n *node) signal(s os.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		n.meant = true
		_ = n.process.Signal(s) // it may be gone already
	}
}

func (n *node) terminate() { n.signal(syscall.SIGTERM) }

// wait waits for the process' end, and forces it when the deadline fires.
func (n *node) wait(deadline <-chan time.Time) error {
	n.mu.Lock()
	exited := n.exited
	n.mu.Unlock()
	if exited == nil {
		return nil
	}
	select {
	case <-exited:
		return nil
	case <-deadline:
	}
	n.signal(syscall.SIGKILL)
	<-exited
	return fmt.Errorf("%s did not stop within 10 seconds of SIGTERM and was killed", n.name)
}

// kill ends the process at once and waits for it.
func (n *node) kill() {
	n.signal(syscall.SIGKILL)
	n.mu.Lock()
	exited := n.exited
	n.mu.Unlock()
	<-exited
}

// lastWords is the end of the log.
func (n *node) lastWords() string {
	log, err := os.ReadFile(n.logPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(log), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// firstPort is where the demo looks for free ports: below the range from which Linux takes ports for
// outgoing connections, so that a node finds its port free again after a restart.
const firstPort = 17420

// freePorts returns n loopback addresses that nobody listens on.
func freePorts(n int) ([]string, error) {
	var out []string
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	for port := firstPort + os.Getpid()%1000*8; len(out) < n; port++ {
		if port >= 32768 {
			return nil, errors.New("no free ports on loopback")
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		held = append(held, l)
		out = append(out, address)
	}
	return out, nil
}

// until polls cond every interval until it holds; cond's error ends it.
func until(ctx context.Context, interval time.Duration, what string, cond func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		ok, err := cond()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
