package server

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A backup is taken from one member of each group, after a linearizable read of the control group: each group is at
// one position, and that is not before anything which was acknowledged before the backup began. Groups are not at
// the same moment as one another.
//
// A member writes contents first and its state last: contents of files that change meanwhile are looked for again,
// by a newer state, until every content that a state names has been written; that state is the one in the file.

// serviceBackup is the transport service that sends what a member has of a group: request (JSON, one line), then a
// fragment (package backup).
const serviceBackup = "server.backup"

// Rounds of a backup: how often a newer state is taken because contents of the one before are gone, and how long is
// waited before.
const (
	backupRounds = 50
	backupPause  = 100 * time.Millisecond
)

// Backup writes a backup of some groups, or all, to w. What goes wrong once something is written is in the file, too:
// nobody takes what there is for a whole one.
func (n *node) Backup(ctx context.Context, req api.BackupCreate, w io.Writer) error {
	const op = "backup create"
	at, err := n.currentControl(ctx, op)
	if err != nil {
		return err
	}
	st := n.ctl.state()
	groups, err := n.groupsToBackUp(op, st, req.Groups)
	if err != nil {
		return err
	}
	h := backup.Header{Cluster: n.id.Cluster().String(), Node: n.id.Name(), Version: n.cfg.Version.Version, Created: time.Now().UTC()}
	for _, g := range groups {
		h.Groups = append(h.Groups, g.Name)
		for _, r := range n.survey(ctx, g) {
			if r.Bytes > 0 {
				h.Bytes += r.Bytes
				break
			}
		}
	}
	return remembering(op, func(seen backup.Set) error {
		out, err := backup.NewWriter(w, h, seen)
		if err != nil {
			return err
		}
		if err := n.writeBackup(ctx, out, st, at, groups); err != nil {
			n.log.Warn("backup not finished", "err", err)
			return errors.Join(err, out.Abort(err))
		}
		return nil
	})
}

func (n *node) groupsToBackUp(op string, st *control.State, names []string) (groups []*control.Group, err error) {
	for i := range st.Groups {
		if g := &st.Groups[i]; len(names) == 0 && !g.Deleted && g.Kind == control.KindFiles {
			groups = append(groups, g)
		}
	}
	for _, name := range names {
		g, err := n.dirNamed(op, name)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(groups, func(other *control.Group) bool { return other.ID == g.ID }) { // named twice
			groups = append(groups, g)
		}
	}
	return groups, nil
}

func (n *node) writeBackup(ctx context.Context, out *backup.Writer, st *control.State, at uint64, groups []*control.Group) error {
	c, err := describeCluster(st, at)
	if err != nil {
		return err
	}
	if err := out.Part(backup.Part{Kind: backup.PartControl}, func(w io.Writer) error { return json.NewEncoder(w).Encode(c) }); err != nil {
		return err
	}
	for _, g := range groups {
		if err := n.backUpGroup(ctx, out, g); err != nil {
			return err
		}
	}
	_, err = out.Finish()
	return err
}

// describeCluster leaves out the CA's key and the tokens: who holds a backup must not be able to join.
func describeCluster(st *control.State, at uint64) (c backup.Cluster, err error) {
	c = backup.Cluster{ID: st.Cluster.ID, Index: at, Nodes: []backup.Node{}, Groups: []backup.Group{}}
	for _, p := range st.Nodes {
		c.Nodes = append(c.Nodes, backup.Node{Name: p.Name, Address: p.Address, Removed: p.Removed})
	}
	for i := range st.Groups {
		if g := &st.Groups[i]; !g.Deleted {
			c.Groups = append(c.Groups, backup.Group{Name: g.Name, Kind: g.Kind, Settings: settingsOf(g), Members: membersOf(st, g)})
		}
	}
	c.Audit, err = json.Marshal(st.Audit)
	return c, err
}

func settingsOf(g *control.Group) backup.Settings {
	return backup.Settings{Ack: g.Ack, Conflict: g.Conflict, Mode: g.Mode, Topology: g.Topology}
}

func membersOf(st *control.State, g *control.Group) (list []backup.Member) {
	for _, m := range g.Members {
		if p, ok := st.Node(m.Node); ok {
			list = append(list, backup.Member{Node: p.Name, Path: m.Path})
		}
	}
	return list
}

// backUpGroup has one member after the other try; this node first, if it is one. Contents that one has sent count for
// the next. One that goes silent is given up like one that fails.
func (n *node) backUpGroup(ctx context.Context, out *backup.Writer, g *control.Group) error {
	members := g.Members
	if m, ok := g.Member(n.self); ok {
		members = append([]control.Member{m}, members...)
	}
	return n.backUpFrom(ctx, out, g, members, func(m control.Member) (io.ReadCloser, error) { return n.openBackup(ctx, g, m.Node) })
}

func (n *node) backUpFrom(ctx context.Context, out *backup.Writer, g *control.Group, members []control.Member,
	open func(control.Member) (io.ReadCloser, error),
) error {
	var failed error
	for _, m := range members {
		r, err := open(m)
		if err == nil {
			err = errors.Join(out.Forward(bufio.NewReaderSize(r, 1<<20)), r.Close())
		}
		if failed = err; failed == nil || ctx.Err() != nil || out.Open() {
			return failed
		}
		n.log.Info("a member could not be backed up from", "group", g.Name, "peer", n.nameOf(m.Node), "err", failed)
	}
	return &api.Error{Code: api.CodeUnavailable, Op: "backup create", Subject: g.Name, Why: failed.Error(),
		Hint: "lockstep group show " + g.Name + " says which members are up"}
}

// openBackup begins to read a group from a member, this node or another one.
func (n *node) openBackup(ctx context.Context, g *control.Group, node uint64) (io.ReadCloser, error) {
	if node == n.self {
		if _, err := n.holding(g.ID); err != nil {
			return nil, err
		}
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.CloseWithError(n.sendGroup(ctx, g.ID, w))
		}()
		return ended{r, func() { cancel(); r.Close(); <-done }}, nil
	}
	open, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := n.net.Open(open, node, serviceBackup)
	if err != nil {
		return nil, err
	}
	return askBackup(ctx, &attended{conn, n.nameOf(node), streamSilence}, g.ID)
}

// askBackup has the member at the other end send the group.
func askBackup(ctx context.Context, conn net.Conn, group uint64) (io.ReadCloser, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if _, err := conn.Write(groupBytes(group)); err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	return ended{conn, func() { stop(); conn.Close() }}, nil
}

// ended is a stream with something to do at its end.
type ended struct {
	io.Reader
	end func()
}

func (e ended) Close() error {
	e.end()
	return nil
}

// serveBackup sends what this node has of a group.
func (n *node) serveBackup(ctx context.Context, from uint64, conn net.Conn) {
	conn = &attended{conn, n.nameOf(from), streamSilence}
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return
	}
	group, _ := groupOf(head[:])
	out := bufio.NewWriterSize(conn, 1<<20)
	if err := errors.Join(n.sendGroup(ctx, group, out), out.Flush()); err != nil && ctx.Err() == nil {
		n.log.Warn("backup of a group not sent", "group", group, "err", err)
	}
}

// sendGroup writes the fragment of a group that this node holds. An error is in the fragment, too.
func (n *node) sendGroup(ctx context.Context, group uint64, w io.Writer) error {
	begun := false
	err := remembering("backup create", func(seen backup.Set) error {
		begun = true
		out := backup.NewFragment(w, seen)
		err := n.writeGroup(ctx, group, out)
		if err != nil {
			return errors.Join(err, out.Abort(err))
		}
		return out.EndGroup()
	})
	if err != nil && !begun {
		err = errors.Join(err, backup.NewFragment(w, nil).Abort(err))
	}
	return err
}

func (n *node) writeGroup(ctx context.Context, group uint64, out *backup.Writer) error {
	h, err := n.holding(group)
	if err != nil {
		return err
	}
	a, err := h.theAgent()
	if err != nil {
		return err
	}
	barrier, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if _, err := h.member.Barrier(barrier); err != nil {
		return fmt.Errorf("group %s has no leader that answers: %w", h.group.Name, err)
	}
	view, err := collect(ctx, a, out, h.stateView, func(v *engine.StateView) kv.Reader { return v.Machine })
	if err != nil {
		return err
	}
	return errors.Join(n.writeState(h, view, out), view.Close())
}

// collect takes one moment after the other until every content that the moment's state names is written, and returns
// that one.
func collect[M io.Closer](ctx context.Context, a opener, out *backup.Writer, take func() (M, error), state func(M) kv.Reader) (m M, err error) {
	var missing string
	for range backupRounds {
		if m, err = take(); err != nil {
			return m, err
		}
		missing, err = writeContents(ctx, a, state(m), out)
		if err == nil && missing == "" {
			return m, nil
		}
		if err = errors.Join(err, m.Close()); err != nil {
			return m, err
		}
		select {
		case <-time.After(backupPause):
		case <-ctx.Done():
			return m, ctx.Err()
		}
	}
	return m, fmt.Errorf("the content of %s is nowhere, or changes faster than it can be read", missing)
}

// opener is the agent, for contents.
type opener interface {
	Content(ctx context.Context, path string, n *manifest.Node) (io.ReadCloser, bool, error)
}

// writeContents writes what the state names and the file has not yet; missing is a path whose content was nowhere.
func writeContents(ctx context.Context, a opener, state kv.Reader, out *backup.Writer) (missing string, err error) {
	err = manifest.Walk(state, "", "", func(path string, nd manifest.Node) error {
		if nd.Kind != manifest.File {
			return nil
		}
		if has, err := out.Has(backup.Hash(nd.Hash)); has || err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		complete, err := writeContent(ctx, a, path, &nd, out)
		if err == nil && !complete {
			missing = path
		}
		return err
	})
	return missing, err
}

func writeContent(ctx context.Context, a opener, path string, nd *manifest.Node, out *backup.Writer) (bool, error) {
	if nd.Size == 0 {
		return out.Content(backup.Hash(nd.Hash), 0, strings.NewReader(""))
	}
	r, ok, err := a.Content(ctx, path, nd)
	if err != nil || !ok {
		return false, err
	}
	complete, err := out.Content(backup.Hash(nd.Hash), uint64(nd.Size), r)
	return complete, errors.Join(err, r.Close())
}

func (n *node) writeState(h *holding, view *engine.StateView, out *backup.Writer) error {
	stats, err := manifest.ReadStats(view.Machine)
	if err != nil {
		return err
	}
	tree, err := manifest.TreeDigest(view.Machine)
	if err != nil {
		return err
	}
	st := n.ctl.state()
	g, ok := st.Group(h.group.ID)
	if !ok {
		return errNoSuchGroup
	}
	return out.Part(backup.Part{
		Kind: backup.PartState, Group: g.Name, Settings: settingsOf(g), Members: membersOf(st, g), Tree: backup.Hash(tree),
		Files: stats.Files, Bytes: stats.Bytes, Level: view.Level, Position: backup.Position{
			History: hex.EncodeToString(view.Line.History[:]), Term: view.At.Term, Index: view.At.Index,
		},
	}, view.Write)
}

// stateView is the whole state of this node's part of the group.
func (h *holding) stateView() (*engine.StateView, error) {
	if h.grp != nil {
		return h.grp.StateView()
	}
	return h.obs.StateView()
}
