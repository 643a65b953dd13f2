package server

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// member is this node's part of a group, whether it votes (engine.Group) or observes (engine.Observer).
type member interface {
	Applied() core.Position
	View() kv.View
	Digest() (machine.Digest, core.Position, error)
	Barrier(context.Context) (uint64, error)
	WaitApplied(context.Context, uint64) error
	Catchup() engine.Catchup
	Line() replica.Line
	Fate(context.Context, core.Position) core.Fate
	Quarantine() *replica.Quarantine
}

// controlPlane is the control group as the node sees it.
type controlPlane struct {
	current atomic.Pointer[control.State]
	session *engine.Session
	explain func(ctx context.Context, err error) error // makes engine.ErrFull an error for users
	news    chan struct{}                              // holds one token when the state changed

	mu   sync.Mutex
	self member
	grp  *engine.Group    // nil while observing
	obs  *engine.Observer // nil while voting
}

func newControlPlane() *controlPlane {
	c := &controlPlane{news: make(chan struct{}, 1)}
	c.current.Store(&control.State{})
	return c
}

// publish is called by the machine.
func (c *controlPlane) publish(s *control.State) {
	c.current.Store(s)
	c.nudge()
}

// nudge has the state looked at again.
func (c *controlPlane) nudge() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

func (c *controlPlane) state() *control.State { return c.current.Load() }

func (c *controlPlane) member() member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.self
}

// group is this node's replica; nil while observing.
func (c *controlPlane) group() *engine.Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.grp
}

// observer is the control group's observer here; nil while voting.
func (c *controlPlane) observer() *engine.Observer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.obs
}

// closeControl stops observing the control group; a voter's replica belongs to the engine.
func (n *node) closeControl() {
	n.ctl.mu.Lock()
	defer n.ctl.mu.Unlock()
	if n.ctl.obs != nil {
		n.ctl.obs.Close()
	}
}

// proposeTimeout bounds a change of the control group.
const proposeTimeout = 15 * time.Second

// propose has a command executed and waits until this node's copy of the state shows it.
func (c *controlPlane) propose(ctx context.Context, cmd *control.Command) (control.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	payload, err := cmd.Encode()
	if err != nil {
		return control.Result{}, err
	}
	a, err := c.session.Propose(ctx, core.AckQuorum, payload)
	if errors.Is(err, context.DeadlineExceeded) {
		return control.Result{}, &api.Error{Code: api.CodeUnavailable, Op: "control", Subject: "control group",
			Why: "it has no leader that answers: too many of its nodes are down", Hint: "lockstep node list shows which; start them, then try again"}
	}
	if err != nil {
		return control.Result{}, c.explain(ctx, err)
	}
	r, err := control.DecodeResult(a.Result)
	if err != nil {
		return r, err
	}
	if r.Error != nil {
		return r, r.Error
	}
	return r, c.member().WaitApplied(ctx, a.Position.Index)
}

// controlVoters are the nodes that vote in the control group, as far as is known.
type controlVoters struct{ n *node }

func (v controlVoters) Voters() []uint64 { return v.n.votersOf(control.ControlGroup) }

// votersOf lists the nodes of a group's voters; before the state is known, every known peer.
func (n *node) votersOf(group uint64) (nodes []uint64) {
	g, ok := n.ctl.state().Group(group)
	if !ok {
		if group == control.ControlGroup {
			return n.hintedPeers()
		}
		return nil
	}
	for _, m := range g.Voters() {
		nodes = append(nodes, m.Node)
	}
	return nodes
}

func decodeHex(s string, into []byte) bool {
	b, err := hex.DecodeString(s)
	return err == nil && copy(into, b) == len(into) && len(b) == len(into)
}

// asAPIError gives an error the one shape that crosses doors.
func asAPIError(op, subject string, err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	code := api.CodeFailed
	if errors.Is(err, context.DeadlineExceeded) {
		code = api.CodeUnavailable
	}
	return &api.Error{Code: code, Op: op, Subject: subject, Why: err.Error()}
}
