package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/files"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// holding is this node's part of a files group: the replica, and the agent that keeps a directory in step with
// it. The replica runs whether or not the directory can be used; the agent is opened again and again until it can.
type holding struct {
	n       *node
	group   control.Group // as it was when the holding started; what never changes is used
	replica uint64
	binding uint64 // replica id under which the directory was bound
	path    string
	member  member
	grp     *engine.Group    // nil while observing
	obs     *engine.Observer // nil while voting
	session *engine.Session

	agent   atomic.Pointer[files.Agent]
	serving streams
	fault   atomic.Pointer[error] // why there is no agent
	waits   atomic.Pointer[error] // why the replica goes on though its log is damaged

	quorumOnly atomic.Uint64 // changes that not every member of the in-sync set had in time
	warned     atomic.Int64  // when that was logged last, Unix ns

	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// agentRetry is the pause between attempts to open a binding that cannot be used.
const agentRetry = 2 * time.Second

func (n *node) holding(group uint64) (*holding, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.holdings[group]
	if s, suspect := n.suspects[group]; suspect {
		return nil, s.refusal(n.groupName(group), n.id.Name())
	}
	if _, sealed := n.sealed[group]; sealed {
		return nil, errSealed(n.groupName(group), n.id.Name())
	}
	if !ok {
		return nil, &api.Error{Code: api.CodeUnavailable, Op: "group", Subject: n.groupName(group), Why: "node " + n.id.Name() + " does not run it (yet)",
			Hint: "try again in a few seconds; lockstep dir status " + n.groupName(group) + " says what each node does"}
	}
	return h, nil
}

// groupName is how people know a group.
func (n *node) groupName(id uint64) string {
	if g, ok := n.ctl.state().Group(id); ok {
		return g.Name
	}
	return fmt.Sprint(id)
}

// hold starts this node's part of a group, or brings a running one up to date.
func (n *node) hold(ctx context.Context, g *control.Group, m control.Member) error {
	n.mu.Lock()
	h, ok := n.holdings[g.ID]
	ending := n.closing
	n.mu.Unlock()
	if ending {
		return nil
	}
	// Ids only grow. This node's copy of the control state may be older than what it has acted upon, while it heals.
	if o, found, err := n.ownedOf(g.ID); err != nil || found && o.Replica > m.Replica {
		return err
	}
	if ok && h.group.History != g.History { // forked: it begins again, on the new history
		if err := n.pause(h); err != nil {
			return fmt.Errorf("group %s: %w", g.Name, err)
		}
		ok = false
	}
	switch {
	case ok && h.binding == m.Binding && h.path == m.Path:
		if h.grp != nil {
			h.grp.SetNodes(g.Nodes())
		} else {
			h.obs.Reconsider()
		}
		if h.replica == m.Replica {
			return nil
		}
		return n.turn(ctx, g, h, m)
	case ok: // another incarnation
		if err := n.leave(ctx, g); err != nil || n.holds(g.ID) {
			return err
		}
	}
	if err := n.own(g.ID, ownedBy(m)); err != nil {
		return fmt.Errorf("group %s: %w", g.Name, err)
	}
	err := n.start(g, m, true)
	if errors.Is(err, errAstray) {
		n.standAside(g, m.Replica, err)
		return nil
	}
	if errors.Is(err, logstore.ErrDamaged) && m.Role == control.RoleVoter {
		n.stepAside(ctx, g, m.Replica, err)
		return nil
	}
	return err
}

// start runs the replica and, if the directory is bound, its agent.
func (n *node) start(g *control.Group, m control.Member, bound bool) error {
	if err := n.align(g, m); err != nil {
		return fmt.Errorf("group %s: bring it to its new history: %w", g.Name, err)
	}
	h, err := n.startHolding(g, m, bound)
	if err != nil {
		return fmt.Errorf("group %s: %w", g.Name, err)
	}
	n.clear(g.ID)
	n.keep(h)
	return nil
}

// keep enters a holding that runs. If the node is ending, closeHoldings came first, and nobody else would end this one
// before the stores are closed.
func (n *node) keep(h *holding) {
	n.mu.Lock()
	ending := n.closing
	if !ending {
		n.holdings[h.group.ID] = h
	}
	n.mu.Unlock()
	if ending {
		h.close()
	}
}

func (n *node) startHolding(g *control.Group, m control.Member, bound bool) (*holding, error) {
	h := &holding{n: n, group: *g, replica: m.Replica, binding: m.Binding, path: m.Path}
	h.session = n.eng.NewSession(g.ID, groupVoters{n, g.ID}, newSessionID())
	policy, err := manifest.ParsePolicy(g.Conflict)
	if err != nil {
		return nil, err
	}
	machine := manifest.New(manifest.Config{Policy: policy, Changed: h.changed, Restored: h.restored})
	if m.Role == control.RoleObserver {
		h.obs, err = n.eng.Observe(engine.ObserverConfig{
			ID: g.ID, Machine: machine, Differ: differ{}, Members: groupVoters{n, g.ID},
			Sources: func() []uint64 { return n.sourcesOf(g.ID) },
		})
		h.member = h.obs
	} else {
		cfg := engine.GroupConfig{ID: g.ID, Replica: m.Replica, Machine: machine, Differ: differ{}, Nodes: g.Nodes(), History: g.History,
			Floor: h.floor, InSync: true}
		if contains(g.Initial, m.Replica) {
			cfg.Initial = g.Initial
		}
		h.grp, err = n.eng.StartGroup(cfg)
		h.member = h.grp
	}
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	if bound {
		h.tasks.Go(func() { h.keepAgent(ctx) })
		h.tasks.Go(func() { h.dropUpload(ctx) })
	}
	return h, nil
}

// changed and restored hand the machine's events on. What happens while there is no agent is not lost: an agent
// that opens walks the whole manifest.
func (h *holding) changed(index uint64, changes []manifest.Changed) {
	if a := h.agent.Load(); a != nil {
		a.Changed(index, changes)
	}
}

func (h *holding) restored(index uint64) {
	if a := h.agent.Load(); a != nil {
		a.Restored(index)
	}
}

// floor keeps entries in the log whose contents are not yet safely on disk here.
func (h *holding) floor() uint64 {
	if a := h.agent.Load(); a != nil {
		return a.Floor()
	}
	return 0
}

// keepAgent has an agent whenever the directory can be used.
func (h *holding) keepAgent(ctx context.Context) {
	var logged string // what was logged last: the same is not said again every two seconds
	for ctx.Err() == nil {
		a, err := h.openAgent(ctx)
		if err == nil {
			h.fault.Store(nil)
			h.agent.Store(a)
			logged = ""
			err = a.Run(ctx)
			h.agent.Store(nil)
			h.serving.end() // before the contents that they read are closed
			err = errors.Join(err, a.Close())
		}
		if ctx.Err() != nil {
			if err != nil {
				h.n.log.Warn("binding not closed cleanly", "group", h.group.Name, "err", err)
			}
			return
		}
		err = h.n.unreadableState(h.group.Name, err)
		h.fault.Store(&err)
		if text := err.Error(); text != logged {
			logged = text
			h.n.log.Error("binding cannot be used; tried again until it can", "group", h.group.Name, "path", h.path, "err", err)
		}
		select {
		case <-time.After(agentRetry):
		case <-ctx.Done():
		}
	}
}

func (h *holding) openAgent(ctx context.Context) (*files.Agent, error) {
	table := kv.Prefixed(h.n.state, tablePrefix(h.group.ID, h.binding))
	placed := placedTable(h.n.state, h.group.ID, h.binding)
	claim, err := h.claim(placed)
	if err != nil {
		return nil, err
	}
	work, err := place.WorkDir(h.n.workDir(h.group.ID, h.binding), h.path)
	if err == nil {
		err = h.setAside(ctx, work)
	}
	if err != nil {
		return nil, errors.Join(err, claim.Close())
	}
	return files.New(files.Config{
		GroupID: h.markerID(), Created: h.group.Created, Node: h.n.id.Name(), Root: h.path, Work: work, Claim: claim,
		Table: placed, Chunks: kv.Prefixed(table, []byte("c/")),
		Log: groupLog{h}, Peers: groupPeers{h}, Extra: h.uploaded(), Owner: os.Geteuid() == 0,
		Resume: "lockstep dir resume " + h.group.Name + " " + h.n.id.Name(),
		Quiet:  []string{h.n.data.sub("log"), h.n.data.sub("state")},
		Logger: h.n.log.With("group", h.group.Name),
	})
}

// claim takes the directory up, so that no other node of this machine does. One that is bound for the first time is
// marked before. What carries another group's mark is taken over only where a restore sets aside what is there.
func (h *holding) claim(table kv.Store) (*place.Claim, error) {
	fresh, err := files.Fresh(table)
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := files.MakeRoot(table, h.path); err != nil {
			return nil, err
		}
	}
	claim, err := place.Take(h.path, h.markerID())
	switch {
	case !fresh:
	case errors.Is(err, place.ErrMarkerMissing):
		if err := place.EnsureMarker(h.path, h.markerID(), h.group.Created); err != nil {
			return nil, err
		}
		claim, err = place.Take(h.path, h.markerID())
	case errors.Is(err, place.ErrMarkerForeign):
		due, stateErr := h.asideDue()
		if stateErr != nil || !due {
			return nil, errors.Join(err, stateErr)
		}
		h.n.log.Warn("a directory that was another group's is taken over", "group", h.group.Name, "path", h.path, "was", place.Marked(h.path))
		claim, err = place.TakeOver(h.path, h.markerID(), h.group.Created)
	}
	if errors.Is(err, place.ErrHeld) {
		return nil, errHeld("dir", h.n.id.Name()+":"+h.path, err)
	}
	if err == nil && !claim.Locked() {
		h.n.log.Warn("the file system cannot lock: see to it that no other node keeps this directory", "group", h.group.Name, "path", h.path)
	}
	return claim, err
}

func (h *holding) markerID() string { return h.group.Marker() }

// tablePrefix is where a binding keeps what is its own; a new incarnation begins with nothing.
func tablePrefix(group, binding uint64) []byte {
	return fmt.Appendf(nil, "p/%016x-%016x/", group, binding)
}

// placedTable is the placed table of a binding. No log tells what it says, so the process may die without taking any
// of it along.
func placedTable(state kv.Store, group, binding uint64) kv.Store {
	return kv.Prefixed(state.Through(), append(tablePrefix(group, binding), "t/"...))
}

// workDir is the work area of a binding whose directory is on the data directory's mount.
func (n *node) workDir(group, binding uint64) string {
	return n.data.sub(fmt.Sprintf("work/%d-%d", group, binding))
}

// close stops the agent and, while observing, the replica; a voter's replica belongs to the engine.
func (h *holding) close() {
	h.stop()
	h.tasks.Wait()
	if h.obs != nil {
		h.obs.Close()
	}
}

func (n *node) holds(group uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.holdings[group]
	return ok
}

// configured lists all replicas of a configuration.
func configured(st core.Status) []uint64 {
	return slices.Concat(st.Voters, st.Learners, st.Outgoing)
}

// dropWork removes a work area but for what was kept aside of users' files.
func dropWork(work string) error {
	var errs []error
	for _, part := range []string{"packs", "large", "gone", "place"} {
		errs = append(errs, os.RemoveAll(filepath.Join(work, part)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Join(work, "kept"), work} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

func (n *node) closeHoldings() {
	n.mu.Lock()
	holdings := n.holdings
	n.holdings = map[uint64]*holding{}
	n.closing = true
	n.mu.Unlock()
	var wait sync.WaitGroup
	for _, h := range holdings {
		wait.Go(h.close)
	}
	wait.Wait()
}

// quorumOnlyEvery is how often it is logged that changes of a group with ack all are on a majority only.
const quorumOnlyEvery = time.Minute

// noteQuorumOnly counts a change that is committed but not on every member of the in-sync set: the binding goes on, and
// says so.
func (h *holding) noteQuorumOnly(missing []uint64) {
	total, now, last := h.quorumOnly.Add(1), time.Now().UnixNano(), h.warned.Load()
	if now-last >= 0 && now-last < int64(quorumOnlyEvery) || !h.warned.CompareAndSwap(last, now) {
		return
	}
	g, ok := h.n.ctl.state().Group(h.group.ID)
	if !ok {
		return
	}
	h.n.log.Warn("a change is committed, but not every member of the in-sync set had it in time",
		"group", g.Name, "missing", h.n.namesOf(g, missing), "ever", total)
}

// theAgent is the agent, or why there is none.
func (h *holding) theAgent() (*files.Agent, error) {
	if a := h.agent.Load(); a != nil {
		return a, nil
	}
	e := &api.Error{Code: api.CodeUnavailable, Op: "dir", Subject: h.n.id.Name() + ":" + h.path, Why: "it is being opened",
		Hint: "see to " + h.path + " on " + h.n.id.Name() + "; the node takes it up by itself, within seconds"}
	if fault := h.fault.Load(); fault != nil && *fault != nil {
		e.Why = (*fault).Error()
		if said := (*api.Error)(nil); errors.As(*fault, &said) && said.Hint != "" {
			e.Why, e.Hint = said.Why, said.Hint
		}
	}
	return nil, e
}

// ready holds once the binding has been compared with the group.
func (h *holding) ready() (bool, string) {
	a, err := h.theAgent()
	if err != nil {
		return false, err.Error()
	}
	if mode, why := a.Mode(); mode == "scan" {
		return false, strings.TrimSuffix("the directory is being compared with the group: "+why, ": ")
	}
	return true, ""
}

func hintOf(err error) string {
	if e := (*api.Error)(nil); errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// describe adds the binding's account to a report.
func (h *holding) describe(r *report) error {
	a, err := h.theAgent()
	if err != nil {
		r.Dir = &api.DirNode{Mode: "stopped", Why: err.Error(), Problems: []api.Problem{{What: err.Error(), Hint: hintOf(err)}}}
		return nil
	}
	d, err := a.Status()
	if err != nil {
		return err
	}
	view := h.member.View()
	defer view.Close()
	stats, err := manifest.ReadStats(view)
	if err != nil {
		return err
	}
	r.Digest, r.Files, r.Bytes, r.Moved = d.Digest, stats.Files, stats.Bytes, a.Moved()
	d.Conflicts = 0
	if err := openConflicts(view, func(manifest.Conflict) error { d.Conflicts++; return nil }); err != nil {
		return err
	}
	r.Dir = &d
	return nil
}

func (n *node) serveContent(ctx context.Context, _ uint64, conn net.Conn) {
	var head [8]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return
	}
	group, _ := groupOf(head[:])
	h, err := n.holding(group)
	if err != nil {
		return
	}
	ctx, done := h.serving.begin(ctx)
	defer done()
	a, err := h.theAgent()
	if err != nil {
		return
	}
	if err := a.ServeContent(ctx, conn); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		n.log.Debug("content stream ended", "group", h.group.Name, "err", err)
	}
}

// differ moves only directories that differ when a whole manifest is needed.
type differ struct{}

func (differ) ServeDiff(view kv.Reader, rw io.ReadWriter) error { return manifest.ServeDiff(view, rw) }

func (differ) FetchDiff(local kv.Reader, rw io.ReadWriter, w replica.Writer) error {
	_, err := manifest.FetchDiff(local, rw, w.Set, w.Delete)
	return err
}

// streams are the content streams that an agent serves; they end before it is closed.
type streams struct {
	mu     sync.Mutex
	epoch  context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// begin must be called before the agent is looked up: then end, which comes after the agent was withdrawn, waits
// for every stream that may have found it.
func (s *streams) begin(parent context.Context) (ctx context.Context, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == nil {
		s.epoch, s.cancel = context.WithCancel(context.Background())
	}
	s.wait.Add(1)
	ctx, cancel := context.WithCancel(parent)
	stop := context.AfterFunc(s.epoch, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.wait.Done()
	}
}

// end cancels all streams and waits for them; streams that begin meanwhile find no agent.
func (s *streams) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
	}
	s.wait.Wait()
	s.epoch, s.cancel = nil, nil
}
