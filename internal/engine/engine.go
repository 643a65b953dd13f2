// Package engine runs groups: for each, the pure core (package core), the replicated state (package replica)
// and the log (package logstore) of this node's replica, and the traffic with the group's other replicas.
//
// It is the thin shell around the core: it decides nothing about consensus, it carries effects out and reports
// what happened. It knows nothing of kinds either: a machine.Machine is given to it.
//
// Goroutines: one log writer and one clock an engine; two a group (the loop, which alone touches the core, and
// the applier, which alone touches the machine); one a snapshot or feed in progress. Close waits for all.
//
// Order of durability. An entry is synced to the log before it is acknowledged to the leader (core.Append);
// committed entries are applied to the state in order, unsynced; the log is cut only below what a later sync of
// the state has made durable. After a crash the state is a prefix and the log holds the rest.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Transport is what the engine needs of the network; *transport.Transport satisfies it.
type Transport interface {
	Send(node, group uint64, msgs []*raftpb.Message)
	Open(ctx context.Context, node uint64, service string) (net.Conn, error)
	Call(ctx context.Context, node uint64, method string, req []byte) ([]byte, error)
}

// Config of an Engine. All fields but Tick are required.
type Config struct {
	Node      uint64
	Cluster   [16]byte // members of other clusters are not served
	Logs      logstore.Store
	State     kv.Store // of the whole node; groups take prefixes
	Transport Transport
	Now       func() time.Time
	Tick      time.Duration // default 100 ms
	Seed      uint64        // of ids that must differ between incarnations of the process
	Log       *slog.Logger
	// Fault is called once when storage fails, or something is of a level above Knows. The node must stop at once: what
	// was on its way to a disk that fails is in an unknown state and a retry could lie (fsync reports an error only once).
	Fault func(error)
	// SnapshotRate bounds the bytes a second of all states that this node sends; 0: no bound.
	SnapshotRate uint64
	// Forked is called when another node says that it follows another history; it must not block. nil: nobody
	// listens.
	Forked func(Forked)
	// Troubled is called when a replica's log was found damaged (Group.Damage), or the replica has ended by itself
	// (Group.Stopped); it must not block. nil: nobody listens.
	Troubled func(group uint64)
	// Room tells of full disks. nil: there is always room.
	Room Room
	// Knows is the newest cluster level that this program knows, its machines included; 0: the first. A state or an entry
	// of a higher one is not touched: Fault is called with a replica.NewerLevelError.
	Knows uint64
	// Level is the cluster level that this node acts under, at most Knows: what is proposed here is stamped with it. nil:
	// the first.
	Level func() uint64
	// Reached is the highest level that the cluster is known to have reached. An observer takes an entry above it for
	// damage of its source, of which nothing may be concluded. nil: entries are believed. It may lag behind the cluster.
	Reached func() uint64
}

// Engine holds the groups of a node.
type Engine struct {
	cfg    Config
	writer *writer
	ids    atomic.Uint64 // handles of proposals, batches, reads
	pace   pace
	grace  grace

	mu        sync.RWMutex
	groups    map[uint64]*Group
	observers map[uint64]*Observer
	replicas  map[uint64]*replica.Replica // of groups and observers
	told      map[[2]uint64]time.Time     // (node, group) → when it was told of another history
	closed    bool

	stopping context.Context
	stop     context.CancelFunc
	tasks    sync.WaitGroup
	fault    sync.Once
}

// ErrClosed is returned by operations on a stopped group or engine.
var ErrClosed = errors.New("engine: stopped")

// Open starts an engine without groups.
func Open(cfg Config) *Engine {
	if cfg.Tick == 0 {
		cfg.Tick = 100 * time.Millisecond
	}
	e := &Engine{
		cfg: cfg, groups: map[uint64]*Group{}, observers: map[uint64]*Observer{}, replicas: map[uint64]*replica.Replica{}, told: map[[2]uint64]time.Time{},
	}
	e.pace.rate = cfg.SnapshotRate
	e.stopping, e.stop = context.WithCancel(context.Background())
	e.ids.Store(cfg.Seed &^ 0xffffffff)
	e.writer = newWriter(cfg.Logs, e.failed)
	e.tasks.Go(e.writer.run)
	e.tasks.Go(e.clock)
	return e
}

// clock ticks every group. A late tick is dropped, not caught up: time that the process did not live through
// must not count against the leader.
func (e *Engine) clock() {
	t := time.NewTicker(e.cfg.Tick)
	defer t.Stop()
	for {
		select {
		case <-e.stopping.Done():
			return
		case <-t.C:
			e.restoreGrace()
			for _, g := range e.snapshotGroups() {
				g.box.tick()
			}
		}
	}
}

func (e *Engine) snapshotGroups() []*Group {
	e.mu.RLock()
	defer e.mu.RUnlock()
	all := make([]*Group, 0, len(e.groups))
	for _, g := range e.groups {
		all = append(all, g)
	}
	return all
}

// Group returns a running group.
func (e *Engine) Group(id uint64) (*Group, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	g, ok := e.groups[id]
	return g, ok
}

// Deliver hands messages of a peer to their group; it never blocks. Messages for unknown groups are dropped:
// raft repeats what matters; those of another history are refused, and the peer is told.
func (e *Engine) Deliver(from, wire uint64, msgs []*raftpb.Message) {
	group, tag := splitWire(wire)
	g, ok := e.Group(group)
	if !ok {
		return
	}
	if line := g.Line(); !ours(tag, line.History) {
		e.tell(from, group, line)
		return
	}
	g.learnSender(from, msgs)
	g.box.receive(msgs)
}

// SnapshotBytes is how many bytes of states this node has sent, ever.
func (e *Engine) SnapshotBytes() uint64 { return e.pace.total() }

// PeerDown tells every group that a node's process is known to be gone (not merely slow).
func (e *Engine) PeerDown(node uint64) {
	for _, g := range e.snapshotGroups() {
		g.peerDown(node)
	}
}

// StopGroup stops a group and, with forget, removes its log and state durably.
func (e *Engine) StopGroup(id uint64, forget bool) error {
	e.mu.Lock()
	g, ok := e.groups[id]
	delete(e.groups, id)
	e.mu.Unlock()
	if ok {
		g.close()
		e.unregister(id, g.rep)
	}
	if !forget {
		return nil
	}
	if err := e.writer.do(func(s logstore.Store) error { return s.Remove(id) }); err != nil {
		return fmt.Errorf("engine: remove the log of group %d: %w", id, err)
	}
	prefix := groupPrefix(id)
	b := e.cfg.State.Batch()
	defer b.Discard()
	if err := b.DeleteRange(prefix, prefixEnd(prefix)); err != nil {
		return fmt.Errorf("engine: remove the state of group %d: %w", id, err)
	}
	return b.Commit()
}

// Recast prepares what a stopped replica left for one of another role and another id: the log, which holds the votes
// of the old id, goes; the state stays (see replica.Recast). It may be repeated after a crash until the new replica
// was started, never after.
func (e *Engine) Recast(id uint64, votes bool) error {
	if _, runs := e.Group(id); runs {
		return fmt.Errorf("engine: recast group %d: it runs", id)
	}
	if err := replica.Recast(kv.Prefixed(e.cfg.State, groupPrefix(id)), votes); err != nil {
		return fmt.Errorf("engine: group %d: %w", id, err)
	}
	if err := e.writer.do(func(s logstore.Store) error { return s.Remove(id) }); err != nil {
		return fmt.Errorf("engine: remove the log of group %d: %w", id, err)
	}
	return nil
}

// HandOver moves leadership of every group led here to another replica, as far as ctx allows.
func (e *Engine) HandOver(ctx context.Context) {
	var wait sync.WaitGroup
	for _, g := range e.snapshotGroups() {
		wait.Go(func() { g.HandOver(ctx) })
	}
	wait.Wait()
}

// Close stops all groups and waits for every goroutine. Leadership is given up beforehand by HandOver.
func (e *Engine) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	groups := e.groups
	e.groups = map[uint64]*Group{}
	e.mu.Unlock()
	for _, g := range groups {
		g.close()
	}
	e.stop()
	e.writer.close()
	e.tasks.Wait()
}

func (e *Engine) failed(err error) {
	e.fault.Do(func() { e.cfg.Fault(err) })
}

// limits of a replica that runs here.
func (e *Engine) limits() replica.Limits {
	l := replica.DefaultLimits()
	l.Level = e.cfg.Knows
	return l
}

func (e *Engine) level() uint64 {
	if e.cfg.Level == nil {
		return core.FirstLevel
	}
	return e.cfg.Level()
}

// unknown ends the node if err is about a level that this program does not know: it would meet it again and again.
func (e *Engine) unknown(err error) {
	if newer := (*replica.NewerLevelError)(nil); errors.As(err, &newer) {
		e.failed(err)
	}
}

func groupPrefix(id uint64) []byte { return fmt.Appendf(nil, "g/%016x/", id) }

// prefixEnd is the smallest key above all that start with p (which ends in a byte below 0xff).
func prefixEnd(p []byte) []byte {
	end := append([]byte(nil), p...)
	end[len(end)-1]++
	return end
}
