package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// A majority of a bubble's voters goes down, and its operator takes it for lost: one of the others begins a new
// history of every group (`group recover --unsafe`). The bubble plays the control group, which records the fork, and
// the server, which brings each replica to it before it runs. Some are not told, and have to be by the engines of
// those who know: too few to be a majority of the old history, whose clients would lose what it acknowledges.

const (
	faultFork = "majority lost, new history begun"
	faultTold = "replica told of a new history"
)

// era is what clients saw under one history.
type era struct {
	history []porcupine.Operation
	any     []porcupine.Operation // writes that may have been executed in it or not, with whatever result
}

// ackedValue was acknowledged at a position of the history that was in force.
type ackedValue struct {
	value uint64
	at    core.Position
}

// loseMajority lets it happen. It returns when the new histories have begun.
func (b *bubble) loseMajority(ctx context.Context) error {
	b.count(faultFork)
	seed := b.nodes[b.roll(b.shape.voters)]
	if err := seed.start(); err != nil {
		return err
	}
	down := b.shape.voters/2 + 1
	for i := range b.shape.voters {
		if n := b.nodes[(int(seed.id)+i)%b.shape.voters]; i < down && n != seed {
			n.kill(nil)
		}
	}
	pause(ctx, 2*time.Second) // what was answered until now has been heard
	for _, gr := range b.groups {
		if err := gr.forkAt(seed); err != nil {
			return err
		}
	}
	return nil
}

// forkAt records that seed begins a new history, and begins it if its process still runs.
func (gr *bubbleGroup) forkAt(seed *bubbleNode) error {
	l := seed.running()
	if l == nil {
		return nil // its disk failed meanwhile: nothing was recorded, the group goes on as before
	}
	if err := l.engine.StopGroup(gr.id, false); err != nil {
		return fmt.Errorf("stop the seed of group %d: %w", gr.id, err)
	}
	st, end, err := l.engine.StoppedEnd(gr.id)
	if err != nil || st.At.Index == 0 {
		return gr.run(l) // as above, or there is nothing to begin with
	}
	line := replica.Line{History: [16]byte{byte(gr.id), 2}, Before: st.Line.History, Fork: end.Commit,
		Start: end.Last.Index + 1, Seed: seed.id}
	log, _, err := seed.logs.Log(gr.id)
	if err != nil {
		return fmt.Errorf("read the log of the seed: %w", err)
	}
	gr.turnEra(func(at core.Position) bool {
		if at.Index <= end.Commit.Index {
			return true
		}
		term, err := log.Term(at.Index)
		return err == nil && term == at.Term
	})
	gr.line.Store(&line)
	if l.dead.Err() != nil {
		return nil
	}
	return gr.start(l)
}

// turnEra ends what clients could rely on: what the seed keeps has to be there in the end, the rest is lost.
func (gr *bubbleGroup) turnEra(keeps func(core.Position) bool) {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	kept := gr.acked[:0]
	for _, a := range gr.acked {
		if keeps(a.at) {
			kept = append(kept, a)
		}
	}
	gr.acked = kept
	old := era{history: gr.history, any: append([]porcupine.Operation(nil), gr.open...)}
	for _, op := range gr.flying {
		old.any = append(old.any, op)
		gr.open = append(gr.open, op) // with the result that it had in either history
	}
	clear(gr.flying)
	gr.eras, gr.history = append(gr.eras, old), nil
	gr.turned++
}

// align brings what a node holds of the group to the history that was recorded, before it runs.
func (gr *bubbleGroup) align(l *life) error {
	line := gr.line.Load()
	if line == nil {
		return nil
	}
	st, err := l.engine.Standing(gr.id)
	if err != nil || st.Line.History == line.History {
		return err
	}
	if line.Seed == l.node.id {
		_, err = l.engine.Recover(engine.RecoverConfig{
			Group: gr.id, Replica: line.Seed, History: line.History, Fork: line.Fork, Start: line.Start,
		})
		return err
	}
	_, err = l.engine.Rebase(gr.id, *line)
	return err
}

// told is called when an engine has heard of another history: the replica is stopped, aligned and started again.
func (l *life) told(f engine.Forked) {
	gr := l.node.b.groups[f.Group-1]
	line := gr.line.Load()
	if line == nil || f.Line.History != line.History || !f.Superseded {
		l.node.b.wrong(fmt.Errorf("group %d: node %d hears of history %x, superseding %v", f.Group, l.node.id, f.Line.History, f.Superseded))
		return
	}
	l.tasks.Go(func() {
		l.aligning <- struct{}{}
		defer func() { <-l.aligning }()
		if st, err := l.engine.Standing(gr.id); l.dead.Err() != nil || err != nil || st.Line.History == line.History {
			return
		}
		l.node.b.count(faultTold)
		if o := l.observer(gr.id); o != nil {
			o.Close()
		}
		err := l.engine.StopGroup(gr.id, false)
		if err == nil {
			err = gr.align(l)
		}
		if err == nil {
			err = gr.run(l)
		}
		if err != nil && l.dead.Err() == nil && !l.failing.Load() {
			l.node.b.wrong(fmt.Errorf("node %d comes to a new history of group %d: %w", l.node.id, gr.id, err))
		}
	})
}

// readmit takes one step to make every voter one again, after a fork that left the seed alone.
func (gr *bubbleGroup) readmit(ctx context.Context) {
	if gr.line.Load() == nil {
		return
	}
	for _, n := range gr.b.nodes[:gr.b.shape.voters] {
		l := n.running()
		if l == nil {
			continue
		}
		g, ok := l.engine.Group(gr.id)
		if !ok || g.Line().History != gr.line.Load().History {
			continue
		}
		st := g.Fresh()
		if st.Role != core.Leader || !st.TermBegun {
			continue
		}
		for id := uint64(1); id <= uint64(gr.b.shape.voters); id++ {
			kind := raftpb.ConfChangeAddLearnerNode
			switch {
			case contains(st.Voters, id):
				continue
			case contains(st.Learners, id):
				kind = raftpb.ConfChangeAddNode
			}
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			g.Change(ctx, st.Term, &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: proto.Uint64(id)}}})
			cancel()
			return
		}
	}
}

func contains(ids []uint64, id uint64) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

// unknown is a register's value after a fork, until somebody has read or written it.
const unknown = ^uint64(0)

// bubbleModel is model with writes of any result, and registers that begin with any value if not first.
func bubbleModel(first bool) porcupine.Model {
	m := model
	if !first {
		m.Init = func() any { return unknown }
	}
	m.Step = func(state, input, output any) (bool, any) {
		in := input.(seen)
		switch {
		case output == nil:
			return true, in.value
		case state == unknown && in.write:
			return true, in.value
		case state == unknown:
			return true, output
		}
		return model.Step(state, input, output)
	}
	return m
}
