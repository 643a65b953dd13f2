package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// rotten is a log store whose logs cannot be read any more from an entry on.
type rotten struct {
	logstore.Store
	from uint64
}

func (r *rotten) Create(group uint64, snap *raftpb.SnapshotMetadata) (logstore.Log, error) {
	l, err := r.Store.Create(group, snap)
	return rottenLog{l, r}, err
}

type rottenLog struct {
	logstore.Log
	r *rotten
}

func (l rottenLog) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	if l.r.from > 0 && hi > l.r.from {
		return nil, &logstore.Unreadable{First: l.r.from, Last: hi - 1, Cause: errors.New("altered")}
	}
	return l.Log.Entries(lo, hi, maxSize)
}

// troubledGroup is a group of one replica on a log that rots: what is not applied yet, or what is.
func troubledGroup(t *testing.T, applied bool) (*node, *engine.Group) {
	t.Helper()
	logs, told := &rotten{Store: logstore.NewMemory()}, make(chan uint64, 10)
	eng := engine.Open(engine.Config{
		Node: 1, Logs: logs, State: kv.NewMemory(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Fault: func(err error) { t.Error(err) }, Troubled: func(group uint64) { told <- group },
	})
	t.Cleanup(eng.Close)
	logs.from = map[bool]uint64{false: 3}[applied]
	grp, err := eng.StartGroup(engine.GroupConfig{ID: 7, Replica: 1, Initial: []uint64{1}, Nodes: map[uint64]uint64{1: 1}, Machine: control.New(func(*control.State) {})})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{eng: eng, self: 1, ctl: newControlPlane(), disk: &dataDisk{}}
	n.ctl.current.Store(&control.State{Groups: []control.Group{{ID: 7, Name: "web", Members: []control.Member{{Node: 1, Replica: 1, Role: control.RoleVoter}}}}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := eng.NewSession(7, oneVoter{}, newSessionID())
	if !applied {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if _, err := s.Probe(short, core.AckQuorum); err == nil {
			t.Fatal("written")
		}
	} else {
		a, err := s.Probe(ctx, core.AckQuorum)
		if err != nil {
			t.Fatal(err)
		}
		logs.from = 2
		if err := grp.Replay(ctx, 1, a.Position.Index, func(uint64, []byte) error { return nil }); !errors.Is(err, logstore.ErrDamaged) {
			t.Fatalf("read: %v", err)
		}
	}
	select {
	case <-told:
	case <-ctx.Done():
		t.Fatal("nobody was told")
	}
	return n, grp
}

type oneVoter struct{}

func (oneVoter) Voters() []uint64 { return []uint64{1} }

// TestReplicaThatEndedIsShown: a replica that has ended by itself is shown as stopped, and its node counts as down in the
// group from then on, whatever else it answers.
func TestReplicaThatEndedIsShown(t *testing.T) {
	n, grp := troubledGroup(t, false)
	r := report{Role: "follower", Mode: "live", Leader: 1}
	if !r.troubles(grp, nil) || r.Mode != modeStopped || r.Role != "none" || r.Leader != 0 || !strings.Contains(r.Why, "log damaged") || r.takesPart() {
		t.Errorf("%+v", r)
	}
	if d := r.stoppedDir("n1"); d.Mode != "stopped" || d.Why != r.Why || d.Problems[0].Hint == "" {
		t.Errorf("its directory: %+v", d)
	}
	ended, ok := n.stoppedHere(time.Now().Add(time.Hour))[7]
	if !ok || ended < time.Hour {
		t.Fatalf("ended %v ago, %v", ended, ok)
	}
	answers := heard{1: {Stopped: map[uint64]time.Duration{7: time.Hour}}, 2: {}}
	n.suspects = map[uint64]suspicion{8: {replica: 1, cause: errors.New("its log is damaged")}}
	answers[3] = helloAnswer{Stopped: n.stoppedHere(time.Now()), Aside: n.asideHere()}
	for at, want := range map[[2]uint64]bool{{7, 1}: false, {8, 1}: true, {7, 2}: true, {7, 3}: false, {8, 3}: false, {9, 3}: true, {7, 4}: false} {
		if got := answers.runs(at[0], at[1]); got != want {
			t.Errorf("group %d on node %d runs: %v", at[0], at[1], got)
		}
	}
	up := func(uint64) control.Health { return control.Health{Up: true} }
	for _, c := range []struct {
		group, node uint64
		want        control.Health
	}{{7, 1, control.Health{Down: time.Hour}}, {7, 2, control.Health{Up: true}}, {8, 1, control.Health{Up: true}}} {
		if got := healthIn(c.group, answers, up)(c.node); got != c.want {
			t.Errorf("group %d, node %d: %+v", c.group, c.node, got)
		}
	}
}

// TestSpareForAReplicaThatEnded: a spare takes the seat of a voter whose replica has ended, though its node answers.
func TestSpareForAReplicaThatEnded(t *testing.T) {
	after := time.Minute
	st := &control.State{Groups: []control.Group{{ID: control.ControlGroup}, {ID: 7, Name: "web", Kind: control.KindFiles, RepairAfter: &after}}}
	g, answers := &st.Groups[1], heard{}
	var voting []uint64
	for id := range uint64(4) {
		st.Nodes = append(st.Nodes, control.Node{ID: id + 1, Name: fmt.Sprint("n", id+1)})
		m := control.Member{Node: id + 1, Replica: id + 1, Role: control.RoleVoter}
		if id == 3 {
			m.Role, m.Spare, m.Pinned = control.RoleObserver, true, true
		} else {
			voting = append(voting, id+1)
		}
		g.Members = append(g.Members, m)
		answers[id+1] = helloAnswer{}
	}
	answers[1] = helloAnswer{Leads: []leadAnswer{{Group: 7, Term: 1, Voting: voting, Settled: true}}}
	st.Groups[0].Members = g.Members[:3]
	if c := planSeats(st, answers); len(c) != 0 {
		t.Fatalf("all is well: %+v", c[0])
	}
	answers[2] = helloAnswer{Stopped: map[uint64]time.Duration{7: 2 * after}}
	if c := planSeats(st, answers); len(c) != 1 || c[0].Out != 2 || c[0].In != 4 {
		t.Errorf("%+v", c)
	}
	answers[2] = helloAnswer{Stopped: map[uint64]time.Duration{7: after / 2}}
	if c := planSeats(st, answers); len(c) != 0 {
		t.Errorf("too early: %+v", c[0])
	}
}

// TestSoleVoterGoesOnWithADamagedLog goes on: nobody could replace it. It says what is the matter, and what to do.
func TestSoleVoterGoesOnWithADamagedLog(t *testing.T) {
	n, grp := troubledGroup(t, true)
	g, _ := n.ctl.state().Group(7)
	h := &holding{n: n, group: *g, replica: 1, grp: grp, stop: func() {}}
	n.holdings = map[uint64]*holding{7: h}
	if err := n.seeToDamage(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if n.holdings[7] != h || n.groupHere(7) == nil {
		t.Fatal("it was ended")
	}
	r := report{Role: "leader", Mode: "live"}
	if r.troubles(grp, h.whyItWaits()) || !r.takesPart() || r.Mode != "live" || !strings.Contains(r.Damage, "log damaged") ||
		!strings.Contains(r.Damage, "no other member votes") || !strings.Contains(r.DamageNext, "backup create") {
		t.Errorf("%+v", r)
	}
	if w := damageWarnings(api.Group{Name: "web", Replicas: []api.Replica{{Node: "n1"}}}, []report{r}); len(w) != 1 || w[0].Name != "log_damaged" || w[0].Hint != r.DamageNext {
		t.Errorf("%+v", w)
	}
}

func TestDamageWarnings(t *testing.T) {
	reports := []report{{Mode: "live"}, {Mode: modeStopped, Why: "why"}, {Mode: modeDamaged, Why: "why"}, {Mode: "live", Damage: "why"}, {Mode: "down"}}
	shown := api.Group{Name: "web"}
	for i := range reports {
		shown.Replicas = append(shown.Replicas, api.Replica{Node: fmt.Sprint("n", i)})
	}
	var got []string
	for _, w := range damageWarnings(shown, reports) {
		got = append(got, w.Name+" "+w.Subject)
		if w.Text != "why" || w.Hint == "" {
			t.Errorf("%+v", w)
		}
	}
	if want := []string{"replica_stopped web on n1", "log_damaged web on n2", "log_damaged web on n3"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for mode, takes := range map[string]bool{"live": true, "diff": true, "stopped": false, "damaged": false, "astray": false, "down": false, "starting": false} {
		if r := (report{Mode: mode}); r.takesPart() != takes {
			t.Errorf("%s takes part: %v", mode, !takes)
		}
	}
}
