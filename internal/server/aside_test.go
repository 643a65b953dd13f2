package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// restored is a member whose state is empty.
type restored struct {
	member
	state kv.Store
}

func (restored) Barrier(context.Context) (uint64, error) { return 1, nil }
func (r restored) View() kv.View                         { return r.state.View() }

// A member whose role has changed since it was bound, so that its replica has another id than its binding, sets its files
// aside after a restore as any other does, and once.
func TestSetAsideAfterAChangeOfRole(t *testing.T) {
	const group, binding, replica = 7, 3, 9
	dir := t.TempDir()
	state := kv.NewMemory()
	n := &node{state: state, log: slog.New(slog.DiscardHandler)}
	g := &control.Group{ID: group, Fork: &control.Fork{Cause: control.ForkRestore}}
	if err := n.markAside(g, control.Member{Replica: replica, Binding: binding}); err != nil {
		t.Fatal(err)
	}
	h := &holding{n: n, group: *g, replica: replica, binding: binding, path: filepath.Join(dir, "tree"), member: restored{state: kv.NewMemory()}}
	mine, work := filepath.Join(h.path, "mine"), filepath.Join(dir, "work")
	put := func() {
		if err := errors.Join(os.MkdirAll(filepath.Join(h.path, manifest.Reserved), 0o755), os.MkdirAll(work, 0o700), os.WriteFile(mine, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put()
	if err := h.setAside(t.Context(), work); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that the backup does not have stays: %v", err)
	}
	if kept, err := filepath.Glob(filepath.Join(work, "kept", "restore-*", "mine")); len(kept) != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
	put()
	if err := h.setAside(t.Context(), work); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("set aside again: %v", err)
	}
}
