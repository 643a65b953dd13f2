package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// lagging is a copy of the control group's state that becomes current by a barrier, if that succeeds.
type lagging struct {
	member
	n        *node
	current  *control.State
	fails    error
	barriers int
}

func (l *lagging) Barrier(context.Context) (uint64, error) {
	l.barriers++
	if l.fails == nil {
		l.n.ctl.current.Store(l.current)
	}
	return 1, l.fails
}

// TestDriveFromACurrentCopy: the node that leads a group brings the configuration to what the control group wants now, not to
// what it wanted when this node heard of it last. Two replicas were taken in by the leader before.
func TestDriveFromACurrentCopy(t *testing.T) {
	const group = 7
	history := [16]byte{1}
	seats := func(replicas ...uint64) *control.State {
		g := control.Group{ID: group, Name: "g", History: history}
		for _, r := range replicas {
			g.Members = append(g.Members, control.Member{Replica: r, Node: r, Role: control.RoleVoter})
		}
		return &control.State{Groups: []control.Group{g}}
	}
	other := seats(1)
	other.Groups[0].History = [16]byte{2}
	for name, c := range map[string]struct {
		known, current *control.State
		fails          error
		barriers       int
		learners       []uint64
	}{
		"the copy lags":                 {seats(1), seats(1, 2, 3), nil, 1, []uint64{2, 3}},
		"nobody says what is current":   {seats(1), seats(1), errors.New("no leader"), 1, []uint64{2, 3}},
		"one was left out":              {seats(1, 2), seats(1, 2), nil, 1, []uint64{2}},
		"there is nothing to do":        {seats(1, 2, 3), seats(1), nil, 0, []uint64{2, 3}},
		"the group has another history": {other, other, nil, 0, []uint64{2, 3}},
		"the group is no more":          {seats(1), &control.State{}, nil, 1, []uint64{2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			eng := engine.Open(engine.Config{
				Node: 1, Logs: logstore.NewMemory(), State: kv.NewMemory(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
				Fault: func(err error) { t.Error(err) },
			})
			defer eng.Close()
			grp, err := eng.StartGroup(engine.GroupConfig{ID: group, Replica: 1, Initial: []uint64{1}, Nodes: map[uint64]uint64{1: 1},
				History: history, Machine: control.New(func(*control.State) {})})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := grp.Barrier(ctx); err != nil {
				t.Fatal(err)
			}
			for id := uint64(2); id <= 3; id++ {
				cc := &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: &id}}}
				if a := grp.Change(ctx, grp.Fresh().Term+1, cc); a.Code != core.NotLeader {
					t.Fatalf("a change of another leadership: %v", a.Code)
				}
				if a := grp.Change(ctx, grp.Fresh().Term, cc); a.Code != core.Committed {
					t.Fatal(a.Code)
				}
			}
			n := &node{eng: eng, ctl: newControlPlane(), log: slog.New(slog.DiscardHandler)}
			l := &lagging{n: n, current: c.current, fails: c.fails}
			n.ctl.self = l
			n.ctl.current.Store(c.known)
			n.drive(ctx, c.known, &c.known.Groups[0], grp)
			if st := grp.Fresh(); !slices.Equal(st.Voters, []uint64{1}) || !slices.Equal(st.Learners, c.learners) || l.barriers != c.barriers {
				t.Errorf("voters %v, learners %v, barriers %d", st.Voters, st.Learners, l.barriers)
			}
		})
	}
}
