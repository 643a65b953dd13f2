package transport

import "time"

// tracker decides, from what happens to a peer's raft connections, whether the peer is up. It is a plain state
// machine: the peer's lock guards it, and emit must not block.
//
// The incarnation (boot) of the peer's process makes it precise: the late end of a connection to a process that
// was replaced in the meantime says nothing about its successor.
type tracker struct {
	emit func(up bool, why Why)
	now  func() time.Time

	up    bool
	why   Why
	since time.Time

	boot    uint64
	leaving bool // this incarnation said goodbye
	links   map[*link]struct{}
}

func (k *tracker) set(up bool, why Why) {
	switch {
	case up == k.up && k.why != 0 && (up || why != Refused || k.why == Refused):
		return // down is news once, and once more when it becomes certain
	case up != k.up || k.why == 0:
		k.since = k.now()
	}
	k.up, k.why = up, why
	k.emit(up, why)
}

// joined adds a link. It returns those that it makes obsolete, for the caller to end: all of a former
// incarnation, and an older one of the same direction.
func (k *tracker) joined(l *link) (cut []*link) {
	if l.boot != k.boot {
		if k.up {
			k.set(false, Reset)
		}
		cut = k.drop(func(*link) bool { return true })
		k.boot, k.leaving = l.boot, false
	} else {
		cut = k.drop(func(o *link) bool { return o.inbound == l.inbound })
	}
	k.links[l] = struct{}{}
	if !k.leaving {
		k.set(true, Connected)
	}
	return cut
}

// lost removes a link that died with l.why. It returns those to be ended: after a sudden death, what is left of
// the same process proves nothing, a new connection does.
func (k *tracker) lost(l *link) (cut []*link) {
	if _, ok := k.links[l]; !ok {
		return nil // cut before
	}
	delete(k.links, l)
	switch {
	case l.why == Reset || l.why == Timeout:
		cut = k.drop(func(*link) bool { return true })
		k.set(false, l.why)
	case len(k.links) == 0:
		k.set(false, Closed)
	}
	return cut
}

// dialFailed notes an attempt that failed. A wrong address proves nothing against a living connection.
func (k *tracker) dialFailed(why Why) {
	if len(k.links) == 0 {
		k.set(false, why)
	}
}

func (k *tracker) goodbye(l *link) {
	if _, ok := k.links[l]; ok {
		k.leaving = true
		k.set(false, Goodbye)
	}
}

func (k *tracker) drop(match func(*link) bool) (cut []*link) {
	for l := range k.links {
		if match(l) {
			delete(k.links, l)
			cut = append(cut, l)
		}
	}
	return cut
}
