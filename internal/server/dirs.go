package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// The methods of httpdoor.Node about directories, and their counterparts on the nodes that hold them.

// DirCreate makes a files group after every node has said that the directory may be bound there.
func (n *node) DirCreate(ctx context.Context, req api.DirCreate) error {
	const op = "dir create"
	for name, dir := range req.Paths {
		if err := n.checkBinding(ctx, op, name, dir, ""); err != nil {
			return err
		}
	}
	c := &control.CreateGroup{Name: req.Name, Paths: req.Paths, Ack: req.Ack, Conflict: req.Conflict, Mode: req.Mode, Topology: req.Topology}
	rand.Read(c.History[:])
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), CreateGroup: c})
	if err == nil {
		n.awaitBound(ctx, req.Name, func(control.Member) bool { return true })
	}
	return err
}

// DirBind adds a node's directory to a files group.
func (n *node) DirBind(ctx context.Context, group, name, dir string) error {
	if err := n.checkBinding(ctx, "dir bind", name, dir, n.markOf(group)); err != nil {
		return err
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Bind: &control.Bind{Group: group, Node: name, Path: dir}})
	if err == nil {
		n.awaitBound(ctx, group, func(m control.Member) bool { return n.nameOf(m.Node) == name })
	}
	return err
}

// DirUnbind takes a node out of a files group; its files stay.
func (n *node) DirUnbind(ctx context.Context, group, name string) error {
	const op = "dir unbind"
	st := n.ctl.state()
	node, known := st.NodeNamed(name)
	if g, ok := st.GroupNamed(group); ok && known {
		now := n.hear(ctx, g)
		if e := control.CheckLeave(st, op, node, g, now.runs, now.voting); e != nil {
			return e
		}
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), Unbind: &control.Unbind{Group: group, Node: name}})
	return err
}

// markOf is the root marker of a group's directories; "": there is no such group.
func (n *node) markOf(group string) string {
	if g, ok := n.ctl.state().GroupNamed(group); ok {
		return g.Marker()
	}
	return ""
}

// checkBinding asks the node itself (checkHere); what only the control group knows is checked there.
func (n *node) checkBinding(ctx context.Context, op, name, dir, mark string) error {
	node, ok := n.ctl.state().NodeNamed(name)
	if !ok || !filepath.IsAbs(dir) {
		return nil // the control group refuses it, in better words
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := call(ctx, n, node.ID, methodCheck, groupRequest{Path: dir, Mark: mark},
		func(_ context.Context, r groupRequest) (none, error) { return none{}, n.checkHere(r.Path, r.Mark) })
	if err == nil {
		return nil
	}
	e := asAPIError(op, name+":"+dir, err)
	e.Op, e.Subject = op, name+":"+dir
	return e
}

func inside(dir, base string) bool {
	return dir == base || strings.HasPrefix(dir, strings.TrimSuffix(base, "/")+"/")
}

func (n *node) dirNamed(op, name string) (*control.Group, error) {
	st := n.ctl.state()
	g, ok := st.GroupNamed(name)
	switch {
	case !ok:
		return nil, st.UnknownGroup(op, name)
	case g.Kind != control.KindFiles:
		return nil, &api.Error{Code: api.CodeNotFound, Op: op, Subject: name, Why: "this group keeps no directory", Hint: "lockstep group list shows those of kind files"}
	}
	return g, nil
}

// DirStatus asks every node of the group.
func (n *node) DirStatus(ctx context.Context, group string) (api.DirStatus, error) {
	g, err := n.dirNamed("dir status", group)
	if err != nil {
		return api.DirStatus{}, err
	}
	return n.describeDir(g, n.survey(ctx, g)), nil
}

// anyMember calls the first member that answers, this node first if it is one.
func anyMember[T any](ctx context.Context, n *node, op string, g *control.Group, method string, req groupRequest,
	here func(context.Context, groupRequest) (T, error),
) (T, error) {
	members := g.Members
	if m, ok := g.Member(n.self); ok {
		members = append([]control.Member{m}, members...)
	}
	var last error
	for _, m := range members {
		v, err := call(ctx, n, m.Node, method, req, here)
		var refused *api.Error
		if err == nil || errors.As(err, &refused) && refused.Code != api.CodeFailed && refused.Code != api.CodeUnavailable {
			return v, err
		}
		last = err
	}
	var v T
	return v, &api.Error{Code: api.CodeUnavailable, Op: op, Subject: g.Name, Why: fmt.Sprintf("no node that holds it answers: %v", last),
		Hint: "lockstep node list shows which are down"}
}

// DirList shows a page of a directory, as the manifest of a member has it.
func (n *node) DirList(ctx context.Context, group string, req api.DirList) (api.DirEntries, error) {
	g, err := n.dirNamed("dir ls", group)
	if err != nil {
		return api.DirEntries{}, err
	}
	return anyMember(ctx, n, "dir ls", g, methodList, groupRequest{Group: g.ID, List: req}, n.listHere)
}

func (n *node) listHere(_ context.Context, req groupRequest) (out api.DirEntries, err error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return out, err
	}
	view := h.member.View()
	defer view.Close()
	at, found, err := manifest.Get(view, req.List.Path)
	if err != nil {
		return out, err
	}
	if req.List.Path != "" && !found {
		return out, &api.Error{Code: api.CodeNotFound, Op: "dir ls", Subject: api.EscapePath(req.List.Path), Why: "no such path in group " + h.group.Name,
			Hint: "lockstep dir ls " + h.group.Name + " lists the top; a path begins there, without the directory's own"}
	}
	out.Entries = []api.DirEntry{}
	if found && at.Kind != manifest.Dir {
		out.Entries = append(out.Entries, entry(req.List.Path, at))
		return out, nil
	}
	err = manifest.List(view, req.List.Path, func(name string, nd manifest.Node) error {
		if name <= req.List.After && req.List.After != "" {
			return nil
		}
		if len(out.Entries) == req.List.Limit {
			out.More = true
			return kv.ErrStop
		}
		out.Entries = append(out.Entries, entry(name, nd))
		return nil
	})
	return out, err
}

func entry(path string, nd manifest.Node) api.DirEntry {
	e := api.DirEntry{
		Path: api.EscapePath(path), Size: nd.Size, Mode: fmt.Sprintf("%04o", nd.Mode), UID: nd.UID, GID: nd.GID,
		MTime: time.Unix(0, nd.MTime).UTC(), Version: nd.Version,
	}
	switch nd.Kind {
	case manifest.Dir:
		e.Kind = "dir"
	case manifest.Symlink:
		e.Kind, e.Target = "symlink", api.EscapePath(nd.Target)
	default:
		e.Kind, e.Hash = "file", hex.EncodeToString(nd.Hash[:])
	}
	return e
}

// DirConflicts lists what was kept beside what won, newest last.
func (n *node) DirConflicts(ctx context.Context, group string) ([]api.Conflict, error) {
	g, err := n.dirNamed("dir conflicts", group)
	if err != nil {
		return nil, err
	}
	return anyMember(ctx, n, "dir conflicts", g, methodConfl, groupRequest{Group: g.ID}, n.conflictsHere)
}

func (n *node) conflictsHere(_ context.Context, req groupRequest) ([]api.Conflict, error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return nil, err
	}
	view := h.member.View()
	defer view.Close()
	out := []api.Conflict{}
	err = openConflicts(view, func(c manifest.Conflict) error {
		out = append(out, api.Conflict{
			Path: api.EscapePath(c.Path), Copy: api.EscapePath(c.Copy), Node: c.Node, Time: time.Unix(0, c.Time).UTC(), Index: c.Index,
		})
		return nil
	})
	return out, err
}

// openConflicts visits the conflicts whose copy is still there: who removes it has settled the matter.
func openConflicts(r kv.Reader, visit func(manifest.Conflict) error) error {
	return manifest.Conflicts(r, func(c manifest.Conflict) error {
		if _, found, err := manifest.Get(r, c.Copy); err != nil || !found {
			return err
		}
		return visit(c)
	})
}

// DirConfirm lets a node go on after a guard has stopped it.
func (n *node) DirConfirm(ctx context.Context, group, name string) error {
	const op = "dir resume"
	g, err := n.dirNamed(op, group)
	if err != nil {
		return err
	}
	node, ok := n.ctl.state().NodeNamed(name)
	if !ok {
		return n.ctl.state().UnknownNode(op, name)
	}
	_, err = call(ctx, n, node.ID, methodConfirm, groupRequest{Group: g.ID}, n.confirmHere)
	return err
}

func (n *node) confirmHere(_ context.Context, req groupRequest) (none, error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return none{}, err
	}
	a, err := h.theAgent()
	if err != nil {
		return none{}, err
	}
	if err := a.Confirm(); err != nil {
		return none{}, &api.Error{Code: api.CodeConflict, Op: "dir resume", Subject: h.group.Name, Why: err.Error(),
			Hint: "lockstep dir status " + h.group.Name + " says what each node does"}
	}
	return none{}, nil
}

// DirVerify has every node read and hash what it holds.
func (n *node) DirVerify(ctx context.Context, group string, repair bool, progress func(api.Progress)) (api.DirVerify, error) {
	g, err := n.dirNamed("dir verify", group)
	if err != nil {
		return api.DirVerify{}, err
	}
	reading := newPatience("reading and comparing: waiting", n.names(g.Members), len(g.Members), progress)
	defer reading.end()
	out := api.DirVerify{Group: g.Name}
	out.Nodes = each(g.Members, func(m control.Member) api.DirVerifyNode {
		v, err := call(ctx, n, m.Node, methodVerify, groupRequest{Group: g.ID, Repair: repair}, n.verifyHere)
		if err != nil {
			v.Err = err.Error()
		}
		v.Node = n.nameOf(m.Node)
		reading.reached(v.Node)
		return v
	})
	return out, nil
}

func (n *node) verifyHere(ctx context.Context, req groupRequest) (out api.DirVerifyNode, err error) {
	out = api.DirVerifyNode{Differences: []string{}, Damaged: []string{}, Unreadable: []string{}}
	h, err := n.holding(req.Group)
	if err != nil {
		return out, err
	}
	a, err := h.theAgent()
	if err != nil {
		return out, err
	}
	v, err := a.Verify(ctx, req.Repair)
	if err != nil {
		return out, err
	}
	out.Files, out.Bytes = v.Files, v.Bytes
	for _, d := range v.Found {
		line := api.EscapePath(d.Path) + ": " + d.What
		switch {
		case d.Damage:
			out.Damaged = append(out.Damaged, line)
		case d.Unread:
			out.Unreadable = append(out.Unreadable, line)
		default:
			out.Differences = append(out.Differences, line)
		}
	}
	return out, nil
}
