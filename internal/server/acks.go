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
	g, err := n.groupNamed("group probe", group)
	if err != nil {
		return api.GroupProbe{}, err
	}
	return n.probe(ctx, g, req)
}

func (n *node) probe(ctx context.Context, g *control.Group, req api.GroupProbeRequest) (api.GroupProbe, error) {
	const op = "group probe"
	ack, ok := ackOf(g, req.Ack)
	if !ok {
		return api.GroupProbe{}, &api.Error{Code: api.CodeUsage, Op: op, Subject: g.Name, Why: "unknown ack " + req.Ack, Hint: "use one of: local, quorum, all"}
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
		return out, n.noRoom(ctx, op, g.Name, g.ID, err)
	}
	out.Term, out.Index, out.Set = a.Position.Term, a.Position.Index, a.Set
	out.Missing = n.namesOf(g, a.Missing)
	if a.Code == core.Accepted {
		out.Token = writeToken{a.History, a.Position, a.Place}.String()
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
