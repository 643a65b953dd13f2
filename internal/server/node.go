package server

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	httpdoor "github.com/lockstep-sync/lockstep/internal/door/http"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/engine/transport"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// node is a running node.
type node struct {
	cfg       Config
	advertise string
	log       *slog.Logger
	data      *dataDir
	id        *access.Identity
	self      uint64

	logs  logstore.Store
	state kv.Store
	net   *transport.Transport
	eng   *engine.Engine
	ctl   *controlPlane
	hints *hints
	life  *life
	level atomic.Uint64 // that the node acts under, see level.go
	watch *watch
	disk  *dataDisk

	stateHurt atomic.Pointer[stateDamage] // nil: nothing was found wrong with the state store

	taking sync.Mutex // held by who starts or stops this node's part of a group of files; before mu

	mu         sync.Mutex
	holdings   map[uint64]*holding  // by group
	suspects   map[uint64]suspicion // groups whose log is damaged, by id
	closing    bool
	marked     uint64                  // level that the data directory says
	sealed     map[uint64]seal         // groups that must not run now, by id
	estranged  map[[2]uint64]time.Time // (group, node) → when it was last heard of on another history
	superseded chan replica.Line       // of the control group, at another node
	uploads    arriving

	fault  chan error     // a storage failure: the node stops at once
	quit   chan departure // the cluster does not want this node, or its program is too old: it stops in good order
	served chan error     // the port is no longer listened on

	tidy cleanup // what an end has to put in order
}

// checkAPI refuses an address that the door would refuse later, when the node has made itself at home.
func checkAPI(ctx context.Context, address string) error {
	if err := httpdoor.CheckAPIAddress(address); err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return &api.Error{Code: api.CodeUnavailable, Op: "serve", Subject: address, Why: "the port is in use",
			Hint: "another lockstep may run here already; choose another address with --api, or --api off"}
	}
	if err != nil {
		return &api.Error{Code: api.CodeFailed, Op: "serve", Subject: address, Why: err.Error(),
			Hint: "choose another address with --api, or --api off"}
	}
	return l.Close()
}

// listen takes the port for other nodes and says under which address they will find it.
func listen(ctx context.Context, cfg Config) (net.Listener, string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, "", &api.Error{Code: api.CodeUnavailable, Op: "serve", Subject: cfg.Listen, Why: "the port is in use",
			Hint: "another lockstep may run here already; choose another port with --listen"}
	}
	if err != nil {
		return nil, "", &api.Error{Code: api.CodeFailed, Op: "serve", Subject: cfg.Listen, Why: err.Error(),
			Hint: "give an address of this machine with --listen HOST:PORT"}
	}
	if cfg.Advertise != "" {
		return l, cfg.Advertise, nil
	}
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, "", errors.Join(err, l.Close())
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return nil, "", errors.Join(err, l.Close())
		}
	}
	return l, net.JoinHostPort(host, port), nil
}

// stopPatience bounds the hand-over of leadership and the goodbyes of a stopping node.
const stopPatience = 2 * time.Second

// serve lets the node be until ctx ends, its disk fails, or the cluster does not want it; then it puts things in order.
func (n *node) serve(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, n.tidyUp()) }()
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
		n.handOver()
		return nil
	case err := <-n.fault:
		if e := n.newerLevel(err); e != nil {
			n.log.Error("stopping: the cluster is beyond what this program knows", "err", e)
			n.handOver()
			return e
		}
		n.tidy.steps = nil // nothing more may be written; the process ends and takes everything with it
		e := storageError(n.data.path, err)
		if errors.Is(err, kv.ErrDamaged) {
			e.Code, e.Hint = api.CodeDamage, beginAnew
		}
		e.Why = "storage failed, the node stops at once so that nothing is acknowledged that is not on disk: " + e.Why
		return e
	case d := <-n.quit:
		n.log.Error("stopping: this node may not take part", "err", d.why)
		if !d.expelled {
			n.handOver()
		}
		return d.why
	case err := <-n.served:
		return err
	}
}

// tidyUp puts things in order, on every way out, unless the disk is full or becomes so meanwhile: that would take room,
// and nobody can say when there is some. The log has everything, and the process ends as if it had been killed; what
// waits for room ends with it.
func (n *node) tidyUp() error {
	tidy := n.tidy
	if len(tidy.steps) == 0 {
		return nil // and there may be no disk to ask
	}
	done := make(chan error, 1)
	again := time.NewTicker(diskEvery)
	defer again.Stop()
	full := n.disk.Full()
	if !full {
		go func() { done <- tidy.run() }()
	}
	for !full {
		select {
		case err := <-done:
			return err
		case <-again.C:
			full = n.disk.Full()
		}
	}
	n.log.Warn("the disk is full: the process ends as if it had been killed; nothing is lost")
	return nil
}

// reasonToQuit prefers what peers said of this node, and that its program is too old, over what came of it.
func (n *node) reasonToQuit(err error) error {
	if e := n.newerLevel(err); e != nil {
		return e
	}
	select {
	case d := <-n.quit:
		return d.why
	default:
		return err
	}
}

func closeDoor(d *httpdoor.Door) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	return d.Close(ctx)
}

// handOver gives up leadership and tells the peers, so that nobody waits for a timeout.
func (n *node) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	n.eng.HandOver(ctx)
	n.net.Goodbye(ctx)
}

func (n *node) failed(err error) {
	select {
	case n.fault <- err:
	default:
	}
}

func damaged(subject string, err error) error {
	return &api.Error{Code: api.CodeDamage, Op: "serve", Subject: subject, Why: err.Error(),
		Hint: "this node's copy cannot be trusted; move the data directory away and join again with --join TOKEN --replace"}
}

// logError tells a log that is not what was acknowledged from one that cannot be used as things are.
func logError(subject string, id *access.Identity, err error) error {
	var foreign *logstore.ForeignError
	if errors.As(err, &foreign) {
		return notOurs(subject, owner{foreign.Is.Node, access.ClusterID(foreign.Is.Cluster).String()}, id)
	}
	if errors.Is(err, logstore.ErrDamaged) {
		return damaged(subject, err)
	}
	if ofDisk(err) {
		return storageError(subject, err)
	}
	return &api.Error{Code: api.CodeFailed, Op: "serve", Subject: subject, Why: err.Error(),
		Hint: "nothing was changed; start the version of lockstep that wrote it, or see to the disk"}
}

// onPeer turns the transport's observations into what the engine acts on: only certainty that a process is gone
// makes a follower give up its leader early.
func (n *node) onPeer(node uint64, up bool, why transport.Why) {
	n.log.Info("peer", "peer", n.nameOf(node), "up", up, "why", why.String())
	if !up {
		n.disk.heard(node, false) // what it will say next is not known
	}
	if !up && (why == transport.Refused || why == transport.Reset || why == transport.Goodbye) {
		n.eng.PeerDown(node)
	}
}

// resolve finds a node's address: what it said itself, if that is news to the control group's state, else what stands
// there, else where it was last.
func (n *node) resolve(id uint64) (string, bool) {
	p, ok := n.ctl.state().Node(id)
	if ok && p.Removed {
		return "", false
	}
	var recorded control.Life
	if ok {
		recorded = p.Life
	}
	if addr, ok := n.life.address(id, recorded); ok {
		return addr, true
	}
	if ok {
		return p.Address, true
	}
	return n.hints.address(id)
}

func (n *node) nameOf(id uint64) string {
	if p, ok := n.ctl.state().Node(id); ok {
		return p.Name
	}
	return fmt.Sprint(id)
}

func (n *node) hintedPeers() []uint64 { return n.hints.nodes(n.self) }

func (n *node) registerServices() {
	n.net.Handle(engine.ServiceSnapshot, n.eng.ServeSnapshot)
	n.net.Handle(engine.ServiceFeed, n.eng.ServeFeed)
	n.net.Handle(serviceContent, n.serveContent)
	n.net.Handle(serviceBackup, n.serveBackup)
	n.net.Handle(serviceRestore, n.serveRestore)
	n.net.Handle(serviceSeal, n.serveSeal)
	n.net.HandleCalls(engine.MethodPropose, n.eng.ServePropose)
	n.net.HandleCalls(engine.MethodRead, n.eng.ServeRead)
	n.net.HandleCalls(engine.MethodDigest, n.eng.ServeDigest)
	n.net.HandleCalls(engine.MethodLine, n.eng.ServeLine)
	n.net.HandleJoin(n.serveJoin)
	n.registerCalls()
}

func (n *node) metrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(n), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return r
}

// newSessionID draws the id of an exactly-once session.
func newSessionID() (id [16]byte) {
	crand.Read(id[:])
	return id
}

// groupBytes is a group id as calls carry it.
func groupBytes(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// cleanup runs what was added last first.
type cleanup struct{ steps []func() error }

func (c *cleanup) add(f func() error) { c.steps = append(c.steps, f) }

func (c *cleanup) run() error {
	var errs []error
	for i := len(c.steps) - 1; i >= 0; i-- {
		errs = append(errs, c.steps[i]())
	}
	return errors.Join(errs...)
}
