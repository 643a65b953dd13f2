package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// etcd is a cluster of three etcd servers, and connections to their leader, which the writers share. It has no TLS, which
// the engine cannot do without.
type etcd struct {
	*servers
	clients []string // URLs of the servers
	leader  []*etcdClient
}

// etcdConnections is over how many connections the writers are spread.
const etcdConnections = 8

func startEtcd(ctx context.Context, dir string, writers int) (store, error) {
	const each = 2 // a port for clients, one for peers
	ports, err := freePorts(storeServers * each)
	if err != nil {
		return nil, err
	}
	e := &etcd{servers: newServers(dir)}
	var peers, cluster []string
	for i := range storeServers {
		e.clients = append(e.clients, fmt.Sprintf("http://127.0.0.1:%d", ports[each*i]))
		peers = append(peers, fmt.Sprintf("http://127.0.0.1:%d", ports[each*i+1]))
		cluster = append(cluster, fmt.Sprintf("e%d=%s", i, peers[i]))
	}
	for i := range peers {
		if err := e.start(nil, "etcd", "--name", fmt.Sprintf("e%d", i), "--data-dir", filepath.Join(dir, fmt.Sprintf("e%d", i)),
			"--listen-client-urls", e.clients[i], "--advertise-client-urls", e.clients[i], "--listen-peer-urls", peers[i],
			"--initial-advertise-peer-urls", peers[i], "--initial-cluster", strings.Join(cluster, ","), "--log-level", "error"); err != nil {
			return nil, errors.Join(err, e.stop())
		}
	}
	if err := e.connect(ctx, min(writers, etcdConnections)); err != nil {
		return nil, errors.Join(err, e.stop())
	}
	return e, nil
}

// connect waits until the cluster answers, and opens connections to the server that leads.
func (e *etcd) connect(ctx context.Context, connections int) error {
	var url string
	err := e.await(ctx, func() error {
		c := newEtcdClient(e.clients[0])
		defer c.close()
		err := c.put(ctx, []byte("ready"), nil)
		if err == nil {
			url, err = e.leading(ctx)
		}
		return err
	})
	for range connections {
		e.leader = append(e.leader, newEtcdClient(url))
	}
	return err
}

// leading is the URL of the server whose proposals need no forwarding.
func (e *etcd) leading(ctx context.Context) (string, error) {
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

func (e *etcd) put(ctx context.Context, writer int, value []byte) error {
	return e.leader[writer%len(e.leader)].put(ctx, fmt.Appendf(nil, "k%d", writer), value)
}

func (e *etcd) stop() error {
	for _, c := range e.leader {
		c.close()
	}
	return e.servers.stop()
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
