package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// What a restore would be refused for is found out before anything is sent: its commands are executed on a copy of the
// control group's state.

// restoreCommand is what the control group is asked for once the upload is there.
func restoreCommand(req *api.Restore, p *restorePlan, by, upload string) *control.Command {
	f := &control.ForkGroup{Group: req.As, Node: p.out.Node, Fork: control.Fork{
		Before: p.before, Index: req.Index, Term: req.Term, Start: req.Index + 1, Cause: control.ForkRestore, Upload: upload,
	}}
	rand.Read(f.To[:])
	if p.living != nil {
		f.Was, f.InSync = p.living.History, p.living.InSync.Version // until it is asked for in earnest
		return &control.Command{By: by, ForkGroup: f}
	}
	return &control.Command{By: by, CreateGroup: &control.CreateGroup{
		Name: req.As, Paths: req.Paths, Ack: req.Ack, Conflict: req.Conflict, Mode: req.Mode, Topology: req.Topology,
		History: f.To, Restore: f, // a mark of its own: directories of the group in the backup are another's
	}}
}

// currentControl makes this node's copy of the control group's state current, which takes the group's majority.
func (n *node) currentControl(ctx context.Context, op string) (at uint64, err error) {
	ctl := n.ctl.member()
	if ctl == nil {
		return 0, errStarting
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if at, err = ctl.Barrier(ctx); err != nil {
		return 0, &api.Error{Code: api.CodeUnavailable, Op: op, Subject: "control group", Why: err.Error(),
			Hint: "it needs the control group's majority; lockstep node list shows who is down"}
	}
	return at, nil
}

// tryRestore refuses what the control group would refuse now.
func (n *node) tryRestore(req *api.Restore, p *restorePlan) error {
	view := n.ctl.member().View()
	defer view.Close()
	t, err := newTrial(view)
	if err != nil {
		return err
	}
	defer t.close()
	return t.execute(restoreCommand(req, p, "", "0000000000000000"))
}

// trial is a control state of which nothing lasts.
type trial struct {
	store kv.Store
	state *control.State
	m     *control.Machine
}

// newTrial begins with a copy of r; nil: with nothing.
func newTrial(r kv.Reader) (*trial, error) {
	t := &trial{store: kv.NewMemory(), state: &control.State{}}
	t.m = control.New(func(s *control.State) { t.state = s })
	if r == nil {
		return t, nil
	}
	b := t.store.Batch()
	defer b.Discard()
	if err := r.Scan(nil, nil, b.Set); err != nil {
		return nil, err
	}
	return t, b.Commit()
}

func (t *trial) close() { t.store.Close() }

// execute returns the refusal.
func (t *trial) execute(c *control.Command) error {
	payload, err := c.Encode()
	if err != nil {
		return err
	}
	b := t.store.Batch()
	defer b.Discard()
	index := t.state.Index + 1
	answer, err := t.m.Apply(b, machine.Command{Index: index, Time: time.Now().UnixNano(), Payload: payload})
	if err != nil {
		return fmt.Errorf("try what the control group would be asked for: %w", err)
	}
	result, err := control.DecodeResult(answer)
	if err != nil {
		return err
	}
	if result.Error != nil {
		result.Error.Op = "restore"
		return result.Error
	}
	if err := b.Commit(); err != nil {
		return err
	}
	t.m.Committed(index)
	return nil
}

// TryRestore says what a restore of groups into a new cluster in the directory data would do, with one node of that
// name, and refuses what that would be refused for. Nothing is made. The requests' paths are escaped.
func TryRestore(ctx context.Context, data, name string, reqs []api.Restore) ([]api.Restored, error) {
	t, err := newTrial(nil)
	if err != nil {
		return nil, err
	}
	defer t.close()
	err = t.execute(&control.Command{Init: &control.Init{
		Cluster: control.Cluster{ID: "trial"}, Node: control.Node{Name: name, Levels: knows()}, History: [16]byte{1},
	}})
	if err != nil {
		return nil, err
	}
	n := &node{data: &dataDir{path: data}, self: 1, ctl: newControlPlane()}
	out := []api.Restored{}
	for _, req := range reqs {
		n.ctl.current.Store(t.state)
		p := restorePlan{out: api.Restored{Group: req.As, Node: name, Before: req.History, Fork: req.Index, Files: req.Files, Bytes: req.Bytes,
			Paths: req.Paths, DryRun: true, Warnings: []string{}}}
		raw := map[string]string{}
		for node, dir := range req.Paths {
			if raw[node], err = api.UnescapePath(dir); err != nil {
				return nil, err
			}
		}
		req.Paths = raw
		n.fitPolicy(&req, &p)
		if err := n.checkRestorePaths(ctx, &req, &p); err != nil {
			return nil, err
		}
		if err := t.execute(restoreCommand(&req, &p, name, "0000000000000000")); err != nil {
			return nil, asAPIError("restore", req.As, err)
		}
		out = append(out, p.out)
	}
	return out, nil
}
