package sim

import (
	"encoding/binary"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// workload is what clients ask and what they must find in the end.
type workload interface {
	machine(h *host) machine.Machine
	// next makes a client's next request.
	next(c *client) request
	// check looks at a converged replica for everything that was acknowledged.
	check(h *host)
}

// request is one thing that a client wants. It is a write if payload is set.
type request struct {
	payload  []byte
	ack      core.Ack
	answered func(code core.Code, result []byte) // of a write
	read     func(view kv.Reader)                // of a read, at a state that is linearizable
}

// client asks for one thing after the other; it repeats a write under the same number until it is answered,
// wherever it thinks that the leader is.
type client struct {
	w       *world
	id      uint64
	seq     uint64
	attempt uint64
	leader  uint64
	open    *request // what it waits for
	known   uint64   // index of the latest write that anyone was told of when it asked
}

func (w *world) addClient(i int) {
	c := &client{w: w, id: uint64(i + 1)}
	w.people = append(w.people, c)
	w.after(spread(w.dice.work, second), c.begin)
}

func (c *client) busy() bool { return c.open != nil }

func (c *client) begin() {
	if c.w.over {
		return
	}
	r := c.w.work.next(c)
	c.open, c.known = &r, c.w.ledger.told
	if r.payload != nil {
		c.seq++
	}
	c.ask()
}

func (c *client) end() {
	c.open = nil
	c.attempt++
	c.w.after(spread(c.w.dice.work, c.w.shape.think), c.begin)
}

// ask sends the open request; an answer that comes late, after a newer attempt, counts as well.
func (c *client) ask() {
	w := c.w
	c.attempt++
	attempt, open := c.attempt, c.open
	to := c.leader
	if to == 0 || open.payload == nil && w.dice.work.IntN(2) == 0 {
		to = uint64(w.dice.work.IntN(len(w.hosts)) + 1)
	}
	h := w.hosts[to-1]
	w.net.client(func() {
		h.do(func() {
			if open.payload == nil {
				c.askRead(h, open)
			} else {
				c.askWrite(h, open)
			}
		})
	})
	w.after(second+spread(w.dice.work, second), func() {
		if c.open == open && c.attempt == attempt {
			c.leader = 0
			w.report.Unknown++
			c.ask()
		}
	})
}

func (c *client) askWrite(h *host, open *request) {
	p := core.Proposal{Ack: open.ack, Seq: c.seq, Floor: c.seq, Payload: open.payload}
	binary.BigEndian.PutUint64(p.Client[:], c.id)
	seq := c.seq
	h.propose(p, func(a core.Answer) {
		c.w.net.client(func() {
			if c.open == open && c.seq == seq {
				c.hear(h, a)
			}
		})
	})
	if id := h.nextID; c.w.dice.work.IntN(4) == 0 {
		h.later(2*second, func() { h.g.Expire(id) })
	}
}

func (c *client) hear(h *host, a core.Answer) {
	c.leader = h.id
	switch a.Code {
	case core.Committed, core.CommittedAll, core.CommittedQuorumOnly:
		r, err := replica.DecodeResult(a.Result)
		must(err, "decode result")
		if r.Expired {
			fail("client %d: its session is said to be expired", c.id)
		}
		if r.Duplicate {
			c.w.report.Duplicates++
		}
		c.w.report.Writes++
		c.open.answered(a.Code, r.Payload)
		c.end()
	case core.Accepted:
		c.w.report.Accepted++
		c.open.answered(a.Code, nil)
		c.end()
	default:
		if a.Code == core.NotLeader {
			c.leader = a.Leader
		}
		attempt, open := c.attempt, c.open
		c.w.after(spread(c.w.dice.work, 50*milli), func() {
			if c.open == open && c.attempt == attempt {
				c.ask()
			}
		})
	}
}

func (c *client) askRead(h *host, open *request) {
	h.read(func(a core.Answer) {
		if a.Code != core.Ready || c.open != open {
			return
		}
		if at := h.rep.Applied().Index; at < c.known {
			fail("client %d reads at %d from replica %d, but %d was acknowledged before it asked", c.id, at, h.id, c.known)
		}
		view := h.rep.View()
		open.read(view) // what is read now; the answer takes its time
		must(view.Close(), "close view")
		c.w.report.Reads++
		c.end()
	})
	id := h.nextID
	h.later(2*second, func() { h.g.Expire(id) })
}

// spy tells the ledger of every command that a machine executes.
type spy struct {
	machine.Machine
	h     *host
	op    func(payload []byte) uint64
	first func(index uint64, payload, result []byte) // told of each command once, in log order; may be nil
}

func (s *spy) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	s.h.w.ledger.ticked(s.h, cmd.Index, cmd.Time)
	result, err := s.Machine.Apply(tx, cmd)
	if err == nil && s.h.w.ledger.execute(s.h, s.op(cmd.Payload), cmd.Index, result) && s.first != nil {
		s.first(cmd.Index, cmd.Payload, result)
	}
	return result, err
}
