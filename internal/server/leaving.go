package server

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// A node that leaves, drained or removed, need not take part in that: the control group's leader decides about its seats,
// the groups' leaders take it out, and voters say up to where what it has is committed. So one whose disk is full leaves
// like any other. Only what it alone has, an edit on its disk that no other node knows yet, it has to tell itself; and a
// node that takes its seat has to learn. Whoever asked waits as long as something moves, and is told what stands still.

const (
	// drainPoll and savePoll are how often a leave is looked at while somebody waits for it.
	drainPoll = 200 * time.Millisecond
	savePoll  = time.Second
	// standstill is how long nothing may move where something is known to be in the way.
	standstill = 30 * time.Second
	// longestStep is how long nothing may be seen to move where nothing is known to be in the way: a large file on its
	// way looks like that.
	longestStep = 10 * time.Minute
)

// motion tells what is slow from what stands still.
type motion struct {
	seen  string
	since time.Time
}

// stands is how long seen has not changed.
func (m *motion) stands(now time.Time, seen string) time.Duration {
	if m.since.IsZero() || seen != m.seen {
		m.seen, m.since = seen, now
	}
	return now.Sub(m.since)
}

// NodeDrain moves a node's seats and leaderships away and returns when the groups' configurations hold it no more, or
// has it take part again.
func (n *node) NodeDrain(ctx context.Context, name string, off bool, progress func(api.Progress)) (api.NodeChange, error) {
	out := api.NodeChange{Node: name, State: "active", Moved: []string{}, Warnings: []string{}}
	if off {
		_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Drain: &control.Drain{Node: name, Off: true}})
		return out, err
	}
	return n.drain(ctx, "node drain", name, progress)
}

func (n *node) drain(ctx context.Context, op, name string, progress func(api.Progress)) (api.NodeChange, error) {
	out := api.NodeChange{Node: name, State: "drained", Moved: []string{}, Warnings: []string{}}
	st := n.ctl.state()
	p, ok := st.NodeNamed(name)
	if !ok {
		return out, st.UnknownNode(op, name)
	}
	if e := control.CheckLeave(st, op, p, nil, n.upNow(ctx)); e != nil {
		return out, e
	}
	for i := range st.Groups {
		if m, ok := st.Groups[i].Member(p.ID); ok && m.Role == control.RoleVoter && !st.Groups[i].Deleted {
			out.Moved = append(out.Moved, st.Groups[i].Name)
		}
	}
	if _, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Drain: &control.Drain{Node: name}}); err != nil {
		return out, err
	}
	if err := n.awaitDrained(ctx, op, p, uint64(len(out.Moved)), progress); err != nil {
		return out, err
	}
	st = n.ctl.state()
	for _, moved := range out.Moved {
		if g, ok := st.GroupNamed(moved); ok && len(g.Voters()) < 3 {
			out.Warnings = append(out.Warnings, fmt.Sprintf("group %s has %d voters left: if one is down it accepts no changes", moved, len(g.Voters())))
		}
	}
	return out, nil
}

func (n *node) awaitDrained(ctx context.Context, op string, p *control.Node, total uint64, progress func(api.Progress)) error {
	t := time.NewTicker(drainPoll)
	defer t.Stop()
	var m motion
	for {
		left, seen := n.seatsLeft(ctx, p.ID)
		if progress != nil {
			progress(api.Progress{What: "draining", Node: p.Name, Done: total - min(total, uint64(len(left))), Total: total, Unit: "groups"})
		}
		if len(left) == 0 {
			return nil
		}
		still := m.stands(time.Now(), seen)
		if still < standstill {
			select {
			case <-t.C:
				continue
			case <-ctx.Done():
			}
		}
		return &api.Error{Code: api.CodeUnavailable, Op: op, Subject: p.Name,
			Why:  fmt.Sprintf("it still has a seat in %d groups, %s among them, and nothing has moved for %s", len(left), left[0], still.Round(time.Second)),
			Hint: "it goes on being drained; lockstep group show " + left[0] + " says what keeps it; lockstep node undrain " + p.Name + " takes it back"}
	}
}

// seatsLeft names the groups that a node still has a seat in: by the control group's word, or in the configuration that
// the group's leader has in force. seen changes with them, and as long as somebody learns who is to take a seat over.
func (n *node) seatsLeft(ctx context.Context, id uint64) (left []string, seen string) {
	st := n.ctl.state()
	var b strings.Builder
	for i := range st.Groups {
		g := &st.Groups[i]
		m, ok := g.Member(id)
		if g.Deleted || !ok {
			continue
		}
		reports := n.survey(ctx, g)
		if m.Role != control.RoleVoter && !configuredAt(g, reports, id) {
			continue
		}
		left = append(left, g.Name)
		fmt.Fprintf(&b, "%d %s %s;", g.ID, m.Role, learning(reports))
	}
	return left, b.String()
}

// configuredAt says whether the leader's configuration holds a replica of the node; without a leader nobody knows.
func configuredAt(g *control.Group, reports []report, id uint64) bool {
	for _, r := range reports {
		if r.Role != "leader" {
			continue
		}
		for _, replica := range r.Configured {
			if at, ok := g.NodeOf(replica); ok && at == id {
				return true
			}
		}
		return false
	}
	return true
}

// learning is how far those are who do not vote yet.
func learning(reports []report) string {
	var b strings.Builder
	for i, r := range reports {
		if r.Role == "learner" {
			fmt.Fprintf(&b, "%d:%d+%d ", i, r.Applied, r.Received)
		}
	}
	return b.String()
}

// NodeRemove drains a node, waits until others have what it holds, and takes it out of the cluster. With force the node
// is lost: nobody waits for what only it had.
func (n *node) NodeRemove(ctx context.Context, name string, force bool, progress func(api.Progress)) (api.NodeChange, error) {
	const op = "node remove"
	st := n.ctl.state()
	p, ok := st.NodeNamed(name)
	if !ok {
		return api.NodeChange{}, st.UnknownNode(op, name)
	}
	up := n.isUp(ctx, p.ID)
	switch {
	case !up && !force:
		return api.NodeChange{}, &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "it is down, so what only it has cannot be saved",
			Hint: "start it and try again; if it is lost for good, add --force"}
	case up && force:
		return api.NodeChange{}, &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "it is up: nothing has to be forced",
			Hint: "leave --force out; to remove a node that must not speak, stop it first"}
	case p.ID == n.self:
		return api.NodeChange{}, &api.Error{Code: api.CodeConflict, Op: op, Subject: name, Why: "a node does not remove itself",
			Hint: "ask another node: --server"}
	}
	out, err := n.drain(ctx, op, name, progress)
	if err != nil {
		return out, err
	}
	if !force {
		if err := n.saveCopies(ctx, op, p, progress); err != nil {
			return out, err
		}
	}
	_, err = n.ctl.propose(ctx, &control.Command{By: n.id.Name(), RemoveNode: &control.RemoveNode{Node: name}})
	out.State = "removed"
	return out, err
}

// saveCopies waits until a majority of each directory's voters holds all that is on the node's disk.
func (n *node) saveCopies(ctx context.Context, op string, p *control.Node, progress func(api.Progress)) error {
	var groups []*control.Group
	st := n.ctl.state()
	for i := range st.Groups {
		g := &st.Groups[i]
		if _, ok := g.Member(p.ID); ok && !g.Deleted && g.Kind == control.KindFiles {
			groups = append(groups, g)
		}
	}
	for i, g := range groups {
		s := saving{n: n, op: op, p: p, g: g, shown: func() {
			if progress != nil {
				progress(api.Progress{What: "saving what it has", Node: p.Name, Done: uint64(i), Total: uint64(len(groups)), Unit: "groups"})
			}
		}}
		if err := s.save(ctx); err != nil {
			return err
		}
	}
	return nil
}

// saving is what others are given of one group before a node goes.
type saving struct {
	n     *node
	op    string
	p     *control.Node // that goes
	g     *control.Group
	shown func()
}

func (s *saving) save(ctx context.Context) error {
	leaving, _ := s.g.Member(s.p.ID)
	var told flush
	if err := s.await(ctx, func() []uint64 { return []uint64{s.p.ID} }, func(ctx context.Context) bool {
		told = s.n.flushAt(ctx, s.g, leaving)
		return told.index > 0
	}); err != nil {
		return err
	}
	var others []control.Member
	for _, m := range s.g.Voters() {
		if m.Node != s.p.ID {
			others = append(others, m)
		}
	}
	return s.await(ctx, func() []uint64 { return s.lacking(ctx, others, told.index) }, func(ctx context.Context) bool {
		return s.n.placedAtMajority(ctx, s.g, others, told.index)
	})
}

// await runs step until it has succeeded, or the nodes that it waits for stand still.
func (s *saving) await(ctx context.Context, waitsFor func() []uint64, step func(context.Context) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan bool, 1)
	go func() { done <- step(ctx) }()
	t := time.NewTicker(savePoll)
	defer t.Stop()
	var m motion
	for {
		select {
		case ok := <-done:
			if ok {
				return nil
			}
			var hindered []string
			if ctx.Err() == nil { // it gave up by itself
				_, hindered = s.look(ctx, waitsFor())
			}
			return s.unsaved(hindered, 0)
		case <-t.C:
		}
		s.shown()
		if ctx.Err() != nil {
			continue // step ends now
		}
		seen, hindered := s.look(ctx, waitsFor())
		still := m.stands(time.Now(), seen)
		if still >= longestStep || still >= standstill && len(hindered) > 0 {
			cancel()
			if <-done {
				return nil
			}
			return s.unsaved(hindered, still)
		}
	}
}

// look says where the nodes are with the group, and what is in the way of which.
func (s *saving) look(ctx context.Context, nodes []uint64) (seen string, hindered []string) {
	var b strings.Builder
	for _, id := range nodes {
		r, err := s.n.reportOf(ctx, s.g, id)
		name := s.n.nameOf(id)
		is := s.n.word(ctx, id)
		switch {
		case !is.up:
			hindered = append(hindered, name+" does not answer")
		case is.full != nil:
			hindered = append(hindered, "the disk of "+name+" is full: "+describeFull(is.full))
		case err != nil:
			hindered = append(hindered, name+": "+err.Error())
		case r.Dir != nil && r.Dir.Mode == "stopped":
			hindered = append(hindered, name+" has stopped: "+r.Dir.Why)
		case r.Dir != nil && len(r.Dir.Problems) > 0:
			hindered = append(hindered, name+": "+strings.TrimPrefix(r.Dir.Problems[0].Path+": "+r.Dir.Problems[0].What, ": "))
		}
		if err == nil && r.Dir != nil {
			fmt.Fprintf(&b, "%d: %d %d %d %d %d;", id, r.Received, r.Dir.Placed, r.Dir.Pending, r.Dir.BehindFiles, r.Dir.BehindBytes)
		}
	}
	return b.String(), hindered
}

// lacking are the nodes that have not placed as much.
func (s *saving) lacking(ctx context.Context, members []control.Member, index uint64) (nodes []uint64) {
	for _, m := range members {
		if r, err := s.n.reportOf(ctx, s.g, m.Node); err != nil || r.Dir == nil || r.Dir.Placed < index {
			nodes = append(nodes, m.Node)
		}
	}
	return nodes
}

// unsaved is the error of who waited in vain.
func (s *saving) unsaved(hindered []string, still time.Duration) error {
	e := &api.Error{Code: api.CodeUnavailable, Op: s.op, Subject: s.p.Name, Why: "the others do not have everything of " + s.g.Name + " that is on its disk",
		Hint: "it is drained and goes on as a member: see to what keeps it (lockstep dir status " + s.g.Name + ") and try again; " +
			"if what only it has may be lost, stop it and add --force"}
	if still > 0 {
		e.Why += fmt.Sprintf(", and nothing has moved for %s", still.Round(time.Second))
	}
	if len(hindered) > 0 {
		e.Why += ": " + strings.Join(hindered, "; ")
	}
	return e
}
