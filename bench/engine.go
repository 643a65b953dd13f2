package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// sink is the cheapest machine: what is measured is the engine.
type sink struct{}

func (sink) Apply(kv.Tx, machine.Command) ([]byte, error) { return nil, nil }
func (sink) Committed(uint64)                             {}
func (sink) Restored(kv.Reader, uint64) error             { return nil }
func (sink) Digest(kv.Tx) (machine.Digest, error)         { return machine.Digest{}, nil }

const (
	benchGroup = 2
	engineTime = 3 * time.Second
)

// voters runs three engines in this process, over TLS on loopback, each with a log of its own on disk.
type voters struct {
	engines []*engine.Engine
	groups  []*engine.Group
	close   []func()
}

func startVoters(dir string) (*voters, error) {
	var cluster access.ClusterID
	ca, err := access.NewCA(cluster, time.Now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	v := &voters{}
	listeners := make([]net.Listener, 3)
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	resolve := func(id uint64) (string, bool) { return listeners[id-1].Addr().String(), true }
	for i := range listeners {
		if err := v.start(dir, uint64(i+1), ca, listeners[i], resolve); err != nil {
			return nil, err
		}
	}
	return v, nil
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

func (v *voters) start(dir string, id uint64, ca *access.CA, l net.Listener, resolve func(uint64) (string, bool)) error {
	ident, err := newIdentity(ca, id)
	if err != nil {
		return err
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	fault := func(err error) { fmt.Fprintln(os.Stderr, "storage:", err) }
	logs, err := logstore.OpenPebble(filepath.Join(dir, fmt.Sprint("log", id)), logstore.Options{Log: quiet, OnError: fault})
	if err != nil {
		return err
	}
	state, err := kv.OpenPebble(filepath.Join(dir, fmt.Sprint("state", id)), kv.PebbleOptions{Log: quiet, OnError: fault})
	if err != nil {
		return err
	}
	var e *engine.Engine
	t, err := transport.New(transport.Config{
		Identity: ident, Listener: l, Resolve: resolve, Log: quiet, Rand: mrand.NewPCG(id, 1),
		OnMessages: func(from, group uint64, msgs []*raftpb.Message) { e.Deliver(from, group, msgs) },
	})
	if err != nil {
		return err
	}
	e = engine.Open(engine.Config{
		Node: id, Logs: logs, State: state, Transport: t, Now: time.Now, Seed: mrand.Uint64(), Log: quiet, Fault: fault,
	})
	ctx, cancel := context.WithCancel(context.Background())
	go t.Serve(ctx)
	g, err := e.StartGroup(engine.GroupConfig{
		ID: benchGroup, Replica: id, Machine: sink{}, Initial: []uint64{1, 2, 3}, Nodes: map[uint64]uint64{1: 1, 2: 2, 3: 3},
	})
	if err != nil {
		cancel()
		return err
	}
	v.engines, v.groups = append(v.engines, e), append(v.groups, g)
	v.close = append(v.close, func() {
		e.Close()
		cancel()
		t.Close()
		state.Close()
		logs.Close()
	})
	return nil
}

func (v *voters) stop() {
	for _, f := range v.close {
		f()
	}
}

// leader waits until one leads.
func (v *voters) leader() *engine.Group {
	for {
		for _, g := range v.groups {
			if g.Core().Role == core.Leader && g.Core().TermBegun {
				return g
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Voters implements engine.Members.
func (v *voters) Voters() []uint64 { return []uint64{1, 2, 3} }

func (v *voters) session(leader *engine.Group) *engine.Session {
	var client [16]byte
	rand.Read(client[:])
	return v.engines[leader.Replica()-1].NewSession(benchGroup, v, client)
}

// engineWorkload has proposers write 256-byte entries with quorum ack for some time, each waiting for its answer.
// They share a session on the leader's node, as the writers of a node do.
func engineWorkload(s *engine.Session, proposers int, for_ time.Duration) (perSecond float64, p50, p99 time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), for_+10*time.Second)
	defer cancel()
	stop := time.Now().Add(for_)
	latencies := make([][]time.Duration, proposers)
	var failed atomic.Int64
	var wait sync.WaitGroup
	for i := range proposers {
		wait.Go(func() {
			payload := make([]byte, 256)
			for seq := uint64(1); time.Now().Before(stop); seq++ {
				binary.BigEndian.PutUint64(payload, seq)
				began := time.Now()
				if _, err := s.Propose(ctx, core.AckQuorum, slices.Clone(payload)); err != nil {
					failed.Add(1)
					continue
				}
				latencies[i] = append(latencies[i], time.Since(began))
			}
		})
	}
	wait.Wait()
	if n := failed.Load(); n > 0 {
		return 0, 0, 0, fmt.Errorf("%d writes were not committed", n)
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return float64(len(all)) / for_.Seconds(), all[len(all)/2], all[len(all)*99/100], nil
}

// benchEngine prints the engine's figures: three voters in one process, TLS on loopback, one disk, sync on.
func benchEngine(dir string, runs int) error {
	fmt.Println("engine: 3 voters in one process, TLS on loopback, 256 B, quorum ack, sync on; the voters share one disk")
	for _, proposers := range []int{1, 64, 256} {
		var rates, p50s, p99s, costs []float64
		for run := range runs {
			v, err := startVoters(filepath.Join(dir, fmt.Sprintf("engine-%d-%d", proposers, run)))
			if err != nil {
				return err
			}
			s := v.session(v.leader())
			if _, _, _, err = engineWorkload(s, proposers, 500*time.Millisecond); err == nil {
				var rate float64
				var p50, p99 time.Duration
				before := processorTime()
				rate, p50, p99, err = engineWorkload(s, proposers, engineTime)
				costs = append(costs, (processorTime()-before).Seconds()*1e6/(rate*engineTime.Seconds()))
				rates, p50s, p99s = append(rates, rate), append(p50s, p50.Seconds()*1e3), append(p99s, p99.Seconds()*1e3)
			}
			v.stop()
			if err != nil {
				return err
			}
		}
		fmt.Printf("%4d proposers: %s writes/s, p50 %s ms, p99 %s ms, %s µs of processor time a write\n",
			proposers, spread(rates), spread(p50s), spread(p99s), spread(costs))
	}
	return nil
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spread is median [min–max].
func spread(v []float64) string {
	v = slices.Sorted(slices.Values(v))
	f := "%.2f [%.2f–%.2f]"
	if v[len(v)/2] > 100 {
		f = "%.0f [%.0f–%.0f]"
	}
	return fmt.Sprintf(f, v[len(v)/2], v[0], v[len(v)-1])
}
