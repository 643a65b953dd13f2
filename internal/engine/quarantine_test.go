package engine

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

func TestHealers(t *testing.T) {
	q := replica.Quarantine{Mark: 7, Agree: []uint64{1, 2}}
	verdict := func(mark uint64, agree ...uint64) *replica.Verdict { return &replica.Verdict{Mark: mark, Agree: agree} }
	for name, c := range map[string]struct {
		st             core.Status // of replica 3
		latest         *replica.Verdict
		sources, heirs []uint64
	}{
		"they are there":            {core.Status{Voters: []uint64{1, 2, 3}}, nil, []uint64{1, 2}, []uint64{1, 2}},
		"one is there":              {core.Status{Voters: []uint64{2, 3, 4}}, nil, []uint64{2}, []uint64{2}},
		"one is on its way out":     {core.Status{Voters: []uint64{3, 4, 5}, Outgoing: []uint64{1, 3, 5}}, nil, []uint64{1}, []uint64{1}},
		"all were replaced":         {core.Status{Voters: []uint64{3, 4, 5}}, nil, nil, []uint64{4, 5}},
		"and then compared":         {core.Status{Voters: []uint64{3, 4, 5}}, verdict(9, 4, 5), []uint64{4, 5}, []uint64{4, 5}},
		"one does no longer agree":  {core.Status{Voters: []uint64{1, 2, 3, 4, 5}}, verdict(9, 2, 4, 5), []uint64{2, 4, 5}, []uint64{2, 4, 5}},
		"an older verdict":          {core.Status{Voters: []uint64{3, 4, 5}}, verdict(6, 4, 5), nil, []uint64{4, 5}},
		"a verdict of one":          {core.Status{Voters: []uint64{3, 4, 5}}, verdict(9, 4), nil, []uint64{4, 5}},
		"it agrees itself by now":   {core.Status{Voters: []uint64{3, 4, 5}}, verdict(9, 3, 4), []uint64{4}, []uint64{4}},
		"only a learner has agreed": {core.Status{Voters: []uint64{3, 4, 5}, Learners: []uint64{1}}, nil, []uint64{1}, []uint64{4, 5}},
		"one other voter is left":   {core.Status{Voters: []uint64{3, 4}}, nil, []uint64{4}, []uint64{4}},
		"none is left":              {core.Status{Voters: []uint64{3}}, nil, nil, nil},
		"nothing is known yet":      {core.Status{}, nil, nil, nil},
	} {
		c.st.Replica = 3
		if sources, heirs := healers(&c.st, &q, c.latest); !slices.Equal(sources, c.sources) || !slices.Equal(heirs, c.heirs) {
			t.Errorf("%s: from %v, led by %v; want %v and %v", name, sources, heirs, c.sources, c.heirs)
		}
	}
}

// A replica is in quarantine, and all that were in the right are replaced. It gives up leadership when it gets it, takes no state on trust, and heals when the new ones have been compared.
func TestQuarantineOutlivesThoseThatAgreed(t *testing.T) {
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
	id := bad.group.Replica()
	damage(t, bad.state, 999)
	m.bind(id) // it cannot heal, and follows by entries
	if _, err := leader.group.Check(ctx, false); err != nil {
		t.Fatal(err)
	}
	for bad.group.Quarantine() == nil {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatal("not in quarantine")
		}
	}
	var old []uint64
	for o := range members {
		if o != id {
			old = append(old, o)
		}
	}
	fresh := map[uint64]*member{}
	for _, o := range []uint64{4, 5} {
		fresh[o] = boot(t, m, o, nil, logstore.NewMemory(), kv.NewMemory())
		addVoter(ctx, t, leader.group, o)
	}
	if err := leader.group.Transfer(ctx, 4); err != nil {
		t.Fatal(err)
	}
	leader = leaderOf(t, ctx, fresh)
	for _, o := range old {
		removeVoter(ctx, t, leader.group, o)
		m.kill(o)
	}
	if err := bad.group.WaitApplied(ctx, leader.group.Applied().Index); err != nil {
		t.Fatal(err)
	}
	m.kill(id)
	m.bind(0)

	back := boot(t, m, id, []uint64{1, 2, 3}, bad.logs, bad.state)
	back.group.SetNodes(map[uint64]uint64{id: id, 4: 4, 5: 5})
	if err := back.group.WaitApplied(ctx, leader.group.Applied().Index); err != nil {
		t.Fatal(err)
	}
	if err := leader.group.Transfer(ctx, id); err != nil {
		t.Fatal(err)
	}
	leader = leaderOf(t, ctx, fresh)
	if back.group.Quarantine() == nil {
		t.Error("it took a state that nobody has compared")
	}
	for _, o := range fresh {
		o.group.SetCheckEvery(time.Millisecond)
	}
	healed(t, ctx, back.group)
	same(t, back.group, leader.group)
}

func removeVoter(ctx context.Context, t *testing.T, leader *Group, id uint64) {
	t.Helper()
	cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: &id}}}
	for a := (core.Answer{}); a.Code != core.Committed; a = leader.Change(ctx, leader.Fresh().Term, cc) {
		if ctx.Err() != nil {
			t.Fatalf("remove %d: %v", id, a.Code)
		}
	}
}
