package engine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// lowest is the lowest pin, or limit.
func (p *pinSet) lowest(limit uint64) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range p.pins {
		limit = min(limit, n.index)
	}
	return limit
}

func TestPins(t *testing.T) {
	var p pinSet
	a, b := p.add(10), p.add(20)
	if got := p.cut(30); got != 10 {
		t.Errorf("cut to %d over a pin at 10", got)
	}
	if c := p.add(5); c.index != 10 {
		t.Errorf("pinned at %d what is cut to 10", c.index)
	} else {
		c.release()
	}
	a.move(15)
	a.move(3)
	if got := p.cut(30); got != 15 || p.first(7) != 16 || p.first(99) != 99 {
		t.Errorf("cut to %d, %d, %d", got, p.first(7), p.first(99))
	}
	a.release()
	b.release()
	if got := p.cut(30); got != 30 {
		t.Errorf("cut to %d without a pin", got)
	}
}

// slowSync is a state whose syncs wait for word once they are held up.
type slowSync struct {
	kv.Store
	hold  atomic.Bool
	began chan struct{} // one token when a sync waits
	goOn  chan struct{} // closed: they go on
	syncs atomic.Int32  // begun since they are held up
}

func (s *slowSync) Sync() error {
	if s.hold.Load() {
		s.syncs.Add(1)
		select {
		case s.began <- struct{}{}:
		default:
		}
		<-s.goOn
	}
	return s.Store.Sync()
}

// toldCuts is a log store that tells of cuts.
type toldCuts struct {
	logstore.Store
	made chan struct{} // one token
}

func (s toldCuts) Compact(group, index uint64) error {
	err := s.Store.Compact(group, index)
	select {
	case s.made <- struct{}{}:
	default:
	}
	return err
}

// cutting is a group of one, with a log that is too long, whose cut is decided and waits for the state to be synced. goOn
// has it made.
func cutting(t *testing.T) (g *Group, goOn func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	state := &slowSync{Store: kv.NewMemory(), began: make(chan struct{}, 1), goOn: make(chan struct{})}
	logs := toldCuts{logstore.NewMemory(), make(chan struct{}, 1)}
	e := Open(Config{
		Node: 1, Logs: logs, State: state, Transport: port{&mesh{nodes: map[uint64]*Engine{}}, 1}, Now: time.Now,
		Tick: 5 * time.Millisecond, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fault: func(err error) { t.Error(err) },
	})
	t.Cleanup(e.Close)
	free := sync.OnceFunc(func() { close(state.goOn) })
	t.Cleanup(free)
	g, err := e.StartGroup(GroupConfig{ID: testGroup, Replica: 1, Machine: counter{}, Nodes: map[uint64]uint64{1: 1},
		Initial: []uint64{1}, History: [16]byte{1}, RetainBytes: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	state.hold.Store(true)
	s := e.NewSession(testGroup, voters{1}, [16]byte{1})
	for i := range 12 {
		if _, err := s.Propose(ctx, core.AckQuorum, fmt.Appendf(nil, "%0*d", 700<<10, i)); err != nil {
			t.Fatal(err)
		}
	}
	<-state.began
	return g, func() {
		free()
		<-logs.made
	}
}

// TestCutsDoNotQueue: while a cut waits for a disk that is slow, or full, no other one is begun.
func TestCutsDoNotQueue(t *testing.T) {
	g, goOn := cutting(t)
	looked := make(chan struct{})
	if !g.box.call(func() {
		for range 20 {
			g.truncate()
		}
		close(looked)
	}) {
		t.Fatal("the group has ended")
	}
	<-looked
	goOn()
	g.eng.Close() // which waits for whoever cuts
	if n := g.eng.cfg.State.(*slowSync).syncs.Load(); n != 1 {
		t.Errorf("%d syncs for one cut", n)
	}
}

// TestReplayDuringACut: who reads from the log while a cut of it is under way reads what stays, to the end.
func TestReplayDuringACut(t *testing.T) {
	g, goOn := cutting(t)
	var seen []uint64
	err := g.Replay(t.Context(), 0, g.Applied().Index, func(index uint64, _ []byte) error {
		if len(seen) == 0 {
			goOn()
		}
		seen = append(seen, index)
		return nil
	})
	if err != nil || len(seen) == 0 || seen[len(seen)-1] != g.Applied().Index {
		t.Errorf("%v, read %d of %d", err, seen, g.Applied().Index)
	}
}

// TestChildDuringACut: whoever is promised entries while a cut is under way gets them.
func TestChildDuringACut(t *testing.T) {
	g, goOn := cutting(t)
	first, err := g.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	far, near := net.Pipe()
	defer far.Close()
	defer near.Close()
	modes, children := map[catchup.Mode]int{}, []*child{}
	for at := first - 1; at <= g.Applied().Index; at++ {
		term, err := g.log.Term(at)
		if err != nil {
			t.Fatal(err)
		}
		c := &child{node: 9, conn: near}
		w, _, err := g.src.admit(hello{Group: testGroup, Line: g.Line(), Index: at, Term: term, Oldest: at}, c)
		if err != nil {
			t.Fatal(err)
		}
		modes[w.Plan.Mode]++
		if w.Plan.Mode == catchup.Diff {
			children = append(children, c)
		}
	}
	if modes[catchup.Diff] < 2 || modes[catchup.Snap] == 0 || len(modes) != 2 {
		t.Errorf("decided: %v", modes)
	}
	goOn()
	for _, c := range children {
		if c.next > g.Applied().Index {
			continue
		}
		if _, err := g.src.log.Entries(c.next, g.Applied().Index, feedFrame); err != nil {
			t.Errorf("who was promised entries from %d: %v", c.next, err)
		}
	}
	for _, c := range children {
		g.src.leave(c)
	}
	if low := g.pins.lowest(1 << 40); low != 1<<40 {
		t.Errorf("everybody has left, and the log is held at %d", low)
	}
}

// cutWhileJudged has a cut decided and made in the middle of a decision.
type cutWhileJudged struct {
	prefix
	cut func()
}

func (p cutWhileJudged) Term(index uint64) (uint64, bool) {
	p.cut()
	return p.prefix.Term(index)
}

// TestCutDuringADecision: the entries by which a source decides stay until it has.
func TestCutDuringADecision(t *testing.T) {
	g, goOn := cutting(t)
	goOn()
	first, err := g.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	term, err := g.log.Term(first)
	if err != nil {
		t.Fatal(err)
	}
	s := &source{eng: g.eng, group: testGroup, voter: true, lg: g.lg, rep: g.rep, pins: &g.pins, moved: g.moved,
		log: cutWhileJudged{g.src.log, func() {
			if err := g.eng.writer.do(func(l logstore.Store) error { return l.Compact(testGroup, g.pins.cut(first+3)) }); err != nil {
				t.Error(err)
			}
		}},
		between: g.onApplier, path: g.path, news: g.news, stopping: g.stopping}
	c := &child{node: 9}
	w, _, err := s.admit(hello{Group: testGroup, Line: g.Line(), Index: first, Term: term, Oldest: first}, c)
	if err != nil || w.Plan.Mode != catchup.Diff {
		t.Fatalf("%+v, %v", w.Plan, err)
	}
	if _, err := s.log.Entries(c.next, g.Applied().Index, feedFrame); err != nil {
		t.Errorf("who was promised entries from %d: %v", c.next, err)
	}
	s.leave(c)
}
