package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// cluster is a set of groups whose effects are carried out at once, in the order of the replica ids, with
// switches for what a test wants to hold back.
type cluster struct {
	t        *testing.T
	nodes    map[uint64]*node
	ids      []uint64
	wire     []*raftpb.Message
	cut      func(m *raftpb.Message) bool // true: the network drops it
	answers  map[uint64]Answer
	lastNow  int64
	proposed uint64
}

type node struct {
	*Group
	log        *raft.MemoryStorage
	data       [][]byte // payloads applied, in order
	times      []int64
	heldAppend []*Append
	heldApply  []*Apply
	holdAppend bool
	holdApply  bool
	down       bool
}

func newCluster(t *testing.T, voters ...uint64) *cluster {
	c := &cluster{t: t, nodes: map[uint64]*node{}, answers: map[uint64]Answer{}}
	for _, id := range voters {
		c.add(id, &raftpb.ConfState{Voters: voters})
	}
	return c
}

func (c *cluster) add(id uint64, cs *raftpb.ConfState) *node {
	c.t.Helper()
	n := &node{log: raft.NewMemoryStorage()}
	if err := n.log.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: cs,
	}}); err != nil {
		c.t.Fatal(err)
	}
	c.nodes[id] = n
	c.ids = append(c.ids, id)
	c.open(id, 1)
	return n
}

func (c *cluster) open(id, applied uint64) {
	c.t.Helper()
	n := c.nodes[id]
	g, err := New(Config{Group: 7, Replica: id, Nonce: 100 + id, Storage: n.log, Applied: applied})
	if err != nil {
		c.t.Fatal(err)
	}
	n.Group = g
}

// run carries out effects until there are none.
func (c *cluster) run() {
	c.t.Helper()
	for range 10000 {
		busy := false
		for _, id := range c.ids {
			if n := c.nodes[id]; !n.down {
				if e, any := n.Effects(); any {
					busy = true
					c.carryOut(n, e)
				}
			}
		}
		wire := c.wire
		c.wire = nil
		for _, m := range wire {
			n := c.nodes[m.GetTo()]
			if n == nil || n.down || c.nodes[m.GetFrom()].down || c.cut != nil && c.cut(m) {
				continue
			}
			busy = true
			_ = n.Receive(proto.CloneOf(m)) // a refusal is the network's loss
		}
		if !busy {
			return
		}
	}
	c.t.Fatal("the cluster never comes to rest")
}

func (c *cluster) carryOut(n *node, e Effects) {
	c.wire = append(c.wire, e.Send...)
	for _, a := range e.Answers {
		if old, ok := c.answers[a.ID]; ok {
			c.t.Fatalf("id %d answered twice: %v, then %v", a.ID, old, a)
		}
		c.answers[a.ID] = a
	}
	if e.Append != nil {
		n.heldAppend = append(n.heldAppend, e.Append)
	}
	if e.Apply != nil {
		n.heldApply = append(n.heldApply, e.Apply)
	}
	n.release(c.t)
}

func (n *node) release(t *testing.T) {
	for len(n.heldAppend) > 0 && !n.holdAppend {
		a := n.heldAppend[0]
		n.heldAppend = n.heldAppend[1:]
		if a.HardState != nil {
			if err := n.log.SetHardState(a.HardState); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.log.Append(a.Entries); err != nil {
			t.Fatal(err)
		}
		n.Appended(a)
	}
	for len(n.heldApply) > 0 && !n.holdApply {
		a := n.heldApply[0]
		n.heldApply = n.heldApply[1:]
		n.apply(t, a)
	}
}

func (n *node) apply(t *testing.T, a *Apply) {
	results := make([][][]byte, len(a.Entries))
	for i, e := range a.Entries {
		if e.GetType() != raftpb.EntryNormal {
			if _, err := n.ApplyConf(e); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if len(e.GetData()) == 0 {
			continue
		}
		b, err := DecodeBatch(e.GetData())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Proposals {
			n.data = append(n.data, p.Payload)
			n.times = append(n.times, b.Time)
			results[i] = append(results[i], append([]byte("did "), p.Payload...))
		}
	}
	n.Applied(a, results)
}

func (c *cluster) tick(n int) {
	c.t.Helper()
	for range n {
		for _, id := range c.ids {
			if !c.nodes[id].down {
				c.nodes[id].Tick()
			}
		}
		c.run()
	}
}

// elect makes id the leader.
func (c *cluster) elect(id uint64) *node {
	c.t.Helper()
	n := c.nodes[id]
	if err := n.rn.Campaign(); err != nil {
		c.t.Fatal(err)
	}
	c.run()
	if s := n.Status(); s.Role != Leader || !s.TermBegun {
		c.t.Fatalf("replica %d is %v after its campaign, term begun %v", id, s.Role, s.TermBegun)
	}
	return n
}

func (c *cluster) leader() *node {
	c.t.Helper()
	for _, id := range c.ids {
		if n := c.nodes[id]; !n.down && n.Status().Role == Leader {
			return n
		}
	}
	c.t.Fatal("no leader")
	return nil
}

func (c *cluster) propose(n *node, ack Ack, ids ...uint64) {
	ps := make([]Proposal, len(ids))
	for i, id := range ids {
		ps[i] = Proposal{ID: id, Ack: ack, Payload: fmt.Appendf(nil, "p%d", id)}
	}
	c.proposed++
	n.Propose(int64(c.proposed), c.proposed, ps)
}

func (c *cluster) want(id uint64, code Code) Answer {
	c.t.Helper()
	a, ok := c.answers[id]
	if !ok {
		c.t.Fatalf("id %d has no answer, want %v", id, code)
	}
	if a.Code != code {
		c.t.Fatalf("id %d: answer %v, want %v", id, a.Code, code)
	}
	return a
}

func (c *cluster) wantNone(id uint64) {
	c.t.Helper()
	if a, ok := c.answers[id]; ok {
		c.t.Fatalf("id %d: answer %v, want none yet", id, a.Code)
	}
}

func TestProposeCommitsOnEveryReplica(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.propose(n, AckQuorum, 10, 11)
	c.propose(n, AckAll, 12)
	c.run()
	c.tick(1) // followers learn the commit
	a, b := c.want(10, Committed), c.want(11, Committed)
	c.want(12, CommittedAll)
	if a.Position != b.Position || a.Position.Index == 0 || string(b.Result) != "did p11" {
		t.Errorf("answers %+v and %+v", a, b)
	}
	for id, n := range c.nodes {
		if got := bytes.Join(n.data, []byte(" ")); string(got) != "p10 p11 p12" {
			t.Errorf("replica %d applied %q", id, got)
		}
	}
}

func TestFollowerNamesTheLeader(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.elect(2)
	c.propose(c.nodes[1], AckQuorum, 10)
	c.run()
	if a := c.want(10, NotLeader); a.Leader != 2 {
		t.Errorf("leader %d, want 2", a.Leader)
	}
}

func TestLocalAckNeedsTheLeadersSync(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	n.holdAppend = true
	c.propose(n, AckLocal, 10)
	c.run()
	c.wantNone(10)
	c.cut = func(*raftpb.Message) bool { return true }
	n.holdAppend = false
	n.release(t)
	c.run()
	if a := c.want(10, Accepted); a.Position.Index == 0 {
		t.Errorf("position %+v", a.Position)
	}
}

func TestQuorumAckNeedsTheStateToBeApplied(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	n.holdApply = true
	c.propose(n, AckQuorum, 10)
	n.Read(11)
	c.run()
	c.wantNone(10)
	n.holdApply = false
	n.release(t)
	c.run()
	c.want(10, Committed)
	c.want(11, Ready)
}

func TestLostLeadershipLeavesFatesOpen(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	n.holdApply = true
	c.propose(n, AckQuorum, 10) // will be committed, not applied
	c.run()
	c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == 1 || m.GetTo() == 1 }
	c.propose(n, AckQuorum, 11)
	c.propose(n, AckAll, 12)
	c.run()
	c.wantNone(11)
	c.tick(40)
	c.want(11, Unknown)
	c.want(12, Unknown)
	c.wantNone(10)
	n.holdApply = false
	n.release(t)
	c.run()
	c.want(10, Committed)
	c.cut = nil
	c.tick(40)
	for id, n := range c.nodes {
		if got := bytes.Join(n.data, []byte(" ")); string(got) != "p10" {
			t.Errorf("replica %d applied %q", id, got)
		}
	}
}

func TestExpire(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	c.cut = func(m *raftpb.Message) bool { return m.GetTo() == 3 }
	c.propose(n, AckAll, 10)
	c.run()
	c.wantNone(10)
	c.cut = func(*raftpb.Message) bool { return true }
	c.propose(n, AckQuorum, 11, 12)
	n.Read(13)
	c.run()
	for _, id := range []uint64{10, 11, 13, 99} {
		n.Expire(id)
	}
	c.run()
	if a := c.want(10, CommittedQuorumOnly); !slices.Equal(a.Missing, []uint64{3}) || string(a.Result) != "did p10" {
		t.Errorf("answer %+v", a)
	}
	c.want(11, Unknown)
	c.want(13, Unknown)
	c.cut = nil
	c.tick(3)
	c.want(12, Committed)
	if _, ok := c.answers[99]; ok {
		t.Error("an id that was never pending was answered")
	}
}

func TestBusyWhenTooMuchIsUncommitted(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.nodes[1]
	g, err := New(Config{Group: 7, Replica: 1, Nonce: 5, Storage: n.log, Applied: 1, MaxUncommitted: 200})
	if err != nil {
		t.Fatal(err)
	}
	n.Group = g
	c.elect(1)
	c.cut = func(*raftpb.Message) bool { return true }
	big := Proposal{ID: 10, Payload: make([]byte, 150)}
	n.Propose(1, 1, []Proposal{big})
	big.ID = 11
	n.Propose(1, 2, []Proposal{big})
	c.run()
	c.want(11, Busy)
	c.cut = nil
	c.tick(2)
	c.want(10, Committed)
}

func TestProposalsAreCutIntoEntries(t *testing.T) {
	c := newCluster(t, 1)
	n := c.elect(1)
	n.cfg.MaxEntryBytes = 300
	var ps []Proposal
	for i := range uint64(10) {
		ps = append(ps, Proposal{ID: 10 + i, Payload: make([]byte, 50)})
	}
	ps[5].Payload = make([]byte, 1000)
	n.Propose(1, 1, ps)
	c.run()
	positions := map[Position]int{}
	for i := range uint64(10) {
		positions[c.want(10+i, Committed).Position]++
	}
	if len(positions) < 4 || len(positions) > 7 {
		t.Errorf("%d entries", len(positions))
	}
	if len(n.data) != 10 || len(n.data[5]) != 1000 {
		t.Errorf("%d payloads applied, out of order or lost", len(n.data))
	}
}

func TestTimeNeverDecreases(t *testing.T) {
	c := newCluster(t, 1)
	n := c.elect(1)
	for i, now := range []int64{50, 40, 60, 1} {
		n.Propose(now, uint64(i+1), []Proposal{{ID: uint64(i)}})
	}
	c.run()
	if !slices.Equal(n.times, []int64{50, 50, 60, 60}) {
		t.Errorf("times %v", n.times)
	}
}

func TestReadsThroughFollowersAndLoss(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	f := c.nodes[2]
	c.propose(n, AckQuorum, 10)
	c.run()
	c.tick(1)
	committed := c.want(10, Committed).Position.Index
	n.Read(20)
	f.Read(21)
	c.run()
	for _, id := range []uint64{20, 21} {
		if a := c.want(id, Ready); a.Position.Index < committed {
			t.Errorf("read %d at %d, committed %d", id, a.Position.Index, committed)
		}
	}
	c.cut = func(m *raftpb.Message) bool { return m.GetType() == raftpb.MsgReadIndex }
	f.Read(22)
	c.tick(3)
	c.wantNone(22)
	c.cut = nil
	c.tick(readRetryTicks)
	c.want(22, Ready)
}

func TestReadWithoutLeaderIsAskedAgain(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.nodes[2].Read(20)
	c.run()
	c.wantNone(20)
	c.elect(3)
	c.tick(readRetryTicks + 1)
	c.want(20, Ready)
}

func TestAnswersToAnEarlierRunsReadsAreIgnored(t *testing.T) {
	var r reads
	r.waiting = []read{{id: 1, round: 1}}
	ctx := func(nonce, round uint64) []byte {
		b := binary.BigEndian.AppendUint64(nil, 2)
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, nonce), round)
	}
	r.confirm(8, raft.ReadState{Index: 5, RequestCtx: ctx(7, 1)})
	r.confirm(8, raft.ReadState{Index: 5, RequestCtx: []byte("short")})
	if len(r.granted) != 0 {
		t.Fatal("a late answer of another run was taken")
	}
	r.confirm(8, raft.ReadState{Index: 5, RequestCtx: ctx(8, 1)})
	if len(r.granted) != 1 || r.granted[0].index != 5 {
		t.Fatalf("granted %+v", r.granted)
	}
}

// A single voter's raft would answer a read with the commit index that it found on disk, which may be older
// than what it has acknowledged.
func TestSingleVoterReadsAfterItsTermHasBegun(t *testing.T) {
	c := newCluster(t, 1)
	n := c.elect(1)
	c.propose(n, AckQuorum, 10)
	c.run()
	at := c.want(10, Committed).Position.Index
	hs, _, err := n.log.InitialState()
	if err != nil {
		t.Fatal(err)
	}
	hs.Commit = proto.Uint64(1)
	c.open(1, 1)
	n.holdAppend = true
	n.Read(11)
	for n.Status().Role != Leader {
		if s := n.Status(); s.Role != Follower && len(n.heldAppend) > 0 { // votes only
			n.holdAppend = false
			n.release(t)
			n.holdAppend = true
		}
		n.Tick()
		c.run()
	}
	c.wantNone(11)
	n.holdAppend = false
	n.release(t)
	c.run()
	if a := c.want(11, Ready); a.Position.Index < at {
		t.Fatalf("read at %d, acknowledged %d", a.Position.Index, at)
	}
}

func change(typ raftpb.ConfChangeType, id uint64) *raftpb.ConfChangeV2 {
	return &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: typ.Enum(), NodeId: proto.Uint64(id)}}}
}

func TestChange(t *testing.T) {
	c := newCluster(t, 1, 2)
	n := c.elect(1)
	c.nodes[2].Change(9, change(raftpb.ConfChangeAddLearnerNode, 3))
	n.Change(10, change(raftpb.ConfChangeAddLearnerNode, 3))
	n.Change(11, change(raftpb.ConfChangeAddNode, 4))
	c.run()
	c.want(9, NotLeader)
	c.want(10, Committed)
	c.want(11, Busy)
	if s := n.Status(); !slices.Equal(s.Learners, []uint64{3}) || !slices.Equal(s.Voters, []uint64{1, 2}) {
		t.Errorf("status %+v", s)
	}
	n.Change(12, &raftpb.ConfChangeV2{Changes: append(
		change(raftpb.ConfChangeRemoveNode, 1).Changes, change(raftpb.ConfChangeRemoveNode, 2).Changes...)})
	c.run()
	c.want(12, Rejected)
	n.Change(13, &raftpb.ConfChangeV2{}) // leaves a joint configuration, and there is none
	c.run()
	c.want(13, Rejected)
	n.Change(14, &raftpb.ConfChangeV2{Changes: append(
		change(raftpb.ConfChangeAddNode, 3).Changes, change(raftpb.ConfChangeRemoveNode, 2).Changes...)})
	c.run()
	c.add(3, &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}})
	c.tick(5)
	c.want(14, Committed)
	if s := n.Status(); !slices.Equal(s.Voters, []uint64{1, 3}) || len(s.Outgoing) != 0 {
		t.Errorf("voters %v, outgoing %v", s.Voters, s.Outgoing)
	}
}

func TestTransfer(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	n.Transfer(3)
	c.propose(n, AckQuorum, 10)
	c.run()
	c.want(10, Busy)
	if s := c.nodes[3].Status(); s.Role != Leader {
		t.Fatalf("replica 3 is %v", s.Role)
	}
}

func TestDeadLeaderIsReplacedWithinFourTicks(t *testing.T) {
	for _, size := range []uint64{3, 5, 7} {
		for late := range size { // one of them notices the death late
			var voters []uint64
			for id := uint64(1); id <= size; id++ {
				voters = append(voters, id)
			}
			c := newCluster(t, voters...)
			c.elect(2)
			c.tick(2)
			c.nodes[2].down = true
			for _, id := range voters {
				if id != 2 && id != late {
					c.nodes[id].PeerDown(2)
				}
			}
			c.run()
			if n := c.nodes[late]; n != nil && late != 2 {
				n.PeerDown(2)
			}
			c.tick(4)
			c.leader()
		}
	}
}

func TestWrongReportOfDeathHealsItself(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	term := n.Status().Term
	c.nodes[2].PeerDown(1)
	c.run()
	c.tick(30)
	if s := n.Status(); s.Role != Leader || s.Term != term {
		t.Fatalf("leader is %v at term %d, was leader at %d", s.Role, s.Term, term)
	}
}

func TestSyncIsAskedForVotesTermsAndEntriesOnly(t *testing.T) {
	c := newCluster(t, 1, 2)
	n := c.elect(1)
	f := c.nodes[2]
	f.holdAppend = true
	c.propose(n, AckQuorum, 10)
	c.run()
	if len(f.heldAppend) != 1 || !f.heldAppend[0].Sync || len(f.heldAppend[0].Entries) != 1 {
		t.Fatalf("entries: appends %+v", f.heldAppend)
	}
	f.holdAppend = false
	f.release(t)
	f.holdAppend = true
	c.run()
	for _, a := range f.heldAppend {
		if a.Sync {
			t.Errorf("a commit index alone asks for a sync: %+v", a.HardState)
		}
	}
}

func TestOpenReconcilesLogAndState(t *testing.T) {
	c := newCluster(t, 1)
	n := c.elect(1)
	c.propose(n, AckQuorum, 10)
	c.run()
	applied := n.Status().Applied
	hs, _, err := n.log.InitialState()
	if err != nil {
		t.Fatal(err)
	}
	hs.Commit = proto.Uint64(1) // written without a sync, lost
	c.open(1, applied)
	if s := n.Status(); s.Commit != applied || s.Applied != applied {
		t.Errorf("commit %d, applied %d, want %d", s.Commit, s.Applied, applied)
	}
	if err := n.log.Compact(applied); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at, term uint64
		want     error
	}{{applied + 1, 0, ErrLogBehind}, {applied, 99, ErrLogBehind}, {1, 1, ErrLogAhead}} {
		_, err := New(Config{Group: 7, Replica: 1, Nonce: 1, Storage: n.log, Applied: c.at, AppliedTerm: c.term})
		if !errors.Is(err, c.want) {
			t.Errorf("applied %+v: error %v", c, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	log := raft.NewMemoryStorage()
	for name, cfg := range map[string]Config{
		"no replica":   {Nonce: 1, Storage: log},
		"no nonce":     {Replica: 1, Storage: log},
		"no storage":   {Replica: 1, Nonce: 1},
		"short ticks":  {Replica: 1, Nonce: 1, Storage: log, ElectionTicks: 2},
		"reserved id":  {Replica: raft.LocalApplyThread, Nonce: 1, Storage: log},
		"bad inflight": {Replica: 1, Nonce: 1, Storage: log, MaxInflight: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPanicsNameTheGroup(t *testing.T) {
	c := newCluster(t, 1, 2)
	defer func() {
		f, ok := recover().(*Fault)
		if !ok || f.Group != 7 || f.Replica != 1 || f.Op != "Receive" {
			t.Fatalf("panic %+v", f)
		}
	}()
	_ = c.nodes[1].Receive(&raftpb.Message{ // claims that an entry is committed which this log has lost
		Type: raftpb.MsgHeartbeat.Enum(), From: proto.Uint64(2), To: proto.Uint64(1),
		Term: proto.Uint64(3), Commit: proto.Uint64(99),
	})
	t.Fatal("no panic")
}

func TestMessagesThatNoPeerMaySendAreRefused(t *testing.T) {
	c := newCluster(t, 1, 2)
	for _, typ := range []raftpb.MessageType{raftpb.MsgHup, raftpb.MsgProp, raftpb.MsgForgetLeader,
		raftpb.MsgStorageAppendResp, raftpb.MsgTransferLeader, raftpb.MsgSnapStatus} {
		m := &raftpb.Message{Type: typ.Enum(), From: proto.Uint64(2), To: proto.Uint64(1)}
		if err := c.nodes[1].Receive(m); err == nil {
			t.Errorf("%v was taken", typ)
		}
	}
	m := &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: proto.Uint64(raft.LocalAppendThread)}
	if err := c.nodes[1].Receive(m); err == nil {
		t.Error("a message of the local storage was taken from the network")
	}
}
