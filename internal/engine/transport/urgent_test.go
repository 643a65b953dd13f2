package transport

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUrgentConnections: on both sides the sockets of raft and of calls go before those of everything else.
func TestUrgentConnections(t *testing.T) {
	f := newFarm(t, 1)
	a := f.node(1, nil, nil)
	b := f.node(2, nil, func(tr *Transport) {
		tr.HandleCalls("echo", func(_ context.Context, _ uint64, req []byte) ([]byte, error) { return req, nil })
		tr.Handle("bulk", func(_ context.Context, _ uint64, c net.Conn) { _, _ = io.Copy(c, c) })
	})
	known := map[*sock]bool{}
	check := func(what string, urgent bool) {
		t.Helper()
		for _, n := range []*testNode{a, b} {
			n.mu.Lock()
			found := 0
			for s := range n.socks {
				if known[s] {
					continue
				}
				known[s] = true
				found++
				priority, class := marks(t, s.Conn)
				if is := priority == urgentPriority && class == urgentClass; is != urgent {
					t.Errorf("%s at node %d: priority %d, class %#x", what, n.self, priority, class)
				}
			}
			n.mu.Unlock()
			if found != 1 {
				t.Errorf("%s at node %d: %d connections", what, n.self, found)
			}
		}
	}
	a.Send(2, 1, message("beat"))
	b.expect("beat")
	check("raft", true)
	if _, err := a.Call(t.Context(), 2, "echo", []byte("x")); err != nil {
		t.Fatal(err)
	}
	check("call", true)
	c, err := a.Open(t.Context(), 2, "bulk")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	check("bulk", false)
}

func marks(t *testing.T, conn net.Conn) (priority, class int) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if priority, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY); err == nil {
			class, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return priority, class
}
