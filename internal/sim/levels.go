package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// A share of the seeds is mixed: its hosts run two programs, N, which knows level 1, and N+1, which knows level 2 as
// well, and an operator exchanges one for the other, host by host, back and forth. Group 1 is the control group then,
// with the production machine: hosts join, tell it at every start what their program knows, and learn the cluster's
// level from it. In half of these seeds the operator raises the level, too early at times, and goes back afterwards at
// times, which must be refused; in the others all of it must stay reversible to the end.
//
// What the two programs differ in exists here alone: the registers of N+1 have one command more (see swapper).

// What the programs know.
const (
	programN    = 1
	programNext = 2
)

// cluster is the workload of the control group of a mixed seed, and its operator.
type cluster struct {
	w      *world
	gr     *group
	asked  uint64 // commands; each has its own number
	leader uint64 // who answered last
	level  uint64 // that the log has raised the cluster to, as far as anybody executed it
	told   uint64 // the highest that anybody was told of
	begun  bool   // the cluster exists
	token  bool   // and may be joined
	joined int    // hosts that are nodes
	knows  map[uint64]control.Levels
	tokens []string // acknowledged
}

// clusterToken is good for every node.
const clusterToken = "t"

func newCluster(gr *group) *cluster {
	return &cluster{w: gr.w, gr: gr, level: core.FirstLevel, told: core.FirstLevel, knows: map[uint64]control.Levels{}}
}

func (c *cluster) differ() differ { return nil }

func (c *cluster) turn() {}

func (c *cluster) machine(h *host) machine.Machine {
	return &spy{Machine: control.New(func(s *control.State) { h.hear(s.Level()) }), gr: c.gr, who: h.id, op: numberOf, first: c.executed}
}

// numberOf is who asked, which is another one each time.
func numberOf(payload []byte) uint64 {
	var c control.Command
	must(json.Unmarshal(payload, &c), "decode command")
	n, err := strconv.ParseUint(c.By, 10, 64)
	must(err, "whose command is it")
	return n
}

func (c *cluster) encode(cmd control.Command) []byte {
	c.asked++
	cmd.By = fmt.Sprint(c.asked)
	b, err := cmd.Encode()
	must(err, "encode command")
	return b
}

// executed follows the log: what a program knows counts as it was told last, and the level is raised only if all can.
func (c *cluster) executed(_ uint64, payload, result []byte) {
	r, err := control.DecodeResult(result)
	must(err, "decode result")
	var cmd control.Command
	must(json.Unmarshal(payload, &cmd), "decode command")
	switch {
	case r.Error != nil:
		if cmd.Raise != nil {
			c.w.report.RaisesRefused++
		}
	case cmd.Init != nil:
		c.begun, c.joined, c.knows[1] = true, 1, cmd.Init.Node.Levels
	case cmd.AddToken != nil && cmd.AddToken.ID == clusterToken:
		c.token = true
	case cmd.Join != nil:
		c.joined++
		c.admitted(r.Node, cmd.Join.Levels)
	case cmd.SetAddress != nil:
		c.admitted(cmd.SetAddress.Node, cmd.SetAddress.Levels)
	case cmd.Raise != nil:
		c.raised(cmd.Raise.To)
	}
}

func (c *cluster) admitted(node uint64, l control.Levels) {
	if l.Max < c.level {
		fail("node %d, whose program knows up to level %d, takes part in a cluster at %d", node, l.Max, c.level)
	}
	c.knows[node] = l
}

func (c *cluster) raised(to uint64) {
	if to < c.level {
		fail("the cluster is lowered from level %d to %d", c.level, to)
	}
	for node, l := range c.knows {
		if l.Max < to {
			fail("the cluster is raised to level %d, node %d knows up to %d", to, node, l.Max)
		}
	}
	if to > c.level {
		c.w.report.Raised++
	}
	c.level = to
}

// executing holds that nobody executes what was not raised yet, or what his program does not know, and that the level
// of a log is one and the same everywhere and never falls.
func (l *ledger) executing(who uint64, cmd machine.Command) {
	w := l.gr.w
	if raised := w.level(); cmd.Level > raised {
		fail("replica %d of group %d executes %d at level %d, the cluster is at %d", who, l.gr.id, cmd.Index, cmd.Level, raised)
	}
	if knows := w.hosts[who-1].knows; cmd.Level > knows {
		fail("replica %d of group %d executes %d at level %d, its program knows up to %d", who, l.gr.id, cmd.Index, cmd.Level, knows)
	}
	for uint64(len(l.levels)) <= cmd.Index {
		l.levels = append(l.levels, 0)
	}
	if was := l.levels[cmd.Index]; was != 0 && was != cmd.Level || cmd.Index >= l.leveledAt && cmd.Level < l.level {
		fail("replica %d of group %d executes %d at level %d; it was at %d there, at %d before", who, l.gr.id, cmd.Index, cmd.Level, was, l.level)
	}
	if cmd.Index >= l.leveledAt {
		l.leveledAt, l.level = cmd.Index, cmd.Level
	}
	l.levels[cmd.Index] = cmd.Level
}

// drawProgram is what a new host runs.
func (w *world) drawProgram() uint64 {
	if !w.shape.mixed || w.script != nil {
		return programN
	}
	return programN + w.dice.roll.Uint64N(2)
}

// level of the cluster, as far as anybody executed it.
func (w *world) level() uint64 {
	if w.cluster == nil {
		return core.FirstLevel
	}
	return w.cluster.level
}

// next is a client of the control group: it mostly looks, and no look may find less than anybody was told before.
func (c *cluster) next(*client) request {
	if c.token && c.w.dice.work.IntN(24) == 0 {
		id := fmt.Sprintf("t%d", c.asked)
		return request{payload: c.encode(addToken(id)), answered: func(_ core.Answer, result []byte, _ int) {
			if r, err := control.DecodeResult(result); err == nil && r.Error == nil {
				c.tokens = append(c.tokens, id)
			}
		}}
	}
	told := c.told
	return request{read: func(view kv.Reader) {
		if found := levelIn(view); found < told {
			fail("a client was told of level %d before it asked, and reads %d", told, found)
		}
	}}
}

func addToken(id string) control.Command {
	return control.Command{AddToken: &control.Token{ID: id, Expires: time.Unix(1<<32, 0).UTC()}}
}

func levelIn(view kv.Reader) uint64 {
	s, err := control.Load(view, 0)
	must(err, "load control state")
	return s.Level()
}

func (c *cluster) check(m *member) {
	view := m.rep.View()
	s, err := control.Load(view, 0)
	must(err, "load control state")
	must(view.Close(), "close view")
	if s.Level() != c.level || c.level < c.told {
		fail("the cluster was raised to level %d and somebody told of %d, in the end it is at %d", c.level, c.told, s.Level())
	}
	for _, id := range c.tokens {
		if _, ok := s.Token(id); !ok {
			fail("token %s was acknowledged and is not there", id)
		}
	}
	for _, n := range s.Nodes {
		if h := c.w.hosts[n.ID-1]; n.Levels != c.knows[n.ID] || !n.Levels.Has(s.Level()) || h.level > c.level {
			fail("node %d knows %s, %s was told; the cluster is at level %d, it acts under %d", n.ID, n.Levels, c.knows[n.ID], s.Level(), h.level)
		}
	}
}

// hear is told of the level in the control group's state. It is marked on the disk before the host acts under it.
func (h *host) hear(level uint64) {
	if h.w.cluster == nil {
		return
	}
	if level > h.w.cluster.level {
		fail("host %d hears of level %d, the cluster is at %d", h.id, level, h.w.cluster.level)
	}
	act, e := control.Levels{Min: programN, Max: h.knows}.Act(fmt.Sprint(h.id), h.level, level)
	switch {
	case e != nil:
		h.unfit(act)
	case act > h.level:
		h.later(h.slow*spread(h.w.dice.disk, 20*milli), func() { h.level = max(h.level, act) })
	}
}

// unfit ends the process: its program is too old for what it has met. It does not start again before it is replaced.
func (h *host) unfit(level uint64) {
	run := h.run
	h.w.after(0, func() {
		if h.run == run && h.up {
			h.level = max(h.level, level)
			h.w.report.Unfit++
			h.crash()
		}
	})
}

// unknown says whether err is that something is of a level above what the host's program knows, which ends it.
func (h *host) unknown(err error) bool {
	var newer *replica.NewerLevelError
	if !errors.As(err, &newer) {
		return false
	}
	if newer.Level <= h.knows || newer.Level > h.w.level() {
		fail("host %d, which knows level %d, stops for level %d; the cluster is at %d", h.id, h.knows, newer.Level, h.w.level())
	}
	h.unfit(newer.Level)
	return true
}

// fits holds that the host's program knows the state that it has taken up.
func (h *host) fits(rep *replica.Replica) {
	if level := rep.Level(); level > h.knows {
		fail("host %d has a state of level %d, its program knows up to %d", h.id, level, h.knows)
	}
}

// limits of a replica on the host.
func (h *host) limits() replica.Limits {
	l := h.w.shape.limits
	l.Level = h.knows
	return l
}

// act is the level that the host acts under.
func (h *host) act() uint64 { return max(h.level, core.FirstLevel) }

// install exchanges the host's program.
func (h *host) install(program uint64) {
	if h.knows == program {
		return
	}
	h.w.report.Installed++
	if h.up {
		h.crash()
	}
	h.knows = program
	h.w.after(milli+spread(h.w.dice.roll, 100*milli), h.start)
}

// command has the control group execute cmd, once at most; nobody may hear of it.
func (c *cluster) command(cmd control.Command, answered func(control.Result)) {
	to := c.leader
	if to == 0 || c.w.dice.roll.IntN(4) == 0 {
		ms := c.gr.present()
		to = ms[c.w.dice.roll.IntN(len(ms))].id
	}
	m := c.gr.member(to)
	payload := c.encode(cmd)
	c.w.net.client(func() {
		m.do(func() {
			m.propose(core.Proposal{Payload: payload}, func(a core.Answer) {
				c.w.net.client(func() { c.answer(to, a, answered) })
			})
		})
	})
}

func (c *cluster) answer(from uint64, a core.Answer, answered func(control.Result)) {
	switch c.leader = from; {
	case a.Code == core.Committed:
		r, err := replica.DecodeResult(a.Result)
		must(err, "decode result")
		result, err := control.DecodeResult(r.Payload)
		must(err, "decode result")
		answered(result)
	case a.Code == core.NotLeader && c.gr.member(a.Leader) != nil:
		c.leader = a.Leader
	default:
		c.leader = 0
	}
}

// introduce tells the control group what the host's program knows, as often as it takes.
func (h *host) introduce() {
	c := h.w.cluster
	if c == nil || h.introduced {
		return
	}
	h.later(100*milli+spread(h.w.dice.roll, second), h.introduce)
	if c.joined < int(h.id) {
		return
	}
	run := h.run
	levels := control.Levels{Min: programN, Max: h.knows}
	c.command(control.Command{SetAddress: &control.SetAddress{Node: h.id, Address: "h", Levels: levels}}, func(r control.Result) {
		if h.run == run && r.Error == nil {
			h.introduced = true
		}
	})
}

// operate is the operator: first the cluster is put together, then programs are exchanged and the level is raised.
func (c *cluster) operate() {
	w := c.w
	if w.over {
		return
	}
	pause := 50 * milli
	switch {
	case !c.begun:
		c.command(control.Command{Init: &control.Init{
			Cluster: control.Cluster{ID: "c"}, Node: control.Node{Name: "n1", Levels: control.Levels{Min: programN, Max: w.hosts[0].knows}},
		}}, func(control.Result) {})
	case !c.token:
		c.command(addToken(clusterToken), func(control.Result) {})
	case c.joined < len(w.hosts):
		h := w.hosts[c.joined]
		c.command(control.Command{Join: &control.Join{
			Token: clusterToken, Name: fmt.Sprintf("n%d", h.id), Levels: control.Levels{Min: programN, Max: h.knows},
		}}, func(control.Result) {})
		if w.dice.roll.IntN(8) == 0 {
			c.exchange()
		}
	default:
		c.exchange()
		if pause = 250 * milli; !c.w.shape.raises || c.level == programNext {
			pause = second
		}
	}
	w.after(pause+spread(w.dice.roll, pause), c.operate)
}

// exchange changes one host's program, or raises the level.
func (c *cluster) exchange() {
	r := c.w.dice.roll
	h := c.w.hosts[r.IntN(len(c.w.hosts))]
	for _, other := range c.w.hosts { // who cannot start comes first
		if !other.up && other.level > other.knows {
			h = other
		}
	}
	switch {
	case c.w.shape.raises && c.level < programNext && (c.ready() && r.IntN(2) == 0 || r.IntN(16) == 0):
		c.command(control.Command{Raise: &control.Raise{To: programNext}}, func(result control.Result) {
			if result.Error == nil {
				c.told = programNext
			}
		})
	case h.knows == programN:
		h.install(programNext)
	case r.IntN(4) == 0: // it may, or shall find that it may not
		h.install(programN)
	}
}

// ready says whether the control group will raise the level, as far as the operator can tell.
func (c *cluster) ready() bool {
	for _, l := range c.knows {
		if l.Max < programNext {
			return false
		}
	}
	return true
}

// settle ends the upgrade: where the level was raised, or may be yet, nobody is left behind.
func (c *cluster) settle() {
	for _, h := range c.w.hosts {
		if c.w.shape.raises && h.knows == programN {
			if h.up {
				h.crash()
			}
			h.knows = programNext
		}
	}
}
