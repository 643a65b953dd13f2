package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// How an observer finds a source and stays with it.
//
// It asks its candidates in order (upstream, fallbacks, voters) and takes the first that feeds it by DIFF. Only when
// none does, it takes the whole state, from the first that offered it: a relay that was restarted remembers nothing,
// while a fallback may have all the entries. A relay's word that the states have diverged is not believed until a
// voter says so.
//
// The end of catching up is a barrier, in this order: everything that was applied is synced (data and position are
// one batch, or the data comes first: see replica.RestoreDiff), then it is acknowledged, and only then the observer
// calls itself live.
//
// It leaves a source that is silent for feedSilence, whose connection breaks, whose path to the voters comes to hold
// the observer itself (a loop) or grows too long. One that is cut off from the voters, or is not the best, it keeps
// until it has a better one.

const (
	openPatience = time.Second     // to make a connection
	planPatience = 2 * time.Second // for the answer to HELLO
	cutOff       = 1500 * time.Millisecond
	homeEvery    = 5 * time.Second // an observer that is not at its first choice looks whether it could be
	syncEvery    = time.Second     // what was applied is made durable, and acknowledged as that, so often
	ackBytes     = 2 << 20         // an acknowledgement is sent after so many bytes, or when there is nothing more to read
)

var (
	errHistory = errors.New("engine: R6: the source follows another history; this replica must be brought to it first")
)

// link is a connection to a source that has agreed to feed this observer.
type link struct {
	node    uint64
	conn    net.Conn
	in      *bufio.Reader
	welcome welcome
	frames  chan feedFrameIn
	broken  chan error
	left    chan struct{} // closed when the observer lets go
	stop    func() bool
	cut     time.Time // since when the source has no way to the voters; zero: it has
	unacked int       // bytes
	acked   uint64
	durable uint64
}

// feedFrameIn is a decoded frame.
type feedFrameIn struct {
	kind    frameKind
	news    news
	entries []*raftpb.Entry
	path    []uint64
	index   uint64
	bytes   int
}

// follow has the observer fed for as long as it lives.
func (o *Observer) follow() {
	var pause backoff
	var lost uint64 // the source that was lost last: it is asked last
	for o.stopping.Err() == nil {
		l, err := o.attachAny(lost)
		if l == nil {
			if o.stopping.Err() == nil {
				o.detached(err)
				pause.wait(o.stopping, o.look)
			}
			lost = 0
			continue
		}
		began, before := time.Now(), o.rep.Applied().Index
		lost, err = o.stay(l)
		o.lg.Info("feed ended", "source", lost, "why", err)
		if o.rep.Applied().Index > before || time.Since(began) > syncEvery {
			pause = backoff{}
		} else {
			pause.wait(o.stopping, o.look)
		}
	}
}

// detached notes that nobody feeds the observer, and why.
func (o *Observer) detached(err error) {
	why := "no source is known"
	if err != nil {
		why = err.Error()
	}
	if why != o.logged {
		o.logged = why
		o.lg.Info("not fed", "why", why)
	}
	o.setPath(nil)
	o.catchup.set(func(l *Catchup) {
		l.Upstream, l.Received = 0, 0
		if l.Mode != ModeDiverged {
			l.Mode, l.Why = ModeDetached, why
		}
	})
}

// attachAny asks the candidates in turn, the one that was just lost last: it may take its time to refuse.
func (o *Observer) attachAny(lost uint64) (*link, error) {
	var whole uint64 // who offered the whole state
	var problems []error
	for _, node := range o.candidates(lost) {
		l, plan, err := o.attach(node, false)
		if l != nil {
			return l, nil
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if whole == 0 {
			whole = node
		}
		if o.rep.Applied().Index == 0 || plan.Rule == "R4" {
			break // nobody has anything better
		}
	}
	if whole == 0 {
		return nil, errors.Join(problems...)
	}
	l, _, err := o.attach(whole, true)
	return l, err
}

// attach says HELLO to a node. A link: it feeds this observer. No link and no error: it would send the whole state,
// which whole asks for.
func (o *Observer) attach(node uint64, whole bool) (l *link, plan catchup.Plan, err error) {
	l, err = o.greet(o.stopping, node, whole)
	if err != nil {
		return nil, plan, fmt.Errorf("node %d: %w", node, err)
	}
	plan = l.welcome.Plan
	keep, err := o.judge(l)
	if err == nil && keep && l.welcome.Whole {
		err = o.takeWhole(l)
	}
	if err != nil || !keep {
		l.close()
		if err != nil {
			err = fmt.Errorf("node %d: %w", node, err)
		}
		return nil, plan, err
	}
	l.frames, l.broken, l.left = make(chan feedFrameIn, 4), make(chan error, 1), make(chan struct{})
	o.tasks.Go(func() { l.broken <- l.read() })
	return l, plan, nil
}

// greet makes the connection and gets the answer to HELLO. The link ends with the observer; until there is an answer, with
// ctx.
func (o *Observer) greet(ctx context.Context, node uint64, whole bool) (*link, error) {
	opening, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	conn, err := o.eng.cfg.Transport.Open(opening, node, ServiceFeed)
	if err != nil {
		return nil, err
	}
	l := &link{node: node, conn: conn}
	l.stop = context.AfterFunc(o.stopping, func() { conn.Close() })
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	at := o.rep.Applied()
	if q := o.rep.Quarantine(); q != nil && q.Want != (machine.Digest{}) {
		at = core.Position{} // its entries are the others', its state is not: nothing of it counts
	}
	l.acked, l.durable = at.Index, at.Index
	err = writeJSON(&strict{conn, planPatience}, frameHello, hello{
		Version: feedVersion, Cluster: o.eng.cfg.Cluster, Group: o.cfg.ID, Line: o.rep.Line(),
		Index: at.Index, Term: at.Term, Oldest: at.Index, Whole: whole,
	})
	if err == nil {
		err = readJSON(&strict{conn, planPatience}, &l.welcome)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	l.in = bufio.NewReaderSize(&strict{conn, feedSilence}, 256<<10)
	return l, nil
}

// judge decides what to make of a source's answer: keep says that it feeds this observer from here on.
func (o *Observer) judge(l *link) (keep bool, err error) {
	w := &l.welcome
	if err := catchup.CheckPath(o.eng.cfg.Node, w.Path); err != nil {
		return false, err
	}
	foreign := w.Line.History != o.rep.Line().History && o.rep.Applied().Index > 0
	switch w.Plan.Mode {
	case catchup.Diff, catchup.Snap, catchup.Trunc:
		if foreign && !o.cfg.FollowForks {
			return false, errHistory
		}
	case catchup.Diverged:
		if !w.Voter {
			return false, fmt.Errorf("%s: %s; it is no voter, so others are asked", w.Plan.Rule, w.Plan.Why)
		}
		if err := o.distrust(l); err != nil {
			return false, err
		}
	default:
		return false, fmt.Errorf("%s (%s): %s", w.Plan.Mode, w.Plan.Rule, w.Plan.Why)
	}
	if w.Plan.Mode != catchup.Diff {
		return w.Whole, nil
	}
	if foreign {
		if err := o.between(func() error { return o.rep.Adopt(w.Line) }); err != nil {
			return false, err
		}
	}
	o.decided(l, ModeDiff, w.Plan.To)
	return true, nil
}

// distrust puts the state into quarantine: a voter has another entry where this replica's ends.
func (o *Observer) distrust(l *link) error {
	if o.rep.Quarantine() == nil {
		o.lg.Error("the state has diverged from the group's; it is no longer used to feed others, and is replaced",
			"source", l.node, "why", l.welcome.Plan.Why)
	}
	o.catchup.begin(Catchup{Mode: ModeDiverged, Rule: l.welcome.Plan.Rule, Why: l.welcome.Plan.Why, From: o.rep.Applied().Index})
	o.src.cutAll()
	return o.between(func() error {
		if o.rep.Quarantine() != nil {
			return nil
		}
		return o.rep.Distrust(replica.Quarantine{Mark: o.rep.Applied().Index})
	})
}

// decided records the decision when it is made.
func (o *Observer) decided(l *link, mode string, to uint64) {
	w := &l.welcome
	if q := o.rep.Quarantine(); q != nil {
		w.Plan.Rule, w.Plan.Why = "R2", q.String()
	}
	hops := len(w.Path)
	if o.rep.Quarantine() != nil { // it asked as if it had nothing; this is why
		w.Plan.Rule, w.Plan.Why = "R2", whyReplaced
		if last := o.catchup.get(); last.Rule == "R2" {
			w.Plan.Why = last.Why
		}
	}
	o.catchup.begin(Catchup{Mode: mode, Rule: w.Plan.Rule, Why: w.Plan.Why, From: o.rep.Applied().Index, To: to, Upstream: l.node, Hops: hops})
	o.logged = ""
	o.lg.Info("fed", "source", l.node, "mode", mode, "rule", w.Plan.Rule, "why", w.Plan.Why, "hops", hops)
}

// takeWhole installs the state that follows the answer, and acknowledges it.
func (o *Observer) takeWhole(l *link) error {
	o.decided(l, ModeSnap, l.welcome.At.Index)
	conn := &strict{l.conn, snapSilence}
	in := bufio.NewReaderSize(conn, 256<<10)
	l.in = in
	err := o.between(func() error {
		before := o.rep.Applied()
		err := restoreFrom(o.rep, o.cfg.Differ, readWriter{&counted{Reader: in, note: o.catchup.received}, conn})
		o.eng.unknown(err)
		if err == nil {
			o.book.reset()
		}
		if o.rep.Applied() != before {
			o.tail.Reset(o.rep.Applied())
			o.src.cutAll()
			o.moved.broadcast()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("install its state: %w", err)
	}
	at := o.rep.Applied().Index
	l.acked, l.durable = at, at
	if err := writeFrame(&strict{l.conn, feedSilence}, frameAck, encodeAck(at, at)); err != nil {
		return err
	}
	conn.patience = feedSilence
	return nil
}

func (l *link) close() {
	l.stop()
	l.conn.Close()
	if l.left != nil {
		close(l.left)
	}
}

// read turns the connection into frames.
func (l *link) read() error {
	for {
		kind, body, err := readFrame(l.in, maxFeedFrame)
		if err != nil {
			return err
		}
		f := feedFrameIn{kind: kind, bytes: len(body)}
		switch kind {
		case frameEntries:
			f.news, f.entries, err = decodeEntries(body)
		case framePath:
			err = json.Unmarshal(body, &f.path)
		case frameBarrier:
			f.index, err = parseIndex(body)
		default:
			err = fmt.Errorf("engine: frame of kind %d in a feed", kind)
		}
		if err != nil {
			return err
		}
		select {
		case l.frames <- f:
		case <-l.left:
			return ErrClosed
		}
	}
}

// stay is fed by l, and by better links that turn up, until that ends; it returns who was the last source.
func (o *Observer) stay(l *link) (lost uint64, err error) {
	s := &stay{o: o, l: l, better: make(chan *link, 1), synced: make(chan syncResult, 1)}
	defer s.end()
	o.setPath(l.welcome.Path)
	s.noteCut(l.welcome.Path)
	syncing := time.NewTicker(syncEvery)
	defer syncing.Stop()
	for {
		if err := s.step(syncing.C); err != nil {
			return s.l.node, err
		}
	}
}

// stay is the time with one source after the other, without a break in between.
type stay struct {
	o       *Observer
	l       *link
	better  chan *link // what a search has found; nil: nothing
	seeking bool
	giveUp  context.CancelFunc // ends the search
	sought  time.Time          // when the last search began
	synced  chan syncResult
	syncing bool
}

type syncResult struct {
	upTo uint64
	err  error
}

func (s *stay) end() {
	s.l.close()
	if s.seeking {
		s.giveUp() // whoever has no source any more must not wait until nodes that are silent have been asked
		if l := <-s.better; l != nil {
			l.close()
		}
	}
	if s.syncing {
		<-s.synced
	}
}

func (s *stay) step(tick <-chan time.Time) error {
	select {
	case f := <-s.l.frames:
		return s.take(f)
	case err := <-s.l.broken:
		return fmt.Errorf("node %d: %w", s.l.node, err)
	case l := <-s.better:
		s.seeking = false
		s.giveUp()
		s.move(l)
	case r := <-s.synced:
		s.syncing = false
		if r.err != nil {
			s.o.eng.failed(r.err)
			return r.err
		}
		s.l.durable = max(s.l.durable, r.upTo)
		return s.ack()
	case <-s.o.look:
		s.seek(0)
	case <-tick:
		if s.o.rep.Quarantine() != nil {
			return ErrQuarantined
		}
		s.sync()
		s.seek(homeEvery)
	case <-s.o.stopping.Done():
		return ErrClosed
	}
	return nil
}

// take handles one frame.
func (s *stay) take(f feedFrameIn) error {
	o := s.o
	switch f.kind {
	case frameEntries:
		old := o.latest.Load()
		if f.news.commit >= old.commit {
			o.latest.Store(&f.news)
		}
		if len(f.entries) == 0 {
			return nil
		}
		if err := o.between(func() error { return o.apply(f.entries) }); err != nil {
			return err
		}
		if s.l.unacked += f.bytes; s.l.unacked < ackBytes && len(s.l.frames) > 0 {
			return nil
		}
		return s.ack()
	case framePath:
		if err := catchup.CheckPath(o.eng.cfg.Node, f.path); err != nil {
			return err
		}
		s.noteCut(f.path)
		o.setPath(f.path)
	case frameBarrier:
		return s.barrier(f.index)
	}
	return nil
}

// barrier ends catching up: synced, acknowledged, live.
func (s *stay) barrier(index uint64) error {
	o := s.o
	at := o.rep.Applied().Index
	if at < index {
		return fmt.Errorf("engine: the barrier is at %d, only %d has come", index, at)
	}
	if err := o.rep.Sync(); err != nil {
		o.eng.failed(err)
		return err
	}
	s.l.durable = at
	if err := s.ack(); err != nil {
		return err
	}
	o.catchup.reached(at)
	return nil
}

func (s *stay) ack() error {
	at := s.o.rep.Applied().Index
	s.l.unacked, s.l.acked = 0, at
	return writeFrame(&strict{s.l.conn, feedSilence}, frameAck, encodeAck(at, min(s.l.durable, at)))
}

// sync makes what was applied durable, beside everything else.
func (s *stay) sync() {
	at := s.o.rep.Applied().Index
	if s.syncing || at <= s.l.durable {
		return
	}
	s.syncing = true
	s.o.tasks.Go(func() { s.synced <- syncResult{at, s.o.rep.Sync()} })
}

func (s *stay) noteCut(path []uint64) {
	switch {
	case len(path) > 0:
		s.l.cut = time.Time{}
	case s.l.cut.IsZero():
		s.l.cut = s.o.eng.cfg.Now()
	}
}

// seek looks for a better source if there may be one, not more often than every so long. The present one goes on
// feeding meanwhile.
func (s *stay) seek(every time.Duration) {
	o := s.o
	now := o.eng.cfg.Now()
	lost := !s.l.cut.IsZero() && now.Sub(s.l.cut) >= cutOff
	if s.seeking || !lost && now.Sub(s.sought) < every {
		return
	}
	candidates := o.candidates(0)
	if i := slices.Index(candidates, s.l.node); i >= 0 && !lost {
		candidates = candidates[:i]
	}
	candidates = slices.DeleteFunc(candidates, func(n uint64) bool { return n == s.l.node })
	if len(candidates) == 0 {
		return
	}
	s.seeking, s.sought = true, now
	ctx, cancel := context.WithCancel(o.stopping)
	s.giveUp = cancel
	o.tasks.Go(func() { s.better <- o.search(ctx, candidates) })
}

// search returns a link to the first of some nodes that feeds this observer by DIFF and has a way to the voters.
func (o *Observer) search(ctx context.Context, nodes []uint64) *link {
	for _, node := range nodes {
		l, err := o.greet(ctx, node, false)
		if ctx.Err() != nil && err == nil {
			l.close()
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue
		}
		w := &l.welcome
		if w.Plan.Mode != catchup.Diff || len(w.Path) == 0 || catchup.CheckPath(o.eng.cfg.Node, w.Path) != nil || w.Line.History != o.rep.Line().History {
			l.close()
			continue
		}
		l.frames, l.broken, l.left = make(chan feedFrameIn, 4), make(chan error, 1), make(chan struct{})
		o.tasks.Go(func() { l.broken <- l.read() })
		return l
	}
	return nil
}

// move goes over to a better source. What both have sent is applied once.
func (s *stay) move(l *link) {
	if l == nil {
		return
	}
	l.durable = max(l.durable, s.l.durable)
	s.l.close()
	s.l = l
	s.o.decided(l, ModeDiff, l.welcome.Plan.To)
	s.o.setPath(l.welcome.Path)
}
