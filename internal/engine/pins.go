package engine

import "sync"

// pinSet says what a log must not be cut above: what children, transfers and readers still need, and up to where a cut is
// under way.
//
// A cut is decided on the loop and made later, after the state was synced. So it is written down here as it is decided, by
// the same lock under which they register. Invariant: what is above a pin's index stays until the pin is moved or
// released, unless it is damaged; what is not above gone counts as cut, though the log may hold it a while.
type pinSet struct {
	mu   sync.Mutex
	pins map[*pin]struct{}
	gone uint64 // the highest cut that was decided
}

// pin keeps what is above an index in the log.
type pin struct {
	of    *pinSet
	index uint64
}

// add pins what is above index, as far as it is not being cut already.
func (p *pinSet) add(index uint64) *pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pins == nil {
		p.pins = map[*pin]struct{}{}
	}
	n := &pin{p, max(index, p.gone)}
	p.pins[n] = struct{}{}
	return n
}

// move says that what is not above index is needed no longer.
func (n *pin) move(index uint64) {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	n.index = max(n.index, index)
}

func (n *pin) release() {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	delete(n.of.pins, n)
}

// cut decides up to where the log is cut: to limit, or to the lowest pin.
func (p *pinSet) cut(limit uint64) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range p.pins {
		limit = min(limit, n.index)
	}
	p.gone = max(p.gone, limit)
	return limit
}

// spoil says that what is not above index cannot be relied on to be read: it counts as cut, whatever is pinned. It is false
// if that much counted as cut already.
func (p *pinSet) spoil(index uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if index <= p.gone {
		return false
	}
	p.gone = index
	return true
}

// first is where a log begins that still begins at first, to whoever registers now.
func (p *pinSet) first(first uint64) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(first, p.gone+1)
}
