package transport

import "sync"

// maxEvents bounds what waits for a slow OnPeer; the oldest go first, since only the latest state matters then.
const maxEvents = 4096

type event struct {
	node uint64
	up   bool
	why  Why
}

// notifier delivers events in order from one goroutine, so that who reports one may hold locks.
type notifier struct {
	deliver func(node uint64, up bool, why Why)

	mu     sync.Mutex
	queue  []event
	wake   chan struct{} // holds one
	closed bool
}

func newNotifier(deliver func(uint64, bool, Why)) *notifier {
	return &notifier{deliver: deliver, wake: make(chan struct{}, 1)}
}

func (n *notifier) add(e event) {
	n.mu.Lock()
	if len(n.queue) >= maxEvents {
		n.queue = n.queue[1:]
	}
	n.queue = append(n.queue, e)
	n.mu.Unlock()
	n.signal()
}

func (n *notifier) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// close makes run return; what waits is not delivered any more.
func (n *notifier) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.signal()
}

func (n *notifier) next() (e event, ok, closed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || len(n.queue) == 0 {
		return event{}, false, n.closed
	}
	e = n.queue[0]
	n.queue = n.queue[1:]
	return e, true, false
}

func (n *notifier) run() {
	for range n.wake {
		for {
			e, ok, closed := n.next()
			if closed {
				return
			}
			if !ok {
				break
			}
			n.deliver(e.node, e.up, e.why)
		}
	}
}
