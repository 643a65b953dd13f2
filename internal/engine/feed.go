package engine

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// ServiceFeed is the transport service that feeds observers: HELLO from the observer, a plan from the source
// (package catchup), the missing entries, then live entries as they are applied at the source.
const ServiceFeed = "engine.feed"

const (
	feedBeat     = 500 * time.Millisecond // an idle source says where it is
	feedDeadline = 3 * time.Second        // silence after which an observer looks for another source
	feedBacklog  = 8 << 20                // bytes an observer may lag behind live before it is cut off
	feedFrame    = 1 << 20                // entries are sent in frames of about this size
	maxFeedFrame = 64 << 20
)

// hello is the observer's position.
type hello struct {
	Group   uint64
	Cluster [16]byte
	Line    replica.Line
	Index   uint64
	Term    uint64
}

// A frame of a feed: length u32, kind u8, body.
type frameKind uint8

const (
	framePlan    frameKind = iota // JSON of catchup.Plan
	frameEntries                  // commit index u64, source's time i64, then length-prefixed entries
	frameAck                      // observer to source: applied index u64
)

// subscriber is an observer's live queue. A slow one is cut off, never waited for: it comes back with HELLO.
type subscriber struct {
	node    uint64
	entries []*raftpb.Entry
	bytes   int
	cut     bool
	wake    chan struct{}
	acked   uint64
	conn    net.Conn
}

// feedSet are the members that are served from here.
type feedSet struct {
	mu    sync.Mutex
	subs  map[*subscriber]struct{}
	pulls map[uint64]int // node → snapshot streams open
}

func (f *feedSet) add(s *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.subs == nil {
		f.subs = map[*subscriber]struct{}{}
	}
	f.subs[s] = struct{}{}
}

func (f *feedSet) remove(s *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subs, s)
}

// publish hands applied entries to every subscriber; called by the applier.
func (f *feedSet) publish(entries []*raftpb.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		if s.cut {
			continue
		}
		for _, e := range entries {
			s.bytes += len(e.GetData())
		}
		s.entries = append(s.entries, entries...)
		if s.bytes > feedBacklog {
			s.end()
		}
		s.nudge()
	}
}

// end cuts the observer off, also from a write that hangs. The set's lock is held.
func (s *subscriber) end() {
	s.cut, s.entries = true, nil
	s.conn.Close()
}

func (s *subscriber) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (f *feedSet) take(s *subscriber) (entries []*raftpb.Entry, cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, s.entries, s.bytes = s.entries, nil, 0
	return entries, s.cut
}

// closeAll cuts every observer off: the group stops, or the state was replaced and what is live from now on does not
// follow what was sent.
func (f *feedSet) closeAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		s.end()
		s.nudge()
	}
}

func (f *feedSet) beginPull(node uint64) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pulls == nil {
		f.pulls = map[uint64]int{}
	}
	f.pulls[node]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pulls[node]--
	}
}

func (f *feedSet) pulling(node uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pulls[node] > 0
}

// acked is the lowest index that a connected observer has confirmed, or max.
func (f *feedSet) ackedFloor(max uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		max = min(max, s.acked)
	}
	return max
}

// ServeFeed serves one observer until it leaves, falls too far behind or the group stops.
func (e *Engine) ServeFeed(ctx context.Context, from uint64, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReader(conn)
	var h hello
	if err := readJSON(in, &h); err != nil {
		return
	}
	g, ok := e.Group(h.Group)
	if !ok {
		return
	}
	if line := g.Line(); h.Index > 0 && h.Line.History != line.History {
		e.tell(from, h.Group, line)
	}
	if err := g.serveFeed(ctx, from, h, in, conn); err != nil && ctx.Err() == nil {
		g.lg.Info("observer left", "node", from, "why", err)
	}
}

func (g *Group) serveFeed(ctx context.Context, from uint64, h hello, in *bufio.Reader, conn net.Conn) error {
	sub := &subscriber{node: from, wake: make(chan struct{}, 1), acked: h.Index, conn: conn}
	plan, err := g.plan(from, h, sub)
	if err != nil {
		return err
	}
	defer g.feeds.remove(sub)
	out := bufio.NewWriterSize(impatient{conn}, 256<<10)
	body, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	if err := writeFrame(out, framePlan, body); err != nil {
		return err
	}
	g.lg.Info("observer attached", "node", from, "mode", plan.Mode.String(), "rule", plan.Rule, "why", plan.Why)
	if plan.Mode != catchup.Diff {
		return out.Flush()
	}
	acks := make(chan struct{})
	go func() { defer close(acks); g.readAcks(sub, in, conn) }()
	defer func() { conn.Close(); <-acks }()
	if err := g.sendDiff(out, plan); err != nil {
		return err
	}
	return g.sendLive(ctx, out, sub)
}

// plan decides and registers the observer for live entries between two applied batches, so that nothing falls
// between what DIFF covers and what is live.
func (g *Group) plan(from uint64, h hello, sub *subscriber) (plan catchup.Plan, err error) {
	err = g.onApplier(func() error {
		src, err := g.offer()
		if err != nil {
			return err
		}
		plan = catchup.Decide(src, catchup.Learner{
			Cluster: h.Cluster, Group: h.Group, Node: from, History: h.Line.History, Fork: fork(h.Line),
			Index: h.Index, Term: h.Term, Oldest: h.Index,
		})
		if plan.Mode == catchup.Diff {
			g.feeds.add(sub)
		}
		return nil
	})
	return plan, err
}

// offer is what this replica has for those that lack something.
func (g *Group) offer() (catchup.Source, error) {
	first, err := g.log.FirstIndex()
	if err != nil {
		return catchup.Source{}, err
	}
	last, err := g.log.LastIndex()
	if err != nil {
		return catchup.Source{}, err
	}
	size, err := g.rep.Size()
	if err != nil {
		return catchup.Source{}, err
	}
	line := g.rep.Line()
	return catchup.Source{
		Cluster: g.eng.cfg.Cluster, Group: g.cfg.ID, Node: g.eng.cfg.Node, Path: []uint64{g.eng.cfg.Node},
		History: line.History, Fork: fork(line), First: first,
		// Until raft has reset the log to a state that was installed, the state is ahead of it: what the log cannot
		// show is not offered, and a member that has it is not taken for one that has diverged.
		Commit: min(last, g.rep.Applied().Index),
		Term: func(i uint64) (uint64, bool) {
			t, err := g.log.Term(i)
			return t, err == nil
		},
		Bytes:  func(from, to uint64) uint64 { return g.log.Bytes(from) - g.log.Bytes(to+1) },
		Cached: g.log.Cached(), Snapshot: size,
	}, nil
}

func fork(l replica.Line) *catchup.Fork {
	if l.Before == ([16]byte{}) {
		return nil
	}
	return &catchup.Fork{Before: l.Before, Index: l.Fork.Index, Term: l.Fork.Term}
}

func (g *Group) sendDiff(out *bufio.Writer, plan catchup.Plan) error {
	defer g.pins.add(plan.From - 1)()
	for at := plan.From; at <= plan.To; {
		entries, err := g.log.Entries(at, plan.To+1, feedFrame)
		if err != nil {
			return fmt.Errorf("read entries from %d: %w", at, err)
		}
		if err := g.writeEntries(out, entries); err != nil {
			return err
		}
		at += uint64(len(entries))
	}
	return out.Flush()
}

func (g *Group) sendLive(ctx context.Context, out *bufio.Writer, sub *subscriber) error {
	beat := time.NewTicker(feedBeat)
	defer beat.Stop()
	for {
		entries, cut := g.feeds.take(sub)
		if cut {
			return fmt.Errorf("too far behind live, or the group stopped")
		}
		if err := g.writeEntries(out, entries); err != nil {
			return err
		}
		if err := out.Flush(); err != nil {
			return err
		}
		select {
		case <-sub.wake:
		case <-beat.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-g.stopping.Done():
			return ErrClosed
		}
	}
}

// readAcks follows the observer's confirmations; it ends when the connection does.
func (g *Group) readAcks(sub *subscriber, in *bufio.Reader, conn net.Conn) {
	defer conn.Close()
	for {
		kind, body, err := readFrame(in)
		if err != nil || kind != frameAck || len(body) != 8 {
			g.feeds.mu.Lock()
			sub.cut = true
			sub.nudge()
			g.feeds.mu.Unlock()
			return
		}
		g.feeds.mu.Lock()
		sub.acked = binary.BigEndian.Uint64(body)
		g.feeds.mu.Unlock()
	}
}

func (g *Group) writeEntries(out *bufio.Writer, entries []*raftpb.Entry) error {
	body := binary.BigEndian.AppendUint64(nil, g.rep.Applied().Index)
	body = binary.BigEndian.AppendUint64(body, uint64(g.eng.cfg.Now().UnixNano()))
	for _, e := range entries {
		body = binary.AppendUvarint(body, uint64(proto.Size(e)))
		var err error
		if body, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(body, e); err != nil {
			return fmt.Errorf("encode entry %d: %w", e.GetIndex(), err)
		}
	}
	return writeFrame(out, frameEntries, body)
}

func decodeEntries(body []byte) (commit uint64, at time.Time, entries []*raftpb.Entry, err error) {
	if len(body) < 16 {
		return 0, at, nil, errShortMessage
	}
	commit = binary.BigEndian.Uint64(body)
	at = time.Unix(0, int64(binary.BigEndian.Uint64(body[8:])))
	for body = body[16:]; len(body) > 0; {
		n, w := binary.Uvarint(body)
		if w <= 0 || n > uint64(len(body)-w) {
			return 0, at, nil, errShortMessage
		}
		e := &raftpb.Entry{}
		if err := proto.Unmarshal(body[w:w+int(n)], e); err != nil {
			return 0, at, nil, fmt.Errorf("engine: decode entry: %w", err)
		}
		entries = append(entries, e)
		body = body[w+int(n):]
	}
	return commit, at, entries, nil
}

func writeFrame(w io.Writer, kind frameKind, body []byte) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if _, err := w.Write(append(head, byte(kind))); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

func readFrame(r io.Reader) (frameKind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFeedFrame {
		return 0, nil, fmt.Errorf("engine: frame of %d bytes is longer than %d", n, maxFeedFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	return frameKind(head[4]), body, nil
}

func writeJSON(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, framePlan, body)
}

func readJSON(r io.Reader, v any) error {
	_, body, err := readFrame(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// MethodRead is the transport method under which ServeRead is registered: an observer asks a voter for an
// index that covers everything committed so far.
const MethodRead = "engine.read"

func (e *Engine) ServeRead(ctx context.Context, from uint64, req []byte) ([]byte, error) {
	if len(req) != 8 {
		return nil, errShortMessage
	}
	group, tag := splitWire(binary.BigEndian.Uint64(req))
	g, ok := e.Group(group)
	if !ok {
		return nil, fmt.Errorf("engine: group %d is not here", group)
	}
	if line := g.Line(); !ours(tag, line.History) {
		e.tell(from, group, line)
		return nil, ErrOtherHistory
	}
	index, err := g.Barrier(ctx)
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(nil, index), nil
}

// impatient is a connection whose writes fail when the other side takes nothing for feedDeadline.
type impatient struct{ net.Conn }

func (c impatient) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(feedDeadline)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
