package server

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// openControl starts this node's part of the control group.
func (n *node) openControl(ctx context.Context, init *control.Init) error {
	n.ctl.session = n.eng.NewSession(control.ControlGroup, controlVoters{n}, newSessionID())
	n.ctl.mu.Lock()
	defer n.ctl.mu.Unlock()
	return n.startControl(ctx, init)
}

// startControl starts the replica; the control plane's lock is held.
func (n *node) startControl(ctx context.Context, init *control.Init) error {
	role := n.hints.role()
	if role == "" {
		var err error
		if role, err = n.askRole(ctx); err != nil {
			return err
		}
	}
	machine := control.New(n.ctl.publish)
	if role == control.RoleObserver {
		obs, err := n.eng.Observe(engine.ObserverConfig{
			ID: control.ControlGroup, Machine: machine, Members: controlVoters{n}, FollowForks: true,
			Sources: func() []uint64 { return n.sourcesOf(control.ControlGroup) },
		})
		if err != nil {
			return err
		}
		n.ctl.obs, n.ctl.self = obs, obs
		return nil
	}
	cfg := engine.GroupConfig{ID: control.ControlGroup, Replica: n.self, Machine: machine, Nodes: n.controlNodes(), InSync: true}
	if init != nil { // only the first start of the first node begins with nothing
		cfg.Initial, cfg.History = []uint64{1}, init.History
	}
	grp, err := n.eng.StartGroup(cfg)
	if err != nil {
		return damaged(n.data.path, err)
	}
	n.ctl.grp, n.ctl.self = grp, grp
	return nil
}

// askRole asks the peers that the join answer named which role this node has, until one knows.
func (n *node) askRole(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	for {
		for _, p := range n.hintedPeers() {
			var st control.State
			b, err := n.net.Call(ctx, p, methodState, nil)
			if err != nil || json.Unmarshal(b, &st) != nil {
				continue
			}
			if g, ok := st.Group(control.ControlGroup); ok {
				if m, ok := g.Member(n.self); ok {
					return m.Role, nil
				}
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return "", &api.Error{Code: api.CodeUnavailable, Op: "join", Subject: n.id.Name(),
				Why: "no node of the cluster says what part this one has", Hint: "start it again; the join itself is done"}
		}
	}
}

// controlNodes maps replicas of the control group to nodes: they are the same numbers.
func (n *node) controlNodes() map[uint64]uint64 {
	nodes := map[uint64]uint64{n.self: n.self}
	for _, p := range n.hintedPeers() {
		nodes[p] = p
	}
	if g, ok := n.ctl.state().Group(control.ControlGroup); ok {
		for _, m := range g.Members {
			nodes[m.Replica] = m.Node
		}
	}
	return nodes
}

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
			return err
		}
		if err := os.Remove(n.data.sub(initFile)); err != nil {
			return err
		}
	}
	if err := n.recordFork(ctx); err != nil {
		return err
	}
	me, ok := n.ctl.state().Node(n.self)
	if ok && me.Address == n.advertise && me.Version == n.cfg.Version.Version {
		return nil
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: "serve", SetAddress: &control.SetAddress{
		Node: n.self, Address: n.advertise, Version: n.cfg.Version.Version,
	}})
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeDenied {
		n.failed(err)
	}
	return err
}

// followControl makes what this node holds agree with the control group's state, whenever that changes.
func (n *node) followControl(ctx context.Context) {
	retry := time.NewTicker(2 * time.Second)
	defer retry.Stop()
	for {
		if err := n.agree(ctx, n.ctl.state()); err != nil && ctx.Err() == nil {
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
	var errs []error
	next := hint{Peers: map[uint64]string{}}
	for _, p := range st.Nodes {
		if !p.Removed {
			next.Peers[p.ID] = p.Address
		}
	}
	for i := range st.Groups {
		g := &st.Groups[i]
		m, mine := g.Member(n.self)
		if g.ID == control.ControlGroup {
			next.Role = m.Role
			if grp := n.ctl.group(); grp != nil {
				grp.SetNodes(n.controlNodes())
			} else if obs := n.ctl.observer(); obs != nil {
				obs.Reconsider()
			}
			continue
		}
		if g.Deleted || !mine {
			errs = append(errs, n.leave(ctx, g))
			continue
		}
		errs = append(errs, n.hold(ctx, g, m))
	}
	if next.Role != "" {
		errs = append(errs, n.hints.update(next))
	}
	return errors.Join(append(errs, n.tidyUploads())...)
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
				n.drive(ctx, g, grp)
			}
		}
	}
}

func (n *node) groupHere(id uint64) *engine.Group {
	grp, _ := n.eng.Group(id)
	return grp
}

func (n *node) drive(ctx context.Context, g *control.Group, grp *engine.Group) {
	st := grp.Fresh()
	conf := &raftpb.ConfState{Voters: st.Voters, Learners: st.Learners, VotersOutgoing: st.Outgoing}
	progress := func(replica uint64) control.Progress {
		for _, p := range st.Peers {
			switch {
			case p.Replica != replica || !p.RecentActive:
			case p.State == core.Replicating && p.Match+promoteWithin >= st.Commit:
				return control.CaughtUp
			default:
				return control.Learning
			}
		}
		return control.Absent
	}
	cc, why := control.PlanMembership(g, conf, progress)
	if cc == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	a := grp.Change(ctx, cc)
	n.log.Info("membership", "group", g.Name, "change", why, "answer", a.Code.String())
}

// promoteWithin is how many entries a learner may lack when it becomes a voter.
const promoteWithin = 64

var errNoSuchGroup = &api.Error{Code: api.CodeUnavailable, Op: "group", Why: "this node does not hold the group (yet, or any more)",
	Hint: "lockstep group show GROUP lists who does; try again in a second"}
