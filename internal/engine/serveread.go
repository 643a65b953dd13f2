package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

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

// ReadAt asks a voter for an index that covers everything that is committed in the group now. It takes at most a few
// seconds, and needs nothing of a replica here but the history that it is on.
func (e *Engine) ReadAt(ctx context.Context, voter, group uint64) (uint64, error) {
	return e.readAt(ctx, voter, wireGroup(group, e.lineOf(group).History), askPatience)
}

func (e *Engine) readAt(ctx context.Context, voter, wire uint64, patience time.Duration) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := e.cfg.Transport.Call(ctx, voter, MethodRead, binary.BigEndian.AppendUint64(nil, wire))
	if err != nil {
		return 0, err
	}
	if len(reply) != 8 {
		return 0, errShortMessage
	}
	return binary.BigEndian.Uint64(reply), nil
}
