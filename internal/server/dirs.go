package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
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

// DirWait has every node that is up commit what is on its disk now, and then waits until the nodes that were
// asked for have placed all of it. If the members change meanwhile, it waits for those of now.
func (n *node) DirWait(ctx context.Context, group string, req api.DirWaitFor, progress func(api.Progress)) (api.DirWait, error) {
	g, err := n.dirNamed("dir wait", group)
	if err != nil {
		return api.DirWait{}, err
	}
	began := time.Now()
	out := api.DirWait{Group: g.Name, Reached: []string{}, Missing: []string{}}
	out.Position, out.Missing = n.flushAll(ctx, g, progress)
	if len(out.Missing) > 0 {
		out.Seconds = time.Since(began).Seconds()
		out.Why = n.whyMissing(ctx, g, out.Missing)
		return out, nil
	}
	for {
		targets, enough, err := n.waitTargets(g, req)
		if err != nil {
			return out, err
		}
		steady := func() bool {
			now, ok := n.ctl.state().Group(g.ID)
			return ok && !now.Deleted && sameTargets(g, now, req)
		}
		out.Reached, out.Missing = n.parted(targets, n.awaitPlaced(ctx, g, targets, enough, out.Position, steady, progress))
		out.Done = len(out.Reached) >= enough
		out.Seconds = time.Since(began).Seconds()
		if ctx.Err() != nil || steady() {
			if !out.Done {
				out.Why = n.whyMissing(ctx, g, out.Missing)
			}
			return out, nil
		}
		if g, err = n.dirNamed("dir wait", group); err != nil {
			return out, err
		}
	}
}

// flushAll has the members that are up commit what is on their disks now, and says what index covers that, and who could
// not in time.
func (n *node) flushAll(ctx context.Context, g *control.Group, progress func(api.Progress)) (position uint64, stuck []string) {
	looking := newPatience("taking in what is on disk: waiting", n.names(g.Members), len(g.Members), progress)
	flushed := each(g.Members, func(m control.Member) flush {
		f := n.flushAt(ctx, g, m)
		looking.reached(n.nameOf(m.Node))
		return f
	})
	looking.end()
	through := make([]bool, len(flushed))
	for i, f := range flushed {
		position = max(position, f.index)
		through[i] = !f.stuck
	}
	_, stuck = n.parted(g.Members, through)
	return position, stuck
}

// awaitPlaced waits until enough of the targets have placed everything up to index, ctx ends, or others are to be waited
// for; it says which have.
func (n *node) awaitPlaced(ctx context.Context, g *control.Group, targets []control.Member, enough int, index uint64, steady func() bool,
	progress func(api.Progress)) []bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting := newPatience("waiting", n.names(targets), enough, progress)
	defer waiting.end()
	return each(targets, func(m control.Member) bool {
		ok := n.waitPlaced(ctx, g, m, index, steady)
		if ok && waiting.reached(n.nameOf(m.Node)) >= enough {
			cancel()
		}
		return ok
	})
}

// sameTargets says whether a wait is for the same members at two times. Somebody who has left, or votes no more, is not
// waited for: what is said in the end is true of the members of then.
func sameTargets(before, now *control.Group, req api.DirWaitFor) bool {
	relevant := func(g *control.Group) []control.Member {
		if req.Mode == api.WaitQuorum {
			return g.Voters()
		}
		return g.Members
	}
	return slices.EqualFunc(relevant(before), relevant(now), func(a, b control.Member) bool {
		return a.Node == b.Node && a.Binding == b.Binding
	})
}

// parted are the names of the members that are done and of those that are not, each sorted.
func (n *node) parted(members []control.Member, done []bool) (reached, missing []string) {
	reached, missing = []string{}, []string{}
	for i, m := range members {
		if done[i] {
			reached = append(reached, n.nameOf(m.Node))
		} else {
			missing = append(missing, n.nameOf(m.Node))
		}
	}
	slices.Sort(reached)
	slices.Sort(missing)
	return reached, missing
}

// names of the members' nodes, sorted.
func (n *node) names(members []control.Member) []string {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = n.nameOf(m.Node)
	}
	slices.Sort(names)
	return names
}

func (n *node) waitTargets(g *control.Group, req api.DirWaitFor) (targets []control.Member, enough int, err error) {
	switch req.Mode {
	case api.WaitQuorum:
		voters := g.Voters()
		return voters, len(voters)/2 + 1, nil
	case api.WaitNode:
		if node, ok := n.ctl.state().NodeNamed(req.Node); ok {
			if m, ok := g.Member(node.ID); ok {
				return []control.Member{m}, 1, nil
			}
		}
		return nil, 0, &api.Error{Code: api.CodeNotFound, Op: "dir wait", Subject: req.Node, Why: "it does not hold group " + g.Name,
			Hint: "lockstep dir status " + g.Name + " shows who does"}
	}
	return g.Members, len(g.Members), nil
}

// flush is how far a node's own changes are committed.
type flush struct {
	index uint64 // covers what was on its disk; 0: the node is down, or no member any more
	stuck bool   // it is up, but its changes were not committed in time
}

// flushAt has a node commit what is on its disk now. A node that is up but still takes its binding up is asked
// again until it can, or ctx ends.
func (n *node) flushAt(ctx context.Context, g *control.Group, m control.Member) flush {
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for {
		a, err := call(ctx, n, m.Node, methodFlush, groupRequest{Group: g.ID}, n.flushHere)
		if err == nil {
			return flush{index: a.Index}
		}
		n.log.Debug("flush", "peer", n.nameOf(m.Node), "err", err)
		if ctx.Err() == nil && (!n.memberStill(g.ID, m) || !n.isUp(ctx, m.Node)) {
			return flush{}
		}
		select {
		case <-ctx.Done():
			return flush{stuck: true}
		case <-pause.C:
		}
	}
}

// memberStill says whether a binding is one of the group's, as far as this node knows.
func (n *node) memberStill(group uint64, m control.Member) bool {
	g, ok := n.ctl.state().Group(group)
	if !ok || g.Deleted {
		return false
	}
	now, ok := g.Member(m.Node)
	return ok && now.Binding == m.Binding
}

// waitPlaced asks a node again and again, since it may be down for a while, as long as the wait goes on.
func (n *node) waitPlaced(ctx context.Context, g *control.Group, m control.Member, index uint64, goesOn func() bool) bool {
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for {
		_, err := call(ctx, n, m.Node, methodPlaced, groupRequest{Group: g.ID, Index: index}, n.placedHere)
		if err == nil {
			return true
		}
		if !goesOn() {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-pause.C:
		}
	}
}

func (n *node) flushHere(ctx context.Context, req groupRequest) (indexAnswer, error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return indexAnswer{}, err
	}
	a, err := h.theAgent()
	if err != nil {
		return indexAnswer{}, err
	}
	if err := a.Flush(ctx); err != nil {
		return indexAnswer{}, err
	}
	index, err := n.covered(ctx, h)
	return indexAnswer{index}, err
}

// covered is an index that covers all that is committed now. If this node's own replica does not come by it, since its disk
// is full, or since it has lost its seat and not heard of it yet, a voter is asked.
func (n *node) covered(ctx context.Context, h *holding) (index uint64, err error) {
	if !n.disk.Full() {
		own, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		if index, err = h.member.Barrier(own); err == nil || ctx.Err() != nil {
			return index, err
		}
	}
	for _, voter := range n.votersOf(h.group.ID) {
		if voter == n.self {
			continue
		}
		if index, err = n.eng.ReadAt(ctx, voter, h.group.ID); err == nil {
			return index, nil
		}
	}
	return 0, errors.Join(fmt.Errorf("no voter of group %s says what is committed", h.group.Name), err)
}

// placedAtMajority returns once more than half of the members have placed everything up to index; false if ctx ended before.
func (n *node) placedAtMajority(ctx context.Context, g *control.Group, members []control.Member, index uint64) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	enough := int64(len(members)/2 + 1)
	var reached atomic.Int64
	each(members, func(m control.Member) bool {
		ok := n.waitPlaced(ctx, g, m, index, func() bool { return n.memberStill(g.ID, m) })
		if ok && reached.Add(1) >= enough {
			cancel()
		}
		return ok
	})
	return reached.Load() >= enough
}

// placedPoll is how often a binding's progress is looked at while somebody waits for it.
const placedPoll = 2 * time.Millisecond

func (n *node) placedHere(ctx context.Context, req groupRequest) (none, error) {
	h, err := n.holding(req.Group)
	if err != nil {
		return none{}, err
	}
	t := time.NewTicker(placedPoll)
	defer t.Stop()
	for {
		a, err := h.theAgent()
		if err != nil {
			return none{}, err
		}
		if a.Placed() >= req.Index {
			return none{}, nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return none{}, ctx.Err()
		}
	}
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
