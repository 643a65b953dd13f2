package engine

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// replayBytes is how much of the log is read at a time.
const replayBytes = 1 << 20

// Replay shows the payloads of the committed entries in (after, upTo] that are still in the log and not being cut, in order: what a
// machine's owner needs again of them after a crash. upTo is at most the applied index.
func (g *Group) Replay(ctx context.Context, after, upTo uint64, fn func(index uint64, payload []byte) error) error {
	defer g.pins.add(after).release()
	first, err := g.log.FirstIndex()
	if err != nil {
		return fmt.Errorf("engine: replay group %d: %w", g.cfg.ID, err)
	}
	for at := max(after+1, g.pins.first(first)); at <= upTo; {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := g.log.Entries(at, upTo+1, replayBytes)
		if errors.Is(err, logstore.ErrDamaged) {
			g.unreadable(upTo, err)
		}
		if err != nil {
			return fmt.Errorf("engine: replay group %d from %d: %w", g.cfg.ID, at, err)
		}
		for _, e := range entries {
			if err := replayEntry(e, fn); err != nil {
				return err
			}
		}
		at += uint64(len(entries))
	}
	return nil
}

func replayEntry(e *raftpb.Entry, fn func(index uint64, payload []byte) error) error {
	if e.GetType() != raftpb.EntryNormal || len(e.GetData()) == 0 {
		return nil
	}
	b, err := core.DecodeBatch(e.GetData())
	if err != nil {
		return fmt.Errorf("engine: replay entry %d: %w", e.GetIndex(), err)
	}
	for i := range b.Proposals {
		if b.Proposals[i].Engine {
			continue
		}
		if err := fn(e.GetIndex(), b.Proposals[i].Payload); err != nil {
			return err
		}
	}
	return nil
}
