package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// bubbleGroup is a group of registers in a bubble, and what its clients saw.
type bubbleGroup struct {
	b       *bubble
	id      uint64
	altered atomic.Bool                  // some replica's state was, and may not have been replaced yet
	line    atomic.Pointer[replica.Line] // of the fork that was recorded; nil: there was none

	mu       sync.Mutex
	values   uint64
	sessions uint64
	history  []porcupine.Operation
	open     []porcupine.Operation // writes of unknown fate
	acked    []ackedValue
	refused  []uint64                       // values that were not taken for want of room
	flying   map[uint64]porcupine.Operation // by value: writes that wait for their answer
	eras     []era                          // before forks
	turned   int                            // how many there were
}

func newBubbleGroup(b *bubble, id uint64) *bubbleGroup {
	return &bubbleGroup{b: b, id: id, flying: map[uint64]porcupine.Operation{}}
}

// start runs what the node has of the group, under the history that was recorded, unless nobody tells it.
func (gr *bubbleGroup) start(l *life) error {
	if !gr.b.untold(l.node) {
		if err := gr.align(l); err != nil {
			return err
		}
	}
	return gr.run(l)
}

func (gr *bubbleGroup) run(l *life) error {
	n, s := l.node, gr.b.shape
	if n.id > uint64(s.voters) {
		o, err := l.engine.Observe(engine.ObserverConfig{
			ID: gr.id, Machine: swapper{}, Members: bubbleVoters(s.voters), TailBytes: s.tail,
			Sources: func() []uint64 { return gr.b.sources(n.id) },
		})
		l.observing.Lock()
		l.observers[gr.id] = o
		l.observing.Unlock()
		return err
	}
	nodes := map[uint64]uint64{}
	for _, v := range bubbleVoters(s.voters).Voters() {
		nodes[v] = v
	}
	cfg := engine.GroupConfig{
		ID: gr.id, Replica: n.id, Machine: swapper{}, Nodes: nodes, Initial: bubbleVoters(s.voters).Voters(),
		History: [16]byte{byte(gr.id)}, RetainBytes: s.retain,
	}
	if line := gr.line.Load(); line != nil && !gr.b.untold(n) {
		cfg.Initial, cfg.History = nil, line.History
	}
	g, err := l.engine.StartGroup(cfg)
	if err == nil {
		g.SetCheckEvery(s.checks)
	}
	return err
}

// replica is what both kinds offer.
type bubbleReplica interface {
	Applied() core.Position
	View() kv.View
	Barrier(context.Context) (uint64, error)
	Digest() (machine.Digest, core.Position, error)
}

func (gr *bubbleGroup) at(l *life) (bubbleReplica, bool) {
	if o := l.observer(gr.id); o != nil {
		return o, true
	}
	g, ok := l.engine.Group(gr.id)
	return g, ok
}

// client writes and reads wherever a process runs, until ctx ends.
func (gr *bubbleGroup) client(ctx context.Context, id int) {
	for ctx.Err() == nil {
		pause(ctx, gr.b.spread(300*time.Millisecond))
		l := gr.b.nodes[gr.b.roll(len(gr.b.nodes))].running()
		if l == nil {
			continue
		}
		if gr.b.roll(2) == 0 {
			gr.read(ctx, id, l)
			continue
		}
		s := gr.session(l)
		for range 1 + gr.b.roll(5) {
			gr.write(ctx, id, s)
		}
	}
}

// session begins one at a node.
func (gr *bubbleGroup) session(l *life) *engine.Session {
	gr.mu.Lock()
	gr.sessions++
	id := [16]byte{byte(gr.id), byte(gr.sessions >> 8), byte(gr.sessions)}
	gr.mu.Unlock()
	return l.engine.NewSession(gr.id, bubbleVoters(gr.b.shape.voters), id)
}

func (gr *bubbleGroup) write(ctx context.Context, id int, s *engine.Session) {
	ack := core.AckQuorum
	switch gr.b.roll(8) {
	case 0:
		ack = core.AckAll
	case 1:
		ack = core.AckLocal
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	_ = gr.swap(ctx, id, s, ack, gr.b.roll(300)) // what became of it is noted
}

// swap writes a value of its own, with size bytes of ballast, to some register, and notes what a client is told.
func (gr *bubbleGroup) swap(ctx context.Context, id int, s *engine.Session, ack core.Ack, size int) error {
	gr.mu.Lock()
	gr.values++
	in := seen{register: byte(gr.b.roll(registerCount)), write: true, value: gr.values}
	gr.mu.Unlock()
	if ack == core.AckLocal {
		in.register = localRegister
	}
	payload := binary.BigEndian.AppendUint64([]byte{in.register}, in.value)
	payload = append(payload, make([]byte, size)...)
	op := porcupine.Operation{ClientId: id, Input: in, Call: time.Now().UnixNano()}
	gr.mu.Lock()
	turned := gr.turned
	if in.register != localRegister {
		gr.flying[in.value] = op
	}
	gr.mu.Unlock()
	a, err := s.Propose(ctx, ack, payload)
	op.Return = time.Now().UnixNano()
	gr.mu.Lock()
	defer gr.mu.Unlock()
	delete(gr.flying, in.value)
	switch {
	case errors.Is(err, engine.ErrFull):
		gr.refuse(in.value)
	case in.register == localRegister:
	case turned != gr.turned: // it is among the open ones already
		if err == nil {
			gr.acked = append(gr.acked, ackedValue{in.value, a.Position})
		}
	case err != nil:
		gr.open = append(gr.open, op)
	default:
		op.Output = number(a.Result)
		gr.history, gr.acked = append(gr.history, op), append(gr.acked, ackedValue{in.value, a.Position})
	}
	return err
}

func (gr *bubbleGroup) read(ctx context.Context, id int, l *life) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	defer context.AfterFunc(l.dead, cancel)()
	r, ok := gr.at(l)
	if !ok {
		return
	}
	op := porcupine.Operation{ClientId: id, Input: seen{register: byte(gr.b.roll(registerCount))}, Call: time.Now().UnixNano()}
	gr.mu.Lock()
	turned := gr.turned
	gr.mu.Unlock()
	if _, err := r.Barrier(ctx); err != nil || l.dead.Err() != nil {
		return
	}
	view := r.View()
	defer view.Close()
	v, _, err := view.Get(registerKey(op.Input.(seen).register))
	if err != nil || l.dead.Err() != nil {
		return
	}
	op.Output, op.Return = number(v), time.Now().UnixNano()
	gr.mu.Lock()
	defer gr.mu.Unlock()
	if turned == gr.turned {
		gr.history = append(gr.history, op)
	}
}

// nudge writes something, so that there is something to compare.
func (gr *bubbleGroup) nudge(ctx context.Context) {
	if l := gr.b.nodes[0].running(); l != nil && gr.altered.Load() {
		gr.write(ctx, 0, gr.session(l))
	}
}

// level says whether every replica of the group is at one position with one digest.
func (gr *bubbleGroup) level() error {
	var at core.Position
	var digest machine.Digest
	for i, n := range gr.b.nodes {
		l := n.running()
		if l == nil {
			return fmt.Errorf("node %d is down", n.id)
		}
		r, ok := gr.at(l)
		if !ok {
			return fmt.Errorf("node %d has no replica", n.id)
		}
		d, p, err := r.Digest()
		if err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
		if i == 0 {
			at, digest = p, d
		}
		if p != at {
			return fmt.Errorf("node %d is at %+v, node 1 at %+v", n.id, p, at)
		}
		if d != digest && gr.altered.Load() {
			return fmt.Errorf("node %d has another digest than node 1: a state was altered, and nobody has noticed", n.id)
		}
		if d != digest {
			fail("group %d at %+v: node %d has another digest than node 1", gr.id, at, n.id)
		}
	}
	return nil
}

// check looks for everything that was acknowledged, and for an order that explains what clients saw.
func (gr *bubbleGroup) check() error {
	r, _ := gr.at(gr.b.nodes[0].running())
	view := r.View()
	defer view.Close()
	has := func(v uint64) bool {
		_, found, err := view.Get(valueKey(v))
		must(err, "read value")
		return found
	}
	for _, a := range gr.acked {
		if !has(a.value) {
			return fmt.Errorf("group %d: value %d was acknowledged at %+v and is not there", gr.id, a.value, a.at)
		}
	}
	for _, v := range gr.refused {
		if has(v) {
			return fmt.Errorf("group %d: value %d was refused for want of room and is there", gr.id, v)
		}
	}
	end := time.Now().UnixNano()
	last := era{history: gr.history}
	for _, op := range gr.open {
		if has(op.Input.(seen).value) {
			last.any = append(last.any, op)
		}
	}
	for i, e := range append(slices.Clone(gr.eras), last) {
		if err := e.check(i == 0, end); err != nil {
			return fmt.Errorf("group %d, history %d: %w", gr.id, i+1, err)
		}
	}
	return nil
}

// check finds an order for what clients saw, the one of the first history or of a later one.
func (e *era) check(first bool, end int64) error {
	history := slices.Clone(e.history)
	for _, op := range e.any {
		op.Return = end
		history = append(history, op) // with no output: any will do
	}
	m := bubbleModel(first)
	for _, part := range model.Partition(history) {
		if !porcupine.CheckOperations(m, part) {
			slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
			return fmt.Errorf("not linearizable: %v", part)
		}
	}
	return nil
}
