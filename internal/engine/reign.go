package engine

import (
	"context"
	"sync"
)

// reign ends a context when somebody else is found to lead: who waits for an answer of the one before need not wait
// until the network gives it up. A leader that cannot answer, or cannot be asked, looks alive for seconds.
type reign struct {
	mu  sync.Mutex
	who uint64 // a replica, or a term: whatever tells one reign from the next
	ctx context.Context
	end context.CancelFunc
}

func newReign() *reign {
	r := &reign{}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// context ends with the present reign.
func (r *reign) context() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ctx
}

// begins notes whose reign it is; that nobody leads (0) ends none.
func (r *reign) begins(who uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if who == 0 || who == r.who {
		return
	}
	r.end()
	r.who = who
	r.ctx, r.end = context.WithCancel(context.Background())
}

// over ends the last one; its owner has stopped.
func (r *reign) over() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end()
}

// reignOver is the context of the reign that this node knows of in a group: a voter hears of leaders, an observer sees a
// new term in the entries that it is fed.
func (e *Engine) reignOver(group uint64) context.Context {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if g, ok := e.groups[group]; ok {
		return g.reign.context()
	}
	if o, ok := e.observers[group]; ok {
		return o.reign.context()
	}
	return e.stopping
}
