package engine

import (
	"context"
	"encoding/binary"
	"fmt"
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
