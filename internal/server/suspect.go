package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// A replica whose log is damaged may have voted and acknowledged what it no longer knows: it must not run. It steps
// aside: the control group gives the node another replica id, and with it the node begins anew, without a log, on what
// it has of the state. The others feed it, and the configuration lets the old id go when the new one is promoted.

// methodRenew has another node renew the caller's replica of the control group.
const methodRenew = "server.renew"

// stepAside asks for another replica id after a start that found the log damaged. What comes of it is agreed upon as
// any other change.
func (n *node) stepAside(ctx context.Context, g *control.Group, m control.Member, cause error) error {
	n.suspect(g.ID, cause)
	n.log.Error("the log is damaged: this replica does not vote and asks for another id", "group", g.Name, "replica", m.Replica, "err", cause)
	_, err := n.ctl.propose(ctx, &control.Command{By: "serve", Renew: &control.Renew{Group: g.ID, Node: n.self, Replica: m.Replica}})
	if err != nil {
		return fmt.Errorf("%w; it cannot begin again yet: %w", cause, err)
	}
	return nil
}

// beginAgain makes what a damaged replica left fit for the one that the control group has given instead.
func (n *node) beginAgain(g *control.Group, m control.Member) error {
	o := ownedBy(m)
	o.Recast = true
	if err := n.own(g.ID, o); err != nil {
		return err
	}
	n.log.Warn("a replica with a damaged log begins again under another id", "group", g.Name, "replica", m.Replica)
	return n.recast(g.ID, o)
}

// suspect remembers why a group is not held; nil: it is.
func (n *node) suspect(group uint64, why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if why == nil {
		delete(n.suspects, group)
		return
	}
	n.suspects[group] = why
}

// reportSuspect is the report on a group that is not held because its log is damaged.
func (n *node) reportSuspect(group uint64) (report, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	why, ok := n.suspects[group]
	if !ok {
		return report{}, false
	}
	return report{Role: "none", Mode: "damaged", Why: why.Error() + "; it does not vote, and heals from the others under another replica id"}, true
}

// startControlSound starts the replica of the control group; with a damaged log, under another id that a peer gets for it.
func (n *node) startControlSound(ctx context.Context, role string, replica uint64, init *control.Init) error {
	n.ctl.mu.Lock()
	defer n.ctl.mu.Unlock()
	err := n.startControl(role, replica, init)
	if err == nil {
		return nil
	}
	if !errors.Is(err, logstore.ErrDamaged) {
		return logError(n.data.path, err)
	}
	n.log.Error("the control group's log is damaged: this replica does not vote and asks for another id", "replica", replica, "err", err)
	m, asked := n.askRenew(ctx, replica)
	if asked != nil {
		return damaged(n.data.path, fmt.Errorf("%w; no other node let it begin again: %w", err, asked))
	}
	if err := n.hints.setSeat(m.Role, m.Replica, true); err != nil {
		return err
	}
	if err := n.recastControl(m.Role, m.Replica); err != nil {
		return err
	}
	n.log.Warn("the control group's replica begins again under another id", "replica", m.Replica)
	return n.startControl(m.Role, m.Replica, nil)
}

// askRenew asks the peers, one after the other, to have this node's replica renewed.
func (n *node) askRenew(ctx context.Context, replica uint64) (m control.Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	req, err := json.Marshal(groupRequest{Group: control.ControlGroup, Index: replica})
	if err != nil {
		return m, err
	}
	err = errors.New("there is none")
	for _, p := range n.hintedPeers() {
		var b []byte
		if b, err = n.net.Call(ctx, p, methodRenew, req); err != nil {
			continue
		}
		if err = json.Unmarshal(b, &m); err == nil {
			return m, nil
		}
	}
	return m, err
}

// renewFor renews a replica of the control group for the node that asks, and nobody else.
func (n *node) renewFor(ctx context.Context, from uint64, b []byte) ([]byte, error) {
	var req groupRequest
	if err := json.Unmarshal(b, &req); err != nil {
		return nil, fmt.Errorf("%s: %w", methodRenew, err)
	}
	cmd := &control.Command{By: "serve", Renew: &control.Renew{Group: control.ControlGroup, Node: from, Replica: req.Index}}
	if _, err := n.ctl.propose(ctx, cmd); err != nil {
		return nil, err
	}
	g, ok := n.ctl.state().Group(control.ControlGroup)
	if ok {
		if m, ok := g.Member(from); ok {
			return json.Marshal(m)
		}
	}
	return nil, &api.Error{Code: api.CodeNotFound, Op: "renew replica", Subject: fmt.Sprint(from), Why: "it is no node of this cluster"}
}
