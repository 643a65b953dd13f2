package engine

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/ranges"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// ServiceSnapshot is the transport service under which ServeSnapshot is registered: a member that raft told to
// take a snapshot (or an observer that cannot be served by DIFF) pulls the state from the source.
//
// Raft's own message carries only a position. The member opens the stream, the source takes a view at its
// current applied index (at or above that position) and streams it; the member installs it as a whole and only
// then lets raft see the message, rewritten to the position that was installed.
const ServiceSnapshot = "engine.snapshot"

// snapshotPatience is how long a follower may take to begin pulling before raft may try again.
const snapshotPatience = 10 * time.Second

// Differ brings a machine's state up to another one by moving only what differs.
type Differ interface {
	// ServeDiff answers the learner's questions about view until it has enough.
	ServeDiff(view kv.Reader, rw io.ReadWriter) error
	// FetchDiff writes to tx what turns local into the state that the other side serves.
	FetchDiff(local kv.Reader, rw io.ReadWriter, w replica.Writer) error
}

// rangeDiffer serves machines without a Differ of their own.
type rangeDiffer struct{}

func (rangeDiffer) ServeDiff(view kv.Reader, rw io.ReadWriter) error { return ranges.Serve(view, rw) }

func (rangeDiffer) FetchDiff(local kv.Reader, rw io.ReadWriter, w replica.Writer) error {
	return ranges.Fetch(local, rw, w)
}

// differOr is d, or what does for every machine.
func differOr(d Differ) Differ {
	if d == nil {
		return rangeDiffer{}
	}
	return d
}

// offerSnapshot sends raft's MsgSnap (a position, no data). Raft then feeds the follower nothing until it hears
// how the pull ended: from ServeSnapshot, or from here if the follower never comes.
func (g *Group) offerSnapshot(m *raftpb.Message) {
	to := m.GetTo()
	index := m.GetSnapshot().GetMetadata().GetIndex()
	node, ok := g.NodeOf(to)
	if !ok {
		g.core.SnapshotSent(to, false)
		return
	}
	g.lg.Info("offering a snapshot", "to", to, "index", index)
	g.eng.cfg.Transport.Send(node, wireGroup(g.cfg.ID, g.Line().History), []*raftpb.Message{m})
	pin := g.pins.add(index)
	g.offers[to] = pin
	g.tasks.Go(func() {
		defer pin.release()
		select {
		case <-time.After(snapshotPatience):
		case <-g.stopping.Done():
			return
		}
		if !g.pulls.any(node) {
			g.box.call(func() {
				if g.offers[to] == pin { // another one has a time of its own
					g.offerEnded(to, false)
				}
			})
		}
	})
}

// offerEnded tells raft how the offer that is open ended.
func (g *Group) offerEnded(to uint64, ok bool) {
	delete(g.offers, to)
	g.core.SnapshotSent(to, ok)
}

// pulled ends what was offered to a node: it has come for the state.
func (g *Group) pulled(node uint64, err error) {
	for to := range g.offers {
		if n, ok := g.NodeOf(to); ok && n == node {
			g.offerEnded(to, err == nil)
		}
	}
}

// startInstall pulls the state that a MsgSnap announces, off the loop, and then hands the message to raft.
// While it runs, and on a full disk, announcements are dropped; raft repeats them.
func (g *Group) startInstall(m *raftpb.Message) {
	if g.pulling || g.eng.full() {
		return
	}
	if m.GetSnapshot().GetMetadata().GetIndex() <= g.core.Status().Commit {
		if err := g.core.Receive(m); err != nil {
			g.lg.Debug("snapshot message refused", "err", err)
		}
		return
	}
	node, ok := g.NodeOf(m.GetFrom())
	if !ok {
		return
	}
	g.pulling, g.decided = true, true
	rule, why := "R5", fmt.Sprintf("the leader's log no longer holds entry %d", g.rep.Applied().Index+1)
	if g.rep.Applied().Index == 0 {
		rule, why = "R7", "the replica is new"
	}
	g.catchup.begin(Catchup{Mode: ModeSnap, Rule: rule, Why: why, From: g.rep.Applied().Index, To: m.GetSnapshot().GetMetadata().GetIndex()})
	g.tasks.Go(func() {
		err := g.pull(node)
		if err != nil {
			g.lg.Warn("snapshot not installed; the leader will offer it again", "from", node, "err", err)
		}
		g.box.call(func() { g.installed(m, err) })
	})
}

func (g *Group) installed(m *raftpb.Message, err error) {
	g.pulling = false
	if err != nil {
		return
	}
	meta := g.rep.SnapshotMeta()
	g.lg.Info("snapshot installed", "index", meta.GetIndex(), "term", meta.GetTerm())
	m = proto.CloneOf(m)
	m.Snapshot.Metadata = meta
	if err := g.core.Receive(m); err != nil {
		g.lg.Warn("raft refused an installed snapshot", "err", err)
	}
	g.catchup.reached(meta.GetIndex())
	g.moved.broadcast()
}

// pull streams the state from a node and installs it on the applier, between two batches.
func (g *Group) pull(node uint64) error {
	conn, err := g.eng.cfg.Transport.Open(g.stopping, node, ServiceSnapshot)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(g.stopping, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, wireGroup(g.cfg.ID, g.Line().History))); err != nil {
		return fmt.Errorf("ask for the snapshot: %w", err)
	}
	return g.onApplier(func() error { return g.restore(conn) })
}

// onApplier runs f on the applier, between two batches (see applyQueue.run).
func (g *Group) onApplier(f func() error) error { return g.jobs.run(f) }

// restore installs a state and cuts off the observers that are fed from here: they would wait for the next entry to
// notice that they lack what the state has brought.
func (g *Group) restore(conn net.Conn) error {
	before := g.rep.Applied()
	in := &counted{Reader: bufio.NewReaderSize(&strict{conn, snapSilence}, 256<<10), note: g.catchup.received}
	err := restoreFrom(g.rep, g.cfg.Differ, readWriter{in, &strict{conn, snapSilence}})
	if g.rep.Applied() != before {
		g.src.cutAll()
	}
	if err != nil {
		g.eng.unknown(err)
		return err
	}
	g.book.reset()
	_, err = conn.Write([]byte{1})
	return err
}

// ServeSnapshot streams a group's state to a member.
func (e *Engine) ServeSnapshot(ctx context.Context, from uint64, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var head [8]byte
	if _, err := io.ReadFull(&strict{conn, planPatience}, head[:]); err != nil {
		return
	}
	id, tag := splitWire(binary.BigEndian.Uint64(head[:]))
	g, ok := e.Group(id)
	if !ok || !ours(tag, g.Line().History) {
		return
	}
	// What follows the state, which is no older than what is applied now, stays in the log until raft feeds the member
	// from there.
	pin := g.pins.add(g.rep.Applied().Index)
	defer pin.release()
	err := g.serveSnapshot(from, pin, conn)
	if err != nil {
		g.lg.Warn("snapshot not sent", "to", from, "err", err)
	}
	g.box.call(func() { g.pulled(from, err) })
	if err == nil {
		conn.Close()
		g.untilFed(from)
	}
}

// serveSnapshot sends the state, to whose position it moves pin, and waits until it is installed.
func (g *Group) serveSnapshot(to uint64, pin *pin, conn net.Conn) error {
	if g.rep.Quarantine() != nil {
		return ErrQuarantined
	}
	defer g.pulls.begin(to)()
	view := g.rep.StateView()
	defer view.Close()
	at, err := g.rep.PositionOf(view)
	if err != nil {
		return err
	}
	pin.move(at.Index)
	in := bufio.NewReader(&strict{conn, confirmAfter})
	if err := serveState(g.rep, g.cfg.Differ, view, readWriter{in, g.eng.pace.wrap(conn, g.stopping)}); err != nil {
		return err
	}
	if _, err := in.ReadByte(); err != nil {
		return fmt.Errorf("wait for the installation: %w", err)
	}
	return nil
}

// untilFed returns once the replica on a node is fed by entries, or after snapshotPatience.
func (g *Group) untilFed(node uint64) {
	patience := time.NewTimer(snapshotPatience)
	defer patience.Stop()
	look := time.NewTicker(fedLook)
	defer look.Stop()
	for {
		for _, p := range g.Fresh().Peers {
			if n, ok := g.NodeOf(p.Replica); ok && n == node && p.State == core.Replicating {
				return
			}
		}
		select {
		case <-look.C:
		case <-patience.C:
			return
		case <-g.stopping.Done():
			return
		}
	}
}

// fedLook is how often the leader looks whether a member that got a state is fed.
const fedLook = 100 * time.Millisecond

// serveState sends the state in view: the engine's part, then an exchange about what differs in the machine's.
func serveState(rep *replica.Replica, d Differ, view kv.View, rw io.ReadWriter) error {
	out := bufio.NewWriterSize(rw, 256<<10)
	if err := rep.WriteEngineState(view, out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	state, err := rep.MachineView(view)
	if err != nil {
		return err
	}
	return differOr(d).ServeDiff(state, rw)
}

// restoreFrom installs what serveState sends.
func restoreFrom(rep *replica.Replica, d Differ, rw readWriter) error {
	return rep.RestoreDiff(rw.Reader, func(local kv.Reader, w replica.Writer) error {
		return differOr(d).FetchDiff(local, rw, w)
	})
}

// readWriter reads through a buffer and writes directly.
type readWriter struct {
	io.Reader
	io.Writer
}

// counted tells how much was read, and reads single bytes without reading ahead of its buffer.
type counted struct {
	*bufio.Reader
	note func(bytes int)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.note(n)
	return n, err
}

// pullSet counts the state streams that are open, by node.
type pullSet struct {
	mu   sync.Mutex
	open map[uint64]int
}

func (p *pullSet) begin(node uint64) (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[uint64]int{}
	}
	p.open[node]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open[node]--
	}
}

func (p *pullSet) any(node uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[node] > 0
}
