package httpdoor

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-sync/lockstep/api"
)

// slowSeed takes long to answer for what it was sent, as a node does that syncs it.
type slowSeed struct {
	fakeNode
	takes time.Duration
}

func (n *slowSeed) Restore(ctx context.Context, r api.Restore, body io.Reader) (api.Restored, error) {
	if _, err := io.Copy(io.Discard, body); err != nil {
		return api.Restored{}, err
	}
	select {
	case <-ctx.Done():
		return api.Restored{}, ctx.Err()
	case <-time.After(n.takes):
		return api.Restored{Group: r.As}, nil
	}
}

// oneConn is a listener that accepts one connection.
type oneConn struct{ conn chan net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conn; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// How long a client may be silent ends with its upload: what the node does with it may take longer.
func TestRestoreMayTakeLongerThanAClientMayBeSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		handler, err := newHandler(Config{Node: &slowSeed{takes: 5 * bodyTimeout}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		l := &oneConn{make(chan net.Conn, 1)}
		l.conn <- there
		server := &http.Server{Handler: handler, ReadTimeout: bodyTimeout}
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		line := `{"group":"web","as":"copy","paths":{"n1":"/a"}}` + "\n"
		route := api.RouteRestore()
		if _, err := fmt.Fprintf(here, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n",
			route.Method, route.Path, api.MediaBackup, len(line), line); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(here), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK || err != nil {
			t.Errorf("%d %s %v", answer.StatusCode, body, err)
		}
		if err := here.Close(); err != nil {
			t.Error(err)
		}
		close(l.conn)
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
}
