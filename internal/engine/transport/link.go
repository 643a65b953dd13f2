package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// link is one raft connection. Messages go from the side that dialed to the side that accepted; both sides send
// beats and goodbyes.
type link struct {
	conn    *conn
	boot    uint64 // incarnation of the peer's process
	inbound bool

	wmu  sync.Mutex // one writer at a time
	ctrl []byte     // control frames are built here

	acked   chan struct{} // closed when the peer noted our goodbye
	ackOnce sync.Once

	done chan struct{} // closed when the link is dead
	once sync.Once
	why  Why // set before done is closed; 0: ended by this side, which says nothing about the peer
	err  error
}

func newLink(c *conn, boot uint64, inbound bool) *link {
	return &link{conn: c, boot: boot, inbound: inbound, acked: make(chan struct{}), done: make(chan struct{})}
}

// fail ends the link; the first reason counts.
func (l *link) fail(why Why, err error) {
	l.once.Do(func() {
		l.why, l.err = why, err
		close(l.done)
		l.conn.abort()
	})
}

func (l *link) write(b []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	_, err := l.conn.Write(b)
	return err
}

// control sends a control frame.
func (l *link) control(k kind, body []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.ctrl = appendControl(l.ctrl[:0], k, body)
	_, err := l.conn.Write(l.ctrl)
	return err
}

// lastWords is how long a failed write waits for the reader to find out why the peer ended the connection.
const lastWords = 100 * time.Millisecond

// broken ends the link after a failed write. The peer's reason, a close or a goodbye, may lie unread in the
// socket: the reader, which comes to the same end at once, gets to it first.
func (l *link) broken(err error) {
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
		l.fail(Reset, err)
	}
}

// part ends the link from this side and tells the peer why, if it can be told at once.
func (l *link) part(why Why, reason error) {
	if l.wmu.TryLock() {
		text := reason.Error()
		frame := appendControl(nil, kindClose, []byte(text[:min(len(text), maxText)]))
		if l.conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
			_, _ = l.conn.Write(frame) // the link ends either way
		}
		l.wmu.Unlock()
	}
	l.fail(why, reason)
}

// errSilent: nothing came for too long.
var errSilent = errors.New("no sign of life")

// whyOf classifies the end of an established link.
func whyOf(err error) Why {
	if errors.Is(err, errSilent) {
		return Timeout
	}
	return Reset
}

// patient reads from a connection whose peer must not be silent for `misses` whole intervals. Time is counted in
// intervals that this process lived through: if it was paused itself, what arrived meanwhile is read first.
type patient struct {
	conn     net.Conn
	interval time.Duration
	misses   int

	missed int
	heard  bool
}

func (r *patient) Read(p []byte) (int, error) {
	for {
		n, err := r.conn.Read(p)
		if n > 0 {
			r.heard = true
			return n, nil
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			return n, err
		}
		if r.missed++; r.heard {
			r.missed, r.heard = 0, false
		}
		if r.missed >= r.misses {
			return 0, errSilent
		}
		if err := r.arm(); err != nil {
			return 0, err
		}
	}
}

// arm starts the next interval.
func (r *patient) arm() error { return r.conn.SetReadDeadline(time.Now().Add(r.interval)) }

// readLink reads frames until the link dies, and says why it did. A frame that makes no sense ends the link with
// a reason that the peer gets to know.
func (p *peer) readLink(l *link) {
	pr := &patient{conn: l.conn, interval: p.t.cfg.Beat, misses: p.t.cfg.BeatMisses}
	if err := pr.arm(); err != nil {
		l.fail(whyOf(err), err)
		return
	}
	br := bufio.NewReaderSize(pr, 64<<10)
	var head [frameHead]byte
	var buf []byte
	for {
		k, n, err := readHead(br, &head)
		if err == nil {
			if buf, err = readBody(br, buf, n); err == nil {
				err = p.frame(l, k, buf)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, errFrame):
			p.sentGarbage("raft", err)
			l.part(0, err)
			return
		case errors.Is(err, errSilent):
			l.part(Timeout, err)
			return
		default:
			l.fail(whyOf(err), err)
			return
		}
	}
}

// sentGarbage notes a frame that made no sense.
func (p *peer) sentGarbage(where string, err error) {
	p.garbage.Add(1)
	p.t.counters.garbage.Add(1)
	if unsaid, ok := p.t.complain.say("garbage " + where + " " + p.name()); ok {
		p.t.cfg.Log.Warn(where+" connection ended: the peer sent garbage", "peer", p.name(), "error", err, "unsaid", unsaid)
	}
}

// errParted is how the peer's own close frame surfaces.
var errParted = errors.New("ended by the peer")

func (p *peer) frame(l *link, k kind, body []byte) error {
	switch {
	case k == kindMessages && l.inbound:
		return parseMessages(body, func(group uint64, msgs []*raftpb.Message) {
			p.t.cfg.OnMessages(p.node, group, msgs)
		})
	case k == kindPing && l.inbound && len(body) == pingBody:
		pong := binary.BigEndian.AppendUint64(body[:8:8], uint64(p.t.cfg.Now().UnixNano()))
		_ = l.control(kindPong, pong) // if it fails, the next read knows more
		p.t.cfg.OnFull(p.node, body[16]&pingFull != 0)
		return p.grown(l, binary.BigEndian.Uint64(body[8:]))
	case k == kindPong && !l.inbound && len(body) == 16:
		p.pong(body)
	case k == kindBeat && !l.inbound:
	case k == kindGoodbye:
		p.goodbye(l)
		_ = l.control(kindGoodbyeAck, nil) // as above
	case k == kindGoodbyeAck:
		l.ackOnce.Do(func() { close(l.acked) })
	case k == kindClose:
		p.t.cfg.Log.Warn("raft connection ended by the peer", "peer", p.name(), "reason", string(body))
		l.fail(Closed, errParted)
		return io.EOF
	default:
		return errFrame
	}
	return nil
}

// beat sends signs of life on an inbound link until it dies. It is not the reader's business, which may be busy.
func (p *peer) beat(l *link) {
	ticker := time.NewTicker(p.t.cfg.Beat)
	defer ticker.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-ticker.C:
			if err := l.control(kindBeat, nil); err != nil {
				l.broken(err)
			}
		}
	}
}

// serveLink runs an inbound link to its end.
func (p *peer) serveLink(l *link) {
	if !p.joined(l) {
		l.part(0, errors.New("this process stops"))
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.beat(l) })
	p.readLink(l)
	p.lost(l)
	wg.Wait()
}

// pong takes the answer to a ping: our clock when it was sent, the peer's wall clock when it came there.
func (p *peer) pong(body []byte) {
	sent := time.Duration(binary.BigEndian.Uint64(body))
	rtt := time.Since(p.t.start) - sent
	p.rtt.Store(int64(rtt))
	there := int64(binary.BigEndian.Uint64(body[8:]))
	offset := time.Duration(there - p.t.cfg.Now().Add(-rtt/2).UnixNano())
	p.offset.Store(int64(offset))
	differs := offset.Abs() > ClockBound+rtt
	if differs == p.skewed.Swap(differs) {
		return
	}
	if differs {
		p.t.cfg.Log.Warn("the peer's clock differs from this node's: set both by NTP", "peer", p.name(), "ahead", offset.Round(time.Millisecond))
		return
	}
	p.t.cfg.Log.Info("the peer's clock agrees with this node's again", "peer", p.name())
}

// pingBody is a time of the sender, which comes back, its age, and a byte of flags.
const (
	pingBody = 17
	pingFull = 1 // the sender's disk is full
)

// grown notes the peer's age.
func (p *peer) grown(l *link, age uint64) error {
	if e := p.t.cfg.Admit(Peer{Node: p.node, Boot: l.boot, Age: age}); e != nil {
		l.part(0, e)
		return io.EOF
	}
	return nil
}

// ping asks for a pong that tells the round trip.
func (p *peer) ping(l *link) {
	var now [pingBody]byte
	if p.t.cfg.Full() {
		now[16] |= pingFull
	}
	binary.BigEndian.PutUint64(now[:], uint64(time.Since(p.t.start)))
	binary.BigEndian.PutUint64(now[8:], p.t.cfg.Age())
	if err := l.control(kindPing, now[:]); err != nil {
		l.broken(err)
	}
}
