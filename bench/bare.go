package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// bareEngines are engines without daemons around them: in this process, over TLS on loopback, each with a log and a
// state of its own on disk. The n-th is node n+1.
type bareEngines struct {
	dir       string
	ca        *access.CA
	listeners []net.Listener
	engines   []*engine.Engine
	stops     []func()
}

// startBare starts count engines; state, unless nil, is put around each state store.
func startBare(dir string, count int, state func(kv.Store) kv.Store) (*bareEngines, error) {
	var cluster access.ClusterID
	ca, err := access.NewCA(cluster, time.Now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	b := &bareEngines{dir: dir, ca: ca}
	for range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		b.listeners = append(b.listeners, l)
	}
	for id := range uint64(count) {
		if err := b.open(id+1, state); err != nil {
			b.stop()
			return nil, err
		}
	}
	return b, nil
}

func (b *bareEngines) open(id uint64, around func(kv.Store) kv.Store) error {
	ident, err := newIdentity(b.ca, id)
	if err != nil {
		return err
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	fault := func(err error) { fmt.Fprintln(os.Stderr, "storage:", err) }
	logs, err := logstore.Open(filepath.Join(b.dir, fmt.Sprint("log", id)), logstore.Options{Salt: id, Log: quiet, OnError: fault})
	if err != nil {
		return err
	}
	state, err := kv.OpenPebble(filepath.Join(b.dir, fmt.Sprint("state", id)), kv.PebbleOptions{Log: quiet, OnError: fault})
	if err != nil {
		return errors.Join(err, logs.Close())
	}
	used := kv.Store(state)
	if around != nil {
		used = around(state)
	}
	var e *engine.Engine
	t, err := transport.New(transport.Config{
		Identity: ident, Listener: b.listeners[id-1], Log: quiet, Rand: mrand.NewPCG(id, 1),
		Resolve:    func(id uint64) (string, bool) { return b.listeners[id-1].Addr().String(), true },
		OnMessages: func(from, group uint64, msgs []*raftpb.Message) { e.Deliver(from, group, msgs) },
	})
	if err != nil {
		return errors.Join(err, state.Close(), logs.Close())
	}
	e = engine.Open(engine.Config{
		Node: id, Logs: logs, State: used, Transport: t, Now: time.Now, Seed: mrand.Uint64(), Log: quiet, Fault: fault,
	})
	t.Handle(engine.ServiceFeed, e.ServeFeed)
	t.Handle(engine.ServiceSnapshot, e.ServeSnapshot)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- t.Serve(ctx) }()
	b.engines = append(b.engines, e)
	b.stops = append(b.stops, func() {
		cancel()
		t.Close()
		e.Close()
		<-served
		state.Close()
		logs.Close()
	})
	return nil
}

// newIdentity is a node's, signed by ca.
func newIdentity(ca *access.CA, id uint64) (*access.Identity, error) {
	key, err := access.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := access.NewCSR(key)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(csr, id, fmt.Sprintf("n%d", id), time.Now())
	if err != nil {
		return nil, err
	}
	return access.NewIdentity(key, cert, ca.CertPEM(), time.Now)
}

// Voters implements engine.Members.
func (*bareEngines) Voters() []uint64 { return []uint64{1, 2, 3} }

// voter starts the replica of a group of three on one of the first three engines.
func (b *bareEngines) voter(node uint64, cfg engine.GroupConfig) (*engine.Group, error) {
	cfg.Replica, cfg.Initial, cfg.Nodes = node, []uint64{1, 2, 3}, map[uint64]uint64{1: 1, 2: 2, 3: 3}
	return b.engines[node-1].StartGroup(cfg)
}

// kill ends one node; its connections break.
func (b *bareEngines) kill(node uint64) {
	b.stops[node-1]()
	b.stops[node-1] = func() {}
}

// stop ends all nodes.
func (b *bareEngines) stop() {
	for _, stop := range b.stops {
		stop()
	}
}
