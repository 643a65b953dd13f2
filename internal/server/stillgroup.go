package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// A restore that replaces a living group gives its present state up, and says how far that goes (rule F8). So that
// nothing is acknowledged beyond, the members' replicas are sealed first, as the seed of a recovery is (seal.go), and the
// control group forks the group only at the version of the in-sync set that all of these seals have. A member is asked
// over a stream: its seal has an answer to come for as long as that is open. However it ends, the member finds out what
// became of the group as after a recovery.

// serviceSeal is the transport service that seals this node's part of a group: a sealRequest in a line of JSON is
// answered by a sealAnswer; then the stream is held until the fork is decided, or given up.
const serviceSeal = "server.seal"

const (
	// sealTime is how long a member may take to stop its replica and to say where it ends.
	sealTime = 10 * time.Second
	sealPoll = 50 * time.Millisecond
	// sealHeld bounds how long a member keeps its seal for somebody who says nothing any more: longer than anybody who asks
	// for the fork waits for the control group. Who comes later is refused by the version.
	sealHeld = 2 * proposeTimeout
	// sealTries is how often a fork is asked for while the in-sync set changes underneath.
	sealTries = 5
)

type sealRequest struct {
	Group   uint64 `json:"group"`
	Control uint64 `json:"control"` // index of the control group's state that the member goes by, at least
}

// sealAnswer says where a replica stands still.
type sealAnswer struct {
	Refused  *api.Error    `json:"refused,omitempty"`
	InSync   uint64        `json:"in_sync"` // version of the set as the seal has it
	Replica  uint64        `json:"replica"`
	History  [16]byte      `json:"history"`
	Last     core.Position `json:"last"`             // end of its log
	Voters   []uint64      `json:"voters,omitempty"` // of the configuration that its state has
	Outgoing []uint64      `json:"outgoing,omitempty"`
}

// sealHere seals this node's part of a group. Who asked calls answered once the fork is decided.
func (n *node) sealHere(ctx context.Context, req sealRequest) (a sealAnswer, err error) {
	ctl := n.ctl.member()
	if ctl == nil {
		return a, errStarting
	}
	ctx, cancel := context.WithTimeout(ctx, sealTime)
	defer cancel()
	if err := ctl.WaitApplied(ctx, req.Control); err != nil {
		return a, fmt.Errorf("wait for the control group's state: %w", err)
	}
	g, ok := n.ctl.state().Group(req.Group)
	if !ok {
		return a, errNoSuchGroup
	}
	m, ok := g.Member(n.self)
	if !ok {
		return a, errNoSuchGroup
	}
	s, err := n.sealSoon(ctx, req.Group)
	if err != nil {
		return a, err
	}
	st, end, err := n.eng.StoppedEnd(req.Group)
	if err != nil {
		n.answered(req.Group)
		return a, err
	}
	a = sealAnswer{InSync: s.InSync, Replica: m.Replica, History: st.Line.History, Last: end.Last}
	if st.Conf != nil {
		a.Voters, a.Outgoing = st.Conf.GetVoters(), st.Conf.GetVotersOutgoing()
	}
	return a, nil
}

// sealSoon seals a group as soon as it runs here: it may be about to start, or to be released from the seal before.
func (n *node) sealSoon(ctx context.Context, group uint64) (seal, error) {
	tick := time.NewTicker(sealPoll)
	defer tick.Stop()
	for {
		s, err := n.seal(group)
		var busy *api.Error
		if !errors.As(err, &busy) || busy.Code != api.CodeConflict {
			return s, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s, err
		}
	}
}

// serveSeal seals for another node.
func (n *node) serveSeal(ctx context.Context, from uint64, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	asks := &attended{conn, n.nameOf(from), sealHeld}
	in := json.NewDecoder(asks)
	var req sealRequest
	if err := in.Decode(&req); err != nil {
		n.log.Warn("request to seal a group not understood", "from", n.nameOf(from), "err", err)
		return
	}
	a, err := n.sealHere(ctx, req)
	if err != nil {
		a.Refused = asAPIError("restore", n.groupName(req.Group), err)
	} else {
		defer n.answered(req.Group)
	}
	if err := json.NewEncoder(asks).Encode(a); err != nil {
		n.log.Warn("a group was sealed for a node that is gone", "group", n.groupName(req.Group), "node", n.nameOf(from), "err", err)
		return
	}
	var over none
	_ = in.Decode(&over) // it ends, in whatever way, when there is nothing to wait for any more
}

// sealAt has a member sealed. release says that nobody waits for the decision any more; it may be called once, on no error
// only.
func (n *node) sealAt(ctx context.Context, node uint64, req sealRequest) (a sealAnswer, release func(), err error) {
	if node == n.self {
		a, err := n.sealHere(ctx, req)
		return a, func() { n.answered(req.Group) }, err
	}
	ctx, cancel := context.WithTimeout(ctx, sealTime+answerTime)
	defer cancel()
	conn, err := n.net.Open(ctx, node, serviceSeal)
	if err != nil {
		return a, nil, n.unanswered(node, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err = json.NewEncoder(conn).Encode(req)
	if err == nil {
		err = json.NewDecoder(conn).Decode(&a)
	}
	if err == nil && a.Refused != nil {
		err = a.Refused
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return a, nil, err
	}
	return a, func() { conn.Close() }, nil
}

// stillGroup is a group whose replicas are sealed, as far as they answer.
type stillGroup struct {
	inSync  uint64
	last    uint64   // highest end of a log of the group's history
	silent  []string // voters that could not be sealed
	bounded bool     // nothing can be acknowledged by those
	release []func()
}

func (s *stillGroup) end() {
	for _, release := range s.release {
		release()
	}
}

// still seals all members of a group that answer. The caller calls end once it is decided what becomes of the group.
func (n *node) still(ctx context.Context, group uint64) (s stillGroup, err error) {
	at, err := n.currentControl(ctx, "restore")
	if err != nil {
		return s, err
	}
	g, ok := n.ctl.state().Group(group)
	if !ok || g.Deleted {
		return s, errNoSuchGroup
	}
	type sealed struct {
		sealAnswer
		release func()
		err     error
	}
	answers := each(g.Members, func(m control.Member) sealed {
		a, release, err := n.sealAt(ctx, m.Node, sealRequest{Group: group, Control: at})
		return sealed{a, release, err}
	})
	s.inSync = g.InSync.Version
	var here []sealAnswer
	for i, a := range answers {
		name := n.nameOf(g.Members[i].Node)
		if a.err != nil {
			n.log.Info("a member of a group that is being replaced does not stand still", "group", g.Name, "node", name, "err", a.err)
			if g.Members[i].Role == control.RoleVoter {
				s.silent = append(s.silent, name)
			}
			continue
		}
		s.release = append(s.release, a.release)
		here = append(here, a.sealAnswer)
		s.inSync = max(s.inSync, a.InSync)
		if a.History == g.History {
			s.last = max(s.last, a.Last.Index)
		}
	}
	s.bounded = blocked(g, here)
	if slices.ContainsFunc(here, func(a sealAnswer) bool { return a.InSync != s.inSync }) {
		s.end()
		return s, errSetMoved
	}
	return s, nil
}

// errSetMoved: the members were sealed at different versions of the in-sync set, so not all of their seals would hold.
var errSetMoved = errors.New("the group's in-sync set has changed meanwhile")

// blocked tells whether those that stand still are enough that the others acknowledge nothing: by what the control group
// wants, and by every configuration that one of them has, the others are no majority.
func blocked(g *control.Group, here []sealAnswer) bool {
	still := func(r uint64) bool {
		return slices.ContainsFunc(here, func(a sealAnswer) bool { return a.Replica == r && a.History == g.History })
	}
	stops := func(voters []uint64) bool {
		moving := len(voters)
		for _, v := range voters {
			if still(v) {
				moving--
			}
		}
		return 2*moving <= len(voters)
	}
	var wanted []uint64
	for _, m := range g.Voters() {
		wanted = append(wanted, m.Replica)
	}
	return stops(wanted) && !slices.ContainsFunc(here, func(a sealAnswer) bool {
		return a.History == g.History && !stops(a.Voters) && (len(a.Outgoing) == 0 || !stops(a.Outgoing))
	})
}

// forkLiving has the control group fork a living group for a restore, while its members stand still, and says what is
// given up by that.
func (n *node) forkLiving(ctx context.Context, g *control.Group, cmd *control.Command, out *api.Restored) error {
	for try := 1; ; try++ {
		s, err := n.still(ctx, g.ID)
		if err == nil {
			f := cmd.ForkGroup
			f.InSync, f.Fork.GivenUp, f.Fork.Unasked = s.inSync, s.last, nil
			if !s.bounded {
				f.Fork.Unasked = s.silent
			}
			_, err = n.ctl.propose(ctx, cmd)
			s.end()
		}
		if err == nil {
			out.GivenUp, out.Unasked = cmd.ForkGroup.Fork.GivenUp, cmd.ForkGroup.Fork.Unasked
			if len(out.Unasked) > 0 {
				out.Warnings = append(out.Warnings, "what "+strings.Join(out.Unasked, ", ")+" had beyond that is given up, too: not enough voters answered to say how far it goes")
			}
			return nil
		}
		var refused *api.Error
		now, ok := n.ctl.state().Group(g.ID)
		moved := errors.Is(err, errSetMoved) || errors.As(err, &refused) && refused.Code == api.CodeConflict && ok && !now.Deleted && now.History == cmd.ForkGroup.Was
		if !moved {
			return err
		}
		if try == sealTries {
			return &api.Error{Code: api.CodeConflict, Op: "restore", Subject: g.Name, Why: err.Error(),
				Hint: "see what it does: lockstep group show " + g.Name + "; when it is quiet, restore it again"}
		}
	}
}

// restoreError is what who asked for a restore is told when the control group did not execute it, or nobody knows.
func restoreError(group string, err error) error {
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeUnavailable {
		return err
	}
	return &api.Error{Code: e.Code, Op: "restore", Subject: group,
		Why:  "it is not known whether the control group has recorded the restore (" + e.Why + ")",
		Hint: "lockstep group show control says whether it works; then lockstep group show " + group + " says which history the group has, and if that is the old one, restore it again"}
}
