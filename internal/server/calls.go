package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// Methods that nodes call on each other. Requests and answers are JSON; the engine's own methods are apart.
const (
	methodState   = "server.state"  // control.State, for a node that has just joined
	methodHello   = "server.hello"  // who answers lives
	methodReport  = "server.report" // this node's part of a group
	methodCheck   = "server.check"  // may this directory be bound here?
	methodFlush   = "server.flush"  // everything on disk now is committed at the index that is answered
	methodPlaced  = "server.placed" // answers once everything up to an index is on disk
	methodVerify  = "server.verify" // read and hash everything
	methodList    = "server.list"   // a page of a directory
	methodConfl   = "server.conflicts"
	methodConfirm = "server.confirm" // go on after a guard
	methodLead    = "server.lead"    // hand leadership of a group to a node
	methodLogEnd  = "server.logend"  // how far this node's replica goes
	methodSpare   = "server.spare"   // can the group that is led here do without a replica?
	methodDiscard = "server.discard" // remove an upload
	methodEmpty   = "server.empty"   // does this directory hold nothing, and no mark?
	methodRecover = "server.recover" // begin a new history with this node's replica
	methodFate    = "server.fate"    // what became of an accepted write
	methodCompare = "server.compare" // compare the replicas' states; for the leader
)

// groupRequest is what most methods take.
type groupRequest struct {
	Group   uint64      `json:"group"`
	History [16]byte    `json:"history,omitzero"` // that the asker goes by, where it matters
	Index   uint64      `json:"index,omitempty"`
	Repair  bool        `json:"repair,omitempty"`
	Trust   bool        `json:"trust,omitempty"` // a state in quarantine is to count
	Deep    bool        `json:"deep,omitempty"`
	Path    string      `json:"path,omitempty"`
	Mark    string      `json:"mark,omitempty"` // root marker of the group that the path is for
	Node    uint64      `json:"node,omitempty"`
	List    api.DirList `json:"list,omitzero"`
}

// indexAnswer is a position in a group's log.
type indexAnswer struct {
	Index uint64 `json:"index"`
}

type none struct{}

// handle registers a method that takes a groupRequest.
func handle[T any](n *node, method string, h func(ctx context.Context, req groupRequest) (T, error)) {
	n.net.HandleCalls(method, func(ctx context.Context, _ uint64, b []byte) ([]byte, error) {
		var req groupRequest
		if len(b) > 0 {
			if err := json.Unmarshal(b, &req); err != nil {
				return nil, fmt.Errorf("%s: %w", method, err)
			}
		}
		v, err := h(ctx, req)
		if err != nil {
			return nil, asAPIError(method, "", err)
		}
		return json.Marshal(v)
	})
}

func (n *node) registerCalls() {
	handle(n, methodState, func(context.Context, groupRequest) (*control.State, error) {
		st := *n.ctl.state()
		st.Cluster.CAKey = nil
		return &st, nil
	})
	handle(n, methodHello, n.helloHere)
	handle(n, methodReport, n.reportHere)
	handle(n, methodCheck, func(_ context.Context, r groupRequest) (none, error) { return none{}, n.checkHere(r.Path, r.Mark) })
	handle(n, methodFlush, n.flushHere)
	handle(n, methodPlaced, n.placedHere)
	handle(n, methodVerify, n.verifyHere)
	handle(n, methodList, n.listHere)
	handle(n, methodConfl, n.conflictsHere)
	handle(n, methodConfirm, n.confirmHere)
	handle(n, methodLead, n.leadHere)
	handle(n, methodLogEnd, n.logEndHere)
	handle(n, methodSpare, n.spareHere)
	handle(n, methodDiscard, n.discardHere)
	handle(n, methodEmpty, func(_ context.Context, r groupRequest) (none, error) { return none{}, emptyHere(r.Path) })
	handle(n, methodRecover, n.recoverHere)
	handle(n, methodFate, n.fateHere)
	handle(n, methodCompare, n.compareHere)
	n.net.HandleCalls(methodRenew, n.renewFor)
}

// call asks a node, this one included.
func call[T any](ctx context.Context, n *node, to uint64, method string, req groupRequest,
	here func(context.Context, groupRequest) (T, error),
) (T, error) {
	if to == n.self {
		return here(ctx, req)
	}
	var v T
	b, err := json.Marshal(req)
	if err != nil {
		return v, err
	}
	if b, err = n.net.Call(ctx, to, method, b); err != nil {
		return v, n.unanswered(to, err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%s of node %s: %w", method, n.nameOf(to), err)
	}
	return v, nil
}

// unanswered is a call without an answer: the transport's error for programs, and words for people.
type unanswered struct {
	said  *api.Error
	cause error
}

func (u *unanswered) Error() string   { return u.said.Error() }
func (u *unanswered) Unwrap() []error { return []error{u.said, u.cause} }

// unanswered says which node did not answer and where it was looked for. What the node itself has said stays as it is.
func (n *node) unanswered(id uint64, err error) error {
	var said *api.Error
	if errors.As(err, &said) {
		return err
	}
	why := err
	if inner := errors.Unwrap(err); inner != nil { // without the method, which is nobody's business
		why = inner
	}
	e := &api.Error{Code: api.CodeUnavailable, Op: "ask node", Subject: n.nameOf(id), Why: "it does not answer: " + why.Error(),
		Hint: "see that it runs and that the other nodes reach its address; lockstep node list shows it"}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Why = "it does not answer in time"
	}
	return &unanswered{e, err}
}

// answerTime is how long a node may take to report before it counts as down.
const answerTime = 2 * time.Second

// isUp asks a node whether it lives.
func (n *node) isUp(ctx context.Context, id uint64) bool {
	_, err := n.hello(ctx, id)
	return err == nil
}

// each calls f for all of them at once, members of a group or nodes, and waits.
func each[E, T any](all []E, f func(one E) T) []T {
	results := make([]T, len(all))
	var wait sync.WaitGroup
	for i, one := range all {
		wait.Go(func() { results[i] = f(one) })
	}
	wait.Wait()
	return results
}

// eachAtMost is each for many: f runs for so many of them at the same time.
func eachAtMost[E, T any](most int, all []E, f func(one E) T) []T {
	slots := make(chan struct{}, most)
	return each(all, func(one E) T {
		slots <- struct{}{}
		defer func() { <-slots }()
		return f(one)
	})
}

// groupOf decodes a group id as connections carry it.
func groupOf(b []byte) (uint64, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}
