package server

import (
	"context"
	"encoding/json"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
)

// openControl starts this node's part of the control group. Which one that is stands in cluster.json, which is
// written before log and state are touched.
func (n *node) openControl(ctx context.Context, init *control.Init) error {
	n.ctl.session = n.eng.NewSession(control.ControlGroup, controlVoters{n}, newSessionID())
	role, replica, recast := n.hints.seat()
	switch {
	case role == "":
		m, err := n.askSeat(ctx)
		if err != nil {
			return err
		}
		if err := n.hints.setSeat(m.Role, m.Replica, false); err != nil {
			return err
		}
		role, replica = m.Role, m.Replica
	case recast:
		if err := n.recastControl(role, replica); err != nil {
			return err
		}
	}
	return n.startControlSound(ctx, role, replica, init)
}

// startControl starts the replica; the control plane's lock is held.
func (n *node) startControl(role string, replica uint64, init *control.Init) error {
	machine := control.New(n.ctl.publish)
	n.ctl.grp, n.ctl.obs = nil, nil
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
	cfg := engine.GroupConfig{ID: control.ControlGroup, Replica: replica, Machine: machine, Nodes: n.controlNodes(replica), InSync: true}
	if init != nil { // only the first start of the first node begins with nothing
		cfg.Initial, cfg.History = []uint64{1}, init.History
	}
	grp, err := n.eng.StartGroup(cfg)
	if err != nil {
		return err
	}
	grp.SetNodes(n.controlNodes(replica)) // by now its state is known, if there is one
	n.ctl.grp, n.ctl.self = grp, grp
	return nil
}

func (n *node) recastControl(role string, replica uint64) error {
	if err := n.eng.Recast(control.ControlGroup, role == control.RoleVoter); err != nil {
		return err
	}
	return n.hints.setSeat(role, replica, false)
}

// holdControl brings this node's part of the control group up to date, as hold and turn do for others. What an earlier call
// could not finish it takes up again, from whatever step that had come to.
func (n *node) holdControl(ctx context.Context, g *control.Group, m control.Member) error {
	grp, obs := n.ctl.group(), n.ctl.observer()
	if grp != nil {
		grp.SetNodes(g.Nodes())
	} else if obs != nil {
		obs.Reconsider()
	}
	role, replica, recast := n.hints.seat()
	if m.Replica < replica { // ids only grow: this copy of the state is older than what a peer has said
		return nil
	}
	runs, settled := obs != nil || n.groupHere(g.ID) != nil, m.Replica == replica && m.Role == role && !recast
	switch {
	case grp != nil && grp.Damage() != nil:
		renewed, ok, err := n.renewControl(ctx, g, grp)
		if err != nil || !ok {
			return err
		}
		m, settled = renewed, false
	case runs && (settled || n.disk.Full() || grp != nil && !n.letGo(ctx, g, grp)):
		return nil
	}
	n.log.Info("role", "group", g.Name, "from", role, "to", m.Role, "replica", m.Replica)
	return n.turnControl(m, settled)
}

// turnControl has this node go on as another replica of the control group; settled: what it has on disk is that one's.
func (n *node) turnControl(m control.Member, settled bool) error {
	n.ctl.mu.Lock() // who asks for the control group meanwhile waits
	defer n.ctl.mu.Unlock()
	if n.ctl.obs != nil {
		n.ctl.obs.Close()
		n.ctl.obs = nil
	}
	if err := n.eng.StopGroup(control.ControlGroup, false); err != nil {
		return err
	}
	if !settled {
		if err := n.hints.setSeat(m.Role, m.Replica, true); err != nil {
			return err
		}
		if err := n.recastControl(m.Role, m.Replica); err != nil {
			return err
		}
	}
	return n.startControl(m.Role, m.Replica, nil)
}

// askSeat asks the peers that the join answer named which replica of the control group this node is, until one
// knows.
func (n *node) askSeat(ctx context.Context) (control.Member, error) {
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
					return m, nil
				}
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return control.Member{}, &api.Error{Code: api.CodeUnavailable, Op: "join", Subject: n.id.Name(),
				Why: "no node of the cluster says what part this one has", Hint: "start it again; the join itself is done"}
		}
	}
}

// controlNodes maps replicas of the control group to nodes, as far as is known.
func (n *node) controlNodes(self uint64) map[uint64]uint64 {
	nodes := map[uint64]uint64{}
	if g, ok := n.ctl.state().Group(control.ControlGroup); ok {
		nodes = g.Nodes()
	}
	nodes[self] = n.self
	return nodes
}
