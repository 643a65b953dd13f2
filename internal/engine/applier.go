package engine

import (
	"errors"
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// applyQueue holds committed batches for the applier, in order. Raft bounds it: at most
// MaxCommittedSizePerReady bytes are handed out and not yet applied.
type applyQueue struct {
	mu    sync.Mutex
	jobs  []applyJob
	ended bool
	wake  chan struct{}
	done  chan struct{} // closed when its goroutine has ended: what is still in the queue will not be done
}

type applyJob struct {
	apply *core.Apply
	call  func() // runs between batches, on the applier
}

func newApplyQueue() *applyQueue {
	return &applyQueue{wake: make(chan struct{}, 1), done: make(chan struct{})}
}

func (q *applyQueue) push(a *core.Apply) { q.add(applyJob{apply: a}) }

// call runs f on the applier between two batches; false if it has ended.
func (q *applyQueue) call(f func()) bool { return q.add(applyJob{call: f}) }

// run has f run between two batches and returns when it has, or when it never will: ErrClosed. So what f writes to is the
// caller's again, and what f has opened is known to it, even while the replica is being closed.
func (q *applyQueue) run(f func() error) error {
	result := make(chan error, 1)
	if !q.call(func() { result <- f() }) {
		return ErrClosed
	}
	select {
	case err := <-result:
		return err
	case <-q.done:
	}
	select {
	case err := <-result:
		return err
	default:
		return ErrClosed
	}
}

func (q *applyQueue) add(j applyJob) bool {
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		return false
	}
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	q.nudge()
	return true
}

func (q *applyQueue) close() {
	q.mu.Lock()
	q.ended = true
	q.mu.Unlock()
	q.nudge()
}

func (q *applyQueue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *applyQueue) take() (jobs []applyJob, ended bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs, q.jobs = q.jobs, nil
	return jobs, q.ended
}

// applier is the only goroutine that touches the machine.
func (g *Group) applier() {
	defer close(g.jobs.done)
	for range g.jobs.wake {
		jobs, ended := g.jobs.take()
		for _, j := range jobs {
			if j.call != nil {
				j.call()
				continue
			}
			err := g.apply(j.apply)
			if errors.Is(err, replica.ErrInterrupted) {
				return // the loop has ended: the group is being closed, the entry is applied at the next start
			}
			if err != nil {
				g.eng.failed(err)
				return
			}
		}
		if ended {
			return
		}
	}
}

func (g *Group) apply(a *core.Apply) error {
	results, err := g.rep.Apply(a.Entries, g.applyConf)
	if err != nil {
		return err
	}
	g.catchup.reached(g.rep.Applied().Index)
	g.box.applied(appliedBatch{a, results})
	g.moved.broadcast()
	return nil
}

// applyConf has the loop change the core's configuration; the applier waits because the new configuration
// belongs into the same state batch as the entry. The loop never waits for the applier, so this ends.
func (g *Group) applyConf(e *raftpb.Entry) *raftpb.ConfState {
	if e.GetIndex() <= g.rep.Line().Start {
		return g.rep.ConfState() // of the time before a fork: void (F3)
	}
	reply := make(chan *raftpb.ConfState, 1)
	if !g.box.call(func() {
		cs, err := g.core.ApplyConf(e)
		if err != nil {
			g.eng.failed(err)
		}
		reply <- cs
	}) {
		return nil
	}
	select {
	case cs := <-reply:
		return cs
	case <-g.ended:
		return nil
	}
}
