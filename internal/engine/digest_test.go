package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

func TestJudge(t *testing.T) {
	a, b, c := machine.Digest{1}, machine.Digest{2}, machine.Digest{3}
	type found = map[uint64]machine.Digest
	for name, x := range map[string]struct {
		voters []uint64
		found  found
		agree  []uint64 // nil: no verdict
		odd    []uint64
	}{
		"all agree":                  {[]uint64{1, 2, 3}, found{1: a, 2: a, 3: a}, []uint64{1, 2, 3}, nil},
		"one is odd":                 {[]uint64{1, 2, 3}, found{1: a, 2: b, 3: a}, []uint64{1, 3}, []uint64{2}},
		"one is silent":              {[]uint64{1, 2, 3}, found{1: a, 3: a}, []uint64{1, 3}, nil},
		"two differ, one is silent":  {[]uint64{1, 2, 3}, found{1: a, 3: b}, nil, []uint64{1, 3}},
		"all differ":                 {[]uint64{1, 2, 3}, found{1: a, 2: b, 3: c}, nil, []uint64{1, 2, 3}},
		"two and two":                {[]uint64{1, 2, 3, 4}, found{1: a, 2: b, 3: a, 4: b}, nil, []uint64{1, 2, 3, 4}},
		"two voters differ":          {[]uint64{1, 2}, found{1: a, 2: b}, nil, []uint64{1, 2}},
		"only one answers":           {[]uint64{1, 2, 3}, found{1: a}, nil, nil},
		"learners have no say":       {[]uint64{1, 2, 3}, found{1: a, 2: b, 8: b, 9: b}, nil, []uint64{1, 2, 8, 9}},
		"a learner is odd":           {[]uint64{1, 2, 3}, found{1: a, 2: a, 3: a, 9: b}, []uint64{1, 2, 3}, []uint64{9}},
		"learners agree, too":        {[]uint64{1, 2, 3}, found{1: a, 2: b, 3: a, 9: a}, []uint64{1, 3, 9}, []uint64{2}},
		"three of five, against two": {[]uint64{1, 2, 3, 4, 5}, found{1: b, 2: a, 3: b, 4: a, 5: a}, []uint64{2, 4, 5}, []uint64{1, 3}},
		"two of five is no majority": {[]uint64{1, 2, 3, 4, 5}, found{1: a, 2: a}, nil, nil},
		"three of five, of three":    {[]uint64{1, 2, 3, 4, 5}, found{1: a, 2: a, 3: a}, []uint64{1, 2, 3}, nil},
		"the only voter":             {[]uint64{1}, found{1: a}, []uint64{1}, nil},
	} {
		v, odd := judge(7, x.voters, nil, x.found)
		if (v == nil) != (x.agree == nil) || v != nil && (!slices.Equal(v.Agree, x.agree) || v.Digest != x.found[x.agree[0]] || v.Mark != 7) ||
			!slices.Equal(odd, x.odd) {
			t.Errorf("%s: verdict %+v, odd %v", name, v, odd)
		}
	}
}

// TestJudgeJoint: in a joint configuration both halves must agree.
func TestJudgeJoint(t *testing.T) {
	a, b := machine.Digest{1}, machine.Digest{2}
	for name, x := range map[string]struct {
		voters, outgoing []uint64
		found            map[uint64]machine.Digest
		agree            []uint64 // nil: no verdict
	}{
		"both":                           {[]uint64{1, 2, 4}, []uint64{1, 2, 3}, map[uint64]machine.Digest{1: a, 2: a, 3: b, 4: b}, []uint64{1, 2}},
		"of the new one only":            {[]uint64{1, 4, 5}, []uint64{1, 2, 3}, map[uint64]machine.Digest{1: a, 4: a, 5: a, 2: b, 3: b}, nil},
		"of the old one only":            {[]uint64{1, 2, 3, 4, 5}, []uint64{1, 2, 3}, map[uint64]machine.Digest{1: a, 2: a, 3: b}, nil},
		"the old ones have not answered": {[]uint64{1, 4, 5}, []uint64{1, 2, 3}, map[uint64]machine.Digest{1: a, 4: a, 5: a}, nil},
	} {
		if v, _ := judge(7, x.voters, x.outgoing, x.found); (v == nil) != (x.agree == nil) || v != nil && !slices.Equal(v.Agree, x.agree) {
			t.Errorf("%s: verdict %+v", name, v)
		}
	}
}

// damage changes a replica's state without its machine.
func damage(t *testing.T, state kv.Store, value uint64) {
	t.Helper()
	b := kv.Prefixed(state, groupPrefix(testGroup)).Batch()
	defer b.Discard()
	for _, slot := range []string{"m/", "n/"} { // whichever is in force
		if err := b.Set([]byte(slot+"n"), binary.BigEndian.AppendUint64(nil, value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

// written is a cluster with n writes.
func written(t *testing.T, ctx context.Context, n int) (*mesh, map[uint64]*member, *Session) {
	t.Helper()
	m, members := cluster(t, 3)
	s := members[1].engine.NewSession(testGroup, voters{1, 2, 3}, [16]byte{1})
	for i := range n {
		a, err := s.Propose(ctx, core.AckAll, fmt.Appendf(nil, "%d", i))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range members { // so that nothing writes over damage
			if err := o.group.WaitApplied(ctx, a.Position.Index); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m, members, s
}

func leaderOf(t *testing.T, ctx context.Context, members map[uint64]*member) *member {
	t.Helper()
	for {
		for _, m := range members {
			changed := m.group.changed.wait()
			if st := m.group.Fresh(); st.Role == core.Leader && st.TermBegun {
				return m
			}
			select {
			case <-changed:
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("no leader")
			}
		}
	}
}

// healed waits until a replica has replaced its damaged state.
func healed(t *testing.T, ctx context.Context, r interface {
	digester
	Quarantine() *replica.Quarantine
}) {
	t.Helper()
	for {
		d, _, err := r.Digest()
		if err == nil && r.Quarantine() == nil && binary.BigEndian.Uint64(d[:8]) != 999 {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("quarantine %+v, digest %s, %v", r.Quarantine(), d, err)
		}
	}
}

func TestTheOddReplicaHeals(t *testing.T) {
	for _, leads := range []bool{false, true} {
		t.Run(fmt.Sprintf("leader %v", leads), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_, members, s := written(t, ctx, 20)
			leader := leaderOf(t, ctx, members)
			bad := leader
			for _, m := range members {
				if !leads && m != leader {
					bad = m
				}
			}
			damage(t, bad.state, 999)
			c, err := leader.group.Check(ctx, false)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(c.Odd, []uint64{bad.group.Replica()}) || c.Verdict == nil || len(c.Missing) > 0 {
				t.Fatalf("checkup %+v", c)
			}
			healed(t, ctx, bad.group)
			a, err := s.Propose(ctx, core.AckAll, []byte("after"))
			if err != nil || binary.BigEndian.Uint64(a.Result) != 21 {
				t.Fatalf("a later write is number %v, %v", a.Result, err)
			}
			for _, m := range members {
				if err := errors.Join(m.group.WaitApplied(ctx, a.Position.Index), bad.group.WaitApplied(ctx, a.Position.Index)); err != nil {
					t.Fatal(err)
				}
				same(t, m.group, bad.group)
			}
			c, err = leaderOf(t, ctx, members).group.Check(ctx, true)
			if err != nil || len(c.Odd) > 0 || len(c.Digests) != 3 {
				t.Errorf("afterwards %+v, %v", c, err)
			}
		})
	}
}

func TestWithoutAMajorityNothingIsRepaired(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	for id, m := range members {
		damage(t, m.state, 100*id)
	}
	c, err := leader.group.Check(ctx, false)
	if err != nil || c.Verdict != nil || len(c.Odd) != 3 {
		t.Fatalf("checkup %+v, %v", c, err)
	}
	if leader.group.Alarm() == "" {
		t.Error("no alarm")
	}
	for id, m := range members {
		d, _, err := m.group.Digest()
		if err != nil || binary.BigEndian.Uint64(d[:8]) != 100*id || m.group.Quarantine() != nil {
			t.Errorf("replica %d has %s, quarantine %v, %v", id, d, m.group.Quarantine(), err)
		}
	}
}

// A replica in quarantine refuses everything that its state would have to answer for, also after a restart.
func TestQuarantineIsKeptAndRefuses(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	var bad *member
	for _, o := range members {
		if o != leader {
			bad = o
		}
	}
	damage(t, bad.state, 999)
	m.refuse(ServiceSnapshot, true) // it cannot heal
	if _, err := leader.group.Check(ctx, false); err != nil {
		t.Fatal(err)
	}
	inQuarantine := func(g *Group) {
		t.Helper()
		for g.Quarantine() == nil {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("not in quarantine")
			}
		}
		if _, err := g.Barrier(ctx); !errors.Is(err, ErrQuarantined) {
			t.Errorf("it reads: %v", err)
		}
		if a := g.Propose(ctx, core.Proposal{Payload: []byte("x")}); a.Code != core.Busy {
			t.Errorf("it takes proposals: %v", a.Code)
		}
		if err := g.serveSnapshot(9, nil, nil); !errors.Is(err, ErrQuarantined) {
			t.Errorf("it gives its state away: %v", err)
		}
		w, _, err := g.src.admit(hello{Group: testGroup, Whole: true}, &child{node: 9})
		if err != nil || w.Plan.Mode != catchup.Reject && w.Plan.Mode != catchup.Behind {
			t.Errorf("it feeds: %+v, %v", w.Plan, err)
		}
		if how := g.Catchup(); how.Mode != ModeDiverged {
			t.Errorf("it says that it is %s", how.Mode)
		}
	}
	inQuarantine(bad.group)
	id := bad.group.Replica()
	m.kill(id)
	back := boot(t, m, id, []uint64{1, 2, 3}, bad.logs, bad.state)
	inQuarantine(back.group)
	m.refuse(ServiceSnapshot, false)
	healed(t, ctx, back.group)
	if _, err := back.group.Barrier(ctx); err != nil {
		t.Error(err)
	}
}

// observe starts an observer on node 5.
func observe(t *testing.T, m *mesh, sources voters) (*Observer, kv.Store) {
	t.Helper()
	state := kv.NewMemory()
	e := Open(Config{
		Node: 5, Logs: logstore.NewMemory(), State: state, Transport: port{m, 5}, Now: time.Now,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fault: func(err error) { t.Error(err) },
	})
	m.mu.Lock()
	m.nodes[5] = e
	m.mu.Unlock()
	o, err := e.Observe(ObserverConfig{ID: testGroup, Machine: counter{}, Members: sources})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o, state
}

// An observer that differs from the only voter may be the one that is right.
func TestAMajorityOfOneIsNone(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members := cluster(t, 1)
	leader := leaderOf(t, ctx, members)
	o, state := observe(t, m, voters{1})
	check := func() {
		t.Helper()
		c, err := leader.group.Check(ctx, false)
		if err != nil || c.Verdict == nil {
			t.Fatalf("checkup %+v, %v", c, err)
		}
		if err := o.WaitApplied(ctx, c.Mark+1); err != nil {
			t.Fatal(err)
		}
	}
	check()
	damage(t, state, 999)
	check()
	for o.Alarm() == "" {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no alarm")
		}
	}
	if d, _, err := o.Digest(); err != nil || binary.BigEndian.Uint64(d[:8]) != 999 || o.Quarantine() != nil {
		t.Errorf("digest %s, quarantine %+v, %v", d, o.Quarantine(), err)
	}
}

func TestAnObserverComparesItself(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	o, state := observe(t, m, voters{1, 2, 3})
	leader := leaderOf(t, ctx, members)
	check := func() uint64 {
		t.Helper()
		c, err := leader.group.Check(ctx, false)
		if err != nil || len(c.Odd) > 0 {
			t.Fatalf("checkup %+v, %v", c, err)
		}
		if err := o.WaitApplied(ctx, c.Mark+1); err != nil {
			t.Fatal(err)
		}
		return c.Mark
	}
	check()
	if o.Quarantine() != nil {
		t.Fatal("in quarantine although nothing differs")
	}
	damage(t, state, 999)
	check()
	healed(t, ctx, o)
	check()
	same(t, o, leader.group)
}

// The schedule compares by itself when something was written, and is quiet when nothing was.
func TestReplicasAreComparedAtIntervals(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, members, s := written(t, ctx, 3)
	for _, m := range members {
		m.group.SetCheckEvery(time.Millisecond)
	}
	leader := leaderOf(t, ctx, members)
	verdict := func(after uint64) uint64 {
		t.Helper()
		for {
			leader.group.book.mu.Lock()
			v := leader.group.book.verdict
			leader.group.book.mu.Unlock()
			if v != nil && v.Mark > after {
				return v.Mark
			}
			select {
			case <-leader.group.moved.wait():
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("replicas are not compared")
			}
		}
	}
	mark := verdict(0)
	if err := leader.group.WaitApplied(ctx, mark+1); err != nil {
		t.Fatal(err)
	}
	end := leader.group.Applied().Index
	idle := time.NewTimer(time.Second) // 5 looks of the schedule
	<-idle.C
	if now := leader.group.Applied().Index; now > end+2 {
		t.Errorf("the log grows from %d to %d although nothing is written", end, now)
	}
	if _, err := s.Propose(ctx, core.AckQuorum, []byte("x")); err != nil {
		t.Fatal(err)
	}
	verdict(leader.group.Applied().Index - 1)
}

// held keeps a replica's applier waiting, as if its disk were slow, until release is called; then it runs f before it goes on.
func held(t *testing.T, g *Group, f func()) (release func()) {
	t.Helper()
	gate, entered := make(chan struct{}), make(chan struct{})
	if !g.jobs.call(func() { close(entered); <-gate; f() }) {
		t.Fatal("the replica has ended")
	}
	<-entered
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	return release
}

// accuse has a replica learn that all others have another state. For its applier.
func accuse(g *Group, agree ...uint64) {
	mark := g.Applied().Index
	g.book.begin(mark)
	g.book.finish(mark, machine.Digest{1}, nil)
	g.book.judged(replica.Verdict{Mark: mark, Digest: machine.Digest{2}, Agree: agree})
	g.compare()
}

// until waits for a state of the core.
func until(t *testing.T, ctx context.Context, g *Group, what string, ok func(core.Status) bool) {
	t.Helper()
	for !ok(g.Fresh()) {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %+v", what, g.Fresh())
		}
	}
}

// What is under way when the quarantine begins is not answered from the state that is doubtful, whether or not that was
// replaced before the answer is out.
func TestQuarantineStopsWhatIsUnderWay(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	id := leader.group.Replica()
	var agree []uint64
	for other := range members {
		if other != id {
			agree = append(agree, other)
		}
	}
	m.refuse(ServiceSnapshot, true)
	type outcome struct {
		a   core.Answer
		err error
	}
	release := held(t, leader.group, func() { accuse(leader.group, agree...) })
	before := leader.group.Fresh()
	writes, reads := make(chan outcome, 3), make(chan outcome, 1)
	for _, ack := range []core.Ack{core.AckQuorum, core.AckAll} {
		go func() {
			writes <- outcome{a: leader.group.Propose(ctx, core.Proposal{Client: [16]byte{8, byte(ack)}, Seq: 1, Floor: 1, Ack: ack, Payload: []byte("w")})}
		}()
	}
	until(t, ctx, leader.group, "two writes are committed", func(s core.Status) bool { return s.Proposals > before.Proposals && s.Commit >= before.Commit+1 })
	go func() {
		_, err := leader.group.Barrier(ctx)
		reads <- outcome{err: err}
	}()
	until(t, ctx, leader.group, "a read waits for the state", func(s core.Status) bool { return s.Reads == 1 })
	release()
	for range 2 {
		if o := <-writes; o.a.Code != core.Unknown || o.a.Result != nil {
			t.Errorf("a write was answered %v with %x by a doubtful state", o.a.Code, o.a.Result)
		}
	}
	if o := <-reads; !errors.Is(o.err, ErrQuarantined) {
		t.Errorf("a read was answered by a doubtful state: %v", o.err)
	}
	m.refuse(ServiceSnapshot, false)
}

// What is written while the replicas are compared was not compared: it is looked at next, although nothing follows.
func TestWritesDuringAComparisonAreComparedNext(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, members, s := written(t, ctx, 3)
	leader := leaderOf(t, ctx, members)
	scheduled := func() (ok bool) { // the schedule of this term has begun
		reply := make(chan bool, 1)
		leader.group.box.call(func() { reply <- leader.group.checks.term == leader.group.core.Status().Term })
		return <-reply
	}
	until(t, ctx, leader.group, "the schedule begins", func(core.Status) bool { return scheduled() })
	var slow *Group
	for _, m := range members {
		if m != leader {
			slow = m.group
		}
	}
	before := leader.group.Applied().Index
	release := held(t, slow, func() {})
	ended := make(chan struct{})
	go func() { defer close(ended); leader.group.check(false) }()
	if err := leader.group.WaitApplied(ctx, before+1); err != nil {
		t.Fatal(err)
	}
	a, err := s.Propose(ctx, core.AckQuorum, []byte("behind the mark"))
	if err != nil {
		t.Fatal(err)
	}
	release()
	<-ended
	leader.group.SetCheckEvery(time.Millisecond)
	for {
		leader.group.book.mu.Lock()
		v := leader.group.book.verdict
		leader.group.book.mu.Unlock()
		if v != nil && v.Mark > a.Position.Index {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the write at %d is not compared; the latest verdict: %+v", a.Position.Index, v)
		}
	}
}

// Two of three agree, and before the third has answered there are five: two are no majority of those.
func TestAGroupThatGrewIsNotJudgedByTheOldOne(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	var odd *member
	for _, o := range members {
		if o != leader {
			odd = o
		}
	}
	damage(t, odd.state, 999)
	before := leader.group.Applied().Index
	release := held(t, odd.group, func() {})
	type outcome struct {
		c   Checkup
		err error
	}
	checked := make(chan outcome, 1)
	go func() {
		c, err := leader.group.Check(ctx, false)
		checked <- outcome{c, err}
	}()
	if err := leader.group.WaitApplied(ctx, before+1); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uint64{4, 5} {
		members[id] = boot(t, m, id, nil, logstore.NewMemory(), kv.NewMemory())
		addVoter(ctx, t, leader.group, id)
	}
	release()
	o := <-checked
	if o.err != nil || o.c.Verdict != nil || len(o.c.Odd) != 3 {
		t.Errorf("%+v, %v: two of five are no majority", o.c, o.err)
	}
	if err := odd.group.WaitApplied(ctx, leader.group.Applied().Index); err != nil {
		t.Fatal(err)
	}
	if q := odd.group.Quarantine(); q != nil {
		t.Errorf("quarantine by a minority: %+v", q)
	}
	if o.c.Verdict == nil && leader.group.Alarm() == "" {
		t.Error("no alarm")
	}
}

// A verdict that the configuration has overtaken on its way into the log is nobody's.
func TestAVerdictOfAMinorityIsIgnored(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	a := leader.group.proposeOwn(ctx, replica.Mark{}.Encode())
	v := replica.Verdict{Mark: a.Position.Index, Digest: machine.Digest{7}, Agree: []uint64{leader.group.Replica(), 8, 9}}
	if a = leader.group.proposeOwn(ctx, v.Encode()); a.Code != core.Committed {
		t.Fatalf("%v", a.Code)
	}
	for id, o := range members {
		if err := o.group.WaitApplied(ctx, a.Position.Index); err != nil {
			t.Fatal(err)
		}
		if q := o.group.Quarantine(); q != nil {
			t.Errorf("replica %d is in quarantine because of one voter of three: %+v", id, q)
		}
	}
}
