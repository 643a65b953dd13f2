package sim

import (
	"encoding/binary"
	"slices"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// workload is what clients ask and what they must find in the end.
type workload interface {
	machine(h *host) machine.Machine
	differ() differ
	// next makes a client's next request.
	next(c *client) request
	// turn is called when the group was recovered from what a minority had: terms mean something else.
	turn()
	// check looks at a converged replica for everything that was acknowledged.
	check(m *member)
}

// request is one thing that a client wants. It is a write if payload is set.
type request struct {
	payload  []byte
	ack      core.Ack
	answered func(a core.Answer, result []byte, tries int) // of a write
	given    func()                                        // it is not known, and never will be, what became of a write
	read     func(view kv.Reader)                          // of a read, at a state that is linearizable
}

// client asks for one thing after the other; it repeats a write under the same number until it is answered,
// wherever it thinks that the leader is. Now and then it gives up and begins a new session.
type client struct {
	w       *world
	gr      *group
	id      uint64
	session uint64
	seq     uint64
	attempt uint64
	tries   int // of the open request
	leader  uint64
	open    *request // what it waits for
	known   uint64   // index of the latest write that anyone was told of when it asked
}

func (gr *group) addClient() {
	c := &client{w: gr.w, gr: gr, id: uint64(len(gr.people) + 1)}
	gr.people = append(gr.people, c)
	gr.sessions++
	gr.w.after(spread(gr.w.dice.work, second), c.begin)
}

func (c *client) busy() bool { return c.open != nil }

func (c *client) begin() {
	if c.w.over {
		return
	}
	r := c.gr.work.next(c)
	c.open, c.known, c.tries = &r, c.gr.ledger.told, 0
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

// giveUp leaves the open write to its fate.
func (c *client) giveUp() {
	if c.open.given != nil {
		c.open.given()
	}
	c.session++
	c.gr.sessions++
	c.seq = 0
	c.end()
}

// risky says that another try could be executed a second time: the first write of a session may be forgotten
// together with the session (see replica.sessions).
func (c *client) risky() bool {
	return c.seq == 1 && c.tries > 0 && c.w.shape.limits.Sessions < c.gr.sessions
}

// ask sends the open request; an answer that comes late, after a newer attempt, counts as well.
func (c *client) ask() {
	w := c.w
	if write := c.open.payload != nil; write && (c.risky() || c.tries > 1 && w.dice.work.IntN(16) == 0 && w.script == nil) {
		w.report.Given++
		c.giveUp()
		return
	}
	c.attempt++
	c.tries++
	attempt, open := c.attempt, c.open
	if open.payload == nil && w.dice.work.IntN(4) == 0 && c.askObserver(open) {
		// asked
	} else {
		c.askMember(open)
	}
	w.after(second+spread(w.dice.work, second), func() {
		if c.open == open && c.attempt == attempt {
			c.leader = 0
			w.report.Retries++
			c.ask()
		}
	})
}

func (c *client) askMember(open *request) {
	to := c.leader
	if to == 0 || open.payload == nil && c.w.dice.work.IntN(2) == 0 {
		ms := c.gr.present()
		if left := slices.DeleteFunc(slices.Clone(ms), func(m *member) bool { return m.gone }); len(left) > 0 {
			ms = left // who was removed is not asked: of 16 there may be two that are left
		}
		to = ms[c.w.dice.work.IntN(len(ms))].id
	}
	m := c.gr.member(to)
	p := core.Proposal{Ack: open.ack, Client: c.sessionID(), Seq: c.seq, Floor: c.seq, Payload: open.payload}
	c.w.net.client(func() {
		m.do(func() {
			if open.payload == nil {
				c.askRead(m, open)
			} else {
				c.askWrite(m, open, p)
			}
		})
	})
}

func (c *client) sessionID() (id [16]byte) {
	binary.BigEndian.PutUint64(id[:], c.id)
	binary.BigEndian.PutUint64(id[8:], c.session)
	return id
}

// askWrite hands a write to a replica. It may come late, when the client has long given it up.
func (c *client) askWrite(m *member, open *request, p core.Proposal) {
	m.propose(p, func(a core.Answer) {
		c.w.net.client(func() {
			if c.open == open {
				c.hear(m, a)
			}
		})
	})
	if id := m.nextID; open.ack == core.AckAll || c.w.dice.work.IntN(4) == 0 {
		m.later(2*second, func() { m.g.Expire(id) })
	}
}

func (c *client) hear(m *member, a core.Answer) {
	c.leader = m.id
	switch a.Code {
	case core.Committed, core.CommittedAll, core.CommittedQuorumOnly:
		r, err := replica.DecodeResult(a.Result)
		must(err, "decode result")
		if r.Expired {
			c.w.report.Expired++
			c.giveUp()
			return
		}
		if r.Duplicate {
			c.w.report.Duplicates++
		}
		c.w.report.Writes++
		c.open.answered(a, r.Payload, c.tries)
		c.end()
	case core.Accepted:
		c.open.answered(a, nil, c.tries)
		c.end()
	default:
		if a.Code == core.NotLeader || a.Code == core.Busy || a.Code == core.Full {
			c.tries-- // not taken
		}
		if a.Code == core.NotLeader {
			c.leader = a.Leader
			if c.gr.member(a.Leader) == nil {
				c.leader = 0
			}
		}
		attempt, open := c.attempt, c.open
		c.w.after(spread(c.w.dice.work, 50*milli), func() {
			if c.open == open && c.attempt == attempt {
				c.ask()
			}
		})
	}
}

func (c *client) askRead(m *member, open *request) {
	m.read(func(a core.Answer) {
		if a.Code == core.Ready && c.open == open {
			c.look(m.String(), m.rep, open)
		}
	})
	id := m.nextID
	m.later(2*second, func() { m.g.Expire(id) })
}

// look reads at a state that is said to hold everything that was acknowledged before the client asked.
func (c *client) look(where string, rep *replica.Replica, open *request) {
	if at := rep.Applied().Index; at < c.known {
		fail("client %d reads at %d from %s, but %d was acknowledged before it asked", c.id, at, where, c.known)
	}
	view := rep.View()
	open.read(view) // what is read now; the answer takes its time
	must(view.Close(), "close view")
	c.w.report.Reads++
	c.end()
}

// askObserver has an observer read: it asks a voter how far it must be, and waits for that; false if the group
// has none.
func (c *client) askObserver(open *request) bool {
	var found []*observer
	c.gr.eachObserver(func(o *observer) {
		if !o.forged {
			found = append(found, o)
		}
	})
	if len(found) == 0 {
		return false
	}
	r := c.w.dice.work
	o := found[r.IntN(len(found))]
	run := o.run
	voters := c.gr.voters()
	voter := c.gr.member(voters[r.IntN(len(voters))])
	o.barrier(voter, func(index uint64) {
		var wait func()
		wait = func() {
			switch {
			case c.open != open || !o.alive() || o.run != run:
			case o.rep.Applied().Index < index:
				o.later(20*milli, wait)
			default:
				c.w.report.ObserverReads++
				c.look(o.String(), o.rep, open)
			}
		}
		wait()
	})
	return true
}

// spy tells the ledger of every command that a machine executes.
type spy struct {
	machine.Machine
	gr    *group
	who   uint64
	op    func(payload []byte) uint64
	first func(index uint64, payload, result []byte) // told of each command once, in log order; may be nil
}

func (s *spy) Apply(tx kv.Tx, cmd machine.Command) ([]byte, error) {
	s.gr.ledger.ticked(s.who, cmd.Index, cmd.Time)
	s.gr.ledger.executing(s.who, cmd)
	result, err := s.Machine.Apply(tx, cmd)
	if err == nil && s.gr.ledger.execute(s.who, s.op(cmd.Payload), cmd.Index, result) && s.first != nil {
		s.first(cmd.Index, cmd.Payload, result)
	}
	return result, err
}
