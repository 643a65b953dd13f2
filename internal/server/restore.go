package server

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/files"
	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// A restore: one member, the seed, gets all that the backup holds of the group (an upload, DATA/restore/ID: the state,
// and every content under its hash), durably. Then the control group decides: the group is made, or forked. The seed
// installs the state under the new history (align) and places files from the upload, which it drops once all are on
// disk; the others come by SNAP and fetch from it. Files that are in a member's directory and differ are set aside,
// under kept/ in its work area.

// serviceRestore is the transport service that takes an upload: its id (16 hex digits), then a fragment; answered by
// one line of JSON, an api.Error or null.
const serviceRestore = "server.restore"

// Restore makes a group of this cluster out of what a backup holds of one; body is a fragment.
func (n *node) Restore(ctx context.Context, req api.Restore, body io.Reader) (api.Restored, error) {
	p, err := n.planRestore(ctx, &req)
	if err != nil || req.DryRun {
		return p.out, err
	}
	var id [8]byte
	rand.Read(id[:])
	upload := hex.EncodeToString(id[:])
	if err := n.upload(ctx, p.seed, upload, body); err != nil {
		return p.out, asAPIError("restore", req.Group, err)
	}
	if err := n.checkRestorePaths(ctx, &req, &restorePlan{}); err != nil { // an upload may take hours
		n.discard(ctx, p.seed, upload)
		return p.out, err
	}
	cmd := restoreCommand(&req, &p, n.id.Name(), upload)
	if p.living != nil {
		err = n.forkLiving(ctx, p.living, cmd, &p.out)
	} else {
		_, err = n.ctl.propose(ctx, cmd)
	}
	if err != nil {
		var refused *api.Error
		if errors.As(err, &refused) && refused.Code != api.CodeUnavailable { // else it may still be executed
			n.discard(ctx, p.seed, upload)
		}
		return p.out, restoreError(req.As, err)
	}
	to := cmd.ForkGroup
	if to == nil {
		to = cmd.CreateGroup.Restore
	}
	p.out.History = hex.EncodeToString(to.To[:])
	n.log.Warn("group restored from a backup", "group", req.As, "seed", p.out.Node, "history", p.out.History, "before", p.out.Before, "at", req.Index,
		"given_up", p.out.GivenUp, "not_asked", p.out.Unasked)
	return p.out, nil
}

// restorePlan is what a restore would do.
type restorePlan struct {
	out    api.Restored
	before [16]byte
	seed   uint64
	living *control.Group // that is replaced
}

func (n *node) planRestore(ctx context.Context, req *api.Restore) (p restorePlan, err error) {
	const op = "restore"
	refuse := func(code api.Code, subject, why, hint string) error {
		return &api.Error{Code: code, Op: op, Subject: subject, Why: why, Hint: hint}
	}
	if !decodeHex(req.History, p.before[:]) || req.Index == 0 {
		return p, refuse(api.CodeUsage, req.Group, "it has no position", "take it from the backup: lockstep restore FILE --group "+req.Group)
	}
	if e := n.beyond(req.Group, req.Level); e != nil { // as the request says; what is uploaded is asked, too
		return p, e
	}
	if _, err := n.currentControl(ctx, op); err != nil {
		return p, err
	}
	p.out = api.Restored{Group: req.As, Before: req.History, Fork: req.Index, Files: req.Files, Bytes: req.Bytes, DryRun: req.DryRun, Warnings: []string{}}
	g, exists := n.ctl.state().GroupNamed(req.As)
	switch {
	case exists && g.Kind != control.KindFiles:
		return p, refuse(api.CodeConflict, req.As, "the control group of a running cluster cannot be replaced",
			"restore into a new cluster: lockstep restore FILE --data DIR")
	case exists && !req.OverLiving:
		return p, refuse(api.CodeConflict, req.As, "a group of this name lives here",
			"restore beside it with --as NEWNAME, or give its present state up with --over-living")
	case exists && len(req.Paths) > 0:
		return p, refuse(api.CodeUsage, req.As, "the group exists and keeps its directories", "leave --path and --on out")
	case exists:
		p.living, p.out.Replaced = g, true
		p.out.Paths = map[string]string{}
		for _, m := range g.Members {
			p.out.Paths[n.nameOf(m.Node)] = api.EscapePath(m.Path)
		}
		p.out.Warnings = append(p.out.Warnings, "the present state of "+req.As+" is given up; files that differ from the backup's are set aside on each node")
	case len(req.Paths) == 0:
		return p, refuse(api.CodeUsage, req.As, "it is not said where its files go", "say it with --path DIR --on NODE,…")
	default:
		p.out.Paths = map[string]string{}
		for node, dir := range req.Paths {
			p.out.Paths[node] = api.EscapePath(dir)
		}
		n.fitPolicy(req, &p)
		if err := n.checkRestorePaths(ctx, req, &p); err != nil {
			return p, err
		}
	}
	if err := n.chooseSeed(ctx, &p); err != nil {
		return p, err
	}
	return p, n.tryRestore(req, &p)
}

// fitPolicy replaces a conflict policy that prefers a node which this cluster does not have.
func (n *node) fitPolicy(req *api.Restore, p *restorePlan) {
	name, ok := strings.CutPrefix(req.Conflict, "prefer:")
	if !ok {
		return
	}
	if _, known := n.ctl.state().NodeNamed(name); !known {
		p.out.Warnings = append(p.out.Warnings, "its conflict policy, "+req.Conflict+", names no node of this cluster: it is keep-both now")
		req.Conflict = "keep-both"
	}
}

// checkRestorePaths makes sure that the directories can be bound, and hold nothing unless that was allowed.
func (n *node) checkRestorePaths(ctx context.Context, req *api.Restore, p *restorePlan) error {
	for _, name := range slices.Sorted(maps.Keys(req.Paths)) {
		dir := req.Paths[name]
		if err := n.checkBinding(ctx, "restore", name, dir, anyMark); err != nil {
			return err
		}
		node, ok := n.ctl.state().NodeNamed(name)
		if !ok {
			return &api.Error{Code: api.CodeNotFound, Op: "restore", Subject: name, Why: "no such node", Hint: "lockstep node list shows them"}
		}
		_, err := call(ctx, n, node.ID, methodEmpty, groupRequest{Path: dir},
			func(_ context.Context, r groupRequest) (none, error) { return none{}, emptyHere(r.Path) })
		var e *api.Error
		switch {
		case err == nil:
		case !errors.As(err, &e) || e.Code != api.CodeConflict:
			return err
		case req.OverLiving:
			p.out.Warnings = append(p.out.Warnings, name+":"+dir+": "+e.Why+": what differs from the backup's is set aside, and the directory becomes this group's")
		default:
			e.Op, e.Subject = "restore", name+":"+dir
			return e
		}
	}
	return nil
}

func emptyHere(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != manifest.Reserved && e.Name() != "lost+found" {
			return &api.Error{Code: api.CodeConflict, Op: "restore", Subject: dir, Why: "the directory holds files",
				Hint: "choose an empty one, or add --over-living: files that differ from the backup's are then set aside"}
		}
	}
	if was := place.Marked(dir); was != "" {
		return &api.Error{Code: api.CodeConflict, Op: "restore", Subject: dir, Why: "the directory is a binding of group " + was,
			Hint: "choose another one, or, if no node keeps it any more, add --over-living: it is then this group's"}
	}
	return nil
}

// chooseSeed takes this node if it is to hold the group, else the first that is up.
func (n *node) chooseSeed(ctx context.Context, p *restorePlan) error {
	names := slices.Sorted(maps.Keys(p.out.Paths))
	if slices.Contains(names, n.id.Name()) {
		p.out.Node, p.seed = n.id.Name(), n.self
		return nil
	}
	for _, name := range names {
		if node, ok := n.ctl.state().NodeNamed(name); ok && n.isUp(ctx, node.ID) {
			p.out.Node, p.seed = name, node.ID
			return nil
		}
	}
	return &api.Error{Code: api.CodeUnavailable, Op: "restore", Subject: p.out.Group, Why: "none of the nodes that are to hold it is up",
		Hint: "lockstep node list shows which are"}
}

func (n *node) uploadDir(id string) string { return n.data.sub(filepath.Join("restore", id)) }

// upload brings a fragment to the seed.
func (n *node) upload(ctx context.Context, seed uint64, id string, body io.Reader) error {
	if seed == n.self {
		return n.receiveUpload(id, body)
	}
	conn, err := n.net.Open(ctx, seed, serviceRestore)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	to := &attended{conn, n.nameOf(seed), streamSilence}
	if _, err := io.Copy(to, io.MultiReader(strings.NewReader(id), body)); err != nil {
		return fmt.Errorf("send the backup to %s: %w", n.nameOf(seed), err)
	}
	var refused *api.Error
	to.silence = syncSilence
	if err := json.NewDecoder(to).Decode(&refused); err != nil {
		return fmt.Errorf("send the backup to %s: no answer: %w", n.nameOf(seed), err)
	}
	if refused != nil {
		return refused
	}
	return nil
}

// discard removes an upload that is of no use, also if nobody waits for the restore any more; what cannot be removed now
// goes with tidyUploads.
func (n *node) discard(ctx context.Context, seed uint64, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	if _, err := call(ctx, n, seed, methodDiscard, groupRequest{Path: id}, n.discardHere); err != nil {
		n.log.Warn("upload not removed", "node", n.nameOf(seed), "upload", id, "err", err)
	}
}

func (n *node) discardHere(_ context.Context, req groupRequest) (none, error) {
	if raw := make([]byte, 8); !decodeHex(req.Path, raw) || n.wantsUpload(req.Path) {
		return none{}, &api.Error{Code: api.CodeConflict, Op: "restore", Subject: req.Path, Why: "it is no upload that can be removed"}
	}
	return none{}, os.RemoveAll(n.uploadDir(req.Path))
}

// wantsUpload says whether this node still holds a group of which it is the seed, by this upload.
func (n *node) wantsUpload(id string) bool { return wantsUpload(n.ctl.state(), n.self, id) }

func wantsUpload(st *control.State, self uint64, id string) bool {
	return slices.ContainsFunc(st.Groups, func(g control.Group) bool {
		m, ok := g.Member(self)
		return ok && !g.Deleted && g.Fork != nil && g.Fork.Upload == id && began(g.Fork, m.Binding)
	})
}

// began says whether a binding on the node that was given the upload is the one that the group began with. Its replica
// gets another id when its role changes; a directory that was bound again is another binding, with a higher id.
func began(f *control.Fork, binding uint64) bool { return f.Upload != "" && binding <= f.Seed }

// uploadAge is when an upload that has arrived, and that no group came of, is given up.
const uploadAge = time.Hour

// tidyUploads removes what restores left that were never decided.
func (n *node) tidyUploads() error {
	entries, err := os.ReadDir(n.data.sub("restore"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := n.uploadDir(e.Name())
		info, err := os.Stat(filepath.Join(dir, "contents")) // dated when it had arrived
		if errors.Is(err, fs.ErrNotExist) {
			info, err = os.Stat(dir) // its removal, or its beginning, was interrupted
		}
		if err != nil || n.wantsUpload(e.Name()) || n.uploads.underWay(e.Name()) || time.Since(info.ModTime()) < uploadAge {
			continue
		}
		errs = append(errs, os.RemoveAll(n.uploadDir(e.Name())))
	}
	return errors.Join(errs...)
}

// arriving is the uploads that this process is receiving. One content may take any time to arrive, and says nothing of
// itself meanwhile.
type arriving struct {
	mu  sync.Mutex
	ids map[string]bool
}

// begin returns what ends it.
func (a *arriving) begin(id string) (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ids == nil {
		a.ids = map[string]bool{}
	}
	a.ids[id] = true
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.ids, id)
	}
}

func (a *arriving) underWay(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ids[id]
}

// serveRestore takes an upload from another node.
func (n *node) serveRestore(ctx context.Context, from uint64, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn = &attended{conn, n.nameOf(from), streamSilence}
	in := bufio.NewReaderSize(conn, 1<<20)
	var id [16]byte
	if _, err := io.ReadFull(in, id[:]); err != nil {
		return
	}
	var answer *api.Error
	err := errors.New("an upload has 16 hex digits")
	if raw := make([]byte, 8); decodeHex(string(id[:]), raw) {
		err = n.receiveUpload(string(id[:]), in)
	}
	if err != nil {
		n.log.Warn("upload not taken", "from", n.nameOf(from), "err", err)
		answer = asAPIError("restore", "", err)
	}
	if err := json.NewEncoder(conn).Encode(answer); err != nil {
		n.log.Warn("upload not answered", "to", n.nameOf(from), "err", err)
	}
}

// receiveUpload stores a fragment durably; on error nothing of it stays.
func (n *node) receiveUpload(id string, body io.Reader) (err error) {
	defer n.uploads.begin(id)()
	dir := n.uploadDir(id)
	if err := os.MkdirAll(filepath.Join(dir, "contents"), 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if free, err := content.Statfs(dir); err != nil || free < uploadReserve {
		return &api.Error{Code: api.CodeFailed, Op: "restore", Subject: dir, Why: fmt.Sprintf("%d bytes are free", free), Hint: "make room under the data directory"}
	}
	state := false
	err = backup.ReadFragment(body, backup.Handler{
		Seen: received(filepath.Join(dir, "contents")),
		Part: func(p backup.Part, r io.Reader) error {
			path := filepath.Join(dir, p.Kind)
			if err := writeFile(path, r); err != nil || p.Kind != backup.PartState {
				return err
			}
			state = true
			return n.fits(p.Group, path)
		},
		Content: func(h backup.Hash, _ uint64, r io.Reader) error {
			path := filepath.Join(dir, "contents", h.String())
			err := writeFile(path, r)
			if errors.Is(err, backup.ErrGivenUp) {
				return os.Remove(path)
			}
			return err
		},
	})
	if err == nil && !state {
		err = errors.New("the upload holds no state")
	}
	if err != nil {
		return fmt.Errorf("receive what the backup holds: %w", err)
	}
	now := time.Now() // uploadAge begins
	if err := os.Chtimes(filepath.Join(dir, "contents"), now, now); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// fits refuses an uploaded state that this node could not install: of a level that the cluster has not reached, whatever
// the request said, or in another version's form.
func (n *node) fits(group, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	level, err := engine.SnapshotLevel(f)
	if e := otherVersion("restore", group, err); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	if e := n.beyond(group, level); e != nil {
		return e
	}
	return nil
}

// beyond refuses a state of a level that the cluster has not reached; nil: it may be restored.
func (n *node) beyond(group string, level uint64) *api.Error {
	reached := n.reached()
	if level <= reached {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Op: "restore", Subject: group,
		Why:  fmt.Sprintf("the backup is of cluster level %d, this cluster is at %d", level, reached),
		Hint: "upgrade every node and raise the cluster first: lockstep level raise; or restore into a new cluster: lockstep restore FILE --data DIR"}
}

// received is the contents that are files of this directory.
type received string

func (d received) Add(backup.Hash) error { return nil }

func (d received) Has(h backup.Hash) (bool, error) {
	_, err := os.Lstat(filepath.Join(string(d), h.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// uploadReserve is what must be free for an upload to begin, in bytes.
const uploadReserve = 64 << 20

func writeFile(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// importUpload makes the state of an upload this replica's, under the group's new history.
func (n *node) importUpload(g *control.Group, m control.Member) error {
	if err := n.forgetTable(g, m); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(n.uploadDir(g.Fork.Upload), backup.PartState))
	if err != nil {
		return fmt.Errorf("what it is to be restored from is gone: restore it again: %w", err)
	}
	defer f.Close()
	return n.eng.Install(engine.RecoverConfig{
		Group: g.ID, Replica: m.Replica, History: g.History, Fork: core.Position{Term: g.Fork.Term, Index: g.Fork.Index},
	}, f)
}

// uploaded opens contents of the upload that this replica began with, as long as it is there; nil: there was none.
func (h *holding) uploaded() func(manifest.Hash) (content.Source, bool) {
	f := h.group.Fork
	if f == nil || !began(f, h.binding) {
		return nil
	}
	dir := filepath.Join(h.n.uploadDir(f.Upload), "contents")
	return func(hash manifest.Hash) (content.Source, bool) {
		c, err := os.Open(filepath.Join(dir, hash.String()))
		return c, err == nil
	}
}

// uploadPoll is how often a seed looks whether it has placed what it was given.
const uploadPoll = time.Second

// dropUpload removes the upload once everything in it is on disk.
func (h *holding) dropUpload(ctx context.Context) {
	f := h.group.Fork
	if f == nil || !began(f, h.binding) {
		return
	}
	dir := h.n.uploadDir(f.Upload)
	if _, err := os.Stat(dir); err != nil {
		return
	}
	t := time.NewTicker(uploadPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if a := h.agent.Load(); a == nil || a.Floor() < f.Index {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			h.n.log.Warn("upload not removed", "path", dir, "err", err)
		}
		return
	}
}

// asideDue says whether the files are still to be compared with what was restored.
func (h *holding) asideDue() (bool, error) {
	v, marked, err := h.n.state.Get(asideKey(h.group.ID, h.binding))
	return err == nil && marked && len(v) == 1 && v[0] == asideDue, err
}

// setAside brings a binding in order that had files when its group was restored.
func (h *holding) setAside(ctx context.Context, work string) error {
	if due, err := h.asideDue(); err != nil || !due {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if _, err := h.member.Barrier(ctx); err != nil {
		return fmt.Errorf("wait for what was restored: %w", err)
	}
	view := h.member.View()
	defer view.Close()
	aside := filepath.Join(work, "kept", "restore-"+hex.EncodeToString(h.group.History[:4]))
	moved, err := files.SetAside(h.path, aside, view)
	if err != nil {
		return err
	}
	if moved > 0 {
		h.n.log.Warn("files that were not as in the backup were set aside", "group", h.group.Name, "objects", moved, "kept", aside)
	}
	b := h.n.state.Through().Batch()
	defer b.Discard()
	if err := b.Set(asideKey(h.group.ID, h.binding), []byte{asideDone}); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	return h.n.state.Sync()
}
