package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

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
	Members Members // the voters: for reads, and to be fed by when no other source can
	// Sources are the nodes to be fed by, the best first: an upstream and fallbacks. nil: the voters alone. It is asked
	// again whenever the observer looks for a source; Reconsider makes it look.
	Sources func() []uint64
	// FollowForks: a source of another history is believed. Else its state is refused until the owner has brought
	// the replica to that history (Engine.Rebase).
	FollowForks bool
	// TailBytes of applied entries are kept in memory for those that are fed from here; default 16 MiB.
	TailBytes int
}

// Observer follows a group from a feed: it keeps the replicated state but no log, and holds committed entries only.
// It feeds others in turn, from what it remembers of the entries. Two goroutines: the worker, which alone touches the
// machine, and the follower, which finds a source and stays with it.
type Observer struct {
	cfg  ObserverConfig
	eng  *Engine
	rep  *replica.Replica
	lg   *slog.Logger
	jobs *applyQueue
	src  *source
	tail *Tail

	moved   *signal // applied or path have changed
	reign   *reign  // by the terms of the entries that were applied
	look    chan struct{}
	catchup catchupLog
	book    *digestBook
	alarm   atomic.Pointer[string]
	route   atomic.Pointer[[]uint64] // own path to the voters, itself first; empty: cut off
	latest  atomic.Pointer[news]     // the newest news of a source
	logged  string                   // of the follower: the last failure that was logged

	stopping context.Context
	stop     context.CancelFunc
	tasks    sync.WaitGroup
}

// defaultTail is ObserverConfig.TailBytes if that is 0.
const defaultTail = 16 << 20

// Observe starts an observer.
func (e *Engine) Observe(cfg ObserverConfig) (*Observer, error) {
	if cfg.TailBytes == 0 {
		cfg.TailBytes = defaultTail
	}
	rep, err := replica.OpenLimited(kv.Prefixed(e.cfg.State, groupPrefix(cfg.ID)), cfg.Machine, e.limits())
	if err != nil {
		return nil, fmt.Errorf("engine: observe group %d: %w", cfg.ID, err)
	}
	o := &Observer{
		cfg: cfg, eng: e, rep: rep, jobs: newApplyQueue(), tail: NewTail(cfg.TailBytes, rep.Applied()),
		moved: newSignal(), reign: newReign(), look: make(chan struct{}, 1), book: newDigestBook(rep),
		lg: e.cfg.Log.With("group", cfg.ID, "role", "observer"),
	}
	rep.Watch(replica.Hooks{
		Marked: func(m replica.Mark) { o.book.marked(m, o.tasks.Go, func() { o.jobs.call(o.compare) }) },
		Judged: func(v replica.Verdict) { o.book.judged(v); o.compare() },
	})
	if cfg.FollowForks {
		rep.FollowForks()
	}
	o.route.Store(&[]uint64{})
	o.latest.Store(&news{applied: rep.Applied().Index, commit: rep.Applied().Index})
	o.stopping, o.stop = context.WithCancel(context.Background())
	o.src = &source{
		eng: e, group: cfg.ID, lg: o.lg, rep: rep, log: o.tail, differ: cfg.Differ, moved: o.moved,
		pins: &pinSet{}, between: o.between, path: o.path, news: o.news, stopping: o.stopping,
	}
	o.catchup.start(rep.Applied().Index)
	if err := e.enterObserver(o); err != nil {
		return nil, err
	}
	o.tasks.Go(o.worker)
	o.tasks.Go(o.follow)
	return o, nil
}

func (e *Engine) enterObserver(o *Observer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, runs := e.groups[o.cfg.ID]
	if _, too := e.observers[o.cfg.ID]; runs || too {
		return fmt.Errorf("engine: group %d runs already", o.cfg.ID)
	}
	e.observers[o.cfg.ID] = o
	e.replicas[o.cfg.ID] = o.rep
	return nil
}

// Close stops following and waits. Who is fed from here is sent away.
func (o *Observer) Close() {
	o.eng.mu.Lock()
	if o.eng.observers[o.cfg.ID] == o {
		delete(o.eng.observers, o.cfg.ID)
	}
	o.eng.mu.Unlock()
	o.stop()
	o.src.cutAll()
	o.jobs.close()
	o.tasks.Wait()
	o.eng.unregister(o.cfg.ID, o.rep)
	o.reign.over()
	o.moved.broadcast()
}

// worker runs what touches the machine, one after the other.
func (o *Observer) worker() {
	defer close(o.jobs.done)
	for range o.jobs.wake {
		jobs, ended := o.jobs.take()
		for _, j := range jobs {
			j.call()
		}
		if ended {
			return
		}
	}
}

// between runs f on the worker, between two batches (see applyQueue.run).
func (o *Observer) between(f func() error) error { return o.jobs.run(f) }

// apply executes entries that follow the state; what the state covers already is left out. For the worker.
func (o *Observer) apply(entries []*raftpb.Entry) error {
	for {
		n := o.eng.credible(entries, o.rep.Level())
		if n == len(entries) {
			return o.execute(entries)
		}
		if n == 0 {
			return fmt.Errorf("engine: entry %d of the feed is of a level that the cluster has not reached: %w", entries[0].GetIndex(), replica.ErrDamaged)
		}
		if err := o.execute(entries[:n]); err != nil { // which may tell of the next level, in the control group
			return err
		}
		entries = entries[n:]
	}
}

// credible is how many of entries, from the first on, are of levels that the cluster has reached, or the group itself,
// which is at level. What cannot be read is for those to judge who execute it.
func (e *Engine) credible(entries []*raftpb.Entry, level uint64) int {
	if e.cfg.Reached == nil {
		return len(entries)
	}
	reached := max(level, e.cfg.Reached())
	for i, entry := range entries {
		if entry.GetType() != raftpb.EntryNormal || len(entry.GetData()) == 0 {
			continue
		}
		if level, err := core.BatchLevel(entry.GetData()); err == nil && level > reached {
			return i
		}
	}
	return len(entries)
}

func (o *Observer) execute(entries []*raftpb.Entry) error {
	applied := o.rep.Applied().Index
	for len(entries) > 0 && entries[0].GetIndex() <= applied {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		return nil
	}
	if entries[0].GetIndex() != applied+1 {
		return fmt.Errorf("engine: the feed jumps from %d to %d", applied, entries[0].GetIndex())
	}
	if _, err := o.rep.Apply(entries, nil); err != nil {
		if !errors.Is(err, replica.ErrDamaged) {
			o.eng.failed(err)
		} else if bad := o.rep.Reload(); bad != nil { // garbage of the source: the state is as it was, memory may not be
			o.eng.failed(bad)
		}
		return err
	}
	o.tail.Append(entries, o.src.lacking(o.rep.Applied().Index+1))
	o.reign.begins(o.rep.Applied().Term)
	o.moved.broadcast()
	if o.rep.Quarantine() != nil {
		return ErrQuarantined
	}
	return nil
}

// Reconsider makes the observer look whether it is fed by the best of its sources; to be called when they change.
func (o *Observer) Reconsider() {
	select {
	case o.look <- struct{}{}:
	default:
	}
}

// candidates are the nodes to be fed by, in the order in which they are asked; lost is the source that was lost last.
func (o *Observer) candidates(lost uint64) []uint64 {
	var assigned []uint64
	if o.cfg.Sources != nil {
		assigned = o.cfg.Sources()
	}
	return catchup.Candidates(o.eng.cfg.Node, lost, assigned, o.cfg.Members.Voters())
}

func (o *Observer) path() []uint64 { return *o.route.Load() }

// setPath takes the path of the upstream; empty: there is none.
func (o *Observer) setPath(upstream []uint64) {
	var own []uint64
	if len(upstream) > 0 {
		own = append([]uint64{o.eng.cfg.Node}, upstream...)
	}
	if !slices.Equal(own, o.path()) {
		o.route.Store(&own)
		o.catchup.set(func(l *Catchup) { l.Hops = max(0, len(own)-1) })
		o.moved.broadcast()
	}
}

func (o *Observer) news() news {
	n := *o.latest.Load()
	n.applied = o.rep.Applied().Index
	n.commit = max(n.commit, n.applied)
	return n
}

// Catchup says how this observer is fed.
func (o *Observer) Catchup() Catchup {
	c := o.catchup.get()
	c.Feeds = o.src.count()
	return c
}

// Applied is the position that the state covers.
func (o *Observer) Applied() core.Position { return o.rep.Applied() }

// View returns the machine's state at one point in time; the caller closes it.
func (o *Observer) View() kv.View { return o.rep.View() }

// digestPatience is how long Digest waits for its turn: a state may be on its way.
const digestPatience = 3 * time.Second

// Digest of the machine's state and the position that it is of; an error while another state is being installed.
func (o *Observer) Digest() (d machine.Digest, at core.Position, err error) {
	type answer struct {
		d   machine.Digest
		at  core.Position
		err error
	}
	reply := make(chan answer, 1)
	if !o.jobs.call(func() {
		d, err := o.rep.Digest()
		reply <- answer{d, o.rep.Applied(), err}
	}) {
		return d, at, ErrClosed
	}
	patience := time.NewTimer(digestPatience)
	defer patience.Stop()
	select {
	case a := <-reply:
		return a.d, a.at, a.err
	case <-patience.C:
		return d, at, fmt.Errorf("engine: group %d: its state is being replaced", o.cfg.ID)
	case <-o.stopping.Done():
		return d, at, ErrClosed
	}
}

// askPatience is how long a voter may take to answer a read before the next one is asked; as much longer with each round as
// all may be slow.
const askPatience = time.Second

// Barrier returns an index that covers everything committed before the call, once the local state does. ErrQuarantined:
// the local state is not what the others have.
func (o *Observer) Barrier(ctx context.Context) (uint64, error) {
	var pause backoff
	for try := 0; ; try++ {
		if voters := o.cfg.Members.Voters(); len(voters) > 0 {
			index, err := o.eng.readAt(ctx, voters[try%len(voters)], wireGroup(o.cfg.ID, o.rep.Line().History), askPatience*time.Duration(1+try/len(voters)))
			if err == nil {
				return o.answerRead(ctx, index)
			}
		}
		pause.wait(ctx, nil)
		if ctx.Err() != nil {
			return 0, fmt.Errorf("engine: group %d: no linearizable read: %w", o.cfg.ID, ctx.Err())
		}
	}
}

// answerRead waits until the state covers index, and looks then whether it is to be trusted.
func (o *Observer) answerRead(ctx context.Context, index uint64) (uint64, error) {
	if err := o.WaitApplied(ctx, index); err != nil {
		return 0, err
	}
	if o.rep.Quarantine() != nil {
		return 0, ErrQuarantined
	}
	return index, nil
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

// SourceApplied is the highest index that is known to be committed.
func (o *Observer) SourceApplied() uint64 { return o.news().commit }
