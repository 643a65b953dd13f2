package core

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"
)

// waiter is what is remembered of one proposal.
type waiter struct {
	id       uint64
	client   [16]byte // as long as it counts in Group.aloft; else zero
	ack      Ack
	answered bool
}

// inflight is one proposed entry. at is zero until raft has given it a position.
type inflight struct {
	at      Position
	waiters []waiter
	local   bool // some of waiters are AckLocal
	change  bool
	// accepted is how many of waiters were answered Accepted.
	accepted int
}

// queue holds the entries of this leadership in log order.
type queue struct {
	items []inflight
	head  int // index of the oldest
	next  int // index of the oldest without a position
}

func (q *queue) push(f inflight) {
	if q.head > 64 && q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.next, q.head = q.items[:n], q.next-q.head, 0
	}
	q.items = append(q.items, f)
}

func (q *queue) pop() inflight {
	f := q.items[q.head]
	q.items[q.head] = inflight{}
	q.head++
	q.next = max(q.next, q.head)
	return f
}

func (q *queue) live() []inflight { return q.items[q.head:] }

// Propose asks for ps to be committed; each is answered later, exactly once. now is the leader's clock (Unix
// ns), batch a number that is unique in this run. Proposals that follow each other share an entry up to
// Config.MaxEntryBytes; all entries go to raft in one step. AckLocal of a write that is not certain to be executed
// (Config.Executes) is changed to AckQuorum, in ps too.
func (g *Group) Propose(now int64, batch uint64, ps []Proposal) {
	defer g.blame("Propose")
	if len(ps) == 0 {
		return
	}
	if g.role != Leader {
		g.refuse(ps, NotLeader, g.leader)
		return
	}
	if code, ok := g.roomFor(); !ok {
		g.refuse(ps, code, 0)
		return
	}
	g.now = max(g.now, now)
	waiters := make([]waiter, len(ps))
	for i := range ps {
		waiters[i] = g.takeOff(&ps[i])
	}
	level := uint64(FirstLevel)
	if g.cfg.Level != nil {
		level = g.cfg.Level()
	}
	var entries []*raftpb.Entry
	var cuts []int
	for from := 0; from < len(ps); {
		to := from + g.fill(ps[from:])
		b := Batch{Level: level, Proposer: g.cfg.Replica, ID: batch, Time: g.now, Proposals: ps[from:to]}
		entries = append(entries, &raftpb.Entry{Data: EncodeBatch(&b)})
		cuts = append(cuts, to)
		from = to
	}
	if code, leader := g.step(entries); code != Committed {
		g.land(waiters)
		g.refuse(ps, code, leader)
		return
	}
	from := 0
	for _, to := range cuts {
		ws := waiters[from:to:to]
		local := slices.ContainsFunc(ws, func(w waiter) bool { return w.ack == AckLocal })
		g.pending.push(inflight{waiters: ws, local: local})
		from = to
	}
}

// InFlight is the number of entries proposed here that are not applied yet or given up.
func (g *Group) InFlight() int { return len(g.pending.live()) }

// fill returns how many of ps, at least one, fit into an entry.
func (g *Group) fill(ps []Proposal) int {
	size := uint64(0)
	for i := range ps {
		size += uint64(proposalBytes(&ps[i]))
		if i > 0 && size > g.cfg.MaxEntryBytes {
			return i
		}
	}
	return len(ps)
}

// step hands entries to raft: Committed stands for taken, else the answer to give.
func (g *Group) step(entries []*raftpb.Entry) (code Code, leader uint64) {
	err := g.rn.Step(&raftpb.Message{
		Type: raftpb.MsgProp.Enum(), From: proto.Uint64(g.cfg.Replica), Entries: entries,
	})
	if err == nil {
		return Committed, 0
	}
	if !errors.Is(err, raft.ErrProposalDropped) {
		panic(fmt.Errorf("step proposal: %w", err))
	}
	if s := g.rn.BasicStatus(); s.RaftState != raft.StateLeader {
		return NotLeader, s.Lead
	}
	return Busy, 0
}

func (g *Group) refuse(ps []Proposal, code Code, leader uint64) {
	g.answers = slices.Grow(g.answers, len(ps))
	for i := range ps {
		g.answers = append(g.answers, Answer{ID: ps[i].ID, Code: code, Leader: leader})
	}
}

// Change asks for a change of the configuration: one at a time (else Busy), answered Committed when applied
// here. Rejected: the present configuration does not allow it. cc's Context is used by the core.
func (g *Group) Change(id uint64, cc *raftpb.ConfChangeV2) {
	defer g.blame("Change")
	answer := Answer{ID: id}
	switch {
	case g.role != Leader:
		answer.Code, answer.Leader = NotLeader, g.leader
	case g.change:
		answer.Code = Busy
	default:
		if answer.Code, answer.Leader = g.proposeChange(cc); answer.Code == Committed {
			g.change = true
			g.pending.push(inflight{change: true, waiters: []waiter{{id: id}}})
			return
		}
	}
	g.answers = append(g.answers, answer)
}

func (g *Group) proposeChange(cc *raftpb.ConfChangeV2) (Code, uint64) {
	s := g.rn.Status()
	if s.RaftState != raft.StateLeader {
		return NotLeader, s.Lead
	}
	if err := checkChange(&s, cc); err != nil {
		return Rejected, 0
	}
	cc = proto.CloneOf(cc)
	// Never empty, so that the entry is told from the one by which raft itself leaves a joint
	// configuration.
	cc.Context = binary.BigEndian.AppendUint64(nil, g.cfg.Nonce)
	data, err := proto.Marshal(cc)
	if err != nil {
		return Rejected, 0
	}
	entries := []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum(), Data: data}}
	if code, leader := g.step(entries); code != Committed {
		return code, leader
	}
	if entries[0].GetType() != raftpb.EntryConfChangeV2 {
		return Busy, 0 // raft put an empty entry in its place: an earlier change is not applied yet
	}
	return Committed, 0
}

// checkChange tries cc on a copy of the configuration: an impossible change that reached the log would stop
// every replica. Raft lets no second change in before this one is applied, so the answer stays true.
func checkChange(s *raft.Status, cc *raftpb.ConfChangeV2) error {
	progress := make(tracker.ProgressMap, len(s.Progress))
	for id, pr := range s.Progress {
		progress[id] = &pr
	}
	changer := confchange.Changer{
		Tracker:   tracker.ProgressTracker{Config: s.Config, Progress: progress, MaxInflight: 1},
		LastIndex: s.GetCommit(),
	}
	var err error
	if cc.LeaveJoint() {
		_, _, err = changer.LeaveJoint()
	} else if autoLeave, ok := cc.EnterJoint(); ok {
		_, _, err = changer.EnterJoint(autoLeave, cc.GetChanges()...)
	} else {
		_, _, err = changer.Simple(cc.GetChanges()...)
	}
	return err
}

// ConfChange decodes an entry that changes the configuration; ok is false if e is another kind of entry.
func ConfChange(e *raftpb.Entry) (cc *raftpb.ConfChangeV2, ok bool, err error) {
	switch e.GetType() {
	case raftpb.EntryConfChangeV2:
		cc = &raftpb.ConfChangeV2{}
		err = proto.Unmarshal(e.GetData(), cc)
	case raftpb.EntryConfChange:
		v1 := &raftpb.ConfChange{}
		err = proto.Unmarshal(e.GetData(), v1)
		cc = v1.AsV2()
	default:
		return nil, false, nil
	}
	if err != nil {
		return nil, true, fmt.Errorf("decode configuration change %d: %w", e.GetIndex(), err)
	}
	return cc, true, nil
}

// ApplyConf puts the change that e carries in force and returns the configuration that results. It is called
// in the order of the log, once for each such entry of an Apply and before Applied, also when the state
// already covers the entry. If it is of before a state that raft went on from meanwhile, that state's configuration stays in
// force. An error means that the entry cannot be decoded: the replica must not go on.
func (g *Group) ApplyConf(e *raftpb.Entry) (*raftpb.ConfState, error) {
	defer g.blame("ApplyConf")
	cc, _, err := ConfChange(e)
	if err != nil {
		return nil, fmt.Errorf("group %d: apply configuration: %w", g.cfg.Group, err)
	}
	if e.GetIndex() <= g.restored.GetIndex() {
		return g.restored.GetConfState(), nil
	}
	return g.rn.ApplyConfChange(cc), nil
}

// Expire gives up on a pending proposal, read or change: it is answered at once, Unknown, or
// CommittedQuorumOnly for an AckAll proposal that is committed but not everywhere. An id that is not pending
// is ignored.
func (g *Group) Expire(id uint64) {
	defer g.blame("Expire")
	for i := range g.waitAll {
		if g.waitAll[i].id == id {
			w := g.waitAll[i]
			g.waitAll = slices.Delete(g.waitAll, i, i+1)
			g.answers = append(g.answers, quorumOnly(w, g.missing(w.at.Index)))
			return
		}
	}
	for _, f := range g.pending.live() {
		for j := range f.waiters {
			if w := &f.waiters[j]; w.id == id && !w.answered {
				w.answered = true
				g.answers = append(g.answers, Answer{ID: id, Code: Unknown, Position: f.at})
				return
			}
		}
	}
	if g.reads.drop(id) {
		g.answers = append(g.answers, Answer{ID: id, Code: Unknown})
	}
}

// assign gives the oldest pending entries their positions: while this replica leads, an entry of its term
// with a payload is one that it proposed, and raft keeps their order.
func (g *Group) assign(entries []*raftpb.Entry) {
	q := &g.pending
	for _, e := range entries {
		if q.next == len(q.items) {
			return
		}
		if e.GetTerm() == g.term && len(e.GetData()) > 0 {
			q.items[q.next].at = Position{Term: e.GetTerm(), Index: e.GetIndex()}
			q.next++
		}
	}
}

// accept answers the AckLocal proposals up to index, which are durable here.
func (g *Group) accept(index uint64) {
	for i := g.pending.head; i < g.pending.next; i++ {
		f := &g.pending.items[i]
		if f.at.Index > index {
			return
		}
		if !f.local {
			continue
		}
		for j := range f.waiters {
			if w := &f.waiters[j]; w.ack == AckLocal && !w.answered {
				w.answered = true
				f.accepted++
				g.answers = append(g.answers, Answer{ID: w.id, Code: Accepted, Position: f.at, Place: uint32(j)})
			}
		}
	}
}

// resolve answers what waited for the entry at at.
func (g *Group) resolve(at Position, results [][]byte) {
	q := &g.pending
	for q.head < q.next && q.items[q.head].at.Index <= at.Index {
		f := q.pop()
		g.land(f.waiters)
		if f.change {
			g.change = false
		}
		if f.at != at {
			g.doubt(&f)
			g.abandon(&f)
			continue
		}
		for j := range f.waiters {
			w := &f.waiters[j]
			if w.answered {
				continue
			}
			var result []byte
			if j < len(results) {
				result = results[j]
			}
			if w.ack == AckAll {
				g.awaitAll(waiting{id: w.id, at: at, result: result})
				continue
			}
			g.answers = append(g.answers, Answer{ID: w.id, Code: Committed, Position: at, Result: result})
		}
	}
}

// lose ends a leadership: the fate of what is not known to be committed is open.
func (g *Group) lose() {
	if g.role != Leader {
		return
	}
	q := &g.pending
	keep := q.head
	for keep < q.next && q.items[keep].at.Index <= g.applying {
		keep++ // being applied, hence committed: Applied answers it
	}
	for i := keep; i < len(q.items); i++ {
		g.doubt(&q.items[i])
		g.land(q.items[i].waiters)
		g.abandon(&q.items[i])
		if q.items[i].change {
			g.change = false
		}
	}
	clear(q.items[keep:])
	q.items, q.next = q.items[:keep], keep
	g.loseAll()
}

// abandon answers Unknown to what still waits in f.
func (g *Group) abandon(f *inflight) {
	for j := range f.waiters {
		if w := &f.waiters[j]; !w.answered {
			w.answered = true
			g.answers = append(g.answers, Answer{ID: w.id, Code: Unknown, Position: f.at})
		}
	}
}
