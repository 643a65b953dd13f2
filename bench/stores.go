package main

import (
	"context"
	"errors"
	"time"
)

// storePeer is a peer that keeps values on three servers, each with a data directory of its own: what the engine is
// measured beside.
type storePeer struct {
	peer
	start func(ctx context.Context, dir string, writers int) (store, error)
}

const (
	storeServers = 3 // of each store

	// storeWarmup is longer than the engine's: a Java server compiles itself meanwhile.
	storeWarmup = 5 * time.Second
)

// store runs, and holds connections to its leader.
type store interface {
	// put overwrites the value of one writer, durably on a majority.
	put(ctx context.Context, writer int, value []byte) error
	stop() error
}

func stores() []storePeer {
	return []storePeer{
		{peer{"etcd", []string{"etcd", "etcdctl"}, "etcd-server etcd-client"}, startEtcd},
		{peer{"zookeeper", []string{"java", zookeeperJar}, "zookeeper"}, startZookeeper},
	}
}

// measure starts a store, has writers write to it, and ends it.
func (p storePeer) measure(ctx context.Context, dir string, writers int) (w writing, err error) {
	s, err := p.start(ctx, dir, writers)
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if _, err := write(ctx, writers, storeWarmup, s.put); err != nil {
		return w, err
	}
	return write(ctx, writers, engineTime, s.put)
}
