package sim

import (
	"bytes"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

func writeLine(b *bytes.Buffer, format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }

// fault is a kind of trouble.
type fault int

const (
	crashOne fault = iota
	crashMany
	pauseOne
	cutOneWay
	cutBothWays
	isolateLeader
	slowDisk
	lossyNet
	transferLeader
	falseAlarm
	changeMembers
	rivals     // two voters are told, one after the other, to take over
	crashVoter // right after a vote was sent; see strikes
)

var allFaults = []fault{crashOne, crashMany, pauseOne, cutOneWay, cutBothWays, isolateLeader, slowDisk,
	lossyNet, transferLeader, falseAlarm, changeMembers, rivals, crashVoter}

// maxHosts bounds how many replicas a run ever has.
const maxHosts = 10

// nemesis makes trouble until it is told to heal.
type nemesis struct {
	over     bool
	changing bool
}

func (n *nemesis) begin(w *world) {
	if len(w.shape.faults) == 0 {
		return
	}
	var next func()
	next = func() {
		if n.over {
			return
		}
		f := w.shape.faults[w.dice.fate.IntN(len(w.shape.faults))]
		w.trace(traceFault, uint64(f))
		n.strike(w, f)
		w.after(spread(w.dice.fate, w.shape.pace), next)
	}
	w.after(spread(w.dice.fate, second), next)
}

// until schedules the end of a trouble that lasts a while.
func (n *nemesis) until(w *world, mean int64, end func()) {
	w.after(milli+spread(w.dice.fate, mean), func() {
		if !n.over {
			end()
		}
	})
}

func (n *nemesis) strike(w *world, f fault) {
	r := w.dice.fate
	h := w.hosts[r.IntN(len(w.hosts))]
	ids := make([]uint64, len(w.hosts))
	for i := range ids {
		ids[i] = uint64(i + 1)
	}
	switch f {
	case crashOne:
		n.crash(w, h, n.downtime(w))
	case crashMany:
		for _, h := range w.hosts {
			if r.IntN(2) == 0 {
				n.crash(w, h, n.downtime(w))
			}
		}
	case pauseOne:
		h.pause()
		n.until(w, second, h.resume)
	case cutOneWay, cutBothWays:
		r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		at := r.IntN(len(ids) + 1)
		w.net.cut(ids[:at], ids[at:])
		if f == cutBothWays {
			w.net.cut(ids[at:], ids[:at])
		}
		n.until(w, 2*second, w.net.heal)
	case isolateLeader:
		if l := w.leader(); l != nil {
			w.net.cut([]uint64{l.id}, ids)
			w.net.cut(ids, []uint64{l.id})
			n.until(w, 2*second, w.net.heal)
		}
	case slowDisk:
		h.slow = 100
		n.until(w, 2*second, func() { h.slow = 1 })
	case lossyNet:
		w.net.loss = r.Float64() / 2
		n.until(w, 2*second, func() { w.net.loss = 0 })
	case transferLeader, rivals, falseAlarm:
		n.mislead(w, f, h)
	case changeMembers:
		n.change(w)
	}
}

// strikes says whether a fault that waits for its moment takes this one.
func (w *world) strikes(f fault) bool {
	return !w.over && slices.Contains(w.shape.faults, f) && w.dice.fate.IntN(6) == 0
}

// mislead sends leadership, or the news about it, where it does not belong.
func (n *nemesis) mislead(w *world, f fault, h *host) {
	other := w.hosts[w.dice.fate.IntN(len(w.hosts))]
	if f == falseAlarm {
		h.do(func() { h.g.PeerDown(other.id) })
		other.do(func() { other.g.Unreachable(h.id) })
		return
	}
	l := w.leader()
	if l == nil {
		return
	}
	l.do(func() { l.g.Transfer(h.id) })
	if f == rivals {
		l.later(spread(w.dice.fate, milli), func() { l.g.Transfer(other.id) })
	}
}

// downtime is a mean: a supervisor's restart, or somebody has to come.
func (n *nemesis) downtime(w *world) int64 {
	if w.dice.fate.IntN(3) == 0 {
		return milli
	}
	return second
}

// crash ends a process; most of its peers notice soon. It comes back.
func (n *nemesis) crash(w *world, h *host, down int64) {
	if !h.up {
		return
	}
	h.crash()
	for _, other := range w.hosts {
		if other != h && w.dice.fate.IntN(4) > 0 {
			other.later(spread(w.dice.fate, 20*milli), func() { other.g.PeerDown(h.id) })
		}
	}
	n.until(w, down, func() {
		if !h.up && !h.gone {
			h.start()
		}
	})
}

// leader is a host that believes to lead, if one is up.
func (w *world) leader() *host {
	for _, h := range w.hosts {
		if h.up && !h.paused {
			if role, _, _ := h.g.Lead(); role == core.Leader {
				return h
			}
		}
	}
	return nil
}

// change has the leader take a step of membership: a learner joins, is promoted, or somebody leaves.
func (n *nemesis) change(w *world) {
	l := w.leader()
	if l == nil || n.changing {
		return
	}
	r := w.dice.fate
	s := l.g.Status()
	cc := &raftpb.ConfChangeV2{}
	add := func(t raftpb.ConfChangeType, id uint64) {
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: t.Enum(), NodeId: proto.Uint64(id)})
	}
	var leaves uint64
	switch {
	case len(s.Learners) > 0 && r.IntN(2) == 0:
		add(raftpb.ConfChangeAddNode, s.Learners[r.IntN(len(s.Learners))])
		if len(s.Voters) > 1 && r.IntN(2) == 0 { // one for another, by joint consensus
			leaves = s.Voters[r.IntN(len(s.Voters))]
			add(raftpb.ConfChangeRemoveNode, leaves)
		}
	case len(w.hosts) < maxHosts && r.IntN(2) == 0:
		h := w.addHost(false)
		h.start()
		add(raftpb.ConfChangeAddLearnerNode, h.id)
	case len(s.Voters) > 2:
		leaves = s.Voters[r.IntN(len(s.Voters))]
		add(raftpb.ConfChangeRemoveNode, leaves)
	case len(s.Learners) > 0:
		leaves = s.Learners[0]
		add(raftpb.ConfChangeRemoveNode, leaves)
	default:
		return
	}
	n.changing = true
	w.after(5*second, func() { n.changing = false })
	l.do(func() {
		l.change(cc, func(a core.Answer) {
			if a.Code == core.Rejected {
				fail("replica %d rejected %v in %v/%v", l.id, cc, s.Voters, s.Learners)
			}
			if a.Code == core.Committed {
				w.report.Changes++
			}
		})
	})
}

// heal ends all trouble: processes run, disks are quick, the network is whole.
func (n *nemesis) heal(w *world) {
	n.over = true
	w.net.heal()
	w.shape.drop, w.shape.duplicate = 0, 0
	for _, h := range w.hosts {
		h.slow = 1
		h.resume()
		if !h.up {
			h.start()
		}
	}
	n.retire(w)
}

// retire stops, now and then, the replicas that the group has removed: they would campaign forever.
func (n *nemesis) retire(w *world) {
	members := w.members()
	if len(members) > 0 {
		for _, h := range w.hosts {
			if h.up && !slices.Contains(members, h.id) && h.rep.Applied().Index > 0 {
				h.gone = true
			}
		}
	}
	w.after(second, func() { n.retire(w) })
}
