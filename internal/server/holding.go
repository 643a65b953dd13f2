package server

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
)

// agent is what the server needs of files.Agent.
type agent interface {
	Status() api.DirNode
	Flush(context.Context) (uint64, error)
	WaitPlaced(context.Context, uint64) error
	Verify(ctx context.Context, repair bool) (api.DirVerifyNode, error)
	Confirm() error
}

// holding is this node's part of a files group: the replica, and the agent that keeps a directory in step with it.
type holding struct {
	id      uint64
	replica uint64
	path    string
	member  member
	grp     *engine.Group    // nil while observing
	obs     *engine.Observer // nil while voting
	agent   agent
}

const serviceContent = "files.content"

func (n *node) serveContent(ctx context.Context, from uint64, conn net.Conn) {}

func (n *node) holding(group uint64) (*holding, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.holdings[group]
	if !ok {
		return nil, &api.Error{Code: api.CodeUnavailable, Op: "group", Subject: fmt.Sprint(group), Why: "node " + n.id.Name() + " does not hold it (yet)"}
	}
	return h, nil
}

func (n *node) hold(ctx context.Context, g *control.Group, m control.Member) error { return nil }
func (n *node) release(group uint64) error                                         { return nil }
func (n *node) closeHoldings()                                                     {}
func (h *holding) ready() (bool, string)                                           { return true, "" }
func (h *holding) describe(r *report) error                                        { return errors.New("x") }
