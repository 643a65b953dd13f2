package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

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

func change(typ raftpb.ConfChangeType, id uint64) *raftpb.ConfChangeV2 {
	return &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: typ.Enum(), NodeId: proto.Uint64(id)}}}
}

// TestChangeOfBeforeAState: changes that were committed before raft went on from a state, and are applied afterwards,
// leave that state's configuration alone: it includes them, and what came later.
func TestChangeOfBeforeAState(t *testing.T) {
	for name, between := range map[string]func(n *node){
		"at once":       func(*node) {},
		"after effects": func(n *node) { n.Effects() },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, 2, 3)
			leader, late := c.elect(1), c.nodes[3]
			late.holdApply = true
			leader.Change(10, change(raftpb.ConfChangeAddLearnerNode, 4))
			c.run()
			c.want(10, Committed)
			c.tick(2) // the follower hears of the commit
			changes := late.heldApply
			if len(changes) == 0 {
				t.Fatal("the follower was told of nothing to apply")
			}
			s := late.Status()
			snap := &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: proto.Uint64(1), To: proto.Uint64(3), Term: proto.Uint64(s.Term),
				Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(s.Commit + 9), Term: proto.Uint64(s.Term),
					ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3, 4, 5}, VotersOutgoing: []uint64{1, 2, 3, 4}, AutoLeave: proto.Bool(true)}}}}
			if err := late.Receive(snap); err != nil {
				t.Fatal(err)
			}
			between(late)
			for _, a := range changes {
				late.apply(t, a)
			}
			if s := late.Status(); !slices.Equal(s.Voters, []uint64{1, 2, 3, 4, 5}) || !slices.Equal(s.Outgoing, []uint64{1, 2, 3, 4}) || len(s.Learners) > 0 {
				t.Errorf("voters %d, before %d, learners %d", s.Voters, s.Outgoing, s.Learners)
			}
		})
	}
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

// TestSilentLeaderIsReplaced: without a word about what became of the leader, there is a new one an election timeout and
// few ticks after its last heartbeat, however raft's own timeouts, which are up to twice as long, fall.
func TestSilentLeaderIsReplaced(t *testing.T) {
	for _, size := range []uint64{3, 5, 7} {
		for range 20 {
			var voters []uint64
			for id := uint64(1); id <= size; id++ {
				voters = append(voters, id)
			}
			c := newCluster(t, voters...)
			c.elect(2)
			c.tick(2)
			c.nodes[2].down = true
			c.tick(10 + 4)
			c.leader()
		}
	}
}

// TestSlowLeaderStays: as long as something of the leader arrives within an election timeout, nobody takes its place.
func TestSlowLeaderStays(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	n := c.elect(1)
	term := n.Status().Term
	at := 0
	c.cut = func(m *raftpb.Message) bool { return m.GetFrom() == 1 && at%8 > 1 }
	for at = range 400 {
		c.tick(1)
		if s := n.Status(); s.Role != Leader || s.Term != term {
			t.Fatalf("after %d ticks the leader is %v at term %d, was leader at %d", at, s.Role, s.Term, term)
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

// A log may end before a state that was installed, or hold there what was never committed.
func TestLogFits(t *testing.T) {
	log := raft.NewMemoryStorage() // entries 5 to 7, of terms 2, 2 and 3
	if err := log.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(4), Term: proto.Uint64(1), ConfState: &raftpb.ConfState{},
	}}); err != nil {
		t.Fatal(err)
	}
	for i, term := range []uint64{2, 2, 3} {
		e := &raftpb.Entry{Index: proto.Uint64(uint64(5 + i)), Term: proto.Uint64(term)}
		if err := log.Append([]*raftpb.Entry{e}); err != nil {
			t.Fatal(err)
		}
	}
	for at, want := range map[Position]bool{
		{1, 4}: true, {2, 6}: true, {3, 7}: true, {1, 2}: true, // before the log: the state is short, not the log
		{2, 4}: false, {3, 6}: false, {3, 8}: false,
	} {
		if got, err := LogFits(log, at); err != nil || got != want {
			t.Errorf("%+v: %v, %v, want %v", at, got, err, want)
		}
	}
	// Raft has applied up to 5: what follows is committed only if the state goes on from it.
	for at, want := range map[Position]uint64{
		{2, 6}: 6, {3, 7}: 7, {1, 2}: 2, {3, 6}: 5, {4, 7}: 5, {3, 8}: 5, {2, 4}: 4,
	} {
		if got, err := CommittedIn(log, at, 5); err != nil || got != want {
			t.Errorf("%+v: committed to %d, %v, want %d", at, got, err, want)
		}
	}
}

func TestHardStateFrom(t *testing.T) {
	log := raft.NewMemoryStorage()
	if err := log.SetHardState(&raftpb.HardState{Term: proto.Uint64(4), Vote: proto.Uint64(2), Commit: proto.Uint64(9)}); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[Position]*raftpb.HardState{
		{5, 24}: {Term: proto.Uint64(5), Vote: proto.Uint64(0), Commit: proto.Uint64(24)},
		{4, 24}: {Term: proto.Uint64(4), Vote: proto.Uint64(2), Commit: proto.Uint64(24)},
		{3, 7}:  {Term: proto.Uint64(4), Vote: proto.Uint64(2), Commit: proto.Uint64(9)},
	} {
		if got, err := HardStateFrom(log, at); err != nil || !proto.Equal(got, want) {
			t.Errorf("%+v: %v, %v, want %v", at, got, err, want)
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
