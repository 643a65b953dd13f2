package server

import (
	"context"
	"fmt"
	"slices"
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
	// longestStep is how long nothing may be seen to move where nothing is known to be in the way: what is hashed, or
	// compared with a large file, looks like that.
	longestStep = 10 * time.Minute
	// askedAtOnce bounds the groups of which the members are asked at the same time.
	askedAtOnce = 16
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
	now := n.hear(ctx)
	if e := control.CheckLeave(st, op, p, nil, now.runs, now.voting); e != nil {
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
// However many groups there are, a node that does not answer costs the time of one question.
func (n *node) seatsLeft(ctx context.Context, id uint64) (left []string, seen string) {
	now := n.hear(ctx)
	return seatsLeft(n.ctl.state(), id, now.up, func(g *control.Group, node uint64) report {
		r, err := n.reportOf(ctx, g, node)
		if err != nil {
			return absent(err)
		}
		return r
	})
}

func seatsLeft(st *control.State, id uint64, up func(node uint64) bool, ask func(g *control.Group, node uint64) report) (left []string, seen string) {
	var groups []*control.Group
	for i := range st.Groups {
		g := &st.Groups[i]
		if _, ok := g.Member(id); ok && !g.Deleted {
			groups = append(groups, g)
		}
	}
	var b strings.Builder
	for i, seat := range eachAtMost(askedAtOnce, groups, func(g *control.Group) string {
		reports := each(g.Members, func(m control.Member) report {
			if !up(m.Node) {
				return report{Role: "unknown", Mode: "down"}
			}
			return ask(g, m.Node)
		})
		m, _ := g.Member(id)
		if m.Role != control.RoleVoter && !configuredAt(g, reports, id) {
			return ""
		}
		return fmt.Sprintf("%d %s %s;", g.ID, m.Role, learning(reports))
	}) {
		if seat != "" {
			left = append(left, groups[i].Name)
			b.WriteString(seat)
		}
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
	if err := s.await(ctx, func(v *view) bool { return v.node == s.p.ID }, 0, func(ctx context.Context) bool {
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
	lacks := func(v *view) bool {
		return slices.ContainsFunc(others, func(m control.Member) bool { return m.Node == v.node }) && !v.placed(told.index)
	}
	return s.await(ctx, lacks, spareVoters(len(others)), func(ctx context.Context) bool {
		return s.n.placedAtMajority(ctx, s.g, others, told.index)
	})
}

// spareVoters is how many of that many voters a majority can do without.
func spareVoters(voters int) int { return max(voters-voters/2-1, 0) }

// await runs step until it has succeeded, or nothing is left to wait for. It waits for the members that waits says, and
// can do without spare of them.
func (s *saving) await(ctx context.Context, waits func(*view) bool, spare int, step func(context.Context) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan bool, 1)
	go func() { done <- step(ctx) }()
	t := time.NewTicker(savePoll)
	defer t.Stop()
	var v vigil
	for {
		select {
		case ok := <-done:
			if ok {
				return nil
			}
			var at prospect
			if ctx.Err() == nil { // it gave up by itself
				at = prospectOf(s.look(ctx), waits)
			}
			return s.unsaved(at.troubles, 0)
		case <-t.C:
		}
		s.shown()
		if ctx.Err() != nil {
			continue // step ends now
		}
		at := prospectOf(s.look(ctx), waits)
		if still, over := v.over(time.Now(), at, spare); over {
			cancel()
			if <-done {
				return nil
			}
			return s.unsaved(at.troubles, still)
		}
	}
}

// view is what a member of a group says when it is asked how it is getting on.
type view struct {
	node uint64
	name string
	is   word
	r    report
	err  error // of asking for r
}

func (s *saving) look(ctx context.Context) []view {
	return each(s.g.Members, func(m control.Member) view {
		v := view{node: m.Node, name: s.n.nameOf(m.Node), is: s.n.word(ctx, m.Node)}
		if v.is.up {
			v.r, v.err = s.n.reportOf(ctx, s.g, m.Node)
		}
		return v
	})
}

// tells says whether the member has given an account of its directory.
func (v *view) tells() bool { return v.is.up && v.err == nil && v.r.Dir != nil }

func (v *view) placed(index uint64) bool { return v.tells() && v.r.Dir.Placed >= index }

// trouble is what is the matter with the member, "" if nothing is. It hinders if nothing goes on there before it is seen
// to. A path that is not kept does not, nor what the file system has never had: that is a problem without a beginning.
func (v *view) trouble() (what string, hinders bool) {
	switch {
	case !v.is.up:
		return v.name + " does not answer", true
	case v.is.full != nil:
		return "the disk of " + v.name + " is full: " + describeFull(v.is.full), true
	case v.err != nil:
		return v.name + ": " + v.err.Error(), true
	case v.r.Dir == nil || v.r.Dir.Mode == "stopped":
		if v.r.Dir != nil {
			what = v.name + " has stopped: " + v.r.Dir.Why
		}
		return what, what != ""
	}
	for _, p := range v.r.Dir.Problems {
		if p.Path == "" && !p.Since.IsZero() {
			return v.name + ": " + p.What, true
		}
		if p.Path != "" && what == "" {
			what = v.name + ": " + p.Path + ": " + p.What
		}
	}
	return what, false
}

// prospect is how those get on who are waited for.
type prospect struct {
	own      string   // changes as long as one of them gets on
	all      string   // or contents come to any member
	troubles []string // what is the matter with them
	hindered int      // how many get on no further
}

func prospectOf(views []view, waits func(*view) bool) (at prospect) {
	var own, all strings.Builder
	for i := range views {
		v := &views[i]
		if v.tells() {
			fmt.Fprintf(&all, "%d: %d;", v.node, v.r.Moved)
		}
		if !waits(v) {
			continue
		}
		if d := v.r.Dir; v.tells() {
			fmt.Fprintf(&own, "%d: %d %d %d %d %d %d;", v.node, v.r.Received, v.r.Moved, d.Placed, d.Pending, d.BehindFiles, d.BehindBytes)
		}
		what, hinders := v.trouble()
		if what != "" {
			at.troubles = append(at.troubles, what)
		}
		if hinders {
			at.hindered++
		}
	}
	at.own, at.all = own.String(), own.String()+all.String()
	return at
}

// vigil decides for how long a wait goes on.
type vigil struct{ own, all motion }

// over says that the wait is in vain: more are hindered than the spare ones, and nothing has moved at those that are
// waited for; or, for much longer, nothing has moved anywhere.
func (v *vigil) over(now time.Time, at prospect, spare int) (still time.Duration, over bool) {
	own, all := v.own.stands(now, at.own), v.all.stands(now, at.all)
	if at.hindered > spare && own >= standstill {
		return own, true
	}
	return all, all >= longestStep
}

// unsaved is the error of who waited in vain.
func (s *saving) unsaved(troubles []string, still time.Duration) error {
	e := &api.Error{Code: api.CodeUnavailable, Op: s.op, Subject: s.p.Name, Why: "the others do not have everything of " + s.g.Name + " that is on its disk",
		Hint: "it is drained and goes on as a member: see to what keeps it (lockstep dir status " + s.g.Name + ") and try again; " +
			"if what only it has may be lost, stop it and add --force"}
	if still > 0 {
		e.Why += fmt.Sprintf(", and nothing has moved for %s", still.Round(time.Second))
	}
	if len(troubles) > 0 {
		e.Why += ": " + strings.Join(troubles, "; ")
	}
	return e
}
