package transport

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
)

// The test binary is its own victim: started with these set, it is a node that answers messages until it dies.
const (
	envVictim = "TRANSPORT_TEST_VICTIM" // its data directory
	envPeer   = "TRANSPORT_TEST_PEER"   // the address of node 1
)

func TestMain(m *testing.M) {
	if data := os.Getenv(envVictim); data != "" {
		fmt.Fprintln(os.Stderr, victim(data, os.Getenv(envPeer)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func victim(data, peer string) error {
	id, err := access.Load(data, day0Clock)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var t *Transport
	t, err = New(Config{
		Identity:   id,
		Listener:   listener,
		Resolve:    func(uint64) (string, bool) { return peer, true },
		OnMessages: func(from, group uint64, msgs []*raftpb.Message) { t.Send(from, group, msgs) },
		Log:        slog.New(slog.DiscardHandler),
		Rand:       rand.NewPCG(rand.Uint64(), 2),
	})
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	return t.Serve(context.Background())
}

// startVictim runs node 2 as a process.
func startVictim(t *testing.T, f *farm, peer string) *exec.Cmd {
	t.Helper()
	data := t.TempDir()
	if err := access.Create(data, f.identity(2, day0Clock)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envVictim+"="+data, envPeer+"="+peer)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	f.setAddr(2, strings.TrimSpace(addr))
	return cmd
}

func TestKilledProcess(t *testing.T) {
	f := newFarm(t, 1)
	a := f.node(1, nil, nil)
	for round := range 3 {
		cmd := startVictim(t, f, a.addr)
		text := fmt.Sprint("round ", round)
		until(t, "the process answers", func() bool {
			a.Send(2, 1, message(text))
			select {
			case d := <-a.got:
				return string(d.msgs[0].Context) == text
			default:
				return false
			}
		})
		for e := a.event(); e != (event{2, true, Connected}); e = a.event() {
		}
		began := time.Now()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		first := a.event()
		took := time.Since(began)
		if first.up || first.why != Reset && first.why != Refused {
			t.Fatalf("reported %v", first)
		}
		if first.why == Reset {
			a.wantEvent(event{2, false, Refused})
		}
		t.Logf("kill -9 reported as %v after %v, certain after %v", first.why, took, time.Since(began))
		if took > time.Second {
			t.Errorf("it took %v to notice", took)
		}
	}
}
