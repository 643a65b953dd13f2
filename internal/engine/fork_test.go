package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// put writes until it is committed, and returns the position and how many writes the group has executed.
func put(ctx context.Context, t *testing.T, s *Session, text string) (at core.Position, count uint64) {
	t.Helper()
	a, err := s.Propose(ctx, core.AckQuorum, []byte(text))
	if err != nil {
		t.Fatalf("write %s: %v", text, err)
	}
	return a.Position, binary.BigEndian.Uint64(a.Result)
}

// recoverAt gives a member's replica a new history, as a stopped and started group, and returns it.
func recoverAt(t *testing.T, m *member, node uint64, history byte) *Group {
	t.Helper()
	if err := m.engine.StopGroup(testGroup, false); err != nil {
		t.Fatal(err)
	}
	if _, err := m.engine.Recover(RecoverConfig{Group: testGroup, Replica: node, History: [16]byte{history}}); err != nil {
		t.Fatal(err)
	}
	return restart(t, m, node)
}

func restart(t *testing.T, m *member, node uint64) *Group {
	t.Helper()
	nodes := map[uint64]uint64{1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
	g, err := m.engine.StartGroup(GroupConfig{ID: testGroup, Replica: node, Machine: counter{}, Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	m.group = g
	return g
}

func addVoter(ctx context.Context, t *testing.T, leader *Group, id uint64) {
	t.Helper()
	for _, kind := range []raftpb.ConfChangeType{raftpb.ConfChangeAddLearnerNode, raftpb.ConfChangeAddNode} {
		cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: kind.Enum(), NodeId: &id}}}
		for {
			a := leader.Change(ctx, leader.Fresh().Term, cc)
			if a.Code == core.Committed {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s %d: %v", kind, id, a.Code)
			}
		}
	}
}

// TestRecoverALostMajority: two of three are gone. The third goes on alone with everything that was acknowledged
// while it took part. When the two come back they still are a majority of the old configuration: they are kept
// apart, told, and return by TRUNC and DIFF, or by SNAP if they went on meanwhile.
func TestRecoverALostMajority(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	s := members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	var last core.Position
	for i := range 20 {
		last, _ = put(ctx, t, s, fmt.Sprint("before ", i))
	}
	// The other two are a majority without the survivor: it has what was acknowledged once it has taken part.
	if err := members[1].group.WaitApplied(ctx, last.Index); err != nil {
		t.Fatal(err)
	}
	m.kill(2)
	m.kill(3)

	g := recoverAt(t, members[1], 1, 2)
	at, count := put(ctx, t, s, "alone")
	if count != 21 {
		t.Fatalf("the survivor has executed %d writes, want 21", count)
	}
	if v := g.Fresh().Voters; len(v) != 1 || v[0] != 1 {
		t.Fatalf("voters %v, want the survivor alone", v)
	}

	// The old majority comes back, does not know, and goes on.
	two := boot(t, m, 2, []uint64{1, 2, 3}, members[2].logs, members[2].state)
	forked := <-two.forked
	if !forked.Superseded || forked.Node != 1 || forked.Line.History != [16]byte{2} || forked.Line.Before != [16]byte{1} {
		t.Fatalf("node 2 was told %+v", forked)
	}
	// The two may have gone on without the survivor, with the first entry of a leader for instance: the fork is where
	// the survivor stood, and nothing that was acknowledged is behind it.
	if forked.Line.Fork.Index < last.Index {
		t.Errorf("write %d was acknowledged, the fork is at %d", last.Index, forked.Line.Fork.Index)
	}
	three := boot(t, m, 3, []uint64{1, 2, 3}, members[3].logs, members[3].state)
	old := two.engine.NewSession(testGroup, voters{2, 3}, [16]byte{2})
	if _, count := put(ctx, t, old, "in the old history"); count != 21 {
		t.Errorf("the old history has %d writes, want 21", count)
	}
	if _, count := put(ctx, t, s, "in the new history"); count != 22 {
		t.Errorf("the new history has %d writes, want 22", count)
	}

	// Three went on after the fork: its state cannot be taken along.
	if err := three.group.WaitApplied(ctx, forked.Line.Fork.Index+1); err != nil {
		t.Fatal(err)
	}
	m.kill(3)
	m.kill(2)
	three = reopen(m, 3, three)
	if kept, err := three.engine.Rebase(testGroup, forked.Line); err != nil || kept {
		t.Fatalf("rebase of a replica beyond the fork: kept %v, %v", kept, err)
	}
	restart(t, three, 3)
	addVoter(ctx, t, g, 3)
	if err := three.group.WaitApplied(ctx, at.Index); err != nil {
		t.Fatal(err)
	}
	if c := three.group.Catchup(); c.By != ModeSnap {
		t.Errorf("three came back by %s: %s", c.Mode, c.Why)
	}
	same(t, three.group, g)
}

// reopen starts a node again without its group.
func reopen(m *mesh, node uint64, old *member) *member {
	e := Open(Config{
		Node: node, Logs: old.logs, State: old.state, Transport: port{m, node}, Now: time.Now, Tick: 20 * time.Millisecond,
		Seed: node<<40 + 1<<32, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fault: func(err error) { panic(err) },
	})
	m.mu.Lock()
	m.nodes[node] = e
	m.mu.Unlock()
	return &member{e, nil, old.logs, old.state, nil}
}

// TestRebaseKeepsAStateBelowTheFork: who stands below the fork goes on from there, with DIFF, and its old
// configuration, in which it had a majority with another one, counts no more.
func TestRebaseKeepsAStateBelowTheFork(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	s := members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	put(ctx, t, s, "a")
	m.kill(2)
	b, _ := put(ctx, t, s, "b")
	if err := members[1].group.WaitApplied(ctx, b.Index); err != nil {
		t.Fatal(err)
	}
	m.kill(3)
	g := recoverAt(t, members[1], 1, 2)
	at, _ := put(ctx, t, s, "c")

	for _, node := range []uint64{2, 3} {
		members[node] = reopen(m, node, members[node])
		if kept, err := members[node].engine.Rebase(testGroup, g.Line()); err != nil || !kept {
			t.Fatalf("rebase of %d: kept %v, %v", node, kept, err)
		}
		restart(t, members[node], node)
	}
	// Both run on the new line and nobody has made them voters: together they must not elect anybody.
	for _, node := range []uint64{2, 3} {
		if v := members[node].group.Fresh().Voters; len(v) != 1 || v[0] != 1 {
			t.Fatalf("replica %d counts votes of %v", node, v)
		}
	}
	for _, node := range []uint64{2, 3} {
		addVoter(ctx, t, g, node)
		if err := members[node].group.WaitApplied(ctx, at.Index); err != nil {
			t.Fatal(err)
		}
		if c := members[node].group.Catchup(); c.By == ModeSnap {
			t.Errorf("replica %d came back by %s: %s", node, c.Mode, c.Why)
		}
		same(t, members[node].group, g)
	}
	// And now they are a majority.
	m.kill(1)
	if _, count := put(ctx, t, members[2].engine.NewSession(testGroup, voters{2, 3}, [16]byte{3}), "d"); count != 4 {
		t.Errorf("%d writes, want 4", count)
	}
}

// TestOnlyWhoKnowsTells: a replica without a state follows the history that it was started with, but does not know what
// that comes from. Told of it, a node would believe that the group was recovered twice.
func TestOnlyWhoKnowsTells(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	put(ctx, t, members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1}), "x")
	newcomer := boot(t, m, 4, nil, logstore.NewMemory(), kv.NewMemory())
	for _, c := range []struct {
		who   *member
		tells bool
	}{{members[1], true}, {newcomer, false}} {
		c.who.engine.Deliver(2, wireGroup(testGroup, [16]byte{9}), nil)
		c.who.engine.mu.RLock()
		_, told := c.who.engine.told[[2]uint64{2, testGroup}]
		c.who.engine.mu.RUnlock()
		if told != c.tells {
			t.Errorf("node %d tells of its history: %v, want %v", c.who.group.Replica(), told, c.tells)
		}
	}
}

// TestTwoRecoveriesAreStrangers: two survivors, cut off from one another, were both made the new group. When they
// meet, neither takes anything from the other, and both are told.
func TestTwoRecoveriesAreStrangers(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	m, members := cluster(t, 3)
	put(ctx, t, members[2].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{9}), "a")
	for _, node := range []uint64{1, 2, 3} {
		m.kill(node)
	}
	one := boot(t, m, 1, nil, members[1].logs, members[1].state)
	g1 := recoverAt(t, one, 1, 2)
	put(ctx, t, one.engine.NewSession(testGroup, voters{1}, [16]byte{1}), "one")
	two := boot(t, m, 2, nil, members[2].logs, members[2].state)
	g2 := recoverAt(t, two, 2, 3)
	put(ctx, t, two.engine.NewSession(testGroup, voters{2}, [16]byte{2}), "two")

	// One adds two as a member and so speaks to it.
	id := uint64(2)
	g1.Change(ctx, g1.Fresh().Term, &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: &id}}})
	for f := range one.forked {
		if f.Superseded || f.Node != 2 {
			t.Fatalf("one was told %+v", f)
		}
		if f.Line.History == g2.Line().History {
			break // the first may be of the time before the second recovery
		}
	}
	if _, ok, _ := kvGet(g2, "p/one"); ok {
		t.Error("the second recovery holds what only the first wrote")
	}
	if _, err := two.engine.Rebase(testGroup+1, g1.Line()); err != nil {
		t.Errorf("rebase of a group that is not here: %v", err)
	}
}

func kvGet(g *Group, key string) ([]byte, bool, error) {
	v := g.View()
	defer v.Close()
	return v.Get([]byte(key))
}

// TestRecoverKeepsTheTail: what the survivor has in its log counts, also if it never heard that it was committed.
func TestRecoverKeepsTheTail(t *testing.T) {
	logs, state := logstore.NewMemory(), kv.NewMemory()
	m := &mesh{nodes: map[uint64]*Engine{}}
	one := boot(t, m, 1, []uint64{1, 2, 3}, logs, state)
	if err := one.engine.StopGroup(testGroup, false); err != nil {
		t.Fatal(err)
	}
	entry := func(index uint64, text string) *raftpb.Entry {
		data := core.EncodeBatch(&core.Batch{Proposer: 2, ID: index, Proposals: []core.Proposal{{Payload: []byte(text)}}})
		return &raftpb.Entry{Index: &index, Term: new(uint64(3)), Type: raftpb.EntryNormal.Enum(), Data: data}
	}
	err := logs.Write([]logstore.Write{{
		Group: testGroup, Entries: []*raftpb.Entry{entry(2, "known"), entry(3, "not known")},
		HardState: &raftpb.HardState{Term: new(uint64(3)), Vote: new(uint64(2)), Commit: new(uint64(2))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	line, err := one.engine.Recover(RecoverConfig{Group: testGroup, Replica: 1, History: [16]byte{2}})
	if err != nil || line.Fork != (core.Position{Term: 3, Index: 2}) || line.Start != 4 {
		t.Fatalf("%+v, %v: want a fork at 2 and a start at 4", line, err)
	}
	if again, err := one.engine.Recover(RecoverConfig{Group: testGroup, Replica: 1, History: [16]byte{2}}); err != nil || again != line {
		t.Errorf("done again: %+v, %v", again, err)
	}
	g := restart(t, one, 1)
	defer one.engine.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := g.WaitApplied(ctx, 4); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := kvGet(g, "p/not known"); !ok || err != nil {
		t.Errorf("the entry that was not known to be committed is lost: %v", err)
	}
	for _, c := range []struct {
		at   core.Position
		want core.Fate
	}{{core.Position{Term: 3, Index: 3}, core.FateCommitted}, {core.Position{Term: 2, Index: 3}, core.FateLost}} {
		if got := g.Fate(ctx, c.at); got != c.want {
			t.Errorf("what a leader of before accepted as %v is %s, want %s", c.at, got, c.want)
		}
	}
}

// TestRefusesProposalsOfAnotherHistory: a version or index of one history means nothing in another.
func TestRefusesProposalsOfAnotherHistory(t *testing.T) {
	_, members := cluster(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	e := members[1].engine
	foreign := wireGroup(testGroup, [16]byte{7})
	if _, err := e.ServePropose(ctx, 2, encodePropose(foreign, core.Proposal{Payload: []byte("x")})); !errors.Is(err, ErrOtherHistory) {
		t.Errorf("a proposal: %v", err)
	}
	if _, err := e.ServeRead(ctx, 2, binary.BigEndian.AppendUint64(nil, foreign)); !errors.Is(err, ErrOtherHistory) {
		t.Errorf("a read: %v", err)
	}
	if _, err := e.ServeRead(ctx, 2, binary.BigEndian.AppendUint64(nil, wireGroup(testGroup, [16]byte{1}))); err != nil {
		t.Errorf("a read of its own: %v", err)
	}
}

// TestObserverBeginsAHistory: when only an observer survives, it gets a log where its state ends, and votes.
func TestObserverBeginsAHistory(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members := cluster(t, 1)
	s := members[1].engine.NewSession(testGroup, voters{1}, [16]byte{1})
	five := reopen(m, 5, &member{logs: logstore.NewMemory(), state: kv.NewMemory()})
	o, err := five.engine.Observe(ObserverConfig{ID: testGroup, Machine: counter{}, Members: voters{1}})
	if err != nil {
		t.Fatal(err)
	}
	at, _ := put(ctx, t, s, "a")
	if err := o.WaitApplied(ctx, at.Index); err != nil {
		t.Fatal(err)
	}
	o.Close()
	m.kill(1)
	line, err := five.engine.Recover(RecoverConfig{Group: testGroup, Replica: 5, History: [16]byte{2}})
	if err != nil || line.Fork.Index < at.Index || line.Before != [16]byte{1} {
		t.Fatalf("%+v, %v", line, err)
	}
	restart(t, five, 5)
	if _, count := put(ctx, t, five.engine.NewSession(testGroup, voters{5}, [16]byte{2}), "b"); count != 2 {
		t.Errorf("%d writes, want 2", count)
	}
}
