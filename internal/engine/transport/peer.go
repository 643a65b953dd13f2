package transport

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	backoffMin = 20 * time.Millisecond
	backoffMax = time.Second
)

// peer is one other node: the queue to it, its state, and the goroutine that dials and writes.
type peer struct {
	t    *Transport
	node uint64

	work chan struct{} // holds one: something is queued
	seen chan struct{} // holds one: the peer connected to us, so it can be dialed

	mu      sync.Mutex
	track   tracker
	running bool
	soon    *time.Timer // gives the sign for what can wait
	due     bool        // soon runs
	verify  int         // attempts left to find out whether the process is gone
	queue   []outgoing
	spare   []outgoing // the other half of a double buffer
	held    int        // messages in queue or being written
	bytes   int        // same
	lastErr string     // of dialing; each is logged once

	callMu sync.Mutex
	call   *callConn // nil: none
	dialer *callDial // nil: nobody is dialing

	dropped atomic.Uint64
	rtt     atomic.Int64
	offset  atomic.Int64 // of the peer's clock
	skewed  atomic.Bool  // by more than ClockBound: was warned of
	garbage atomic.Uint64
	traffic traffic
}

func newPeer(t *Transport, node uint64) *peer {
	p := &peer{t: t, node: node, work: make(chan struct{}, 1), seen: make(chan struct{}, 1)}
	p.track = tracker{now: t.cfg.Now, links: map[*link]struct{}{}, emit: func(up bool, why Why) {
		t.cfg.Log.Debug("peer", "node", p.name(), "up", up, "why", why)
		t.events.add(event{node, up, why})
	}}
	p.soon = time.AfterFunc(time.Hour, p.wakeDue)
	p.soon.Stop()
	return p
}

func (p *peer) name() string { return fmt.Sprintf("%016x", p.node) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (p *peer) send(group uint64, msgs []*raftpb.Message) {
	p.mu.Lock()
	for i, m := range msgs {
		cost := messageCost(m)
		if p.held >= p.t.cfg.QueueMessages || p.held > 0 && p.bytes+cost > p.t.cfg.QueueBytes {
			p.dropped.Add(uint64(len(msgs) - i)) // a gap would only make the rest useless
			break
		}
		p.queue = append(p.queue, outgoing{group, m, cost})
		p.held++
		p.bytes += cost
	}
	start := len(p.queue) > 0
	if start && signsOfLife(msgs) {
		start = false
		p.wakeSoon()
	}
	p.mu.Unlock()
	if start {
		p.wake()
	}
}

// wake makes the peer's goroutine look for work; the first time it starts it.
func (p *peer) wake() {
	p.mu.Lock()
	start := !p.running
	p.running = true
	p.mu.Unlock()
	if start {
		p.t.spawn(p.run)
	}
	signal(p.work)
}

// take hands out everything that is queued; release gives the slice back.
func (p *peer) take() []outgoing {
	p.mu.Lock()
	defer p.mu.Unlock()
	batch := p.queue
	p.queue, p.spare = p.spare[:0], nil
	return batch
}

// release ends the account of messages that were written or given up.
func (p *peer) release(part []outgoing) {
	cost := 0
	for i := range part {
		cost += part[i].cost
		part[i].msg = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held -= len(part)
	p.bytes -= cost
}

func (p *peer) recycle(batch []outgoing) {
	const keep = 4096
	if cap(batch) > keep {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = batch[:0]
}

func (p *peer) discard(part []outgoing) {
	p.dropped.Add(uint64(len(part)))
	p.release(part)
}

// run dials whenever there is something to send, and after a connection was lost: that tells the end of the
// process from the end of a connection.
func (p *peer) run() {
	wait := time.Duration(0)
	for {
		if !p.verifying() && !p.awaitWork() || p.t.ctx.Err() != nil {
			return
		}
		began := time.Now()
		l, err := p.openLink()
		if err == nil {
			p.writeLink(l)
			if time.Since(began) > backoffMax {
				wait = 0
			}
			if wait == 0 { // at once, unless connections keep breaking
				wait = backoffMin
				continue
			}
		} else {
			p.dialError(err)
			p.discard(p.take()) // raft repeats what still matters
		}
		wait = min(max(2*wait, backoffMin), backoffMax)
		if !p.pause(&wait) {
			return
		}
	}
}

// verifyDials is how often a lost peer is dialed, with back-off, before the next message decides. More than once,
// because a process that is being killed may still answer the first attempt with a reset.
const verifyDials = 5

func (p *peer) verifying() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verify == 0 {
		return false
	}
	p.verify--
	return true
}

func (p *peer) awaitWork() bool {
	select {
	case <-p.work:
		return true
	case <-p.t.ctx.Done():
		return false
	}
}

// pause waits between attempts; a sign of life from the peer ends it and starts the back-off anew.
func (p *peer) pause(wait *time.Duration) bool {
	timer := time.NewTimer(p.t.jitter(*wait))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.seen:
		*wait = 0
	case <-p.t.ctx.Done():
		return false
	}
	return true
}

func (p *peer) dialError(err error) {
	p.mu.Lock()
	text := err.Error()
	news := text != p.lastErr
	p.lastErr = text
	p.mu.Unlock()
	if news && p.t.ctx.Err() == nil {
		p.t.cfg.Log.Warn("cannot connect", "peer", p.name(), "error", err)
	}
}

func (p *peer) openLink() (*link, error) {
	select {
	case <-p.seen: // answered by this very attempt
	default:
	}
	c, a, err := p.dial(p.t.ctx, serviceRaft)
	if err != nil {
		return nil, err
	}
	l := newLink(c, a.boot, false)
	if !p.joined(l) {
		l.part(0, errors.New("this process stops"))
		return nil, ErrClosed
	}
	p.mu.Lock()
	p.lastErr = ""
	p.verify = 0
	p.mu.Unlock()
	return l, nil
}

// writeLink drains the queue into l until it dies.
func (p *peer) writeLink(l *link) {
	var reader sync.WaitGroup
	reader.Go(func() {
		p.readLink(l)
		p.lost(l)
	})
	defer reader.Wait()
	ticker := time.NewTicker(p.t.cfg.Beat)
	defer ticker.Stop()
	var buf []byte
	p.ping(l)
	for {
		if batch := p.take(); len(batch) > 0 {
			buf = p.writeBatch(l, buf, batch)
			p.recycle(batch)
			select {
			case <-ticker.C:
				p.ping(l)
			default:
			}
			continue
		}
		select {
		case <-p.work:
		case <-ticker.C:
			p.ping(l)
		case <-l.done:
			return
		}
	}
}

func (p *peer) writeBatch(l *link, buf []byte, batch []outgoing) []byte {
	for len(batch) > 0 {
		frame, n, err := appendMessages(buf[:0], batch)
		buf = frame
		if err != nil {
			p.t.cfg.Log.Error("message dropped", "peer", p.name(), "error", err)
			p.discard(batch[:n])
			batch = batch[n:]
			continue
		}
		if err := l.write(frame); err != nil {
			l.broken(err)
			p.discard(batch)
			return buf
		}
		p.release(batch[:n])
		batch = batch[n:]
	}
	if cap(buf) > keepBuffer {
		return nil
	}
	return buf
}

// joined brings a new link into the peer's state; false: this process stops and takes no more.
func (p *peer) joined(l *link) bool {
	p.mu.Lock()
	if l.inbound && p.t.stopping.Load() { // under the lock: either this sees Goodbye, or Goodbye sees l
		p.mu.Unlock()
		return false
	}
	cut := p.track.joined(l)
	p.mu.Unlock()
	p.cut(cut)
	if l.inbound {
		signal(p.seen)
	}
	return true
}

// lost takes a dead link out of the peer's state.
func (p *peer) lost(l *link) {
	if p.t.ctx.Err() != nil {
		return // it was this process that ended it
	}
	p.mu.Lock()
	was := p.track.up
	cut := p.track.lost(l)
	gone := was && !p.track.up
	if l.why != 0 {
		p.verify = verifyDials
	}
	p.mu.Unlock()
	p.cut(cut)
	if gone {
		p.loseCalls() // whoever waits for an answer would wait for the kernel's patience
	}
	if l.why != 0 {
		p.wake()
	}
}

func (p *peer) cut(links []*link) {
	for _, l := range links {
		l.fail(0, errors.New("superseded"))
	}
}

func (p *peer) dialFailed(why Why) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.track.dialFailed(why)
	if why == Refused || why == Goodbye {
		p.verify = 0
	}
}

func (p *peer) goodbye(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.track.goodbye(l)
}

func (p *peer) liveLinks() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	links := make([]*link, 0, len(p.track.links))
	for l := range p.track.links {
		links = append(links, l)
	}
	return links
}

func (p *peer) status() PeerStatus {
	addr, _ := p.t.cfg.Resolve(p.node)
	p.mu.Lock()
	defer p.mu.Unlock()
	return PeerStatus{
		Node: p.node, Address: addr, Up: p.track.up, Why: p.track.why, Since: p.track.since,
		RTT: time.Duration(p.rtt.Load()), Queued: p.held, QueuedBytes: p.bytes, Dropped: p.dropped.Load(),
		BytesIn: p.traffic.in.Load(), BytesOut: p.traffic.out.Load(),
		Garbage: p.garbage.Load(), ClockOffset: time.Duration(p.offset.Load()),
	}
}
