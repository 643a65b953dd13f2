package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// fatePatience is how long a question for a write's fate waits for the decision.
const fatePatience = 5 * time.Second

// GroupToken tells what became of an accepted write.
func (n *node) GroupToken(ctx context.Context, group, token string) (api.GroupToken, error) {
	const op = "group token"
	g, err := n.groupNamed(op, group)
	if err != nil {
		return api.GroupToken{}, err
	}
	t, err := parseWriteToken(token)
	if err != nil {
		return api.GroupToken{}, &api.Error{Code: api.CodeUsage, Op: op, Subject: token, Why: err.Error(),
			Hint: "give the token that came with the answer ACCEPTED, whole"}
	}
	out := api.GroupToken{Group: g.Name, Token: token, Term: t.at.Term, Index: t.at.Index}
	f, answered := settle(n.nearestFirst(g), func(m control.Member) (fateAnswer, error) {
		ctx, cancel := context.WithTimeout(ctx, fatePatience+answerTime)
		defer cancel()
		return call(ctx, n, m.Node, methodFate, groupRequest{Group: g.ID, Path: token}, n.fateHere)
	}, func(f fateAnswer) error { return n.confirmHistory(ctx, g.ID, f.History) })
	if !answered {
		return out, &api.Error{Code: api.CodeUnavailable, Op: op, Subject: group, Why: "no member of the group answers",
			Hint: "lockstep node list shows which are down"}
	}
	out.Fate, out.Why = f.Fate, f.Why
	return out, nil
}

// errBehind is of a member that has not come to the group's history yet.
var errBehind = errors.New("the group has begun another history, to which the member that was asked has not come yet: ask again in a second")

// settle takes the first account of a write that is of the group's history. A member that has not heard yet that the group
// began another one tells what became of the write on the one that was given up; so its history is confirmed after it has
// answered. If nobody can tell, nothing is known. false: nobody has answered.
func settle(members []control.Member, ask func(control.Member) (fateAnswer, error), confirm func(fateAnswer) error) (f fateAnswer, answered bool) {
	for _, m := range members {
		a, err := ask(m)
		if err != nil {
			continue
		}
		if err = confirm(a); err == nil {
			return a, true
		}
		f, answered = fateAnswer{Fate: api.FateUnknown, Why: err.Error()}, true
		if !errors.Is(err, errBehind) {
			break
		}
	}
	return f, answered
}

// confirmHistory fails unless a group is on a history: the control group decides which it is on, so that is asked for
// everything that it has decided. The control group's own is the one on which it answers.
func (n *node) confirmHistory(ctx context.Context, group uint64, history [16]byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if _, err := n.ctl.member().Barrier(ctx); err != nil {
		return fmt.Errorf("it is not known whether the group has begun another history meanwhile, since the control group does not answer: ask again when it has a leader (%w)", err)
	}
	g, ok := n.ctl.state().Group(group)
	if !ok {
		return errNoSuchGroup
	}
	now := g.History
	if group == control.ControlGroup {
		now = memberLine(n.ctl.member(), g).History
	}
	if now != history {
		return errBehind
	}
	return nil
}

// nearestFirst lists a group's members, this node first.
func (n *node) nearestFirst(g *control.Group) []control.Member {
	members := make([]control.Member, 0, len(g.Members))
	for _, m := range g.Members {
		if m.Node == n.self {
			members = append([]control.Member{m}, members...)
		} else {
			members = append(members, m)
		}
	}
	return members
}

// fateAnswer is a member's account of a write, by what it has of a history.
type fateAnswer struct {
	Fate    string   `json:"fate"`
	Why     string   `json:"why"`
	History [16]byte `json:"history"`
}

// fateByLine decides what the line of log alone tells. The seed of a fork keeps and commits what its log held, up to the
// entry before Start, so that far the terms decide (false); from there on indexes are of the new line's own entries.
func fateByLine(line replica.Line, t writeToken) (fateAnswer, bool) {
	switch {
	case t.history == line.History:
		return fateAnswer{}, false
	case t.history != line.Before || line.Before == [16]byte{}:
		return fateAnswer{api.FateUnknown, "it is of a history that this group does not remember", line.History}, true
	case t.at.Index <= line.Fork.Index || t.at.Index < line.Start:
		return fateAnswer{}, false
	case line.Start == 0:
		return fateAnswer{api.FateUnknown, fmt.Sprintf("its history was given up somewhere behind entry %d", line.Fork.Index), line.History}, true
	}
	return fateAnswer{api.FateLost, fmt.Sprintf("its history was given up behind entry %d", line.Start-1), line.History}, true
}

// fateHere decides by what this node has applied.
func (n *node) fateHere(ctx context.Context, req groupRequest) (fateAnswer, error) {
	t, err := parseWriteToken(req.Path)
	if err != nil {
		return fateAnswer{}, err
	}
	m := n.ctl.member()
	if m == nil {
		return fateAnswer{}, errStarting
	}
	if req.Group != control.ControlGroup {
		h, err := n.holding(req.Group)
		if err != nil {
			return fateAnswer{}, err
		}
		m = h.member
	}
	g, ok := n.ctl.state().Group(req.Group)
	if !ok {
		return fateAnswer{}, errNoSuchGroup
	}
	return fateOf(ctx, m, g, t)
}

// fateOf decides by what a member has applied.
func fateOf(ctx context.Context, m member, g *control.Group, t writeToken) (fateAnswer, error) {
	if m.Quarantine() != nil {
		return fateAnswer{}, engine.ErrQuarantined // what it knows of terms is of the state that is doubtful
	}
	line := memberLine(m, g)
	if a, sure := fateByLine(line, t); sure {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fatePatience)
	defer cancel()
	fate := m.Fate(ctx, t.at)
	if m.Quarantine() != nil { // found while it waited
		return fateAnswer{}, engine.ErrQuarantined
	}
	switch fate {
	case core.FateCommitted:
		return fateAnswer{api.FateCommitted, fmt.Sprintf("committed as entry %d of term %d", t.at.Index, t.at.Term), line.History}, nil
	case core.FateLost:
		if t.history != line.History {
			return fateAnswer{api.FateLost, fmt.Sprintf("its history was given up, and what went on had another entry %d than that of term %d", t.at.Index, t.at.Term), line.History}, nil
		}
		return fateAnswer{api.FateLost, fmt.Sprintf("another leader was elected before a majority had entry %d of term %d", t.at.Index, t.at.Term), line.History}, nil
	case core.FateForgotten:
		return fateAnswer{api.FateUnknown, "too many leaderships ago: it is no longer remembered", line.History}, nil
	}
	return fateAnswer{api.FateUnknown, "not decided yet: ask again when the group has a leader", line.History}, nil
}
