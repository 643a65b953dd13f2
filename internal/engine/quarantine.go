package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// A replica in quarantine goes on appending and voting: its log is not what differs. It does nothing with its state:
// it hands leadership over, takes no proposals, answers no linearizable reads and no comparisons, and feeds nobody. It
// replaces the state by that of a replica of the majority, whole, believing nothing of its own; then it is one of them
// again. If those that agreed have been replaced meanwhile, it waits for a comparison of those that are there (healers).

// ErrQuarantined is returned by what a replica refuses because its state is not what the others have.
var ErrQuarantined = errors.New("engine: this replica's state differs from that of the majority")

// minAgree is how many must agree before anybody is in the wrong: a majority of one is none.
const minAgree = 2

// DefaultCheckEvery is how often replicas are compared if something was written.
const DefaultCheckEvery = time.Minute

// deepEvery: every so many comparisons the replicas read all records.
const deepEvery = 60

// whyReplaced is why a replica got a whole state although it had one.
const whyReplaced = "its state differed from that of the majority"

// checks is the leader's schedule of comparisons; owned by the loop.
type checks struct {
	term    uint64
	last    time.Time // when the latest began
	index   uint64    // the mark of the latest that found everybody equal; what came behind it was not compared
	count   uint64
	running bool
}

// SetCheckEvery sets how often replicas are compared while this one leads.
func (g *Group) SetCheckEvery(d time.Duration) { g.checkEvery.Store(int64(d)) }

// Quarantine is why this replica's state is not to be trusted; nil: there is no reason.
func (g *Group) Quarantine() *replica.Quarantine { return g.rep.Quarantine() }

// Quarantine is why this observer's state is not to be trusted; nil: there is no reason.
func (o *Observer) Quarantine() *replica.Quarantine { return o.rep.Quarantine() }

// Alarm says that the replicas differ and nobody knows who is right; empty: there is none.
func (g *Group) Alarm() string { return loadText(&g.alarm) }

// Alarm says that this observer differs from the group's only voter; empty: it does not.
func (o *Observer) Alarm() string { return loadText(&o.alarm) }

// scheduleCheck begins a comparison when one is due. On the loop.
func (g *Group) scheduleCheck() {
	role, _, term := g.core.Lead()
	c, now := &g.checks, g.eng.cfg.Now()
	if role != core.Leader {
		return
	}
	if c.term != term {
		*c = checks{term: term, last: now, running: c.running}
		return
	}
	every := time.Duration(g.checkEvery.Load())
	// A clock that went back must not put comparisons off.
	due := now.Sub(c.last) >= every || now.Before(c.last)
	if !due || c.running || g.rep.Written() <= c.index || g.rep.Quarantine() != nil {
		return
	}
	c.last, c.running = now, true
	c.count++
	deep := c.count%deepEvery == 0
	g.tasks.Go(func() { g.check(deep) })
}

func (g *Group) check(deep bool) {
	ctx, cancel := context.WithTimeout(g.stopping, deepPatience+2*markPatience)
	defer cancel()
	found, err := g.Check(ctx, deep)
	if err != nil && ctx.Err() == nil {
		g.lg.Info("replicas not compared", "err", err)
	}
	g.box.call(func() {
		g.checks.running = false
		if err == nil && found.Verdict != nil && len(found.Odd) == 0 {
			g.checks.index = found.Mark
		}
	})
}

// raise says what a comparison found that nobody acts upon.
func (g *Group) raise(c *Checkup) {
	switch {
	case c.Verdict == nil && len(c.Odd) > 0:
		text := fmt.Sprintf("replicas %v have different states after entry %d and no majority agrees", c.Odd, c.Mark)
		g.alarm.Store(&text)
		g.lg.Error("replicas differ and no majority agrees: nothing is repaired", "mark", c.Mark, "replicas", c.Odd)
	case c.Verdict != nil:
		g.alarm.Store(nil)
	}
}

// compare acts on the latest verdict. On the applier.
func (g *Group) compare() {
	v, found, odd := g.book.odd()
	if !odd || g.rep.Quarantine() != nil {
		return
	}
	if len(v.Agree) < minAgree {
		text := fmt.Sprintf("the state after entry %d differs from that of the only voter", v.Mark)
		g.alarm.Store(&text)
		g.lg.Error("replicas differ and no majority agrees: nothing is repaired", "mark", v.Mark)
		return
	}
	g.lg.Error("this replica's state differs from that of the majority: in quarantine until it is replaced",
		"mark", v.Mark, "found", found.digest.String(), "want", v.Digest.String(), "err", found.err)
	err := g.rep.Distrust(replica.Quarantine{Mark: v.Mark, Want: v.Digest, Found: found.digest, Agree: v.Agree})
	if err != nil {
		g.eng.failed(err)
		return
	}
	g.distrusted.Add(1) // before anything replaces the state, see Propose
	g.book.doubt()
	g.src.cutAll()
	g.tasks.Go(g.heal)
}

// heal replaces the state. It ends when that is done, or the group stops.
func (g *Group) heal() {
	var pause backoff
	waits := false
	for try := 0; g.stopping.Err() == nil; try++ {
		q := g.rep.Quarantine()
		if q == nil {
			return
		}
		st := g.Fresh()
		sources, heirs := healers(&st, q, g.book.latest())
		if st.Role == core.Leader && len(heirs) > 0 {
			g.giveUp(heirs[try%len(heirs)])
		}
		if len(sources) == 0 {
			if !waits {
				g.lg.Warn("no member has a state that is known to be right: the state is replaced after the next comparison", "agreed", q.Agree)
			}
			waits = true
		} else {
			waits = false
			from := sources[try%len(sources)]
			if err := g.healFrom(from); err != nil {
				g.lg.Warn("state not replaced; trying the next replica", "from", from, "err", err)
			} else {
				continue
			}
		}
		pause.wait(g.stopping, g.changed.wait())
	}
}

// healers says which members the state of a replica in quarantine may be replaced by, and which may lead in its place.
//
// Sources are those that agreed in the latest verdict, or else in the one of the quarantine. If none of them is a member any
// more, others are not taken on trust: a copy of a state that is wrong, too, could make it the majority's. The others go on
// being compared, and the next verdict names the sources. Only a single other voter is taken as it is: against this replica,
// whose state is known to be wrong, no majority will ever be found, and that one's state is all that the group has.
//
// Anyone may lead, since logs are not in doubt; a source if possible, so that it does not go from one replica in quarantine
// to the other.
func healers(st *core.Status, q *replica.Quarantine, latest *replica.Verdict) (sources, heirs []uint64) {
	for _, v := range slices.Concat(st.Voters, st.Outgoing) {
		if v != st.Replica && !slices.Contains(heirs, v) {
			heirs = append(heirs, v)
		}
	}
	members := slices.Concat(heirs, st.Learners)
	among := func(agree, of []uint64) (list []uint64) {
		for _, r := range agree {
			if r != st.Replica && slices.Contains(of, r) {
				list = append(list, r)
			}
		}
		return list
	}
	if latest != nil && latest.Mark > q.Mark && len(latest.Agree) >= minAgree {
		sources = among(latest.Agree, members)
	}
	if len(sources) == 0 {
		sources = among(q.Agree, members)
	}
	if len(sources) == 0 && len(heirs) == 1 {
		sources = heirs
	}
	if able := among(sources, heirs); len(able) > 0 {
		heirs = able
	}
	return sources, heirs
}

// giveUp hands leadership over, so that nobody waits for answers of a state that is replaced, and somebody compares states.
func (g *Group) giveUp(to uint64) {
	ctx, cancel := context.WithTimeout(g.stopping, markPatience)
	defer cancel()
	if err := g.Transfer(ctx, to); err != nil {
		g.lg.Warn("leadership not handed over; trying the next replica", "to", to, "err", err)
	}
}

// healFrom takes the state of another replica, unless this one leads.
func (g *Group) healFrom(from uint64) error {
	node, ok := g.NodeOf(from)
	if !ok {
		return errors.New("nobody knows where it is")
	}
	if g.Fresh().Role == core.Leader {
		return errors.New("this replica leads")
	}
	g.catchup.begin(Catchup{Mode: ModeSnap, Rule: "R2", Why: whyReplaced, From: g.rep.Applied().Index, Upstream: node})
	if err := g.pull(node); err != nil {
		return err
	}
	if q := g.rep.Quarantine(); q != nil {
		return fmt.Errorf("its state ends before entry %d", g.rep.Applied().Index+1)
	}
	at := g.rep.Applied().Index
	g.catchup.reached(at)
	g.lg.Warn("quarantine over: the state was replaced", "from", from, "index", at)
	g.moved.broadcast()
	return nil
}

// compare acts on the latest verdict. The feed ends with the batch, or within a second, and then another state is taken
// (see greet).
func (o *Observer) compare() {
	v, found, odd := o.book.odd()
	if !odd || o.rep.Quarantine() != nil {
		return
	}
	if len(v.Agree) < minAgree {
		text := fmt.Sprintf("the state after entry %d differs from that of the only voter", v.Mark)
		o.alarm.Store(&text)
		o.lg.Error("replicas differ and no majority agrees: nothing is repaired", "mark", v.Mark)
		return
	}
	o.lg.Error("this replica's state differs from that of the majority: in quarantine until it is replaced",
		"mark", v.Mark, "found", found.digest.String(), "want", v.Digest.String(), "err", found.err)
	err := o.rep.Distrust(replica.Quarantine{Mark: v.Mark, Want: v.Digest, Found: found.digest, Agree: v.Agree})
	if err != nil {
		o.eng.failed(err)
		return
	}
	o.src.cutAll()
}
