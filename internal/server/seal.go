package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A seal keeps a group from running here while its recovery is decided (rule F6). The position at which the group would
// fork is read after the seal is on disk, and the fork is proposed with the version of the in-sync set that the seal has;
// the control group executes it at that version only. So the group may run again once this node's copy of the control
// group's state shows a later version, and not before: the fork has happened, or cannot happen any more. Nobody's patience
// decides, nor does a restart. Who follows the control group lifts the seal, with the same state by which it then starts
// the group.

// seal is the durable record of one.
type seal struct {
	InSync uint64 `json:"in_sync"`
	open   bool   // its recovery has an answer to come, so nothing is done about its fate yet
}

const sealPrefix = "s/"

func sealKey(group uint64) []byte { return fmt.Appendf(nil, sealPrefix+"%016x", group) }

// loadSeals reads what a former run of the node left sealed.
func (n *node) loadSeals() error {
	return n.state.Scan([]byte(sealPrefix), kv.PrefixEnd([]byte(sealPrefix)), func(k, v []byte) error {
		var group uint64
		var s seal
		if _, err := fmt.Sscanf(string(k), sealPrefix+"%016x", &group); err != nil {
			return fmt.Errorf("record of a sealed group %q: %w", k, err)
		}
		if err := json.Unmarshal(v, &s); err != nil {
			return fmt.Errorf("record of sealed group %d: %w", group, err)
		}
		n.sealed[group] = s
		return nil
	})
}

// seal stops a group that is held here and keeps it from running. The replica stands still from now on.
func (n *node) seal(group uint64) (s seal, err error) {
	n.taking.Lock() // nobody starts it meanwhile
	defer n.taking.Unlock()
	n.mu.Lock()
	h, ok := n.holdings[group]
	_, sealed := n.sealed[group]
	_, damaged := n.suspects[group]
	closing := n.closing
	n.mu.Unlock()
	if sealed || closing || !ok && !damaged {
		return s, &api.Error{Code: api.CodeConflict, Op: "group recover", Subject: n.groupName(group),
			Why: "the group does not run here, or somebody else is recovering it", Hint: "try again in a second"}
	}
	if ok {
		if err := n.pause(h); err != nil {
			return s, err
		}
	}
	g, ok := n.ctl.state().Group(group)
	if !ok {
		return s, errNoSuchGroup
	}
	s = seal{InSync: g.InSync.Version, open: true}
	v, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	if err := n.record(func(b kv.Batch) error { return b.Set(sealKey(group), v) }); err != nil {
		return s, fmt.Errorf("seal group %s: %w", g.Name, err)
	}
	n.mu.Lock()
	n.sealed[group] = s
	n.mu.Unlock()
	return s, nil
}

// record changes the state durably.
func (n *node) record(change func(b kv.Batch) error) error {
	b := n.state.Batch()
	defer b.Discard()
	if err := change(b); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	return n.state.Sync()
}

// answered says that nobody waits for the recovery any more: what became of it is found out.
func (n *node) answered(group uint64) {
	n.mu.Lock()
	if s, ok := n.sealed[group]; ok {
		s.open = false
		n.sealed[group] = s
	}
	n.mu.Unlock()
	n.ctl.nudge()
}

// unseal lifts the seal of a group if g shows that the recovery is decided, and tells whether there is none.
func (n *node) unseal(g *control.Group) (bool, error) {
	n.mu.Lock()
	s, sealed := n.sealed[g.ID]
	n.mu.Unlock()
	if !sealed {
		return true, nil
	}
	if g.InSync.Version <= s.InSync && !g.Deleted {
		return false, nil
	}
	if err := n.record(func(b kv.Batch) error { return b.Delete(sealKey(g.ID)) }); err != nil {
		return false, fmt.Errorf("group %s: lift the seal: %w", g.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sealed, g.ID)
	return true, nil
}

// refuseForks gives recoveries up of which nobody knows what became: what the control group executes first counts.
func (n *node) refuseForks(ctx context.Context) error {
	n.mu.Lock()
	sealed := maps.Clone(n.sealed)
	n.mu.Unlock()
	var errs []error
	for _, group := range slices.Sorted(maps.Keys(sealed)) {
		if g, ok := n.ctl.state().Group(group); !ok || g.Deleted || sealed[group].open || g.InSync.Version > sealed[group].InSync {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		cmd := &control.Command{By: n.id.Name(), RefuseFork: &control.RefuseFork{Group: group, InSync: sealed[group].InSync}}
		if _, err := n.ctl.propose(ctx, cmd); err != nil {
			errs = append(errs, fmt.Errorf("group %s stays stopped until it is known what became of its recovery: %w", n.groupName(group), err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// unknownFate is what who asked for a recovery is told when nobody knows whether it happened.
func unknownFate(group string, err error) error {
	return &api.Error{Code: api.CodeUnavailable, Op: "group recover", Subject: group,
		Why: "it is not known whether the control group has recorded the recovery (" + err.Error() + "); until it is, the group stays stopped on this node",
		Hint: "start nodes of the control group, or recover it: lockstep offline recover -h; then lockstep group show " + group +
			" says which history the group has, and if that is the old one, recover it again"}
}

// errSealed is of a group that is asked for while it is sealed.
func errSealed(group, node string) error {
	return &api.Error{Code: api.CodeUnavailable, Op: "group", Subject: group,
		Why:  "it is being recovered, and stays stopped on node " + node + " until the control group has said what becomes of it",
		Hint: "that takes seconds if the control group has its majority: lockstep group show control"}
}
