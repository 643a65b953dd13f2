package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// owned is the durable record of what this node holds of a group: written before the first byte of log, state or
// marker, and deleted after the last. What the control group decided while the node was down is told from it.
type owned struct {
	Replica uint64 `json:"replica"`
	Binding uint64 `json:"binding"`
	Role    string `json:"role"`
	Path    string `json:"path"`
	// Recast: log and state are still those of the replica before (see engine.Recast).
	Recast bool `json:"recast,omitempty"`
}

func ownedBy(m control.Member) owned {
	return owned{Replica: m.Replica, Binding: m.Binding, Role: m.Role, Path: m.Path}
}

func (o owned) member(node uint64) control.Member {
	return control.Member{Node: node, Replica: o.Replica, Binding: o.Binding, Role: o.Role, Path: o.Path}
}

func ownedKey(group uint64) []byte { return fmt.Appendf(nil, "o/%016x", group) }

// ownedOf reads the record of a group.
func (n *node) ownedOf(group uint64) (o owned, found bool, err error) {
	v, found, err := n.state.Get(ownedKey(group))
	if err != nil || !found {
		return o, false, err
	}
	if err := json.Unmarshal(v, &o); err != nil {
		return o, false, fmt.Errorf("record of group %d: %w", group, err)
	}
	return o, true, nil
}

// own records durably what is held from now on.
func (n *node) own(group uint64, o owned) error {
	v, err := json.Marshal(o)
	if err != nil {
		return err
	}
	b := n.state.Batch()
	defer b.Discard()
	if err := b.Set(ownedKey(group), v); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	return n.state.Sync()
}

// recast finishes what own with Recast began: log and state become fit for the recorded role.
func (n *node) recast(group uint64, o owned) error {
	if err := n.eng.Recast(group, o.Role == control.RoleVoter); err != nil {
		return err
	}
	o.Recast = false
	return n.own(group, o)
}

// resume takes up what a former run of the node held of a group, whatever the control group says by now: agree then
// brings it to an end, or to another role, as it would have done at the time.
func (n *node) resume(ctx context.Context, g *control.Group) error {
	o, found, err := n.ownedOf(g.ID)
	if err != nil || !found || n.holds(g.ID) || n.ending() {
		return err
	}
	if o.Recast {
		if err := n.recast(g.ID, o); err != nil {
			return err
		}
	}
	m, mine := g.Member(n.self)
	bound := mine && !g.Deleted && m.Binding == o.Binding && m.Path == o.Path
	if bound && m.Replica <= o.Replica {
		return nil // as it was: hold starts it
	}
	err = n.start(g, o.member(n.self), bound)
	switch {
	case errors.Is(err, errAstray) && (bound || o.Replica >= g.NextReplica): // nobody has taken it out
		n.standAside(g, o.Replica, err)
		return err
	case !errors.Is(err, logstore.ErrDamaged) && !errors.Is(err, errAstray):
		return err
	case bound:
		return n.beginAgain(ctx, g, m, o.Replica, err)
	}
	return n.giveUp(ctx, g, o, err)
}

// turn changes the role of this node's part of a group. The replica of before goes on until the configuration has
// let it go; then what it left becomes that of the new one, which has an id of its own. That takes room: on a full disk the
// old one goes on as it is.
func (n *node) turn(ctx context.Context, g *control.Group, h *holding, m control.Member) error {
	if n.disk.Full() || h.grp != nil && !n.letGo(ctx, g, h.grp) {
		return nil
	}
	n.log.Info("role", "group", g.Name, "from", h.role(), "to", m.Role, "replica", m.Replica)
	n.forget(g.ID)
	h.close()
	if err := n.eng.StopGroup(g.ID, false); err != nil {
		return err
	}
	o := ownedBy(m)
	o.Recast = true
	if err := n.own(g.ID, o); err != nil {
		return err
	}
	if err := n.recast(g.ID, o); err != nil {
		return err
	}
	return n.start(g, m, true)
}

func (h *holding) role() string {
	if h.grp == nil {
		return control.RoleObserver
	}
	return control.RoleVoter
}

// leave ends this node's part of a group that it is no longer a member of, or a former incarnation of it. The
// directory is left alone at once; the replica goes on until the group's own configuration has let it go,
// because the change that does so may need its vote. It is called again until then.
func (n *node) leave(ctx context.Context, g *control.Group) error {
	n.mu.Lock()
	h, ok := n.holdings[g.ID]
	n.mu.Unlock()
	if !ok {
		return nil
	}
	h.stop()
	h.tasks.Wait()
	if h.grp != nil && !n.letGo(ctx, g, h.grp) {
		var waits error = &api.Error{Code: api.CodeUnavailable, Op: "dir", Subject: g.Name,
			Why:  fmt.Sprintf("the directory waits until the group has let go of replica %d, which the node was before", h.replica),
			Hint: "usually that takes seconds; a member that is down and never caught up may keep the group from it: lockstep group show " + g.Name}
		h.fault.Store(&waits)
		return nil
	}
	return n.release(h)
}

// replicaOf is what letGo must know of a replica; *engine.Group satisfies it.
type replicaOf interface {
	Fresh() core.Status
	Replica() uint64
}

// letGo says whether the group's configuration no longer holds the replica, by its own account or that of the
// member that leads.
func (n *node) letGo(ctx context.Context, g *control.Group, grp replicaOf) bool {
	if g.Deleted {
		return true
	}
	if st := grp.Fresh(); len(st.Voters) > 0 && !contains(configured(st), grp.Replica()) {
		return true
	}
	return n.leftOut(ctx, g, grp.Replica())
}

// leftOut says whether the member that leads has no such replica in its configuration. What leads in another history,
// a majority of before a recovery that has come back, does not count.
func (n *node) leftOut(ctx context.Context, g *control.Group, replica uint64) bool {
	for _, r := range n.survey(ctx, g) {
		if r.Role == "leader" && r.of(g.History) && len(r.Configured) > 0 && !contains(r.Configured, replica) {
			return true
		}
	}
	return false
}

// ending tells whether no group must be started any more.
func (n *node) ending() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closing
}

// forget takes a holding out of the list.
func (n *node) forget(group uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.holdings, group)
}

// disown deletes what is left of a group in the state, its record last: as long as anything of the group may come back
// after a crash, the record says so. Both kinds of batches take part (see kv.Store.Through), so a sync is between them.
func disown(state kv.Store, group, binding uint64) error {
	prefix := tablePrefix(group, binding)
	table := state.Through().Batch()
	defer table.Discard()
	if err := table.DeleteRange(prefix, kv.PrefixEnd(prefix)); err != nil {
		return err
	}
	if err := table.Commit(); err != nil {
		return err
	}
	if err := state.Sync(); err != nil {
		return err
	}
	record := state.Batch()
	defer record.Discard()
	if err := record.Delete(ownedKey(group)); err != nil {
		return err
	}
	return record.Commit()
}

// release forgets a replica for good. The directory's files stay, and so does what was kept aside of them; the mark
// that makes the directory a binding goes.
func (n *node) release(h *holding) error {
	group := h.group.ID
	h.close()
	if err := n.eng.StopGroup(group, true); err != nil {
		return err
	}
	if err := errors.Join(dropWork(n.workDir(group, h.binding)), h.unmark()); err != nil {
		n.log.Warn("not all traces of a binding could be removed", "group", h.group.Name, "path", h.path, "err", err)
	}
	if err := disown(n.state, group, h.binding); err != nil {
		return err
	}
	n.forget(group)
	n.log.Info("group released; its files stay", "group", h.group.Name, "path", h.path)
	return nil
}

// unmark makes the directory one like any other, unless it is no binding of the group, or another node keeps it by now.
func (h *holding) unmark() error {
	c, err := place.Take(h.path, h.markerID())
	switch {
	case errors.Is(err, place.ErrMarkerMissing), errors.Is(err, place.ErrMarkerForeign), errors.Is(err, place.ErrNotDirectory), errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return errors.Join(dropWork(filepath.Join(h.path, manifest.Reserved, "work")), c.RemoveMarker(), c.Close())
}
