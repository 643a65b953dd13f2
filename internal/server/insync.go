package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// inSyncKeeper looks after the in-sync set of a group while it is led here. What must hold is said at core.InSync;
// the order that makes it hold is: bind the record to this leadership, read it, count what is recorded and what was
// proposed, and propose a larger set only once the core counts its new member.
type inSyncKeeper struct {
	term     uint64
	proposed []control.SetInSync // of this term, whose fate may be open
	commit   uint64              // when it looked last
	members  map[uint64]*observed
}

// observed is what was seen of a voter over time.
type observed struct {
	behind  time.Time // since when it lacks something, or is down; zero: it does not
	current time.Time // since when it has everything
	down    bool
}

// inSyncPatience bounds one proposal; the next look repeats it.
const inSyncPatience = 3 * time.Second

// driveInSync keeps the in-sync set of every group that is led here.
func (n *node) driveInSync(ctx context.Context) {
	t := time.NewTicker(driveInterval)
	defer t.Stop()
	keepers := map[uint64]*inSyncKeeper{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		st := n.ctl.state()
		for i := range st.Groups {
			g := &st.Groups[i]
			grp := n.groupHere(g.ID)
			if g.Deleted || grp == nil || grp.Core().Role != core.Leader {
				delete(keepers, g.ID)
				continue
			}
			if keepers[g.ID] == nil {
				keepers[g.ID] = &inSyncKeeper{}
			}
			grp.SetCheckEvery(g.CheckInterval())
			if err := n.keepInSync(ctx, keepers[g.ID], g, grp); err != nil && ctx.Err() == nil {
				n.log.Debug("in-sync set not changed", "group", g.Name, "err", err)
			}
		}
	}
}

// keepInSync is one look at one group.
func (n *node) keepInSync(ctx context.Context, k *inSyncKeeper, g *control.Group, grp *engine.Group) error {
	st := grp.Fresh()
	if st.Role != core.Leader || !st.TermBegun || memberLine(grp, g).History != g.History {
		return nil
	}
	if k.term != st.Term {
		*k = inSyncKeeper{term: st.Term, members: map[uint64]*observed{}}
	}
	members := k.observe(n, g, st, time.Now())
	rec := g.InSync
	change := control.SetInSync{Group: g.ID, History: g.History, Term: st.Term, Version: rec.Version, Replicas: rec.Replicas}
	switch {
	case rec.History != g.History || rec.Term < st.Term || rec.Version == 0:
		if len(change.Replicas) == 0 {
			change.Replicas, change.Why = []uint64{grp.Replica()}, "none was recorded"
		}
		return n.proposeInSync(ctx, change) // binds the record; the next look reads it
	case rec.Term > st.Term:
		return nil // somebody else leads
	}
	k.proposed = slices.DeleteFunc(k.proposed, func(c control.SetInSync) bool { return c.Version < rec.Version })
	var open []uint64
	for _, c := range k.proposed {
		open = append(open, c.Replicas...)
	}
	recorded := core.InSync{Version: rec.Version, Replicas: rec.Replicas}
	if !grp.CountInSync(st.Term, recorded, open) {
		return nil
	}
	next, why := control.PlanInSync(rec.Replicas, grp.Replica(), members, g.InSyncBound())
	if next == nil || !grp.CountInSync(st.Term, recorded, append(open, next...)) {
		return nil
	}
	change.Replicas, change.Why = next, why
	k.note(change)
	err := n.proposeInSync(ctx, change)
	if err == nil {
		level := slog.LevelInfo
		if len(next) < len(rec.Replicas) {
			level = slog.LevelWarn
		}
		n.log.Log(ctx, level, "in-sync set changed", "group", g.Name, "version", rec.Version+1, "members", n.namesOf(g, next), "why", why)
	}
	return err
}

// note remembers what is proposed. While the control group does not answer the same is proposed again and again.
func (k *inSyncKeeper) note(c control.SetInSync) {
	if !slices.ContainsFunc(k.proposed, func(p control.SetInSync) bool {
		return p.Version == c.Version && slices.Equal(p.Replicas, c.Replicas)
	}) {
		k.proposed = append(k.proposed, c)
	}
}

func (n *node) proposeInSync(ctx context.Context, c control.SetInSync) error {
	ctx, cancel := context.WithTimeout(ctx, inSyncPatience)
	defer cancel()
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), SetInSync: &c})
	return err
}

// observe brings what is known of the voters up to date. A member has everything if it holds now what was committed
// when the leader looked last: under load nobody ever holds what is committed this instant.
func (k *inSyncKeeper) observe(n *node, g *control.Group, st core.Status, now time.Time) (members []control.InSyncMember) {
	for _, m := range g.Voters() {
		o := k.members[m.Replica]
		if o == nil {
			o = &observed{current: now}
			k.members[m.Replica] = o
		}
		o.see(st, m.Replica, k.commit, now)
		view := control.InSyncMember{Replica: m.Replica, Name: n.nameOf(m.Node), Votes: contains(st.Voters, m.Replica), Down: o.down}
		if o.behind.IsZero() {
			view.Current = now.Sub(o.current)
		} else {
			view.Behind = now.Sub(o.behind)
		}
		members = append(members, view)
	}
	k.commit = st.Commit
	return members
}

func (o *observed) see(st core.Status, replica, commit uint64, now time.Time) {
	current := replica == st.Replica
	o.down = !current
	for _, p := range st.Peers {
		if p.Replica == replica && p.RecentActive {
			o.down, current = false, current || p.Match >= commit
		}
	}
	switch {
	case current && !o.behind.IsZero():
		o.behind, o.current = time.Time{}, now
	case !current && o.behind.IsZero():
		o.behind = now
	}
}

// namesOf names the nodes of a group's replicas.
func (n *node) namesOf(g *control.Group, replicas []uint64) []string {
	names := make([]string, 0, len(replicas))
	for _, r := range replicas {
		name := fmt.Sprintf("replica %d", r)
		for _, m := range g.Members {
			if m.Replica == r {
				name = n.nameOf(m.Node)
			}
		}
		names = append(names, name)
	}
	return names
}
