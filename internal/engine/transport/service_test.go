package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/access"
)

func TestOpenService(t *testing.T) {
	f := newFarm(t, 1)
	held, ended := make(chan struct{}), make(chan uint64, 1)
	a := f.node(1, nil, nil)
	b := f.node(2, nil, func(tr *Transport) {
		tr.Handle("echo", func(ctx context.Context, from uint64, c net.Conn) {
			_, _ = io.Copy(c, c)
			ended <- from
		})
		tr.Handle("hold", func(ctx context.Context, from uint64, c net.Conn) {
			close(held)
			<-ctx.Done()
			ended <- from
		})
	})
	c, err := a.Open(t.Context(), 2, "echo")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("abc"), 1<<20)
	go func() {
		_, _ = c.Write(data)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if from := <-ended; from != 1 {
		t.Errorf("from %d", from)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	hold, err := a.Open(t.Context(), 2, "hold")
	if err != nil {
		t.Fatal(err)
	}
	<-held
	b.stop() // ends the handler, and with it the connection
	<-ended
	if _, err := hold.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived the transport")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Open(ctx, 2, "echo"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestJoinService(t *testing.T) {
	f, g := newFarm(t, 1), newFarm(t, 2)
	a := f.node(1, nil, func(tr *Transport) {
		tr.HandleJoin(func(_ context.Context, c net.Conn) {
			req, err := access.ReadJoinRequest(c)
			if err != nil {
				t.Error(err)
				return
			}
			reply := access.JoinReply{Node: 9, Cluster: f.ca.Cluster(), CA: f.ca.CertPEM()}
			if reply.Cert, err = f.ca.Sign(req.CSR, 9, req.Name, day0); err != nil {
				t.Error(err)
				return
			}
			if _, err := reply.WriteTo(c); err != nil {
				t.Error(err)
			}
		})
	})
	tok, err := access.NewToken(f.ca.Cluster(), f.ca.Fingerprint(), []string{a.addr}, time.Hour, day0, f.rand)
	if err != nil {
		t.Fatal(err)
	}
	c, err := DialJoin(t.Context(), nil, a.addr, tok, day0Clock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	key, _ := access.NewKey(f.rand)
	csr, _ := access.NewCSR(key)
	req := access.JoinRequest{Token: tok.ID, Secret: tok.Secret, Name: "n9", Address: "127.0.0.1:1", CSR: csr, Level: 1}
	if _, err := req.WriteTo(c); err != nil {
		t.Fatal(err)
	}
	reply, err := access.ReadJoinReply(c)
	if err != nil {
		t.Fatal(err)
	}
	id, err := reply.Identity(tok, key, "n9", day0Clock)
	if err != nil || id.Node() != 9 {
		t.Fatalf("%v %v", id, err)
	}
	foreign := g.node(1, nil, func(tr *Transport) { tr.HandleJoin(func(context.Context, net.Conn) {}) })
	if _, err := DialJoin(t.Context(), nil, foreign.addr, tok, day0Clock); !errors.Is(err, access.ErrOtherCluster) {
		t.Errorf("other cluster: %v", err)
	}
}
