package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	identity "github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// gate puts a pipe in the place of a file that a start reads, and waits until the start is there. It returns the end to
// write to, and what was in the file.
func gate(t *testing.T, path string, start func()) (in *os.File, content []byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	start()
	if in, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil { // as soon as somebody reads
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return in, content
}

// stopsAtOnce tells a process that is starting to stop: it has to end within a second, and to say what it was at.
func stopsAtOnce(t *testing.T, n *farm.Node, at string) {
	t.Helper()
	began := time.Now()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("it ended after %v", took.Round(time.Millisecond))
	if took > 2*time.Second { // the machine may be busy; what is not looked at would take for ever
		t.Errorf("it took %v", took)
	}
	log := n.Log()
	line := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]
	if !strings.Contains(line, "told to stop before the start was done") || !strings.Contains(line, at) {
		t.Errorf("its last words are not of %q: %s", at, line)
	}
}

// TestStopWhileStarting: a start that waits for a disk that does not answer, for room on it, or for another node ends
// within a second when it is told to stop, and says what it waited for. Nothing is lost by that.
func TestStopWhileStarting(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f, vs := volumes(t, ctx, 1)
	n1 := f.Nodes[0]
	for i := range 300 {
		write(t, n1, fmt.Sprintf("d/%03d", i), strings.Repeat("c", i))
	}
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
	if err := n1.Kill(); err != nil { // what it applied is in the state's write-ahead log only
		t.Fatal(err)
	}
	run := func() {
		t.Helper()
		if err := f.Run(n1, ""); err != nil {
			t.Fatal(err)
		}
	}
	start := filepath.Join(n1.Data, "cluster.json")
	in, content := gate(t, start, run)
	stopsAtOnce(t, n1, "reading this node's identity")
	in.Close()

	if err := os.WriteFile(start+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(start+".new", start); err != nil {
		t.Fatal(err)
	}
	in, content = gate(t, start, run)
	if err := vs[0].Fill(); err != nil { // there was room when it looked
		t.Fatal(err)
	}
	if _, err := in.Write(content); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := farm.Poll(ctx, 20*time.Millisecond, func() error {
		if n1.Ended() {
			return farm.Final(errEnded)
		}
		if !strings.Contains(n1.Log(), "waits for room on the disk") {
			return errNotYet
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	stopsAtOnce(t, n1, "waits for room on the disk")
	if err := vs[0].Free(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(start); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(start, content, 0o600); err != nil {
		t.Fatal(err)
	}
	restart(t, ctx, f, n1, "")
	write(t, n1, "after", "1")
	reached(t, ctx, f, api.DirWaitFor{Mode: api.WaitAll})
}

// TestStopWhileJoining: the node that is to let a server in accepts the connection and says nothing.
func TestStopWhileJoining(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"told": syscall.SIGTERM, "interrupted": syscall.SIGINT, "its terminal is closed": syscall.SIGHUP} {
		t.Run(name, func(t *testing.T) {
			if signal.Ignored(sig) {
				t.Skipf("%v is ignored here, and so it is by what is started here", sig)
			}
			stopWhileJoining(t, sig)
		})
	}
}

func stopWhileJoining(t *testing.T, sig syscall.Signal) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	token, err := identity.NewToken(identity.ClusterID{1}, identity.Fingerprint{2}, []string{l.Addr().String()}, time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	cmd := exec.CommandContext(t.Context(), binary, serve(data, "--name", "n2", "--join", token.Encode())...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	met, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer met.Close()
	began := time.Now()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if took := time.Since(began); err != nil || took > 2*time.Second {
		t.Errorf("it ended after %v: %v", took, err)
	}
	if log := said.String(); !strings.Contains(log, "told to stop before the start was done") || !strings.Contains(log, "waiting for a node that the token names") {
		t.Errorf("it does not say what it waited for: %s", log)
	}
	if _, err := os.Stat(filepath.Join(data, "identity")); err == nil {
		t.Error("it has an identity")
	}
}

var (
	errEnded  = errors.New("the process ended by itself")
	errNotYet = errors.New("it does not wait for room")
)
