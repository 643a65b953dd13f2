package files

import "time"

// epochs tell when everything that was begun up to some moment has ended. Not safe for concurrent use: the
// board's lock guards it.
type epochs struct {
	open  []*epoch // oldest first; the last one is still growing
	ended uint64   // mark of the newest epoch of which, and of all before, nothing is left
}

// epoch is a span of work that ended together is worth knowing.
type epoch struct {
	mark  uint64
	left  int
	begun time.Time // of the placing ones: when the first of its work came
}

// current returns the epoch with this mark, which must not decrease, for more work.
func (e *epochs) current(mark uint64) *epoch {
	if n := len(e.open); n > 0 && e.open[n-1].mark >= mark {
		return e.open[n-1]
	}
	ep := &epoch{mark: mark}
	e.open = append(e.open, ep)
	return ep
}

// settle drops epochs at the front that have nothing left and returns whether any was.
func (e *epochs) settle() bool {
	n := 0
	for n < len(e.open) && e.open[n].left == 0 {
		e.ended = e.open[n].mark
		n++
	}
	if n == 0 {
		return false
	}
	clear(e.open[:n])
	e.open = e.open[n:]
	return true
}

// compact merges epochs of which nothing is left into the one before: they end together. It is for epochs that
// nobody waits for by a mark in between.
func (e *epochs) compact() {
	if len(e.open) < 2 {
		return
	}
	kept := e.open[:1]
	for _, ep := range e.open[1 : len(e.open)-1] {
		if ep.left == 0 {
			kept[len(kept)-1].mark = ep.mark
		} else {
			kept = append(kept, ep)
		}
	}
	kept = append(kept, e.open[len(e.open)-1])
	clear(e.open[len(kept):])
	e.open = kept
}

// finish takes one piece of work from each.
func finish(list []*epoch) {
	for _, ep := range list {
		ep.left--
	}
}

// hold adds one piece of work to each.
func hold(list []*epoch) []*epoch {
	for _, ep := range list {
		ep.left++
	}
	return list
}
