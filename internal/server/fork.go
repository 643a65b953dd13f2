package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// How groups come to a new history. For groups of files the control group decides: of two recoveries asked for at
// once one is refused there, and every member learns from it which history counts and where it forked. Each node
// then brings its own part along (align) before anything of the group runs again.
//
// The control group itself can only be recovered on a stopped node (OfflineRecover). Who follows the history of
// before is told by the engine when they meet, and comes along by rejoinControl. If two nodes were both recovered,
// neither gives in: both warn until one of them is wiped and joins again.

// lineOf is the line that the control group wants a group to be on.
func lineOf(g *control.Group) replica.Line {
	line := replica.Line{History: g.History}
	if f := g.Fork; f != nil {
		line.Before, line.Fork = f.Before, core.Position{Term: f.Term, Index: f.Index}
		line.Start, line.Seed = f.Start, f.Seed
	}
	return line
}

// asideKey holds asideDue for a binding whose files are to be compared with the group's, and set aside where they
// differ, before they are taken up; asideDone afterwards.
func asideKey(group, binding uint64) []byte { return append(tablePrefix(group, binding), "aside"...) }

const (
	asideDue  = 1
	asideDone = 2
)

// align brings what this node holds of a group, which does not run, to the group's history. It may be interrupted
// anywhere and done again: the state is turned last.
func (n *node) align(g *control.Group, m control.Member) error {
	st, err := n.eng.Standing(g.ID)
	if err != nil || st.At.Index > 0 && st.Line.History == g.History {
		return err
	}
	if err := known(g, st); err != nil {
		return err
	}
	restored := g.Fork != nil && g.Fork.Cause == control.ForkRestore
	switch {
	case restored && g.Fork.Seed == m.Replica:
		return n.importUpload(g, m)
	case st.At.Index == 0 && restored && contains(g.Fork.Members, m.Replica):
		return n.markAside(g, m)
	case st.At.Index == 0 && st.Line.History == [16]byte{}:
		return nil
	}
	line := lineOf(g)
	// What it had was given up for another id, and then the group forked: positions up to the fork mean the same.
	recast := st.At.Index == 0 && line.Before == st.Line.History && line.Seed != 0
	table := placedTable(n.state, g.ID, m.Binding)
	seeds := g.Fork != nil && st.At.Index > 0 && g.Fork.Seed == m.Replica && g.Fork.Before == st.Line.History && g.Fork.Cause == control.ForkRecover
	switch {
	case seeds:
		if err := n.wentOn(g); err != nil {
			return err
		}
		if err := files.ForgetAbove(table, line.Start-1); err != nil {
			return err
		}
		cfg := engine.RecoverConfig{Group: g.ID, Replica: m.Replica, History: g.History, Fork: line.Fork, Start: line.Start, Trust: g.Fork.Trusted}
		_, err := n.eng.Recover(cfg)
		if errors.Is(err, logstore.ErrDamaged) {
			n.log.Warn("the group goes on from the state alone: the log of the replica is damaged", "group", g.Name, "at", st.At.Index)
			cfg.StateOnly = true
			_, err = n.eng.Recover(cfg)
		}
		return err
	case engine.KeepsState(st, line), recast:
		if err := files.ForgetAbove(table, line.Fork.Index); err != nil {
			return err
		}
	default:
		// What was recorded of the directory speaks of versions that mean nothing any more: the files are
		// compared as those of a new member are.
		if err := n.forgetTable(g, m); err != nil {
			return err
		}
	}
	_, err = n.eng.Rebase(g.ID, line)
	return err
}

// forgetTable drops the placed table. If the group was restored, the directory is to show what the backup held: the
// files that differ are set aside. Else they are merged by the group's policy, which keeps both.
func (n *node) forgetTable(g *control.Group, m control.Member) error {
	prefix := tablePrefix(g.ID, m.Binding)
	b := n.state.Through().Batch()
	defer b.Discard()
	if err := b.DeleteRange(prefix, kv.PrefixEnd(prefix)); err != nil {
		return err
	}
	if g.Fork != nil && g.Fork.Cause == control.ForkRestore {
		if err := b.Set(asideKey(g.ID, m.Binding), []byte{asideDue}); err != nil {
			return err
		}
	}
	if err := b.Commit(); err != nil {
		return err
	}
	return n.state.Sync()
}

// markAside is for a member that was part of a group when it was restored and has nothing of it yet; once is enough.
func (n *node) markAside(g *control.Group, m control.Member) error {
	_, marked, err := n.state.Get(asideKey(g.ID, m.Binding))
	if err != nil || marked {
		return err
	}
	return n.forgetTable(g, m)
}

// pause ends what runs of a group here and forgets nothing.
func (n *node) pause(h *holding) error {
	h.close()
	if err := n.eng.StopGroup(h.group.ID, false); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.holdings, h.group.ID)
	return nil
}

// logEndAnswer is what a member says of its log.
type logEndAnswer struct {
	History [16]byte      `json:"history"`
	Replica uint64        `json:"replica"`
	Commit  core.Position `json:"commit"`
	Last    core.Position `json:"last"`
	Voters  []uint64      `json:"voters,omitempty"`  // of the configuration in force there, outgoing ones included
	Leads   bool          `json:"leads,omitempty"`   // and has committed something in its term
	Damaged bool          `json:"damaged,omitempty"` // its log is: it does not vote, and ends where its state does
	Astray  bool          `json:"astray,omitempty"`  // the control group does not know its history: it does not vote
	// Doubtful: its state is in quarantine. It votes.
	Doubtful bool `json:"doubtful,omitempty"`
}

func (n *node) logEndHere(_ context.Context, req groupRequest) (out logEndAnswer, err error) {
	if s, ok := n.suspected(req.Group); ok {
		st, end, err := n.eng.StoppedEnd(req.Group)
		return logEndAnswer{History: st.Line.History, Replica: s.replica, Commit: end.Commit, Last: end.Last, Damaged: !s.astray, Astray: s.astray,
			Doubtful: st.Quarantine != nil}, err
	}
	h, err := n.holding(req.Group)
	if err != nil {
		return out, err
	}
	out.Replica, out.Doubtful = h.replica, h.member.Quarantine() != nil
	if h.grp == nil {
		out.History, out.Commit = h.obs.Line().History, h.obs.Applied()
		out.Last = out.Commit
		return out, nil
	}
	end, err := h.grp.LogEnd()
	if err != nil {
		return out, err
	}
	st := h.grp.Fresh()
	out.History, out.Commit, out.Last = h.grp.Line().History, end.Commit, end.Last
	out.Voters = slices.Concat(st.Voters, st.Outgoing)
	out.Leads = st.Role == core.Leader && st.TermBegun
	return out, nil
}

// GroupRecover makes the survivor with the most of the log the beginning of a new history.
func (n *node) GroupRecover(ctx context.Context, group string, req api.GroupRecover) (api.GroupRecovered, error) {
	const op = "group recover"
	g, err := n.groupNamed(op, group)
	if err != nil {
		return api.GroupRecovered{}, err
	}
	switch {
	case g.ID == control.ControlGroup:
		return api.GroupRecovered{}, &api.Error{Code: api.CodeUsage, Op: op, Subject: group,
			Why:  "the control group can be recovered on a stopped node only",
			Hint: "stop the node that is to go on, and there: lockstep offline recover --data DIR --yes-lose-data NODE"}
	case req.Confirm != group:
		return api.GroupRecovered{}, &api.Error{Code: api.CodeUsage, Op: op, Subject: group,
			Why: "what other members had and this one had not is lost", Hint: "if that is meant: --yes-lose-data " + group}
	}
	out, seed, err := n.planRecovery(ctx, op, g, req.From)
	if err != nil || req.DryRun {
		out.DryRun = req.DryRun
		return out, err
	}
	done, err := call(ctx, n, seed.Node, methodRecover, groupRequest{Group: g.ID, Path: n.id.Name(), Trust: req.From != ""}, n.recoverHere)
	if err != nil {
		return out, err
	}
	done.Lost, done.Survivors = out.Lost, out.Survivors
	n.log.Warn("group recovered with loss", "group", g.Name, "seed", out.Node, "replica", seed.Replica, "history", done.History, "doubtful", done.Doubtful)
	return done, nil
}

// planRecovery asks who is there, refuses if they are enough to go on, and chooses who begins: of the members on the
// group's history the one whose log goes farthest, as an election would. One that has gone astray begins whatever the
// others have, if it was named (from). If all voters that answer are in quarantine nobody begins who was not named.
func (n *node) planRecovery(ctx context.Context, op string, g *control.Group, from string) (out api.GroupRecovered, seed control.Member, err error) {
	type found struct {
		logEndAnswer
		err error
	}
	answers := each(g.Members, func(m control.Member) found {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		e, err := call(ctx, n, m.Node, methodLogEnd, groupRequest{Group: g.ID}, n.logEndHere)
		return found{e, err}
	})
	out = api.GroupRecovered{Group: g.Name, Lost: []string{}, Survivors: []string{}}
	ends := make([]logEndAnswer, len(answers))
	for i, a := range answers {
		name := n.nameOf(g.Members[i].Node)
		if a.err != nil {
			out.Lost = append(out.Lost, name)
			continue
		}
		out.Survivors, ends[i] = append(out.Survivors, name), a.logEndAnswer
	}
	if from != "" {
		best, err := n.from(g, from, ends)
		if err != nil {
			return out, seed, err
		}
		beginWith(&out, from, ends[best])
		return out, g.Members[best], nil
	}
	if allDoubtful(ends) {
		return out, seed, n.doubtfulError(op, g, ends)
	}
	if up, all, enough := majorityOf(ends); enough {
		return out, seed, &api.Error{Code: api.CodeConflict, Op: op, Subject: g.Name,
			Why:  fmt.Sprintf("%d of its %d voters answer: it has its majority and needs no recovery", up, all),
			Hint: "lockstep group show " + g.Name + " says what each does"}
	}
	best := farthest(ends, g.History)
	if best < 0 {
		return out, seed, &api.Error{Code: api.CodeUnavailable, Op: op, Subject: g.Name, Why: "no member that is up has anything of it",
			Hint: "start one that has, or restore the group: lockstep restore FILE --group " + g.Name}
	}
	beginWith(&out, n.nameOf(g.Members[best].Node), ends[best])
	return out, g.Members[best], nil
}

func beginWith(out *api.GroupRecovered, node string, e logEndAnswer) {
	out.Doubtful = e.Doubtful
	out.Node, out.Before, out.Fork, out.Last = node, fmt.Sprintf("%x", e.History), e.Commit.Index, e.Last.Index
}

// majorityOf says whether the members that answer are enough by the configuration of any of them. A zero answer is
// of a member that is down.
func majorityOf(ends []logEndAnswer) (up, all int, enough bool) {
	var here []uint64
	for _, e := range ends {
		if e.Replica != 0 && !e.Damaged && !e.Astray {
			here = append(here, e.Replica)
		}
	}
	for _, e := range ends {
		up, all = 0, len(e.Voters)
		for _, v := range e.Voters {
			if slices.Contains(here, v) {
				up++
			}
		}
		if e.Leads || all > 0 && 2*up > all {
			return up, all, true
		}
	}
	return 0, 0, false
}

// farthest is the answer whose log goes farthest (see engine.Farthest). -1: nobody has anything.
func farthest(ends []logEndAnswer, history [16]byte) int {
	all := make([]engine.Standpoint, len(ends))
	for i, e := range ends {
		all[i] = engine.Standpoint{History: e.History, Last: e.Last}
	}
	return engine.Farthest(all, history)
}

// recoverHere makes this node's replica begin a new history. The replica is stopped first, so that the point where it
// forks cannot move any more; then the control group records the fork, and with that it is decided. Until it is known to
// be decided, either way, the group stays sealed.
func (n *node) recoverHere(ctx context.Context, req groupRequest) (out api.GroupRecovered, err error) {
	g, ok := n.ctl.state().Group(req.Group)
	if !ok {
		return out, errNoSuchGroup
	}
	sealed, err := n.seal(g.ID)
	if err != nil {
		return out, err
	}
	defer n.answered(g.ID)
	if err := n.state.Sync(); err != nil { // a replica without a sound log begins where its state is
		return out, err
	}
	st, end, err := n.eng.StoppedEnd(g.ID)
	if err != nil {
		return out, err
	}
	f := &control.ForkGroup{Group: g.Name, Was: g.History, Node: n.id.Name(), InSync: sealed.InSync, Fork: control.Fork{
		Before: st.Line.History, Index: end.Commit.Index, Term: end.Commit.Term, Start: end.Last.Index + 1, Cause: control.ForkRecover,
		Trusted: req.Trust && st.Quarantine != nil,
	}}
	rand.Read(f.To[:])
	var refused *api.Error
	_, err = n.ctl.propose(ctx, &control.Command{By: req.Path, ForkGroup: f})
	switch {
	case errors.As(err, &refused) && refused.Code != api.CodeUnavailable:
		return out, err
	case err != nil:
		return out, unknownFate(g.Name, err)
	}
	n.log.Warn("group recovered with loss: it goes on here under a new history", "group", g.Name, "history", fmt.Sprintf("%x", f.To),
		"before", fmt.Sprintf("%x", f.Fork.Before), "fork", f.Fork.Index, "last", end.Last.Index)
	return api.GroupRecovered{
		Group: g.Name, Node: n.id.Name(), History: fmt.Sprintf("%x", f.To), Before: fmt.Sprintf("%x", f.Fork.Before),
		Fork: f.Fork.Index, Last: end.Last.Index, Doubtful: st.Quarantine != nil,
	}, nil
}

// forked is the engine's news that another node follows another history.
func (n *node) forked(f engine.Forked) {
	if !f.Superseded {
		n.log.Error("a node follows another history of a group, and neither comes from the other: it was recovered or restored twice",
			"group", f.Group, "peer", n.nameOf(f.Node), "theirs", fmt.Sprintf("%x", f.Line.History))
		n.mu.Lock()
		n.estranged[[2]uint64{f.Group, f.Node}] = time.Now()
		n.mu.Unlock()
		return
	}
	if f.Group != control.ControlGroup {
		n.ctl.nudge() // the control group says the same, soon if not now
		return
	}
	select {
	case n.superseded <- f.Line:
	default: // one is being followed; it is told again
	}
}

// followForks brings this node's part of the control group along when another node has recovered it.
func (n *node) followForks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case line := <-n.superseded:
			if err := n.rejoinControl(line); err != nil {
				n.failed(fmt.Errorf("follow the control group to its new history: %w", err))
			}
		}
	}
}

func (n *node) rejoinControl(line replica.Line) error {
	n.ctl.mu.Lock() // who asks for the control group meanwhile waits
	defer n.ctl.mu.Unlock()
	if n.ctl.obs != nil {
		n.ctl.obs.Close()
	}
	if err := n.eng.StopGroup(control.ControlGroup, false); err != nil {
		return err
	}
	kept, err := n.eng.Rebase(control.ControlGroup, line)
	if err != nil {
		return err
	}
	n.log.Warn("the control group was recovered elsewhere; this node goes on under its new history",
		"history", fmt.Sprintf("%x", line.History), "fork", line.Fork.Index, "kept", kept)
	n.ctl.grp, n.ctl.obs = nil, nil
	role, seat, _ := n.hints.seat()
	return n.startControl(role, seat, nil)
}

// strangers warns of nodes that follow another history, as long as they are heard of.
func (n *node) strangers() (list []api.Warning) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, at := range n.estranged {
		if time.Since(at) > time.Minute {
			delete(n.estranged, key)
			continue
		}
		name := fmt.Sprint(key[0])
		if g, ok := n.ctl.state().Group(key[0]); ok {
			name = g.Name
		}
		list = append(list, api.Warning{Name: "two_histories", Subject: name + " on " + n.nameOf(key[1]), Since: at,
			Text: "it follows another history of the group: the group was recovered twice",
			Hint: "decide for one; stop the other node, move its data directory away and join again with --join TOKEN --replace"})
	}
	return list
}

// recordFork tells the control group of its own recovery.
func (n *node) recordFork(ctx context.Context) error {
	grp := n.ctl.group()
	g, ok := n.ctl.state().Group(control.ControlGroup)
	if grp == nil || !ok {
		return nil
	}
	line := grp.Line()
	if line.History == g.History || line.Seed != grp.Replica() {
		return nil
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: "offline recover", ForkGroup: &control.ForkGroup{
		Group: g.Name, Was: g.History, To: line.History, Node: n.id.Name(), Fork: control.Fork{
			Before: line.Before, Index: line.Fork.Index, Term: line.Fork.Term, Start: line.Start, Cause: control.ForkRecover,
		},
	}})
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeConflict {
		return nil // recovered again since: the later one has recorded itself
	}
	return err
}
