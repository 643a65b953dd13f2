package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// ServiceFeed is the transport service by which any member feeds observers: HELLO from the learner, a plan from the
// source (package catchup), the state if that is the decision, the missing entries, then live entries.
const ServiceFeed = "engine.feed"

const (
	feedBeat     = 400 * time.Millisecond  // an idle source says where it is
	feedSilence  = 1500 * time.Millisecond // silence after which a learner looks for another source
	feedFrame    = 1 << 20                 // entries are sent in frames of about this size
	feedWindow   = 8 << 20                 // bytes on the way to a child that it has not acknowledged
	feedLag      = 64 << 20                // bytes that a live child may be behind before it is cut off
	ackPatience  = 10 * time.Second        // a child that owes acknowledgements and sends none is cut off
	snapSilence  = time.Minute             // the same while a state is on its way: it may have to copy what it has
	maxChildren  = 1024                    // of one member of one group
	confirmAfter = 2 * time.Minute         // a child may take to install a state that it has received
)

var errSlow = errors.New("engine: the observer is too slow; it comes back for what it lacks")

// source feeds those below a member: it decides, registers, sends, and knows how far each child is. What a child
// still lacks is not queued for it but read from the member's prefix, at the child's own pace. So a slow child costs
// no memory here, and is cut off when it falls too far behind.
//
// Invariants
//   - A decision and the child's registration happen between the same two batches (E4). From then on, until the child
//     leaves, what it does not have durably is pinned: a log is not cut there. What a decision goes by is pinned before.
//   - A child is sent committed, applied entries only, in order and without a gap from what it has.
//   - Nobody waits for a child but the goroutine that serves it.
type source struct {
	eng     *Engine
	group   uint64
	voter   bool
	lg      *slog.Logger
	rep     *replica.Replica
	log     prefix
	pins    *pinSet // of log; nobody cuts an observer's tail by them
	differ  Differ
	moved   *signal                  // broadcast when applied or the path have changed
	between func(func() error) error // runs f between two applied batches
	// path is how this member is fed, itself first; empty: cut off at present.
	path func() []uint64
	// news is what is known about commits: the highest, and when it was.
	news     func() news
	stopping context.Context

	mu       sync.Mutex
	children map[*child]struct{}
}

// child is one observer that is fed from here.
type child struct {
	node  uint64
	conn  net.Conn
	gone  chan struct{} // closed when it has left
	acks  chan struct{} // holds one token when acked has moved
	limit uint64        // bytes that it may be behind

	// Of the goroutine that serves it.
	next uint64 // to be sent
	idle int    // beats during which it owed acknowledgements and sent none

	pin   *pin   // above what it has durably
	acked uint64 // under source.mu
}

// serve serves one learner until it leaves, is cut off, or the member stops.
func (s *source) serve(ctx context.Context, from uint64, h hello, in *feedReader, conn net.Conn) error {
	c := &child{node: from, conn: conn, gone: make(chan struct{}), acks: make(chan struct{}, 1)}
	w, view, err := s.admit(h, c)
	if err != nil {
		return err
	}
	defer s.leave(c)
	if view != nil {
		defer view.Close()
	}
	out := bufio.NewWriterSize(&strict{conn, feedSilence}, 256<<10)
	if err := writeJSON(out, frameHello, w); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	s.lg.Info("observer attached", "node", from, "mode", w.Plan.Mode.String(), "rule", w.Plan.Rule, "why", w.Plan.Why, "whole", w.Whole)
	switch {
	case view != nil:
		if err := s.serveWhole(view, c, in); err != nil {
			return err
		}
	case w.Plan.Mode != catchup.Diff:
		return nil
	}
	in.may(0) // who is silent for too long is cut off by feed
	done := make(chan struct{})
	go func() { defer close(done); s.readAcks(c, in) }()
	defer func() { conn.Close(); <-done }()
	return s.feed(ctx, out, c, w)
}

// admit decides and registers between two applied batches, so that nothing falls between what is sent and what is
// live. view is the state at w.At if that is to be sent.
func (s *source) admit(h hello, c *child) (w welcome, view kv.View, err error) {
	err = s.between(func() error {
		pin := s.pins.add(h.Index)
		defer func() {
			if c.pin == nil {
				pin.release()
			}
		}()
		offer, err := s.offer()
		if err != nil {
			return err
		}
		w = welcome{Voter: s.voter, Line: s.rep.Line(), Path: s.path()}
		w.Plan = catchup.Decide(offer, catchup.Learner{
			Cluster: h.Cluster, Group: h.Group, Node: c.node, History: h.Line.History, Fork: fork(h.Line),
			Index: h.Index, Term: h.Term, Oldest: h.Oldest,
		})
		at := h.Index
		switch mode := w.Plan.Mode; {
		case mode == catchup.Diff:
		case h.Whole && (mode == catchup.Snap || mode == catchup.Diverged):
			w.At, w.Whole = s.rep.Applied(), true
			at = w.At.Index
		default:
			return nil
		}
		c.next, c.acked = at+1, at
		c.limit = max(feedLag, 2*w.Plan.Bytes)
		if !s.enter(c) {
			w.Plan = catchup.Plan{Mode: catchup.Behind, Rule: "R1", Why: fmt.Sprintf("this source feeds %d already", maxChildren)}
			w.Whole = false
			return nil
		}
		pin.move(at)
		c.pin = pin
		if w.Whole {
			view = s.rep.StateView()
		}
		return nil
	})
	return w, view, err
}

// offer is what this member has for those that lack something. For between.
func (s *source) offer() (catchup.Source, error) {
	first, err := s.log.First()
	if err != nil {
		return catchup.Source{}, err
	}
	size, err := s.rep.Size()
	if err != nil {
		return catchup.Source{}, err
	}
	line, path := s.rep.Line(), s.path()
	if s.voter { // what it has is good, even while nobody leads
		path = []uint64{s.eng.cfg.Node}
	}
	if s.rep.Quarantine() != nil {
		path = nil
	}
	return catchup.Source{
		Cluster: s.eng.cfg.Cluster, Group: s.group, Node: s.eng.cfg.Node, Path: path,
		History: line.History, Fork: fork(line), First: first, Commit: min(s.log.Last(), s.rep.Applied().Index),
		Term: s.log.Term, Bytes: s.log.Bytes, Cached: s.log.Cached(), Snapshot: size,
	}, nil
}

func fork(l replica.Line) *catchup.Fork {
	if l.Before == ([16]byte{}) {
		return nil
	}
	return &catchup.Fork{Before: l.Before, Index: l.Fork.Index, Term: l.Fork.Term}
}

func (s *source) enter(c *child) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.children == nil {
		s.children = map[*child]struct{}{}
	}
	if len(s.children) >= maxChildren {
		return false
	}
	s.children[c] = struct{}{}
	return true
}

func (s *source) leave(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.children, c)
	if c.pin != nil {
		c.pin.release()
	}
}

// count is how many observers are fed from here.
func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.children)
}

// lacking is the lowest index that a child still has to be sent or to acknowledge, or limit.
func (s *source) lacking(limit uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.children {
		limit = min(limit, c.acked+1)
	}
	return limit
}

// cutAll sends all children away: the member stops, or its state was replaced and what is live from now on does not
// follow what was sent.
func (s *source) cutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.children {
		c.conn.Close()
	}
}

// serveWhole sends the state and waits until it is installed.
func (s *source) serveWhole(view kv.View, c *child, in *feedReader) error {
	in.may(confirmAfter)
	if err := serveState(s.rep, s.differ, view, readWriter{in, s.eng.pace.wrap(c.conn, s.stopping)}); err != nil {
		return fmt.Errorf("send the state: %w", err)
	}
	if err := s.readAck(c, in); err != nil {
		return fmt.Errorf("wait until the state is installed: %w", err)
	}
	return nil
}

// feedReader reads what a learner says; how long it may be silent changes as the feed goes on.
type feedReader struct {
	*bufio.Reader
	conn *strict
}

func newFeedReader(conn net.Conn) *feedReader {
	c := &strict{conn, feedSilence}
	return &feedReader{bufio.NewReader(c), c}
}

// may sets how long the learner may be silent from now on; 0: as long as it likes.
func (r *feedReader) may(patience time.Duration) { r.conn.patience = patience }

// feed sends entries from c.next on for as long as the child takes them.
func (s *source) feed(ctx context.Context, out *bufio.Writer, c *child, w welcome) error {
	beat := time.NewTicker(feedBeat)
	defer beat.Stop()
	barrier := w.Plan.To
	if w.Whole {
		barrier = w.At.Index
	}
	path, ended, beats := w.Path, false, false
	for {
		moved := s.moved.wait()
		if now := s.path(); !slices.Equal(now, path) {
			path = now
			if err := writeJSON(out, framePath, path); err != nil {
				return err
			}
		}
		more, err := s.sendSome(out, c)
		if err == nil && !more && beats {
			err = s.sign(out)
		}
		if err == nil && !ended && c.next > barrier {
			ended = true
			err = writeFrame(out, frameBarrier, appendIndex(nil, barrier))
		}
		if err == nil && more && s.inFlight(c) < feedWindow {
			continue
		}
		if err == nil {
			err = out.Flush()
		}
		if err == nil {
			beats, err = s.await(ctx, c, moved, beat.C)
		}
		if err != nil {
			return err
		}
	}
}

// await returns when there is something to do for c; beat says that it is time for a sign of life. A child that owes
// acknowledgements and sends none for ackPatience is cut off: it would hold the log.
func (s *source) await(ctx context.Context, c *child, moved <-chan struct{}, ticks <-chan time.Time) (beat bool, err error) {
	owes := s.inFlight(c)
	if owes >= feedWindow {
		moved = nil // no credit: only an acknowledgement helps
	}
	select {
	case <-moved:
	case <-c.acks:
		c.idle = 0
	case <-ticks:
		if c.idle++; owes == 0 {
			c.idle = 0
		}
		if c.idle > int(ackPatience/feedBeat) {
			return false, errSlow
		}
		return true, s.tooFar(c)
	case <-c.gone:
		return false, io.EOF
	case <-ctx.Done():
		return false, ctx.Err()
	case <-s.stopping.Done():
		return false, ErrClosed
	}
	return false, nil
}

func (s *source) tooFar(c *child) error {
	if s.log.Bytes(c.next, s.rep.Applied().Index) > c.limit {
		return errSlow
	}
	return nil
}

// inFlight is about how many bytes were sent to c and not acknowledged.
func (s *source) inFlight(c *child) uint64 {
	s.mu.Lock()
	acked := c.acked
	s.mu.Unlock()
	if acked+1 >= c.next {
		return 0
	}
	return s.log.Bytes(acked+1, c.next-1)
}

// sendSome writes a frame of what c lacks, if there is anything and c has credit; more says that there may be more.
func (s *source) sendSome(out *bufio.Writer, c *child) (more bool, err error) {
	// What an observer has applied is in its tail a moment later, and a state is installed before the log begins there.
	applied := min(s.log.Last(), s.rep.Applied().Index)
	if c.next > applied || s.inFlight(c) >= feedWindow {
		return false, nil
	}
	if err := s.tooFar(c); err != nil {
		return false, err
	}
	entries, err := s.log.Entries(c.next, applied, feedFrame)
	if err != nil {
		return false, fmt.Errorf("observer at %d: %w", c.next-1, err)
	}
	body, err := encodeEntries(s.news(), entries)
	if err != nil {
		return false, err
	}
	c.next += uint64(len(entries))
	return true, writeFrame(out, frameEntries, body)
}

// sign is a sign of life: a frame without entries.
func (s *source) sign(out *bufio.Writer) error {
	return writeFrame(out, frameEntries, appendNews(nil, s.news()))
}

// readAcks follows the child's acknowledgements until it leaves.
func (s *source) readAcks(c *child, in io.Reader) {
	defer close(c.gone)
	for s.readAck(c, in) == nil {
	}
}

func (s *source) readAck(c *child, in io.Reader) error {
	kind, body, err := readFrame(in, maxHello)
	if err != nil {
		return err
	}
	if kind != frameAck {
		return fmt.Errorf("engine: frame of kind %d from an observer", kind)
	}
	applied, durable, err := decodeAck(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	c.acked = max(c.acked, applied)
	s.mu.Unlock()
	c.pin.move(durable)
	select {
	case c.acks <- struct{}{}:
	default:
	}
	return nil
}

// ServeFeed serves one observer until it leaves, is cut off or the group stops.
func (e *Engine) ServeFeed(ctx context.Context, from uint64, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := newFeedReader(conn)
	var h hello
	if err := readJSON(in, &h); err != nil {
		e.cfg.Log.Warn("a feed was asked for with garbage", "node", from, "err", err)
		return
	}
	s, why := e.sourceOf(h)
	if s == nil {
		refusal := welcome{Plan: catchup.Plan{Mode: catchup.Reject, Rule: "R0", Why: why}}
		if err := writeJSON(&strict{conn, feedSilence}, frameHello, refusal); err != nil {
			e.cfg.Log.Debug("refusal not sent", "node", from, "err", err)
		}
		return
	}
	if line := s.rep.Line(); h.Index > 0 && h.Line.History != line.History {
		e.tell(from, h.Group, line)
	}
	err := s.serve(ctx, from, h, in, conn)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
		s.lg.Info("observer left", "node", from, "why", err)
	}
}

// sourceOf finds the member that a learner asks, or says why there is none.
func (e *Engine) sourceOf(h hello) (*source, string) {
	if h.Version != feedVersion {
		return nil, fmt.Sprintf("version %d of the protocol, this source speaks %d", h.Version, feedVersion)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if g, ok := e.groups[h.Group]; ok {
		if g.Stopped() != nil {
			return nil, "this node's replica has stopped"
		}
		return g.src, ""
	}
	if o, ok := e.observers[h.Group]; ok {
		return o.src, ""
	}
	return nil, "this node does not hold the group"
}
