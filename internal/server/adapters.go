package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/files"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// serviceContent is the transport service behind files.Peers.Dial: a group id, then what files.Agent serves.
const serviceContent = "files.content"

// groupVoters tells sessions and observers where a group's voters are.
type groupVoters struct {
	n     *node
	group uint64
}

func (v groupVoters) Voters() []uint64 { return v.n.votersOf(v.group) }

// groupLog is the group as its agent sees it.
type groupLog struct{ h *holding }

func (l groupLog) Propose(ctx context.Context, payload []byte, lacking []uint64) (uint64, []byte, error) {
	ack := l.ack()
	if len(lacking) > 0 {
		ack = core.AckQuorum // to wait for everybody a second time could not make it more
	}
	a, err := l.h.session.Propose(ctx, ack, payload)
	switch {
	case err == nil && len(lacking) > 0:
		l.h.noteQuorumOnly(l.h.replicasOf(lacking))
	case a.Code == core.CommittedQuorumOnly:
		l.h.noteQuorumOnly(a.Missing)
	}
	if err != nil {
		err = l.h.n.noRoom(ctx, "write", l.h.group.Name, l.h.group.ID, err)
	}
	return a.Position.Index, a.Result, err
}

// replicasOf are the group's replicas on some nodes.
func (h *holding) replicasOf(nodes []uint64) (replicas []uint64) {
	if g, ok := h.n.ctl.state().Group(h.group.ID); ok {
		for _, m := range g.Members {
			if contains(nodes, m.Node) {
				replicas = append(replicas, m.Replica)
			}
		}
	}
	return replicas
}

// ack is at least quorum: what a binding must know of its change is the machine's result.
func (l groupLog) ack() core.Ack {
	if g, ok := l.h.n.ctl.state().Group(l.h.group.ID); ok && g.Ack == "all" {
		return core.AckAll
	}
	return core.AckQuorum
}

// Replay implements files.Replayer. An observer has no log; what it lacks it fetches.
func (l groupLog) Replay(ctx context.Context, after, upTo uint64, fn func(index uint64, payload []byte) error) error {
	if l.h.grp == nil {
		return nil
	}
	return l.h.grp.Replay(ctx, after, upTo, fn)
}

// Fence implements files.Log. What a process before this one proposed may wait in the leader's log for a majority, where a
// linearizable read does not see it: an entry of our own is committed behind it, or by a leader that does not have it. If
// all disks are full nothing more is taken, and the read has to do.
func (l groupLog) Fence(ctx context.Context) error {
	if _, err := l.h.session.Probe(ctx, core.AckQuorum); err != nil && !errors.Is(err, engine.ErrFull) {
		return err
	}
	_, err := l.h.member.Barrier(ctx)
	return err
}

func (l groupLog) Applied() uint64        { return l.h.member.Applied().Index }
func (l groupLog) View() (kv.View, error) { return l.h.member.View(), nil }
func (l groupLog) Backlog() int           { return l.h.session.Backlog() }

// groupPeers are the other members of the group, for contents.
type groupPeers struct{ h *holding }

func (p groupPeers) List() (peers []files.Peer) {
	n := p.h.n
	st := n.ctl.state()
	g, ok := st.Group(p.h.group.ID)
	if !ok {
		return nil
	}
	down := map[uint64]bool{}
	for _, s := range n.net.Peers() {
		// What is known of a peer comes from raft links, which observers do not have: one that was down
		// a while ago is worth another try.
		down[s.Node] = !s.Up && s.Why != 0 && time.Since(s.Since) < downFor
	}
	for _, m := range g.Members {
		if m.Node != n.self {
			peers = append(peers, files.Peer{ID: m.Node, Name: n.nameOf(m.Node), Up: !down[m.Node]})
		}
	}
	return peers
}

// downFor is how long a peer that was found down is not tried again for contents.
const downFor = 2 * time.Second

func (p groupPeers) Dial(ctx context.Context, node uint64) (net.Conn, error) {
	conn, err := p.h.n.net.Open(ctx, node, serviceContent)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(groupBytes(p.h.group.ID)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open contents of group %s at %s: %w", p.h.group.Name, p.h.n.nameOf(node), err)
	}
	return conn, nil
}

// Holders implements files.Peers.
func (p groupPeers) Holders() files.Holders {
	g, ok := p.h.n.ctl.state().Group(p.h.group.ID)
	if !ok {
		return files.Holders{}
	}
	return holdersOf(g, p.h.n.self)
}

// holdersOf is who must hold a content of self's before an entry may name it: as many voters as are a quorum with self, if
// it votes; with ack all the in-sync set as well. Members that do not vote get contents too, but stand in for nobody. A
// replica of the set that has lost its seat is on its way out of the set, and not waited for.
func holdersOf(g *control.Group, self uint64) (h files.Holders) {
	if g.Ack == "local" {
		return h
	}
	h.Quorum = len(g.Voters())/2 + 1
	for _, m := range g.Voters() {
		if m.Node == self {
			h.Quorum--
		} else {
			h.Voters = append(h.Voters, m.Node)
		}
	}
	if g.Ack != "all" {
		return h
	}
	for _, m := range g.Members {
		if m.Node != self && contains(g.InSync.Replicas, m.Replica) {
			h.All = append(h.All, m.Node)
		}
	}
	h.Hint = fmt.Sprintf("whoever is down or behind for more than %s leaves the in-sync set (lockstep group show %s); lockstep group set %s --ack quorum waits for a majority only",
		g.InSyncBound(), g.Name, g.Name)
	return h
}
