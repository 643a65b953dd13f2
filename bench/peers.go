package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

// peer is a program that Lockstep is measured beside. There are three kinds: stores, mirrors and copiers.
type peer struct {
	name     string
	needs    []string // commands, and files with their absolute paths
	packages string   // of Debian, that have them
}

// missing says what to do about a peer that is not installed; empty if it is.
func (p peer) missing() string {
	for _, need := range p.needs {
		var err error
		if filepath.IsAbs(need) {
			_, err = os.Stat(need)
		} else {
			_, err = exec.LookPath(need)
		}
		if err != nil {
			return fmt.Sprintf("%s: %s is not installed (apt-get install %s)", p.name, need, p.packages)
		}
	}
	return ""
}

// patience is how long one run of a peer may take. A burst takes csync2, the slowest, 40 s.
const patience = 2 * time.Minute

// beside measures a peer. One that is missing, fails or takes too long is noted, and the rest goes on.
func (o *outcome) beside(ctx context.Context, p peer, measure func(ctx context.Context) error) {
	if why := p.missing(); why != "" {
		o.without(why)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := measure(ctx); err != nil {
		o.without(fmt.Sprintf("%s: %v", p.name, err))
	}
}

// servers are processes of a peer. What they print goes to a file in their directory.
type servers struct {
	dir       string
	processes []*process
}

type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{} // closed when it has ended, and cmd knows how
}

func newServers(dir string) *servers { return &servers{dir: dir} }

// start adds a process, with more environment than this one's. It leads a process group, which ends with it.
func (s *servers) start(env []string, name string, args ...string) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	p := &process{cmd: exec.Command(name, args...), exited: make(chan struct{})}
	p.log = filepath.Join(s.dir, fmt.Sprintf("%s-%d.log", name, len(s.processes)))
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = s.dir, append(os.Environ(), env...), log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(p.exited)
		p.cmd.Wait() // ProcessState says how it ended
	}()
	s.processes = append(s.processes, p)
	return nil
}

// await tries until it works, unless a process ends before.
func (s *servers) await(ctx context.Context, try func() error) error {
	return farm.Poll(ctx, 10*time.Millisecond, func() error {
		for _, p := range s.processes {
			select {
			case <-p.exited:
				said, _ := os.ReadFile(p.log)
				return farm.Final(fmt.Errorf("%s ended: %v: %s", p.cmd.Path, p.cmd.ProcessState, said[max(0, len(said)-500):]))
			default:
			}
		}
		return try()
	})
}

// listening waits until somebody listens at an address.
func (s *servers) listening(ctx context.Context, address string) error {
	return s.await(ctx, func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// stop ends all processes, by force if need be, and what they started.
func (s *servers) stop() error {
	signal := func(sig syscall.Signal) (err error) {
		for _, p := range s.processes {
			if e := syscall.Kill(-p.cmd.Process.Pid, sig); e != nil && !errors.Is(e, syscall.ESRCH) {
				err = errors.Join(err, fmt.Errorf("end %s: %w", p.cmd.Path, e))
			}
		}
		return err
	}
	err := signal(syscall.SIGTERM)
	force := time.AfterFunc(5*time.Second, func() { signal(syscall.SIGKILL) })
	defer force.Stop()
	for _, p := range s.processes {
		<-p.exited
	}
	return err
}

// freePorts finds ports of loopback that nobody listens on.
func freePorts(count int) (ports []int, err error) {
	for range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
