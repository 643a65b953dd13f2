package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// etcd is a cluster of three etcd servers on loopback, each with a data directory of its own below one directory: the
// peer that the engine is measured beside. It has no TLS, which the engine cannot do without.
type etcd struct {
	clients []string // URLs
	servers []*exec.Cmd
}

// startEtcd returns nil if etcd is not installed.
func startEtcd(ctx context.Context, dir string) (*etcd, error) {
	if _, err := exec.LookPath("etcd"); err != nil {
		return nil, nil
	}
	e := &etcd{}
	var peers, cluster []string
	for i := range 3 {
		client, peer, err := twoPorts()
		if err != nil {
			return nil, err
		}
		e.clients, peers = append(e.clients, "http://"+client), append(peers, "http://"+peer)
		cluster = append(cluster, fmt.Sprintf("e%d=%s", i, peers[i]))
	}
	for i := range peers {
		cmd := exec.CommandContext(ctx, "etcd", "--name", fmt.Sprintf("e%d", i), "--data-dir", filepath.Join(dir, fmt.Sprintf("e%d", i)),
			"--listen-client-urls", e.clients[i], "--advertise-client-urls", e.clients[i], "--listen-peer-urls", peers[i],
			"--initial-advertise-peer-urls", peers[i], "--initial-cluster", strings.Join(cluster, ","), "--log-level", "error")
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(err, e.stop())
		}
		e.servers = append(e.servers, cmd)
	}
	return e, e.ready(ctx)
}

// twoPorts finds two addresses that nobody listens on.
func twoPorts() (a, b string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer l.Close()
	m, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer m.Close()
	return l.Addr().String(), m.Addr().String(), nil
}

func (e *etcd) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c := newEtcdClient(e.clients[0])
		err := c.put(ctx, []byte("ready"), nil)
		c.close()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("etcd does not answer: %w", err)
		}
	}
}

func (e *etcd) stop() error {
	for _, s := range e.servers {
		s.Process.Signal(syscall.SIGTERM)
	}
	for _, s := range e.servers {
		s.Wait() // its exit status says that it was told to stop
	}
	return nil
}

// leader is the URL of the server that leads: the one whose own proposals need no forwarding.
func (e *etcd) leader(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "etcdctl", "--endpoints", strings.Join(e.clients, ","), "endpoint", "status").Output()
	if err != nil {
		return "", fmt.Errorf("etcdctl endpoint status: %w", err)
	}
	for line := range strings.Lines(string(out)) { // endpoint, id, version, size, is leader, ...
		if f := strings.Split(line, ", "); len(f) > 4 && f[4] == "true" {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("etcd has no leader: %s", out)
}

// etcdClient speaks gRPC over one HTTP/2 connection.
type etcdClient struct {
	url  string
	http *http.Transport
}

func newEtcdClient(url string) *etcdClient {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &etcdClient{url: url, http: &http.Transport{Protocols: &p}}
}

func (c *etcdClient) close() { c.http.CloseIdleConnections() }

// put is etcdserverpb.KV.Put.
func (c *etcdClient) put(ctx context.Context, key, value []byte) error {
	msg := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), key)
	msg = protowire.AppendBytes(protowire.AppendTag(msg, 2, protowire.BytesType), value)
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/etcdserverpb.KV/Put", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	status := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status")
	if resp.StatusCode != http.StatusOK || status != "0" {
		return fmt.Errorf("put: HTTP %d, status %q: %s", resp.StatusCode, status, resp.Trailer.Get("Grpc-Message"))
	}
	return nil
}

// etcdConnections is over how many connections the proposers of one measurement are spread.
const etcdConnections = 8

// etcdWorkload is engineWorkload's counterpart: proposers put 256-byte values under keys of their own, each waiting for
// its answer, over a few connections to the leader.
func etcdWorkload(ctx context.Context, url string, proposers int, for_ time.Duration) (perSecond, p50 float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, for_+10*time.Second)
	defer cancel()
	clients := make([]*etcdClient, min(proposers, etcdConnections))
	for i := range clients {
		clients[i] = newEtcdClient(url)
		defer clients[i].close()
	}
	stop := time.Now().Add(for_)
	latencies := make([][]time.Duration, proposers)
	var failed atomic.Pointer[error]
	var wait sync.WaitGroup
	for i := range proposers {
		wait.Go(func() {
			key, value := fmt.Appendf(nil, "k%d", i), make([]byte, 256)
			for time.Now().Before(stop) {
				began := time.Now()
				if err := clients[i%len(clients)].put(ctx, key, value); err != nil {
					failed.Store(&err)
					return
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return float64(len(all)) / for_.Seconds(), all[len(all)/2].Seconds() * 1e3, nil
}

// measureEtcd starts a cluster below dir, and measures it; 0 where etcd is not installed.
func measureEtcd(dir string, proposers int) (perSecond, p50 float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, 0, err
	}
	e, err := startEtcd(ctx, dir)
	if e == nil || err != nil {
		return 0, 0, err
	}
	defer e.stop()
	url, err := e.leader(ctx)
	if err != nil {
		return 0, 0, err
	}
	if _, _, err := etcdWorkload(ctx, url, proposers, engineWarmup); err != nil {
		return 0, 0, err
	}
	return etcdWorkload(ctx, url, proposers, engineTime)
}
