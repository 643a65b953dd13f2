package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// othersOf lists the members but one, by replica id.
func othersOf(members map[uint64]*member, but *member) (list []*member) {
	for id := range uint64(len(members)) {
		if o := members[id+1]; o != but {
			list = append(list, o)
		}
	}
	return list
}

// quarantined waits until a replica is in quarantine.
func quarantined(t *testing.T, ctx context.Context, g *Group) {
	t.Helper()
	for g.Quarantine() == nil {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatal("not in quarantine")
		}
	}
}

// One of three is in quarantine and cannot heal, and another one goes wrong in the same way: they are no majority against
// the third. Once the second is right again, it and the third are, and the first heals.
func TestTwoThatAreWrongInTheSameWayAreNoMajority(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	others := othersOf(members, leader)
	first, second := others[0], others[1]
	m.refuse(ServiceSnapshot, true)
	damage(t, first.state, 999)
	if _, err := leader.group.Check(ctx, false); err != nil {
		t.Fatal(err)
	}
	quarantined(t, ctx, first.group)
	damage(t, second.state, 999)
	c, err := leader.group.Check(ctx, false)
	if err != nil || c.Verdict != nil {
		t.Fatalf("%+v, %v: the replica in quarantine has a say", c, err)
	}
	if want := []uint64{leader.group.Replica(), second.group.Replica()}; !slices.Equal(c.Odd, slices.Sorted(slices.Values(want))) || c.Missing[first.group.Replica()] == nil {
		t.Errorf("%+v, want %v to differ and no answer of the first", c, want)
	}
	for _, o := range []*member{leader, second} {
		if q := o.group.Quarantine(); q != nil {
			t.Errorf("replica %d is in quarantine: %v", o.group.Replica(), q)
		}
	}
	damage(t, second.state, 5)
	m.refuse(ServiceSnapshot, false)
	if c, err = leader.group.Check(ctx, false); err != nil || c.Verdict == nil || len(c.Odd) > 0 {
		t.Fatalf("%+v, %v: two of three agree", c, err)
	}
	healed(t, ctx, first.group)
	same(t, first.group, leader.group)
}

// What was found at a mark is taken back when the state turns out to be doubtful, also by who asks later.
func TestWhatWasFoundBeforeTheQuarantineIsTakenBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	others := othersOf(members, leader)
	odd := others[0].group
	a := leader.group.proposeOwn(ctx, replica.Mark{}.Encode())
	if _, err := odd.digestAt(ctx, a.Position.Index); err != nil {
		t.Fatal(err)
	}
	m.refuse(ServiceSnapshot, true)
	if err := odd.jobs.run(func() error { accuse(odd, leader.group.Replica(), others[1].group.Replica()); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := odd.digestAt(ctx, a.Position.Index); !errors.Is(err, ErrQuarantined) {
		t.Errorf("it answers a comparison: %v", err)
	}
	odd.book.mu.Lock()
	for _, f := range odd.book.found {
		if !f.doubtful {
			t.Errorf("of entry %d it would count once the state was replaced", f.mark)
		}
	}
	odd.book.mu.Unlock()
	m.refuse(ServiceSnapshot, false)
}

// Two comparisons overlap. Who did not agree in the first verdict may have been put in quarantine by it after it had
// answered in the second: it does not count there.
func TestAVerdictCountsNobodyWhomAnotherOneFoundOut(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	others := othersOf(members, leader)
	right, wrong := others[0].group, others[1].group.Replica()
	own := func(payload []byte) uint64 {
		t.Helper()
		a := leader.group.proposeOwn(ctx, payload)
		if a.Code != core.Committed {
			t.Fatalf("%v", a.Code)
		}
		return a.Position.Index
	}
	one, two := own(replica.Mark{}.Encode()), own(replica.Mark{}.Encode())
	d, err := leader.group.digestAt(ctx, one)
	if err != nil {
		t.Fatal(err)
	}
	agree := []uint64{leader.group.Replica(), right.Replica()}
	own((&replica.Verdict{Mark: one, Digest: d, Agree: agree}).Encode())
	overlapping := replica.Verdict{Mark: two, Digest: machine.Digest{7}, Agree: []uint64{leader.group.Replica(), wrong}}
	at := own(overlapping.Encode())
	if err := right.WaitApplied(ctx, at); err != nil {
		t.Fatal(err)
	}
	if q := right.Quarantine(); q != nil {
		t.Errorf("in quarantine by the word of one that an earlier verdict had found out: %+v", q)
	}
	// By a mark behind that verdict it has a say again.
	three := own(replica.Mark{}.Encode())
	overlapping.Mark = three
	if got := right.book.trusted(overlapping); !slices.Equal(got, overlapping.Agree) {
		t.Errorf("%v count, want %v", got, overlapping.Agree)
	}
}

// All others are gone for good. A recovery does not make a state right; only who decides so has it count from then on.
func TestARecoveryDoesNotTrustAStateInQuarantine(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, members, _ := written(t, ctx, 5)
	leader := leaderOf(t, ctx, members)
	bad := othersOf(members, leader)[0]
	id := bad.group.Replica()
	m.refuse(ServiceSnapshot, true)
	damage(t, bad.state, 999)
	if _, err := leader.group.Check(ctx, false); err != nil {
		t.Fatal(err)
	}
	quarantined(t, ctx, bad.group)
	for _, o := range members {
		m.kill(o.group.Replica())
	}
	recovered := func(to byte, trust bool) *member {
		t.Helper()
		if _, err := Recover(bad.logs, bad.state, RecoverConfig{Group: testGroup, Replica: id, History: [16]byte{to}, Trust: trust}); err != nil {
			t.Fatal(err)
		}
		r := boot(t, m, id, nil, bad.logs, bad.state)
		until(t, ctx, r.group, "it leads alone", func(s core.Status) bool { return s.Role == core.Leader && s.TermBegun })
		return r
	}
	r := recovered(8, false)
	if _, err := r.group.Barrier(ctx); !errors.Is(err, ErrQuarantined) || r.group.Quarantine() == nil {
		t.Errorf("it is trusted, though nobody has decided so: %v", err)
	}
	if how := r.group.Catchup(); how.Mode != ModeDiverged || !strings.Contains(how.Why, "of no member") {
		t.Errorf("it says %+v", how)
	}
	m.kill(id)
	r = recovered(9, true)
	if _, err := r.group.Barrier(ctx); err != nil || r.group.Quarantine() != nil {
		t.Errorf("people have decided to trust it: %v", err)
	}
	if d, _, err := r.group.Digest(); err != nil || binary.BigEndian.Uint64(d[:8]) != 999 {
		t.Errorf("digest %s, %v", d, err)
	}
}
