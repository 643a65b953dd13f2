package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// DirWait has every node that is up commit what is on its disk now, and then waits until the nodes that were
// asked for have placed all of it. If the members change meanwhile, it waits for those of now.
func (n *node) DirWait(ctx context.Context, group string, req api.DirWaitFor, progress func(api.Progress)) (api.DirWait, error) {
	g, err := n.dirNamed("dir wait", group)
	if err != nil {
		return api.DirWait{}, err
	}
	began := time.Now()
	out := api.DirWait{Group: g.Name, Reached: []string{}, Missing: []string{}}
	var flushed [16]byte // the history to which the position belongs
	for {
		if g.History != flushed {
			flushed = g.History
			if out.Position, out.Missing = n.flushAll(ctx, g, progress); len(out.Missing) > 0 {
				out.Seconds = time.Since(began).Seconds()
				out.Why = n.whyMissing(ctx, g, out.Missing)
				return out, nil
			}
		}
		targets, enough, err := n.waitTargets(g, req)
		if err != nil {
			return out, err
		}
		steady := func() bool {
			now, ok := n.ctl.state().Group(g.ID)
			return ok && !now.Deleted && now.History == g.History && sameTargets(g, now, req)
		}
		out.Reached, out.Missing = n.parted(targets, n.awaitPlaced(ctx, g, targets, enough, out.Position, steady, progress))
		out.Done = len(out.Reached) >= enough
		out.Seconds = time.Since(began).Seconds()
		if ctx.Err() != nil || steady() {
			if !out.Done {
				out.Why = n.whyMissing(ctx, g, out.Missing)
			}
			return out, nil
		}
		if g, err = n.dirNamed("dir wait", group); err != nil {
			return out, err
		}
	}
}

// flushAll has the members that are up commit what is on their disks now, and says what index covers that, and who could
// not in time.
func (n *node) flushAll(ctx context.Context, g *control.Group, progress func(api.Progress)) (position uint64, stuck []string) {
	looking := newPatience("taking in what is on disk: waiting", n.names(g.Members), len(g.Members), progress)
	flushed := each(g.Members, func(m control.Member) flush {
		f := n.flushAt(ctx, g, m)
		looking.reached(n.nameOf(m.Node))
		return f
	})
	looking.end()
	through := make([]bool, len(flushed))
	for i, f := range flushed {
		position = max(position, f.index)
		through[i] = !f.stuck
	}
	_, stuck = n.parted(g.Members, through)
	return position, stuck
}

// awaitPlaced waits until enough of the targets have placed everything up to index, ctx ends, or others are to be waited
// for; it says which have.
func (n *node) awaitPlaced(ctx context.Context, g *control.Group, targets []control.Member, enough int, index uint64, steady func() bool,
	progress func(api.Progress)) []bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting := newPatience("waiting", n.names(targets), enough, progress)
	defer waiting.end()
	return each(targets, func(m control.Member) bool {
		ok := n.waitPlaced(ctx, g, m, index, steady)
		if ok && waiting.reached(n.nameOf(m.Node)) >= enough {
			cancel()
		}
		return ok
	})
}

// sameTargets says whether a wait is for the same members at two times. Somebody who has left, or votes no more, is not
// waited for: what is said in the end is true of the members of then.
func sameTargets(before, now *control.Group, req api.DirWaitFor) bool {
	relevant := func(g *control.Group) []control.Member {
		if req.Mode == api.WaitQuorum {
			return g.Voters()
		}
		return g.Members
	}
	return slices.EqualFunc(relevant(before), relevant(now), func(a, b control.Member) bool {
		return a.Node == b.Node && a.Binding == b.Binding
	})
}

// parted are the names of the members that are done and of those that are not, each sorted.
func (n *node) parted(members []control.Member, done []bool) (reached, missing []string) {
	reached, missing = []string{}, []string{}
	for i, m := range members {
		if done[i] {
			reached = append(reached, n.nameOf(m.Node))
		} else {
			missing = append(missing, n.nameOf(m.Node))
		}
	}
	slices.Sort(reached)
	slices.Sort(missing)
	return reached, missing
}

// names of the members' nodes, sorted.
func (n *node) names(members []control.Member) []string {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = n.nameOf(m.Node)
	}
	slices.Sort(names)
	return names
}

func (n *node) waitTargets(g *control.Group, req api.DirWaitFor) (targets []control.Member, enough int, err error) {
	switch req.Mode {
	case api.WaitQuorum:
		voters := g.Voters()
		return voters, len(voters)/2 + 1, nil
	case api.WaitNode:
		if node, ok := n.ctl.state().NodeNamed(req.Node); ok {
			if m, ok := g.Member(node.ID); ok {
				return []control.Member{m}, 1, nil
			}
		}
		return nil, 0, &api.Error{Code: api.CodeNotFound, Op: "dir wait", Subject: req.Node, Why: "it does not hold group " + g.Name,
			Hint: "lockstep dir status " + g.Name + " shows who does"}
	}
	return g.Members, len(g.Members), nil
}

// flush is how far a node's own changes are committed.
type flush struct {
	index uint64 // covers what was on its disk; 0: the node is down, or no member any more
	stuck bool   // it is up, but its changes were not committed in time
}

// flushAt has a node commit what is on its disk now. A node that is up but still takes its binding up is asked
// again until it can, or ctx ends.
func (n *node) flushAt(ctx context.Context, g *control.Group, m control.Member) flush {
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for {
		a, err := call(ctx, n, m.Node, methodFlush, groupRequest{Group: g.ID, History: g.History}, n.flushHere)
		if err == nil {
			return flush{index: a.Index}
		}
		n.log.Debug("flush", "peer", n.nameOf(m.Node), "err", err)
		if ctx.Err() == nil && (!n.memberStill(g, m) || !n.isUp(ctx, m.Node)) {
			return flush{}
		}
		select {
		case <-ctx.Done():
			return flush{stuck: true}
		case <-pause.C:
		}
	}
}

// memberStill says whether a binding is one of the group's, and the group on the history that it was on in g, as far as this
// node knows.
func (n *node) memberStill(g *control.Group, m control.Member) bool {
	now, ok := n.ctl.state().Group(g.ID)
	if !ok || now.Deleted || now.History != g.History {
		return false
	}
	member, ok := now.Member(m.Node)
	return ok && member.Binding == m.Binding
}

// waitPlaced asks a node again and again, since it may be down for a while, as long as the wait goes on.
func (n *node) waitPlaced(ctx context.Context, g *control.Group, m control.Member, index uint64, goesOn func() bool) bool {
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for {
		_, err := call(ctx, n, m.Node, methodPlaced, groupRequest{Group: g.ID, History: g.History, Index: index}, n.placedHere)
		if err == nil {
			return true
		}
		if !goesOn() {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-pause.C:
		}
	}
}

func (n *node) flushHere(ctx context.Context, req groupRequest) (indexAnswer, error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return indexAnswer{}, err
	}
	a, err := h.theAgent()
	if err != nil {
		return indexAnswer{}, err
	}
	if err := a.Flush(ctx); err != nil {
		return indexAnswer{}, err
	}
	index, err := n.covered(ctx, h)
	return indexAnswer{index}, errors.Join(err, h.goesBy(req.History))
}

// goesBy refuses for a replica that is of another history than the asker goes by: it has not heard of a fork yet, and its
// indexes say nothing about that history.
func (h *holding) goesBy(history [16]byte) error {
	if history == [16]byte{} || memberLine(h.member, &h.group).History == history {
		return nil
	}
	return &api.Error{Code: api.CodeUnavailable, Op: "dir wait", Subject: h.group.Name,
		Why: "the replica on " + h.n.id.Name() + " is of another history of the group", Hint: "it begins again by itself, within seconds"}
}

// covered is an index that covers all that is committed now. If this node's own replica does not come by it, since its disk
// is full, or since it has lost its seat and not heard of it yet, a voter is asked.
func (n *node) covered(ctx context.Context, h *holding) (index uint64, err error) {
	if !n.disk.Full() {
		own, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		if index, err = h.member.Barrier(own); err == nil || ctx.Err() != nil {
			return index, err
		}
	}
	for _, voter := range n.votersOf(h.group.ID) {
		if voter == n.self {
			continue
		}
		if index, err = n.eng.ReadAt(ctx, voter, h.group.ID); err == nil {
			return index, nil
		}
	}
	return 0, errors.Join(fmt.Errorf("no voter of group %s says what is committed", h.group.Name), err)
}

// placedAtMajority returns once more than half of the members have placed everything up to index; false if ctx ended before.
func (n *node) placedAtMajority(ctx context.Context, g *control.Group, members []control.Member, index uint64) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	enough := int64(len(members)/2 + 1)
	var reached atomic.Int64
	each(members, func(m control.Member) bool {
		ok := n.waitPlaced(ctx, g, m, index, func() bool { return n.memberStill(g, m) })
		if ok && reached.Add(1) >= enough {
			cancel()
		}
		return ok
	})
	return reached.Load() >= enough
}

// placedPoll is how often a binding's progress is looked at while somebody waits for it.
const placedPoll = 2 * time.Millisecond

func (n *node) placedHere(ctx context.Context, req groupRequest) (none, error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return none{}, err
	}
	t := time.NewTicker(placedPoll)
	defer t.Stop()
	for {
		a, err := h.theAgent()
		if err != nil {
			return none{}, err
		}
		if a.Placed() >= req.Index {
			return none{}, h.goesBy(req.History)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return none{}, ctx.Err()
		}
	}
}
