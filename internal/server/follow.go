package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// introduce tells the control group what it must know of this node: the cluster itself, from its first node, or
// an address or version that changed.
func (n *node) introduce(ctx context.Context, init *control.Init) {
	for ctx.Err() == nil {
		err := n.introduceOnce(ctx, init)
		if err == nil {
			return
		}
		n.log.Warn("not yet introduced to the cluster", "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (n *node) introduceOnce(ctx context.Context, init *control.Init) error {
	if init != nil {
		if _, err := n.ctl.propose(ctx, &control.Command{By: "serve", Init: init}); err != nil {
			n.notAdmitted(err)
			return err
		}
		// It is gone already if what follows failed the last time.
		if err := os.Remove(n.data.sub(initFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := n.recordFork(ctx); err != nil {
		return err
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: "serve", SetAddress: &control.SetAddress{
		Node: n.self, Address: n.advertise, Version: n.cfg.Version.Version, Zone: n.cfg.Zone, Life: n.life.now(), Levels: knows(),
	}})
	n.notAdmitted(err)
	return err
}

// notAdmitted acts on the control group's answer to an introduction, if that is a refusal which asking again does not
// change.
func (n *node) notAdmitted(err error) {
	var refused *api.Error
	if !errors.As(err, &refused) {
		return
	}
	switch refused.Code {
	case api.CodeDenied, api.CodeDamage:
		n.expel(refused)
	case api.CodeConflict: // control.Unfit
		n.leaveFor(refused)
	}
}

// followControl makes what this node holds agree with the control group's state, whenever that changes.
func (n *node) followControl(ctx context.Context) {
	retry := time.NewTicker(2 * time.Second)
	defer retry.Stop()
	for {
		err := n.agree(ctx, n.ctl.state())
		if e := n.newerLevel(err); e != nil {
			n.leaveFor(e)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Error("cannot follow the control group; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.ctl.news:
		case <-retry.C:
		}
	}
}

func (n *node) agree(ctx context.Context, st *control.State) error {
	if st.Cluster.ID == "" {
		return nil
	}
	me, ok := st.Node(n.self)
	if ok && me.Removed {
		n.expel(control.Expelled(n.id.Name()))
		return nil
	}
	for _, p := range st.Nodes {
		if p.Removed {
			n.net.Drop(p.ID)
		}
	}
	errs := []error{n.followLevel(st.Level())}
	for i := range st.Groups {
		g := &st.Groups[i]
		if g.ID == control.ControlGroup {
			if m, mine := g.Member(n.self); mine {
				errs = append(errs, n.holdControl(ctx, g, m))
			}
			continue
		}
		errs = append(errs, n.agreeOn(ctx, g.ID))
	}
	errs = append(errs, n.refuseForks(ctx))
	errs = append(errs, n.hints.setPeers(n.peerAddresses(st)), n.tidyUploads())
	return errors.Join(errs...)
}

// agreeOn brings this node's part of a group of files to what the control group wants now: the state that the pass began
// with may be older than a fork that was decided since.
func (n *node) agreeOn(ctx context.Context, group uint64) error {
	n.taking.Lock()
	defer n.taking.Unlock()
	g, ok := n.ctl.state().Group(group)
	if !ok {
		return nil
	}
	if free, err := n.unseal(g); err != nil || !free {
		return err
	}
	if err := n.seeToDamage(ctx, g); err != nil {
		return err
	}
	if err := n.resume(ctx, g); err != nil {
		return err
	}
	if m, mine := g.Member(n.self); mine && !g.Deleted {
		return n.hold(ctx, g, m)
	}
	return n.leave(ctx, g)
}

// driveInterval is how often a leader compares its group's configuration with what the control group wants.
const driveInterval = 250 * time.Millisecond

// driveMemberships takes the next step of every group that is led here.
func (n *node) driveMemberships(ctx context.Context) {
	t := time.NewTicker(driveInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		st := n.ctl.state()
		for i := range st.Groups {
			g := &st.Groups[i]
			if grp := n.groupHere(g.ID); grp != nil && grp.Core().Role == core.Leader {
				n.drive(ctx, st, g, grp)
			}
		}
	}
}

func (n *node) groupHere(id uint64) *engine.Group {
	grp, _ := n.eng.Group(id)
	return grp
}

// drive takes the next step of a group that is led here.
//
// What the control group's state was when this node came to lead may be older than what the leaders before have already
// brought the configuration to: voters that they took in would look like such that were left out since. So the step that
// this node's copy calls for only says that there may be something to do. What is done follows from a copy that was made
// current after this leadership had begun, and is done by this leadership or not at all: then the configuration is of no
// newer state than the copy.
func (n *node) drive(ctx context.Context, cs *control.State, g *control.Group, grp *engine.Group) {
	term, step := nextStep(cs, g, grp)
	ctl := n.ctl.member()
	if step.Why == "" || ctl == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := ctl.Barrier(ctx); err != nil {
		n.log.Debug("membership: the control group's state may be old", "group", g.Name, "change", step.Why, "err", err)
		return
	}
	cs = n.ctl.state()
	g, ok := cs.Group(g.ID)
	if !ok {
		return
	}
	_, step = nextStep(cs, g, grp)
	switch {
	case step.Transfer != 0:
		err := grp.Transfer(ctx, step.Transfer)
		n.log.Info("leadership", "group", g.Name, "change", step.Why, "err", err)
	case step.Change != nil:
		a := grp.Change(ctx, term, step.Change)
		n.log.Info("membership", "group", g.Name, "change", step.Why, "answer", a.Code.String())
	}
}

// nextStep is what a replica that leads does next to bring its group's configuration to what a state of the control group
// wants, and the term in which it leads. A replica that follows another history does nothing.
func nextStep(cs *control.State, g *control.Group, grp *engine.Group) (term uint64, _ control.Step) {
	st := grp.Fresh()
	if st.Role != core.Leader || st.Transferee != 0 || !st.TermBegun || memberLine(grp, g).History != g.History {
		return st.Term, control.Step{}
	}
	return st.Term, control.PlanMembership(g, control.Lead{
		Self:     grp.Replica(),
		Conf:     &raftpb.ConfState{Voters: st.Voters, Learners: st.Learners, VotersOutgoing: st.Outgoing},
		Progress: func(replica uint64) control.Progress { return progressOf(st, replica) },
		Avoid: func(replica uint64) bool {
			id, _ := g.NodeOf(replica)
			p, ok := cs.Node(id)
			return ok && (p.Drain || p.Removed)
		},
	})
}

func progressOf(st core.Status, replica uint64) control.Progress {
	for _, p := range st.Peers {
		if p.Replica == replica {
			return control.ProgressOf(p.RecentActive, p.State == core.Replicating, p.Match, st.Commit)
		}
	}
	return control.Absent
}

var errNoSuchGroup = &api.Error{Code: api.CodeUnavailable, Op: "group", Why: "this node does not hold the group (yet, or any more)",
	Hint: "lockstep group show GROUP lists who does; try again in a second"}
