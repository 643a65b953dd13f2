package content

import (
	"context"
	"fmt"
	"sync"
)

// peer is a member that this node dials; it has at most one session at a time.
type peer struct {
	s      *Store
	node   uint64
	slots  int // of session.smallSlots
	handle func(c *session, k kind, number uint64, body []byte) error

	dialling sync.Mutex
	session  *session // guarded by dialling
}

// acquire returns a held session, dialling if there is none. fresh says that nothing was sent on it before.
func (p *peer) acquire(ctx context.Context) (c *session, fresh bool, err error) {
	p.dialling.Lock()
	defer p.dialling.Unlock()
	if p.session != nil && p.session.hold() {
		return p.session, false, nil
	}
	if p.s.ctx.Err() != nil {
		return nil, false, ErrClosed
	}
	conn, err := p.s.opts.Dial(ctx, p.node)
	if err != nil {
		return nil, false, fmt.Errorf("dial node %d for contents: %w", p.node, err)
	}
	c = newSession(p.s, conn, p.slots)
	c.hold()
	p.session = c
	p.s.running.Go(func() {
		stop := context.AfterFunc(p.s.ctx, func() { c.end(ErrClosed) })
		defer stop()
		c.running.Go(func() { c.beat(true) })
		c.read(func(k kind, number uint64, body []byte) error { return p.handle(c, k, number, body) })
		c.running.Wait()
	})
	return c, true, c.write(helloFrame())
}

// hangUp ends the session, if there is one.
func (p *peer) hangUp() {
	p.dialling.Lock()
	defer p.dialling.Unlock()
	if p.session != nil {
		p.session.end(ErrClosed)
	}
}
