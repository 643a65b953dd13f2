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
	dir  string
	cmds []*exec.Cmd
}

func newServers(dir string) *servers { return &servers{dir: dir} }

// start adds a process, with more environment than this one's. It leads a process group, which ends with it.
func (s *servers) start(env []string, name string, args ...string) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("%s-%d.log", name, len(s.cmds))))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, append(os.Environ(), env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmds = append(s.cmds, cmd)
	return nil
}

// stop ends all processes, by force if need be, and what they started.
func (s *servers) stop() error {
	signal := func(sig syscall.Signal) (err error) {
		for _, cmd := range s.cmds {
			if e := syscall.Kill(-cmd.Process.Pid, sig); e != nil && !errors.Is(e, syscall.ESRCH) {
				err = errors.Join(err, fmt.Errorf("end %s: %w", cmd.Path, e))
			}
		}
		return err
	}
	err := signal(syscall.SIGTERM)
	force := time.AfterFunc(5*time.Second, func() { signal(syscall.SIGKILL) })
	defer force.Stop()
	for _, cmd := range s.cmds {
		cmd.Wait() // its exit status says that it was told to stop
	}
	s.cmds = nil
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
