package engine

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// newsPatience bounds for how long a follower is not told what is committed because the next entry might tell it.
const newsPatience = 500 * time.Microsecond

// commitNews keeps back messages that say nothing but how far a follower may apply: each costs a message, its answer
// and a turn of two loops, and an entry that is close behind says the same. It keeps them only while entries follow
// each other within newsPatience of the news before, so a write that comes alone is announced at once, as is a change of
// the members: if the leader dies, who votes depends on who knows of it. With it 100 groups wrote 10 % more a second,
// one group with 64 proposers 5 %, one proposer 4 % at 13 % less processor time a write.
//
// Raft takes any message to be late or lost, hence keeping or replacing one is safe. Only the group's loop touches it.
type commitNews struct {
	follows bool                       // the last entry came within newsPatience of the news before it
	told    time.Time                  // when the first news since the last entry was sent or kept; zero: none was
	last    uint64                     // index of the last entry
	kept    map[uint64]*raftpb.Message // by replica
	since   time.Time                  // of the oldest in kept
}

// pass returns what is to be sent now: msgs without the news that is kept, and what was kept before and has to go first.
func (c *commitNews) pass(msgs []*raftpb.Message, now time.Time) []*raftpb.Message {
	out := make([]*raftpb.Message, 0, len(msgs)+len(c.kept))
	for _, m := range msgs {
		switch {
		case m.GetType() != raftpb.MsgApp: // it may rest on what was kept, as the answer to a read does
			out = append(c.release(m.GetTo(), out), m)
		case len(m.GetEntries()) > 0:
			c.entry(m, now)
			delete(c.kept, m.GetTo())
			out = append(out, m)
		case c.news(now):
			c.keep(m, now)
		default:
			out = append(out, m)
		}
	}
	return out
}

// entry takes note that m brings entries, unless they are those that another replica was sent before.
func (c *commitNews) entry(m *raftpb.Message, now time.Time) {
	last := m.GetIndex() + uint64(len(m.GetEntries()))
	if last <= c.last {
		return
	}
	c.last = last
	if !c.told.IsZero() {
		c.follows = within(now, c.told)
	}
	if slices.ContainsFunc(m.GetEntries(), changesMembers) {
		c.follows = false
	}
	c.told = time.Time{}
}

func changesMembers(e *raftpb.Entry) bool { return e.GetType() != raftpb.EntryNormal }

// news takes note of some, and says whether to keep it.
func (c *commitNews) news(now time.Time) bool {
	if c.told.IsZero() {
		c.told = now
	}
	return c.follows
}

func (c *commitNews) keep(m *raftpb.Message, now time.Time) {
	if c.kept == nil {
		c.kept = map[uint64]*raftpb.Message{}
	}
	if len(c.kept) == 0 {
		c.since = now
	}
	c.kept[m.GetTo()] = m
}

func (c *commitNews) release(to uint64, out []*raftpb.Message) []*raftpb.Message {
	if m := c.kept[to]; m != nil {
		delete(c.kept, to)
		out = append(out, m)
	}
	return out
}

// overdue returns what was kept in vain; nothing if it was not kept for long enough, or nothing is kept.
func (c *commitNews) overdue(now time.Time) (msgs []*raftpb.Message) {
	if len(c.kept) == 0 || within(now, c.since) {
		return nil
	}
	c.follows = false
	for to := range c.kept {
		msgs = c.release(to, msgs)
	}
	return msgs
}

// within is false also if the clock was set back.
func within(now, since time.Time) bool {
	age := now.Sub(since)
	return age >= 0 && age < newsPatience
}

// sendOrKeep sends msgs, but for the news that the next entry may bring; that goes with sendOverdue at the latest.
func (g *Group) sendOrKeep(msgs []*raftpb.Message) {
	g.send(g.commits.pass(msgs, g.eng.cfg.Now()))
	g.awaitOverdue()
}

// sendOverdue runs on the loop when the timer has fired.
func (g *Group) sendOverdue() {
	g.newsAwaited = false
	g.send(g.commits.overdue(g.eng.cfg.Now()))
	g.awaitOverdue()
}

// awaitOverdue has the timer fire while something is kept. It is not put off for what replaces that: setting it costs.
func (g *Group) awaitOverdue() {
	if len(g.commits.kept) > 0 && !g.newsAwaited {
		g.newsAwaited = true
		g.newsDue.Reset(newsPatience)
	}
}
