package server

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	httpdoor "github.com/lockstep-sync/lockstep/internal/door/http"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A start reads as much as there is, writes where there may be no room, and asks nodes that may not answer: it takes as
// long as it takes, and a call to a disk cannot be ended by anybody. So it runs beside Run, which looks at what it is at,
// says so if it takes long, and ends with the process if it is told to stop and the start does not let go.

const (
	// startLog is how often a start that takes long says what it is at.
	startLog = 5 * time.Second
	// startGrace is how long a start that is told to stop may take to put things in order.
	startGrace = 700 * time.Millisecond
)

// stages is what a start is at. The start enters them, Run looks.
type stages struct {
	log *slog.Logger

	mu    sync.Mutex
	at    string
	since time.Time
	lacks func() error // why it waits for the disk, or nil
}

// enter begins a stage; doing says what is done there, as in "reading the log".
func (s *stages) enter(doing string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.since = doing, time.Now()
}

// mayLack says whom to ask whether the disk is waited for.
func (s *stages) mayLack(room func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lacks = room
}

// now is the stage, why it waits if it is known, and for how long.
func (s *stages) now() (at string, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at = s.at
	if s.lacks != nil {
		if err := s.lacks(); err != nil {
			at += ", which waits for room on the disk: " + reason(err)
		}
	}
	return at, time.Since(s.since).Round(time.Millisecond)
}

// started is how a start came out.
type started struct {
	n   *node
	err error
}

// Run runs a node until ctx ends or a disk fails.
func Run(ctx context.Context, cfg Config) error {
	s := &stages{log: cfg.Log}
	out := make(chan started, 1)
	go func() {
		n, err := startNode(ctx, cfg, s)
		out <- started{n, err}
	}()
	n, err := s.await(ctx, out)
	if n == nil {
		return err
	}
	return errors.Join(n.serve(ctx), n.data.Close())
}

// await returns the node that has started, or neither it nor an error: ctx has ended before it was up.
func (s *stages) await(ctx context.Context, out <-chan started) (*node, error) {
	again := time.NewTicker(startLog)
	defer again.Stop()
	for {
		select {
		case up := <-out:
			return up.n, up.err
		case <-again.C:
			at, wait := s.now()
			s.log.Info("still starting", "at", at, "for", wait)
			continue
		case <-ctx.Done():
		}
		at, wait := s.now()
		grace := time.NewTimer(startGrace)
		defer grace.Stop()
		select {
		case up := <-out:
			if up.n != nil {
				return up.n, nil // it is up: it stops in good order
			}
			s.log.Info("told to stop before the start was done", "at", at, "for", wait, "err", up.err)
		case <-grace.C:
			s.log.Warn("told to stop before the start was done: the process ends as if it had been killed; nothing is lost", "at", at, "for", wait)
		}
		return nil, nil
	}
}

// startNode brings a node up; if it cannot, nothing of it is left.
func startNode(ctx context.Context, cfg Config, s *stages) (n *node, err error) {
	if err := checkFree(cfg.Data); err != nil { // a node that runs here holds the ports as well; this says it best
		return nil, err
	}
	if err := checkOutside(cfg.Data); err != nil {
		return nil, err
	}
	if cfg.API != "" { // before anything is made on disk
		s.enter("taking the address of the API, " + cfg.API)
		if err := checkAPI(ctx, cfg.API); err != nil {
			return nil, err
		}
	}
	s.enter("opening the data directory " + cfg.Data)
	data, err := openDataDir(cfg.Data)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n, err = nil, errors.Join(err, data.Close())
		}
	}()
	if err := roomToStart(data.path); err != nil {
		return nil, err
	}
	s.enter("taking the port, " + cfg.Listen)
	listener, advertise, err := listen(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.enter("reading this node's identity")
	if cfg.Join != "" {
		s.enter("joining the cluster: waiting for a node that the token names")
	}
	b, err := begin(ctx, cfg, advertise, data)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	n = &node{
		cfg: cfg, advertise: advertise, data: data, id: b.id, self: b.id.Node(),
		log:    cfg.Log.With("node", b.id.Name()),
		ctl:    newControlPlane(),
		hints:  newHints(data.sub(hintFile), b.hint),
		sealed: map[uint64]seal{}, estranged: map[[2]uint64]time.Time{}, superseded: make(chan replica.Line, 1),
		holdings: map[uint64]*holding{}, suspects: map[uint64]suspicion{}, fault: make(chan error, 1), quit: make(chan departure, 1),
		watch: newWatch(), served: make(chan error, 1),
	}
	n.marked = uint64(b.id.Level())
	n.level.Store(n.marked)
	n.ctl.explain = func(ctx context.Context, err error) error {
		return n.noRoom(ctx, "control", "control group", control.ControlGroup, err)
	}
	if err := n.bringUp(ctx, listener, b.init, s); err != nil {
		return nil, errors.Join(err, n.tidyUp())
	}
	return n, nil
}

// bringUp opens what the node consists of, one on top of the other; n.tidy has what is to be done about it in the end.
func (n *node) bringUp(ctx context.Context, listener net.Listener, init *control.Init, s *stages) (err error) {
	if err := n.openStores(s); err != nil {
		return errors.Join(err, listener.Close())
	}
	s.enter("writing " + lifeFile)
	if n.life, err = openLife(n.data, rand.Uint64()); err != nil {
		return errors.Join(startError(n.data.path, err), listener.Close())
	}
	if err := n.openTransport(listener); err != nil {
		return err
	}
	n.eng = engine.Open(engine.Config{
		Node: n.self, Cluster: n.id.Cluster(), Logs: n.logs, State: n.state, Transport: n.net, Now: time.Now, Seed: rand.Uint64(), SnapshotRate: n.cfg.SnapshotRate,
		Log: n.log, Fault: n.failed, Forked: n.forked, Troubled: n.troubled, Room: n.disk, Knows: api.Level, Level: n.level.Load, Reached: n.reached,
	})
	n.tidy.add(func() error { n.eng.Close(); return nil })
	n.registerServices()

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var tasks sync.WaitGroup
	n.tidy.add(func() error { stop(); tasks.Wait(); return nil })
	tasks.Go(func() { n.served <- n.net.Serve(running) })

	s.enter("taking the control group up")
	if role, _, _ := n.hints.seat(); role == "" {
		s.enter("waiting for a node of the cluster to say what part this one has in the control group")
	}
	if err := n.openControl(ctx, init); err != nil {
		return n.reasonToQuit(err)
	}
	n.tidy.add(func() error { n.closeControl(); return nil })
	n.tidy.add(func() error { n.closeHoldings(); return nil })
	tasks.Go(func() { n.introduce(running, init) })
	tasks.Go(func() { n.followControl(running) })
	tasks.Go(func() { n.followForks(running) })
	tasks.Go(func() { n.driveMemberships(running) })
	tasks.Go(func() { n.driveInSync(running) })
	tasks.Go(func() { n.trimMemory(running) })
	tasks.Go(func() { n.live(running) })
	tasks.Go(func() { n.watchNodes(running) })
	tasks.Go(func() { n.disk.watch(running) })

	s.enter("opening the API")
	door, err := httpdoor.Open(running, httpdoor.Config{
		Node: n, Metrics: n.metrics(), Log: n.log, Socket: n.data.sub("lockstep.sock"), API: n.cfg.API,
	})
	if err != nil {
		return err
	}
	n.tidy.add(func() error { return closeDoor(door) })
	at := "off"
	if addr := door.Addr(); addr != nil {
		at = addr.String() // with the port that it got
	}
	n.log.Info("running", "cluster", n.id.Cluster().String(), "listen", n.advertise, "api", at, "data", n.data.path)
	return nil
}

func (n *node) openStores(s *stages) (err error) {
	for _, name := range []string{"log", "state"} {
		if _, err := os.Stat(n.data.sub(name)); n.hints.opened() && err != nil {
			// Its votes and acknowledgements went with it: under this identity the node could take them back.
			return damaged(n.data.sub(name), fmt.Errorf("it was there before and is gone: %w", err))
		}
	}
	n.disk = &dataDisk{dirs: []string{n.data.sub("log"), n.data.sub("state")}, statfs: statfs, now: time.Now, log: n.log, fail: n.failed}
	s.enter("reading the log in " + n.data.sub("log"))
	n.logs, err = logstore.Open(n.data.sub("log"), logstore.Options{Salt: rand.Uint64(), Owner: logOwner(n.id), Log: n.log, OnError: n.failed})
	if err != nil {
		return logError(n.data.sub("log"), n.id, err)
	}
	n.tidy.add(n.logs.Close)
	n.disk.logs = n.logs
	s.enter("opening the state store in " + n.data.sub("state"))
	s.mayLack(n.disk.lacking)
	n.state, err = kv.OpenPebble(n.data.sub("state"), kv.PebbleOptions{Log: n.log, OnError: n.failed, OnFull: n.disk.stateFull, OnDamage: n.stateDamaged})
	if err != nil {
		if ofDisk(err) {
			return storageError(n.data.sub("state"), err)
		}
		return damaged(n.data.sub("state"), err)
	}
	n.tidy.add(n.state.Close)
	n.tidy.add(n.state.Sync)
	if err := claimState(n.data.sub("state"), n.state, n.id); err != nil {
		return startError(n.data.path, err)
	}
	if err := n.loadSeals(); err != nil {
		return damaged(n.data.sub("state"), err)
	}
	return sameMoment(n.data.sub("state"), n.state, n.hints, n.self)
}

func (n *node) openTransport(l net.Listener) (err error) {
	var seed [32]byte
	crand.Read(seed[:])
	n.net, err = transport.New(transport.Config{
		Identity: n.id, Listener: l, Resolve: n.resolve, Log: n.log, Rand: rand.NewChaCha8(seed),
		OnMessages: func(from, group uint64, msgs []*raftpb.Message) { n.eng.Deliver(from, group, msgs) },
		OnPeer:     n.onPeer,
		Admit:      func(p transport.Peer) *api.Error { return n.admit(p.Node, p.Boot, p.Age, p.Address) },
		OnDenied:   n.denied,
		Boot:       n.life.boot,
		Age:        func() uint64 { return n.life.now().Age },
		Address:    n.advertise,
		Full:       n.disk.Full,
		OnFull:     n.disk.heard,
	})
	if err != nil {
		return errors.Join(err, l.Close())
	}
	n.tidy.add(n.net.Close)
	return nil
}
