package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// stepped is a store that calls after once a batch was committed or a sync has ended.
type stepped struct {
	kv.Store
	after func()
}

func (s stepped) Batch() kv.Batch   { return steppedBatch{s.Store.Batch(), s.after} }
func (s stepped) Through() kv.Store { return stepped{s.Store.Through(), s.after} }

func (s stepped) Sync() error {
	defer s.after()
	return s.Store.Sync()
}

type steppedBatch struct {
	kv.Batch
	after func()
}

func (b steppedBatch) Commit() error {
	defer b.after()
	return b.Batch.Commit()
}

func openState(t *testing.T, dir string) kv.Store {
	t.Helper()
	s, err := kv.OpenPebble(dir, kv.PebbleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keysOf(t *testing.T, r kv.Reader, prefix string) (n int) {
	t.Helper()
	if err := r.Scan([]byte(prefix), kv.PrefixEnd([]byte(prefix)), func(_, _ []byte) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// Whenever the process is killed while it lets go of a group: as long as anything of the group is there afterwards, so is
// the record of it.
func TestDisownOutlivesTheProcess(t *testing.T) {
	const group, binding = 7, 3
	dir := t.TempDir()
	state := openState(t, filepath.Join(dir, "state"))
	n := &node{state: state}
	if err := n.own(group, ownedBy(control.Member{Replica: 5, Binding: binding, Role: control.RoleVoter, Path: "/srv"})); err != nil {
		t.Fatal(err)
	}
	applied := fmt.Sprintf("g/%016x/", group)
	fill := func(s kv.Store, prefix string) {
		b := s.Batch()
		for i := range 50 {
			if err := b.Set(fmt.Appendf([]byte(prefix), "%d", i), []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	fill(state, applied)
	fill(state.Through(), string(tablePrefix(group, binding))+"t/")
	if err := state.Sync(); err != nil {
		t.Fatal(err)
	}
	kills, found := 0, 0
	killed := func() { // what is in files now is what a killed process leaves
		kills++
		left := filepath.Join(dir, fmt.Sprint(kills))
		if err := os.CopyFS(left, os.DirFS(filepath.Join(dir, "state"))); err != nil {
			t.Fatal(err)
		}
		s := openState(t, left)
		_, recorded, err := s.Get(ownedKey(group))
		rest := keysOf(t, s, applied) + keysOf(t, s, "p/")
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		if rest > 0 && !recorded {
			t.Errorf("killed after step %d: %d keys of the group are there, and nothing says so", kills, rest)
		}
		if rest > 0 {
			found++
		}
	}
	b := state.Batch() // as the engine forgets a group
	if err := errors.Join(b.DeleteRange([]byte(applied), kv.PrefixEnd([]byte(applied))), b.Commit()); err != nil {
		t.Fatal(err)
	}
	if err := disown(stepped{state, killed}, group, binding); err != nil {
		t.Fatal(err)
	}
	if kills < 2 || found == 0 {
		t.Errorf("%d kills, %d of which left something of the group", kills, found)
	}
	if left := keysOf(t, state, "o/") + keysOf(t, state, "p/") + keysOf(t, state, "g/"); left > 0 {
		t.Errorf("%d keys are left", left)
	}
	if err := state.Close(); err != nil {
		t.Fatal(err)
	}
}

// A change of this node's part in the control group that was interrupted is taken up again, whatever step it had come to: a
// node without a copy of the control group hears of nothing any more.
func TestControlRoleIsTakenUpAgain(t *testing.T) {
	for what, after := range map[string]func(n *node) error{
		"the old replica was stopped": func(*node) error { return nil },
		"the new one was noted":       func(n *node) error { return n.hints.setSeat(control.RoleObserver, 2, true) },
		"its log and state are fit": func(n *node) error {
			return errors.Join(n.hints.setSeat(control.RoleObserver, 2, true), n.recastControl(control.RoleObserver, 2))
		},
	} {
		t.Run(what, func(t *testing.T) {
			n, err := upNode(t, filepath.Join(t.TempDir(), "n1"), "n1", "", slog.DiscardHandler)
			if err != nil {
				t.Fatal(err)
			}
			defer stopNode(t, n)
			tokenOf(t, n)
			g, ok := n.ctl.state().Group(control.ControlGroup)
			if !ok {
				t.Fatal("no control group")
			}
			now := *g
			now.Members = []control.Member{{Node: n.self, Replica: 2, Role: control.RoleObserver, Binding: 1}}
			n.ctl.mu.Lock()
			err = errors.Join(n.eng.StopGroup(control.ControlGroup, false), after(n))
			n.ctl.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			// Its group has let go of the old replica as far as that knows.
			if err := n.holdControl(t.Context(), &now, now.Members[0]); err != nil {
				t.Fatal(err)
			}
			if role, replica, recast := n.hints.seat(); n.ctl.observer() == nil || role != control.RoleObserver || replica != 2 || recast {
				t.Errorf("it is %s %d (%v), and observes: %v", role, replica, recast, n.ctl.observer() != nil)
			}
		})
	}
}
