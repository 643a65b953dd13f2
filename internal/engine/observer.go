package engine

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// ObserverConfig describes a member that follows a group without voting.
type ObserverConfig struct {
	ID      uint64
	Machine machine.Machine
	Differ  Differ  // optional, as in GroupConfig
	Members Members // the sources to choose from
	// FollowForks: a source of another history is believed. Else its state is refused until the owner has brought
	// the replica to that history (Engine.Rebase).
	FollowForks bool
}

// Observer follows a group from a feed: it keeps the replicated state but no log, and holds committed entries
// only. One goroutine, which alone touches the machine.
type Observer struct {
	cfg ObserverConfig
	eng *Engine
	rep *replica.Replica
	lg  *slog.Logger

	moved   *signal
	catchup catchupLog
	commit  atomic.Uint64 // what the source had applied when it last spoke
	heard   atomic.Int64  // when, Unix ns of this node
	source  atomic.Uint64 // node
	digests chan chan digestAnswer

	stopping context.Context
	stop     context.CancelFunc
	tasks    sync.WaitGroup
}

type digestAnswer struct {
	digest machine.Digest
	at     core.Position
	err    error
}

// Observe starts an observer.
func (e *Engine) Observe(cfg ObserverConfig) (*Observer, error) {
	rep, err := replica.Open(kv.Prefixed(e.cfg.State, groupPrefix(cfg.ID)), cfg.Machine)
	if err != nil {
		return nil, fmt.Errorf("engine: observe group %d: %w", cfg.ID, err)
	}
	o := &Observer{
		cfg: cfg, eng: e, rep: rep, moved: newSignal(), digests: make(chan chan digestAnswer),
		lg: e.cfg.Log.With("group", cfg.ID, "role", "observer"),
	}
	if cfg.FollowForks {
		rep.FollowForks()
	}
	e.register(cfg.ID, rep)
	o.catchup.start(rep.Applied().Index)
	o.stopping, o.stop = context.WithCancel(context.Background())
	o.tasks.Go(o.run)
	return o, nil
}

// Close stops following and waits.
func (o *Observer) Close() {
	o.stop()
	o.tasks.Wait()
	o.eng.unregister(o.cfg.ID, o.rep)
	o.moved.broadcast()
}

// run attaches to one source after the other for as long as the observer lives.
func (o *Observer) run() {
	var pause backoff
	for try := 0; o.stopping.Err() == nil; try++ {
		voters := o.cfg.Members.Voters()
		if len(voters) > 0 {
			source := voters[try%len(voters)]
			before := o.rep.Applied().Index
			err := o.follow(source)
			if o.stopping.Err() != nil {
				return
			}
			o.lg.Info("feed ended", "source", source, "err", err)
			if o.rep.Applied().Index > before {
				pause = backoff{}
			}
		}
		pause.wait(o.stopping, nil)
	}
}

// follow stays with one source until the feed breaks.
func (o *Observer) follow(source uint64) error {
	conn, err := o.eng.cfg.Transport.Open(o.stopping, source, ServiceFeed)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(o.stopping, func() { conn.Close() })
	defer stop()
	at := o.rep.Applied()
	err = writeJSON(conn, hello{Group: o.cfg.ID, Cluster: o.eng.cfg.Cluster, Line: o.rep.Line(), Index: at.Index, Term: at.Term})
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(conn, 256<<10)
	if err := conn.SetReadDeadline(time.Now().Add(feedDeadline)); err != nil {
		return err
	}
	var plan catchup.Plan
	if err := readJSON(in, &plan); err != nil {
		return err
	}
	o.source.Store(source)
	switch plan.Mode {
	case catchup.Diff:
		o.catchup.begin(modeDiff, plan.Why)
	case catchup.Snap, catchup.Diverged:
		o.catchup.begin(modeSnap, plan.Why)
		return o.pull(source)
	default:
		return fmt.Errorf("%s (%s): %s", plan.Mode, plan.Rule, plan.Why)
	}
	frames := make(chan []byte, 4)
	broken := make(chan error, 1)
	left := make(chan struct{})
	defer close(left)
	o.tasks.Go(func() { broken <- readFeed(conn, in, frames, left) })
	return o.applyFeed(conn, frames, broken)
}

// applyFeed applies entries in order, and answers digests between two frames.
func (o *Observer) applyFeed(conn deadlineWriter, frames <-chan []byte, broken <-chan error) error {
	for {
		select {
		case body := <-frames:
			if err := o.apply(conn, body); err != nil {
				return err
			}
		case reply := <-o.digests:
			d, err := o.rep.Digest()
			reply <- digestAnswer{d, o.rep.Applied(), err}
		case err := <-broken:
			return err
		case <-o.stopping.Done():
			return ErrClosed
		}
	}
}

func (o *Observer) apply(conn deadlineWriter, body []byte) error {
	commit, _, entries, err := decodeEntries(body)
	if err != nil {
		return err
	}
	o.commit.Store(commit)
	o.heard.Store(o.eng.cfg.Now().UnixNano())
	applied := o.rep.Applied().Index
	for len(entries) > 0 && entries[0].GetIndex() <= applied {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return nil
	}
	if entries[0].GetIndex() != applied+1 {
		return fmt.Errorf("engine: feed jumps from %d to %d", applied, entries[0].GetIndex())
	}
	if _, err := o.rep.Apply(entries, nil); err != nil {
		o.eng.failed(err)
		return err
	}
	o.catchup.applied(entries)
	o.moved.broadcast()
	if err := conn.SetWriteDeadline(time.Now().Add(feedDeadline)); err != nil {
		return err
	}
	return writeFrame(conn, frameAck, binary.BigEndian.AppendUint64(nil, o.rep.Applied().Index))
}

func (o *Observer) pull(source uint64) error {
	conn, err := o.eng.cfg.Transport.Open(o.stopping, source, ServiceSnapshot)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(o.stopping, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, o.cfg.ID)); err != nil {
		return err
	}
	if err := restoreFrom(o.rep, o.cfg.Differ, conn); err != nil {
		return fmt.Errorf("install the snapshot of node %d: %w", source, err)
	}
	o.moved.broadcast()
	return nil
}

// Applied is the position that the state covers.
func (o *Observer) Applied() core.Position { return o.rep.Applied() }

// View returns the machine's state at one point in time; the caller closes it.
func (o *Observer) View() kv.View { return o.rep.View() }

// Digest of the machine's state and the position that it is of; an error while no source is attached.
func (o *Observer) Digest() (machine.Digest, core.Position, error) {
	reply := make(chan digestAnswer, 1)
	select {
	case o.digests <- reply:
		a := <-reply
		return a.digest, a.at, a.err
	case <-time.After(feedDeadline):
		return machine.Digest{}, core.Position{}, fmt.Errorf("engine: group %d: no source attached", o.cfg.ID)
	case <-o.stopping.Done():
		return machine.Digest{}, core.Position{}, ErrClosed
	}
}

// Barrier returns an index that covers everything committed before the call, once the local state does.
func (o *Observer) Barrier(ctx context.Context) (uint64, error) {
	var pause backoff
	for try := 0; ; try++ {
		if voters := o.cfg.Members.Voters(); len(voters) > 0 {
			reply, err := o.ask(ctx, voters[try%len(voters)])
			if err == nil && len(reply) == 8 {
				index := binary.BigEndian.Uint64(reply)
				return index, o.WaitApplied(ctx, index)
			}
		}
		pause.wait(ctx, nil)
		if ctx.Err() != nil {
			return 0, fmt.Errorf("engine: group %d: no linearizable read: %w", o.cfg.ID, ctx.Err())
		}
	}
}

// ask asks one voter for an index that covers what is committed now.
func (o *Observer) ask(ctx context.Context, voter uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, feedDeadline)
	defer cancel()
	return o.eng.cfg.Transport.Call(ctx, voter, MethodRead, binary.BigEndian.AppendUint64(nil, wireGroup(o.cfg.ID, o.rep.Line().History)))
}

// WaitApplied returns once the state covers index.
func (o *Observer) WaitApplied(ctx context.Context, index uint64) error {
	for {
		moved := o.moved.wait()
		if o.rep.Applied().Index >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-o.stopping.Done():
			return ErrClosed
		}
	}
}

// SourceApplied is what the source had applied when it last spoke.
func (o *Observer) SourceApplied() uint64 { return o.commit.Load() }
