package engine

import (
	"context"
	"net"
	"sync"
	"time"
)

// pace spreads the bytes of all states that a node sends over time, so that they leave room for everything else.
type pace struct {
	rate uint64 // bytes a second; 0: no limit

	mu   sync.Mutex
	free time.Time // when what was let through so far is used up
	sent uint64    // ever
}

// paceStep is how many bytes are let through at once, at most; at a low rate it is what takes paceTime, so that the other
// side hears from this one long before snapSilence, also if several states are on their way.
const (
	paceStep = 64 << 10
	paceTime = time.Second / 4
)

// step is how many bytes are let through at once.
func (p *pace) step() int {
	if p.rate == 0 {
		return paceStep
	}
	return int(min(paceStep, max(1, p.rate*uint64(paceTime)/uint64(time.Second))))
}

// pass waits until n bytes may be sent.
func (p *pace) pass(ctx context.Context, n int) error {
	p.mu.Lock()
	p.sent += uint64(n)
	if p.rate == 0 {
		p.mu.Unlock()
		return nil
	}
	now := time.Now()
	if p.free.Before(now) {
		p.free = now
	}
	wait := p.free.Sub(now)
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// total is how many bytes of states were sent, ever.
func (p *pace) total() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// wrap returns conn with its writes paced; a side that is silent for snapSilence counts as gone.
func (p *pace) wrap(conn net.Conn, ctx context.Context) net.Conn {
	return paced{&strict{conn, snapSilence}, p, ctx}
}

type paced struct {
	*strict
	pace *pace
	ctx  context.Context // of the member that sends; ends the waiting
}

func (c paced) Write(b []byte) (n int, err error) {
	for n < len(b) {
		step := min(len(b)-n, c.pace.step())
		if err := c.pace.pass(c.ctx, step); err != nil {
			return n, err
		}
		w, err := c.strict.Write(b[n : n+step])
		n += w
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
