package server

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// patience tells who waits for several nodes how far that is: whenever one is done, and every second, so that a wait
// for one that is down says so. All methods may be called from any goroutine.
type patience struct {
	what string             // "waiting"
	tell func(api.Progress) // nil: nobody listens
	stop chan struct{}
	told sync.WaitGroup

	mu    sync.Mutex
	left  []string // nodes, in the members' order
	total int      // of those, so many are enough
	done  int
}

// patienceEvery is the pause between two words about a wait in which nothing happens.
const patienceEvery = time.Second

// newPatience begins a wait for total of the nodes. Nothing is told any more once end has returned.
func newPatience(what string, nodes []string, total int, tell func(api.Progress)) *patience {
	p := &patience{what: what, tell: tell, stop: make(chan struct{}), left: slices.Clone(nodes), total: total}
	if tell == nil {
		return p
	}
	p.told.Go(func() {
		t := time.NewTicker(patienceEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				p.say()
			case <-p.stop:
				return
			}
		}
	})
	return p
}

// reached takes a node off the list and returns how many are done.
func (p *patience) reached(node string) int {
	p.mu.Lock()
	p.done++
	if i := slices.Index(p.left, node); i >= 0 {
		p.left = slices.Delete(p.left, i, i+1)
	}
	done := p.done
	p.mu.Unlock()
	if p.tell != nil {
		p.say()
	}
	return done
}

func (p *patience) say() {
	p.mu.Lock()
	defer p.mu.Unlock() // also while it is told: one after the other
	at := api.Progress{What: p.what, Done: uint64(min(p.done, p.total)), Total: uint64(p.total), Unit: "nodes"}
	if len(p.left) > 0 && p.done < p.total {
		at.What += " for " + strings.Join(p.left, ", ")
	}
	p.tell(at)
}

// end waits until nothing is told any more.
func (p *patience) end() {
	close(p.stop)
	p.told.Wait()
}
