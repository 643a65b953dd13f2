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

// GroupSet changes settings of a group.
func (n *node) GroupSet(ctx context.Context, group string, req api.GroupSet) error {
	c := control.SetGroup{Group: group, Topology: req.Topology, Ack: req.Ack}
	for _, d := range []struct {
		text string
		into *time.Duration
	}{{req.InSyncAfter, &c.InSyncAfter}, {req.CheckEvery, &c.CheckEvery}} {
		if d.text == "" {
			continue
		}
		var err error
		if *d.into, err = time.ParseDuration(d.text); err != nil || *d.into <= 0 {
			return &api.Error{Code: api.CodeUsage, Op: "group set", Subject: group, Why: fmt.Sprintf("%q is not a duration", d.text),
				Hint: "for instance 10s or 1m"}
		}
	}
	switch req.RepairAfter {
	case "":
	case "inherit":
		c.InheritRepair = true
	default:
		after, err := repairAfter("group set", group, req.RepairAfter)
		if err != nil {
			return err
		}
		c.RepairAfter = &after
	}
	_, err := n.ctl.propose(ctx, &control.Command{By: n.id.Name(), SetGroup: &c})
	return err
}

// ClusterSet changes what holds for all groups that do not say otherwise.
func (n *node) ClusterSet(ctx context.Context, req api.ClusterSet) error {
	after, err := repairAfter("cluster set", "cluster", req.RepairAfter)
	if err != nil {
		return err
	}
	_, err = n.ctl.propose(ctx, &control.Command{By: n.id.Name(), SetCluster: &control.SetCluster{RepairAfter: after}})
	return err
}

// repairOff is a repair-after of 0 in words.
const repairOff = "off"

func repairAfter(op, subject, text string) (time.Duration, error) {
	if text == repairOff {
		return 0, nil
	}
	after, err := time.ParseDuration(text)
	if err != nil || after <= 0 {
		return 0, &api.Error{Code: api.CodeUsage, Op: op, Subject: subject, Why: fmt.Sprintf("%q is not a duration", text), Hint: "for instance 10m, or off"}
	}
	return after, nil
}

// ackOf is the acknowledgement that a name stands for; the empty one is the group's own.
func ackOf(g *control.Group, name string) (core.Ack, bool) {
	switch orElse(name, g.Ack) {
	case "local":
		return core.AckLocal, true
	case "quorum":
		return core.AckQuorum, true
	case "all":
		return core.AckAll, true
	}
	return 0, false
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// probePatience is how long a probe waits for an answer other than UNKNOWN; longer than the engine waits for `all`.
const probePatience = 15 * time.Second

// GroupProbe writes an entry that changes nothing and reports how it was answered.
func (n *node) GroupProbe(ctx context.Context, group string, req api.GroupProbeRequest) (api.GroupProbe, error) {
	const op = "group probe"
	g, err := n.groupNamed(op, group)
	if err != nil {
		return api.GroupProbe{}, err
	}
	ack, ok := ackOf(g, req.Ack)
	if !ok {
		return api.GroupProbe{}, &api.Error{Code: api.CodeUsage, Op: op, Subject: group, Why: "unknown ack " + req.Ack, Hint: "use one of: local, quorum, all"}
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	began := time.Now()
	a, err := n.sessionOf(g).Probe(ctx, ack)
	out := api.GroupProbe{Group: g.Name, Ack: orElse(req.Ack, g.Ack), Answer: answerName(a.Code), Missing: []string{}, Seconds: time.Since(began).Seconds()}
	if errors.Is(err, context.DeadlineExceeded) {
		return out, nil // UNKNOWN
	}
	if err != nil {
		return out, n.noRoom(ctx, op, group, g.ID, err)
	}
	out.Term, out.Index, out.Set = a.Position.Term, a.Position.Index, a.Set
	out.Missing = n.namesOf(g, a.Missing)
	if a.Code == core.Accepted {
		out.Token = writeToken{g.History, a.Position, a.Place}.String()
	}
	return out, nil
}

// answerName is a write's answer in the words of the API.
func answerName(c core.Code) string {
	switch c {
	case core.Accepted:
		return api.AnswerAccepted
	case core.Committed:
		return api.AnswerCommitted
	case core.CommittedAll:
		return api.AnswerCommittedAll
	case core.CommittedQuorumOnly:
		return api.AnswerQuorumOnly
	}
	return api.AnswerUnknown
}

// sessionOf is a session with the group, wherever its members are.
func (n *node) sessionOf(g *control.Group) *engine.Session {
	if g.ID == control.ControlGroup {
		return n.ctl.session
	}
	if h, err := n.holding(g.ID); err == nil {
		return h.session
	}
	return n.eng.NewSession(g.ID, groupVoters{n, g.ID}, newSessionID())
}

// memberLine is the line of log that a member's state is of. The control group's own is not known by name before its
// first state.
func memberLine(m interface{ Line() replica.Line }, g *control.Group) replica.Line {
	line := m.Line()
	if line.History == [16]byte{} {
		line.History = g.History
	}
	return line
}

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
	for _, m := range n.nearestFirst(g) {
		ctx, cancel := context.WithTimeout(ctx, fatePatience+answerTime)
		f, err := call(ctx, n, m.Node, methodFate, groupRequest{Group: g.ID, Path: token}, n.fateHere)
		cancel()
		if err == nil {
			out.Fate, out.Why = f.Fate, f.Why
			return out, nil
		}
	}
	return out, &api.Error{Code: api.CodeUnavailable, Op: op, Subject: group, Why: "no member of the group answers",
		Hint: "lockstep node list shows which are down"}
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

// fateAnswer is a member's account of a write.
type fateAnswer struct {
	Fate string `json:"fate"`
	Why  string `json:"why"`
}

// fateByLine decides what the line of log alone tells. The seed of a fork keeps and commits what its log held, up to the
// entry before Start, so that far the terms decide (false); from there on indexes are of the new line's own entries.
func fateByLine(line replica.Line, t writeToken) (fateAnswer, bool) {
	switch {
	case t.history == line.History:
		return fateAnswer{}, false
	case t.history != line.Before || line.Before == [16]byte{}:
		return fateAnswer{api.FateUnknown, "it is of a history that this group does not remember"}, true
	case t.at.Index <= line.Fork.Index || t.at.Index < line.Start:
		return fateAnswer{}, false
	case line.Start == 0:
		return fateAnswer{api.FateUnknown, fmt.Sprintf("its history was given up somewhere behind entry %d", line.Fork.Index)}, true
	}
	return fateAnswer{api.FateLost, fmt.Sprintf("its history was given up behind entry %d", line.Start-1)}, true
}

// fateHere decides by what this node has applied.
func (n *node) fateHere(ctx context.Context, req groupRequest) (fateAnswer, error) {
	t, err := parseWriteToken(req.Path)
	if err != nil {
		return fateAnswer{}, err
	}
	m := n.ctl.member()
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
	line := memberLine(m, g)
	if a, sure := fateByLine(line, t); sure {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fatePatience)
	defer cancel()
	switch m.Fate(ctx, t.at) {
	case core.FateCommitted:
		return fateAnswer{api.FateCommitted, fmt.Sprintf("committed as entry %d of term %d", t.at.Index, t.at.Term)}, nil
	case core.FateLost:
		if t.history != line.History {
			return fateAnswer{api.FateLost, fmt.Sprintf("its history was given up, and what went on had another entry %d than that of term %d", t.at.Index, t.at.Term)}, nil
		}
		return fateAnswer{api.FateLost, fmt.Sprintf("another leader was elected before a majority had entry %d of term %d", t.at.Index, t.at.Term)}, nil
	case core.FateForgotten:
		return fateAnswer{api.FateUnknown, "too many leaderships ago: it is no longer remembered"}, nil
	}
	return fateAnswer{api.FateUnknown, "not decided yet: ask again when the group has a leader"}, nil
}
