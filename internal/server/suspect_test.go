package server

import (
	"log/slog"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// TestWhoSpares: only a leader in the history that the asker goes by says that a replica can be done without. One of a
// group that was recovered without it, and whose majority has come back, has none of what was committed since.
func TestWhoSpares(t *testing.T) {
	const group, replica, other = 7, 1, 4
	here, after := [16]byte{1}, [16]byte{2}
	eng := engine.Open(engine.Config{
		Node: 1, Logs: logstore.NewMemory(), State: kv.NewMemory(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Fault: func(err error) { t.Error(err) },
	})
	defer eng.Close()
	grp, err := eng.StartGroup(engine.GroupConfig{
		ID: group, Replica: replica, Initial: []uint64{replica}, Nodes: map[uint64]uint64{replica: 1}, History: here, Machine: control.New(func(*control.State) {}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grp.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &node{eng: eng, ctl: &controlPlane{}}
	for name, c := range map[string]struct {
		asked, known [16]byte
		replica      uint64
		want         bool
	}{
		"one that does not vote":          {here, here, other, true},
		"itself":                          {here, here, replica, false},
		"by who follows another history":  {after, here, other, false},
		"by who knows that it has ended":  {after, after, other, false},
		"by who does not know of the end": {here, after, other, true},
	} {
		n.ctl.current.Store(&control.State{Groups: []control.Group{{ID: group, History: c.known}}})
		a, err := n.spareHere(t.Context(), groupRequest{Group: group, History: c.asked, Index: c.replica})
		if err != nil || a.Spared != c.want {
			t.Errorf("%s: spared %v, %v", name, a.Spared, err)
		}
	}
}
