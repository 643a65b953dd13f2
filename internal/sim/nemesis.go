package sim

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

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
	rivals       // two voters are told, one after the other, to take over
	crashVoter   // right after a vote was sent; see strikes
	diskError    // the next write of a host fails
	diskFull     // a host's disk has no room for a while
	diskRot      // the logs of one host are gone for good
	bitFlip      // a bit of one host's logs flips
	wipeObserver // an observers' host comes back with nothing
	brokenFrame  // a frame fails its check: the connection ends
	replayOld    // messages of any age come again
	garbage      // messages that no peer may send
	clockJump
	clockRate
	rewire  // observers are to be fed by others
	forgery // an observer comes back with what the group never had
	faultKinds
)

var faultNames = [faultKinds]string{"process killed", "several processes killed", "process paused", "one-way partition",
	"partition", "leader isolated", "slow disk", "lossy network", "leadership moved", "false report of a death",
	"membership changed", "two leaders called at once", "killed after a vote", "disk error", "disk full",
	"log lost for good", "bit flipped in a log", "observer wiped", "broken frame", "old messages replayed", "garbage messages", "clock jumped",
	"clock rate changed", "topology changed",
	"observer with a foreign state"}

func (f fault) String() string { return faultNames[f] }

var allFaults = func() (all []fault) {
	for f := range faultKinds {
		all = append(all, f)
	}
	return all
}()

// maxHosts bounds how many hosts a run ever has.
const maxHosts = 16

// nemesis makes trouble until it is told to heal.
type nemesis struct {
	over bool
}

func (n *nemesis) begin(w *world) {
	w.after(w.shape.active-w.dice.fate.Int64N(20*second), func() { n.ruin(w) })
	if len(w.shape.faults) == 0 {
		return
	}
	var next func()
	next = func() {
		if n.over {
			return
		}
		f := w.shape.draw(w.dice.fate)
		w.trace(traceFault, uint64(f))
		if n.strike(w, f) {
			w.report.Faults[f]++
		}
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

// strike makes one kind of trouble; false if there is nobody whom it could meet now.
func (n *nemesis) strike(w *world, f fault) bool {
	r := w.dice.fate
	h := w.hosts[r.IntN(len(w.hosts))]
	gr := w.groups[r.IntN(len(w.groups))]
	switch f {
	case crashOne:
		return n.crash(w, h, n.downtime(w))
	case crashMany:
		for _, h := range w.hosts {
			if r.IntN(2) == 0 {
				n.crash(w, h, n.downtime(w))
			}
		}
	case pauseOne:
		h.pause()
		n.until(w, second, h.resume)
	case cutOneWay, cutBothWays, isolateLeader, lossyNet, brokenFrame, replayOld:
		return n.network(w, f, gr)
	case slowDisk, diskError, diskFull, diskRot, bitFlip, wipeObserver:
		return n.disk(w, f, h)
	case transferLeader, rivals, falseAlarm, garbage:
		return n.mislead(w, f, gr)
	case clockJump:
		h.skew += int64((r.Float64() - 0.5) * float64(7200*second))
	case clockRate:
		h.drift = int64((r.Float64() - 0.5) * float64(w.shape.tick)) // ticks from half to one and a half times as long
	case changeMembers:
		return n.change(w, gr)
	case forgery:
		return n.forge(w, h)
	case rewire:
		return gr.redraw(r)
	case crashVoter:
		return false // waits for its moment
	}
	return true
}

func (n *nemesis) network(w *world, f fault, gr *group) bool {
	r := w.dice.fate
	ids := make([]uint64, len(w.hosts))
	for i := range ids {
		ids[i] = uint64(i + 1)
	}
	switch f {
	case cutOneWay, cutBothWays:
		r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		at := r.IntN(len(ids) + 1)
		w.net.cut(ids[:at], ids[at:])
		if f == cutBothWays {
			w.net.cut(ids[at:], ids[:at])
		}
		n.until(w, 2*second, w.net.heal)
	case isolateLeader:
		l := gr.leader()
		if l == nil {
			return false
		}
		w.net.cut([]uint64{l.h.id}, ids)
		w.net.cut(ids, []uint64{l.h.id})
		n.until(w, 2*second, w.net.heal)
	case lossyNet:
		w.net.loss = r.Float64() / 2
		n.until(w, 2*second, func() { w.net.loss = 0 })
	case brokenFrame:
		for range 1 + r.IntN(8) {
			w.net.reset(w.hosts[r.IntN(len(ids))], w.hosts[r.IntN(len(ids))])
		}
	case replayOld:
		w.net.replay()
	}
	return true
}

func (n *nemesis) disk(w *world, f fault, h *host) bool {
	switch f {
	case slowDisk:
		h.slow = 100
		n.until(w, 2*second, func() { h.slow = 1 })
	case diskError:
		h.failing = h.up
		return h.up
	case diskFull:
		if h.full {
			return false
		}
		h.fillUp()
		n.until(w, 2*second, func() { h.full = false; h.start() })
	case diskRot:
		if !w.expendable(h) || slices.ContainsFunc(w.hosts, func(h *host) bool { return h.lost }) {
			return false
		}
		n.crash(w, h, 0)
		h.lost, h.lostAt = true, w.now
	case bitFlip:
		n.flipBits(w)
		return false // counted when it happens
	case wipeObserver:
		for _, m := range h.members {
			if m != nil {
				return false
			}
		}
		n.crash(w, h, n.downtime(w))
		_ = h.logs.Close()
		h.logs, h.store, h.level = w.newDisk(h.id), kv.NewMemory(), 0
		for _, o := range h.observers {
			if o != nil {
				o.forged = false
			}
		}
	}
	return true
}

// flipBits alters a few bits of the logs of some host that can be done without; now and then when others have lagged
// for a while, because their disks are slow.
func (n *nemesis) flipBits(w *world) {
	r := w.dice.fate
	var hosts []*host
	for _, h := range w.hosts {
		if w.expendable(h) {
			hosts = append(hosts, h)
		}
	}
	if len(hosts) == 0 {
		return
	}
	h := hosts[r.IntN(len(hosts))]
	if r.IntN(2) == 0 {
		n.alter(w, h)
		return
	}
	for _, other := range w.hosts {
		if l := w.groups[0].leader(); other != h && (l == nil || other != l.h) && r.IntN(4) > 0 {
			other.slow = 300
			n.until(w, 4*second, func() { other.slow = 1 })
		}
	}
	w.after(300*milli+spread(r, 500*milli), func() {
		if !n.over && w.expendable(h) {
			n.alter(w, h)
		}
	})
}

func (n *nemesis) alter(w *world, h *host) {
	r := w.dice.fate
	if !h.logs.flip() {
		return
	}
	for range r.IntN(4) << (4 * r.IntN(2)) { // now and then all over
		h.logs.flip()
	}
	h.doubtful, h.alteredAt = true, w.now
	w.report.Faults[bitFlip]++
	switch r.IntN(8) {
	case 0: // nobody looks, but those who lack something
	case 1, 2: // found while it runs, in what is applied
		h.later(spread(r, 100*milli), h.lookThrough)
	case 3: // or in what is not
		for _, m := range h.members {
			if m.alive() {
				m.losing = true
			}
		}
	default: // found by a start
		n.crash(w, h, milli)
	}
}

// expendable says whether what h has on its disk may be lost for good: of every group that it is in a majority of sound
// voters stays, and no change of membership is under way.
func (w *world) expendable(h *host) bool {
	if !h.up || h.lost {
		return false
	}
	for _, gr := range w.groups {
		if h.members[gr.id-1] == nil {
			continue
		}
		l := gr.leader()
		if l == nil || len(gr.open) > 0 {
			return false
		}
		stays := func(id uint64) bool { m := gr.member(id); return m.h != h && m.sound() }
		if s := l.g.Status(); len(s.Outgoing) > 0 || !majority(s.Voters, stays) || !majority(gr.voters(), stays) {
			return false
		}
	}
	return true
}

// strikes says whether a fault that waits for its moment takes this one.
func (w *world) strikes(f fault) bool {
	if w.over || !w.shape.has(f) || w.dice.fate.IntN(6) != 0 {
		return false
	}
	w.report.Faults[f]++
	return true
}

// mislead sends leadership, or the news about it, where it does not belong.
func (n *nemesis) mislead(w *world, f fault, gr *group) bool {
	r := w.dice.fate
	ms := gr.present()
	one, other := ms[r.IntN(len(ms))], ms[r.IntN(len(ms))]
	l := gr.leader()
	switch {
	case f == falseAlarm:
		one.do(func() { one.g.PeerDown(other.id) })
		other.do(func() { other.g.Unreachable(one.id) })
	case f == garbage:
		n.garble(w, one, other.id)
	case l == nil:
		return false
	default:
		l.do(func() { l.g.Transfer(one.id) })
		if f == rivals {
			l.later(spread(r, milli), func() { l.g.Transfer(other.id) })
		}
	}
	return true
}

// garble sends what no peer may send; the core must refuse it.
func (n *nemesis) garble(w *world, m *member, from uint64) {
	r := w.dice.fate
	types := []raftpb.MessageType{raftpb.MsgHup, raftpb.MsgBeat, raftpb.MsgProp, raftpb.MsgUnreachable, raftpb.MsgSnapStatus,
		raftpb.MsgCheckQuorum, raftpb.MsgTransferLeader, raftpb.MsgForgetLeader, raftpb.MsgStorageAppendResp, raftpb.MsgStorageApplyResp}
	msg := &raftpb.Message{
		Type: types[r.IntN(len(types))].Enum(), From: proto.Uint64(from), To: proto.Uint64(m.id),
		Term: proto.Uint64(r.Uint64N(100)), Index: proto.Uint64(r.Uint64N(1000)), Commit: proto.Uint64(r.Uint64N(1000)),
	}
	if r.IntN(2) == 0 { // or from nobody, or from itself
		msg.Type = raftpb.MsgApp.Enum()
		msg.From = proto.Uint64([]uint64{0, m.id, ^uint64(0)}[r.IntN(3)])
	}
	m.do(func() {
		if m.g.Receive(msg) == nil {
			fail("%s took %v", m, msg)
		}
	})
}

// downtime is a mean: a supervisor's restart, or somebody has to come.
func (n *nemesis) downtime(w *world) int64 {
	if w.dice.fate.IntN(3) == 0 {
		return milli
	}
	return second
}

// crash ends a process; most of its peers notice soon. It comes back.
func (n *nemesis) crash(w *world, h *host, down int64) bool {
	if !h.up || n.over {
		return false
	}
	h.crash()
	for _, other := range w.hosts {
		if other == h || w.dice.fate.IntN(4) == 0 {
			continue
		}
		other.later(spread(w.dice.fate, 20*milli), func() {
			for i, m := range other.members {
				if peer := h.members[i]; m.alive() && peer != nil {
					m.g.PeerDown(peer.id)
					m.pump()
				}
			}
		})
	}
	n.until(w, down, h.start)
	return true
}

// heal ends all trouble: processes run, disks are quick and have room, the network is whole.
func (n *nemesis) heal(w *world) {
	n.over = true
	w.net.heal()
	w.shape.drop, w.shape.duplicate = 0, 0
	if w.cluster != nil {
		w.cluster.settle()
	}
	for _, h := range w.hosts {
		h.slow, h.full, h.failing = 1, false, false
		h.resume()
		if h.doubtful && h.up { // whatever has flipped is to be found
			h.crash()
		}
		h.start()
	}
	n.retire(w)
}

// retire stops, now and then, the replicas that their group has removed: they would campaign forever.
func (n *nemesis) retire(w *world) {
	for _, gr := range w.groups {
		ids, applied := gr.members(), gr.led().Applied
		gr.eachMember(func(m *member) {
			if at := m.rep.Applied().Index; !slices.Contains(ids, m.id) && !seated(gr.seats(), m.id) && at > 0 && at <= applied {
				m.gone = true
				m.stop()
			}
		})
	}
	w.after(second, func() { n.retire(w) })
}

// change has the leader take a step of membership: a learner joins, is promoted, or somebody leaves.
func (n *nemesis) change(w *world, gr *group) bool {
	l := gr.leader()
	if l == nil || gr.changing {
		return false
	}
	s := l.g.Status()
	if len(s.Outgoing) > 0 {
		return false
	}
	cc := gr.step(s)
	if len(cc.Changes) == 0 {
		return false
	}
	l.reconfigure(cc)
	return true
}

// step draws a change of the configuration that s shows, and of the seats. While a log is lost nobody else may leave.
func (gr *group) step(s core.Status) *raftpb.ConfChangeV2 {
	w := gr.w
	r := w.dice.fate
	cc := &raftpb.ConfChangeV2{}
	add := func(t raftpb.ConfChangeType, id uint64) {
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: t.Enum(), NodeId: proto.Uint64(id)})
	}
	lost := func(id uint64) bool { m := gr.member(id); return m == nil || !m.sound() }
	leaver := func(from []uint64) (id uint64) {
		if i := slices.IndexFunc(from, lost); i >= 0 {
			id = from[i]
		} else if !slices.ContainsFunc(append(s.Voters, s.Learners...), lost) {
			id = from[r.IntN(len(from))]
		}
		if m := gr.member(id); m == nil || m.before != 0 && !m.returned {
			return 0 // it has only begun to come back
		}
		gr.unseat(id)
		return id
	}
	learners := slices.DeleteFunc(slices.Clone(s.Learners), lost)
	switch {
	case len(learners) > 0 && r.IntN(2) == 0:
		add(raftpb.ConfChangeAddNode, learners[r.IntN(len(learners))])
		if len(s.Voters) > 1 && r.IntN(2) == 0 { // one for another, by joint consensus
			if id := leaver(s.Voters); id != 0 {
				add(raftpb.ConfChangeRemoveNode, id)
			}
		}
	case r.IntN(2) == 0:
		if h := gr.newcomer(); h != nil {
			m := gr.addMember(h, gr.seat(h))
			m.seatsRead = len(gr.record.states) - 1
			m.start()
			add(raftpb.ConfChangeAddLearnerNode, m.id)
		}
	case len(s.Voters) > 2:
		if id := leaver(s.Voters); id != 0 {
			add(raftpb.ConfChangeRemoveNode, id)
		}
	case len(s.Learners) > 0:
		if id := leaver(s.Learners); id != 0 {
			add(raftpb.ConfChangeRemoveNode, id)
		}
	}
	return cc
}

// newcomer is a host that never held a replica of the group, a new one if need be.
func (gr *group) newcomer() *host {
	for _, h := range gr.w.hosts {
		if h.up && !h.suspect() && h.members[gr.id-1] == nil && h.observers[gr.id-1] == nil && gr.w.dice.fate.IntN(2) == 0 {
			return h
		}
	}
	if len(gr.w.hosts) == maxHosts {
		return nil
	}
	h := gr.w.addHost()
	h.start()
	return h
}
