package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// A replica whose log is damaged may have voted and acknowledged what it no longer knows: it must not run. It steps
// aside: the control group gives the node another replica id, and with it the node begins anew, without a log, on what
// it has of the state. The others feed it, and the configuration lets the old id go when the new one is promoted.
//
// That is done only while the group is led and its leader can do without the replica (dispensable): a majority without it
// has whatever was acknowledged on its disks, and can take the new id in. Otherwise the replica stays as it is: of two
// voters, or after several logs were damaged at once, its state may be the best that there is, and what a recovery
// (lockstep group recover) begins with.

// methodRenew has another node renew the caller's replica of the control group.
const methodRenew = "server.renew"

// suspicion is of a replica that does not run because its log is damaged, or because it has gone astray.
type suspicion struct {
	replica uint64
	cause   error
	waits   error // why it cannot begin again yet; nil: it is about to
	astray  bool
}

// refusal is what those are told who want something of the group here.
func (s suspicion) refusal(group, node string) error {
	e := &api.Error{Code: api.CodeDamage, Op: "group", Subject: group, Why: "on node " + node + ": " + s.String(),
		Hint: "lockstep group show says what each member does"}
	if s.astray {
		e.Code, e.Hint = api.CodeConflict, wayOut(group, node)
	}
	return e
}

func (s suspicion) String() string {
	if s.astray {
		return s.cause.Error() + "; it does not run, and keeps what it has"
	}
	if s.waits != nil {
		text := fmt.Sprintf("%v; it does not vote, and keeps its state as it is: %v", s.cause, s.waits)
		if e := (*api.Error)(nil); errors.As(s.waits, &e) && e.Hint != "" {
			text += " (" + e.Hint + ")"
		}
		return text
	}
	return s.cause.Error() + "; it does not vote, and heals from the others under another replica id"
}

// hint is what is to be done for the group to run here.
func (s suspicion) hint() string {
	var e *api.Error
	switch {
	case errors.As(s.waits, &e) && e.Hint != "":
		return e.Hint
	case s.astray:
		return "it stays so until somebody decides: see the warning unknown_history"
	}
	return "it heals by itself as soon as the others let it"
}

// dispensable says why a group cannot do without a replica, or nil if it can.
func (n *node) dispensable(ctx context.Context, g *control.Group, replica uint64) error {
	spared := each(g.Holders(), func(holder uint64) bool {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		r, err := call(ctx, n, holder, methodSpare, groupRequest{Group: g.ID, History: g.History, Index: replica}, n.spareHere)
		return err == nil && r.Spared
	})
	if slices.Contains(spared, true) {
		return nil
	}
	e := &api.Error{Code: api.CodeUnavailable, Op: "renew replica", Subject: g.Name,
		Why:  "the other voters that are up are no majority without it",
		Hint: "start the other nodes; if they are up, or lost for good: " + recovery(g.Name)}
	if votesAlone(g, replica) {
		e.Why, e.Hint = "nobody else votes", "it goes on from that state: "+recovery(g.Name)
	}
	return e
}

// votesAlone says that a group has no other voter than a replica.
func votesAlone(g *control.Group, replica uint64) bool {
	voters := g.Voters()
	return len(voters) == 1 && voters[0].Replica == replica
}

// spareAnswer is what a member says of a replica that would step aside.
type spareAnswer struct {
	Spared bool `json:"spared"`
}

// spareHere says whether a group is led here and its leader can do without a replica: see core.Status.Spares. It is
// asked after a barrier, so that a leader that has been deposed, and may know the least, does not decide; nor does one of
// another history, whose majority is that of a group which was recovered without it.
func (n *node) spareHere(ctx context.Context, req groupRequest) (spareAnswer, error) {
	grp := n.groupHere(req.Group)
	g, known := n.ctl.state().Group(req.Group)
	if grp == nil || !known || grp.Fresh().Role != core.Leader || memberLine(grp, g).History != req.History {
		return spareAnswer{}, nil
	}
	if _, err := grp.Barrier(ctx); err != nil {
		return spareAnswer{}, err
	}
	st := grp.Fresh()
	return spareAnswer{st.Spares(req.Index)}, nil
}

// stepAside asks for another replica id after a start that found the log damaged. What comes of it is agreed upon as
// any other change; until then it is called again.
func (n *node) stepAside(ctx context.Context, g *control.Group, replica uint64, cause error) {
	waits := n.dispensable(ctx, g, replica)
	if waits == nil {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		_, waits = n.ctl.propose(ctx, &control.Command{By: "serve", Renew: &control.Renew{Group: g.ID, Node: n.self, Replica: replica}})
	}
	n.suspect(g, suspicion{replica: replica, cause: cause, waits: waits})
}

// beginAgain makes what a damaged replica left fit for the one that the control group has given instead.
func (n *node) beginAgain(ctx context.Context, g *control.Group, m control.Member, old uint64, cause error) error {
	if waits := n.dispensable(ctx, g, old); waits != nil { // things may have changed since
		n.suspect(g, suspicion{replica: old, cause: cause, waits: waits})
		return nil
	}
	o := ownedBy(m)
	o.Recast = true
	if err := n.own(g.ID, o); err != nil {
		return err
	}
	n.log.Warn("a replica with a damaged log begins again under another id", "group", g.Name, "replica", m.Replica)
	return n.recast(g.ID, o)
}

// giveUp releases what a damaged replica left of a group in which this node has no part any more, once the group's
// configuration has none for it either.
func (n *node) giveUp(ctx context.Context, g *control.Group, o owned, cause error) error {
	if !g.Deleted && !n.leftOut(ctx, g, o.Replica) {
		n.suspect(g, suspicion{replica: o.Replica, cause: cause, waits: errors.New("the group's configuration still has it")})
		return nil
	}
	h := &holding{n: n, group: *g, replica: o.Replica, binding: o.Binding, path: o.Path, stop: func() {}}
	if err := n.release(h); err != nil {
		return err
	}
	n.clear(g.ID)
	return nil
}

// suspect remembers why a group is not held, and tells it once.
func (n *node) suspect(g *control.Group, s suspicion) {
	n.mu.Lock()
	_, known := n.suspects[g.ID]
	n.suspects[g.ID] = s
	n.mu.Unlock()
	switch {
	case known:
	case s.astray:
		n.log.Error("this replica does not run: its history is not known to the control group", "group", g.Name, "replica", s.replica,
			"err", s.cause, "next", wayOut(g.Name, n.id.Name()))
	default:
		n.log.Error("the log is damaged: this replica does not vote", "group", g.Name, "replica", s.replica, "err", s.cause)
	}
}

// clear forgets a suspicion: the group is held.
func (n *node) clear(group uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.suspects, group)
}

func (n *node) suspected(group uint64) (suspicion, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.suspects[group]
	return s, ok
}

// modeAstray is the mode of a member whose replica has gone astray, modeDamaged of one whose log is damaged.
const (
	modeAstray  = "astray"
	modeDamaged = "damaged"
)

// asideHere are the groups whose replica here is kept from running, in order.
func (n *node) asideHere() []uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.suspects))
}

// reportSuspect is the report on a group that is not held though it could be, but for a suspicion.
func (n *node) reportSuspect(group uint64) (report, bool) {
	s, ok := n.suspected(group)
	if !ok {
		return report{}, false
	}
	if s.astray {
		return report{Role: "none", Mode: modeAstray, Why: s.String()}, true
	}
	return report{Role: "none", Mode: modeDamaged, Why: s.String(), DamageNext: s.hint()}, true
}

// startControlSound starts the replica of the control group; with a damaged log, under another id that a peer gets for it.
func (n *node) startControlSound(ctx context.Context, role string, replica uint64, init *control.Init) error {
	n.ctl.mu.Lock()
	defer n.ctl.mu.Unlock()
	err := n.startControl(role, replica, init)
	if err == nil {
		return nil
	}
	if e := n.newerLevel(err); e != nil { // the group's own state is of a newer program
		return e
	}
	if !errors.Is(err, logstore.ErrDamaged) {
		return logError(n.data.path, n.id, err)
	}
	n.log.Error("the control group's log is damaged: this replica does not vote and asks for another id", "replica", replica, "err", err)
	m, asked := n.askRenew(ctx, replica)
	if asked != nil {
		return n.noRenewal(replica, err, asked)
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

// noRenewal is why a replica of the control group with a damaged log does not start, and what is next: if nobody else
// votes, as far as its state says, what there is of the group is here.
func (n *node) noRenewal(replica uint64, cause, asked error) error {
	e := &api.Error{Code: api.CodeDamage, Op: "serve", Subject: n.data.path,
		Why: fmt.Sprintf("%v; no other node let it begin again: %v", cause, asked),
		Hint: "start the other nodes first, then this one. If too few are left to decide anything: stop one that is sound, " +
			"there lockstep offline recover, start it, and here --join TOKEN --replace with the data directory moved away"}
	st, err := loadControl(n.state)
	if err != nil {
		return errors.Join(e, err)
	}
	if g, ok := st.Group(control.ControlGroup); ok && votesAlone(g, replica) {
		e.Why = cause.Error() + "; nobody else votes in the control group, and its state on this node is kept"
		e.Hint = "go on from that state: " + offlineRecovery(n.data.path, n.id.Name()) + ", then start the node again"
	}
	return e
}

// askRenew asks the peers, one after the other and again for as long as joinPatience, to have this node's replica
// renewed: others may be starting as well. Where there are no peers nobody is waited for.
func (n *node) askRenew(ctx context.Context, replica uint64) (m control.Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	req, err := json.Marshal(groupRequest{Group: control.ControlGroup, Index: replica})
	if err != nil {
		return m, err
	}
	for {
		peers, failed := n.hintedPeers(), map[uint64]error{}
		if len(peers) == 0 {
			return m, joinNamed(failed)
		}
		for _, p := range peers {
			b, err := n.net.Call(ctx, p, methodRenew, req)
			if err == nil {
				err = json.Unmarshal(b, &m)
			}
			if err == nil {
				return m, nil
			}
			failed[p] = err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return m, joinNamed(failed)
		}
	}
}

// joinNamed is what several nodes answered, in the order of their ids.
func joinNamed(failed map[uint64]error) error {
	if len(failed) == 0 {
		return errors.New("there is none")
	}
	var all []error
	for _, id := range slices.Sorted(maps.Keys(failed)) {
		all = append(all, fmt.Errorf("node %d: %w", id, failed[id]))
	}
	return errors.Join(all...)
}

// renewFor renews a replica of the control group for the node that asks, and nobody else.
func (n *node) renewFor(ctx context.Context, from uint64, b []byte) ([]byte, error) {
	var req groupRequest
	if err := json.Unmarshal(b, &req); err != nil {
		return nil, fmt.Errorf("%s: %w", methodRenew, err)
	}
	g, ok := n.ctl.state().Group(control.ControlGroup)
	if !ok {
		return nil, errStarting
	}
	if m, ok := g.Member(from); ok && m.Replica == req.Index { // not renewed yet
		if err := n.dispensable(ctx, g, req.Index); err != nil {
			return nil, err
		}
	}
	cmd := &control.Command{By: "serve", Renew: &control.Renew{Group: control.ControlGroup, Node: from, Replica: req.Index}}
	if _, err := n.ctl.propose(ctx, cmd); err != nil {
		return nil, err
	}
	if g, ok = n.ctl.state().Group(control.ControlGroup); ok {
		if m, ok := g.Member(from); ok {
			return json.Marshal(m)
		}
	}
	return nil, &api.Error{Code: api.CodeNotFound, Op: "renew replica", Subject: fmt.Sprint(from), Why: "it is no node of this cluster"}
}
