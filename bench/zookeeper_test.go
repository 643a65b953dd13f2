package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"strings"
	"testing"
)

// answerer is a server that greets one client and then answers each request with what answer makes of its xid.
func answerer(t *testing.T, answer func(xid uint32) (answered, code uint32)) (address string, got <-chan []byte) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	requests, ended := make(chan []byte, 8), make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := readJute(conn); err != nil {
			return
		}
		conn.Write(jute(make([]byte, 37)))
		for {
			request, err := readJute(conn)
			if err != nil {
				return
			}
			requests <- request
			xid, code := answer(binary.BigEndian.Uint32(request))
			reply := binary.BigEndian.AppendUint32(nil, xid)
			conn.Write(jute(binary.BigEndian.AppendUint32(append(reply, make([]byte, 8)...), code)))
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String(), requests
}

func TestZookeeperSession(t *testing.T) {
	address, got := answerer(t, func(xid uint32) (uint32, uint32) {
		switch xid {
		case 2:
			return xid, 1<<32 - 101 // no such node
		case 4:
			return 3, 0
		}
		return xid, 0
	})
	s, err := dialZookeeper(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.set("/k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	want := []byte("\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00\x02/k\x00\x00\x00\x01v\xff\xff\xff\xff")
	if request := <-got; !bytes.Equal(request, want) {
		t.Errorf("%q, not %q", request, want)
	}
	if err := s.set("/gone", nil); err == nil || !strings.Contains(err.Error(), "-101") {
		t.Errorf("an error of the server: %v", err)
	}
	if err := s.create("/k"); err != nil {
		t.Error(err)
	}
	for range 2 { // the session is over with the answer to another request
		if err := s.set("/k", nil); err == nil || !strings.Contains(err.Error(), "answer 3 instead of 4") {
			t.Errorf("an answer to another request: %v", err)
		}
	}
}

func TestZookeeperFrameThatIsTooLarge(t *testing.T) {
	if _, err := readJute(strings.NewReader("\x7f\xff\xff\xffx")); err == nil || !strings.Contains(err.Error(), "2147483647 bytes") {
		t.Error(err)
	}
}
