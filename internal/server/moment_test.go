package server

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
)

// putDir has one directory take another's place.
func putDir(t *testing.T, from, to string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
}

// TestStateOfAnEarlierMoment: the state store is put back from an older image, and the rest of the data directory is not.
// The node would take its log for that of a replica whose id was given up since, and drop it; so it does not start.
func TestStateOfAnEarlierMoment(t *testing.T) {
	first, err := upNode(t, filepath.Join(t.TempDir(), "n1"), "n1", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { stopNode(t, first) }()
	dir := filepath.Join(t.TempDir(), "n2")
	state, old, last := filepath.Join(dir, "state"), filepath.Join(t.TempDir(), "old"), filepath.Join(t.TempDir(), "last")
	run := func(token string) {
		t.Helper()
		n, err := upNode(t, dir, "n2", token, slog.DiscardHandler)
		if err != nil {
			t.Fatal(err)
		}
		await(t, "it knows its peer", func() bool { return len(n.hints.nodes(n.self)) == 1 })
		await(t, "it is introduced", func() bool { return len(n.ctl.state().Nodes) == 2 })
		stopNode(t, n)
	}
	run(tokenOf(t, first))
	putDir(t, state, old)
	run("") // what is acknowledged from here on, the old state knows nothing of
	putDir(t, state, last)
	putDir(t, old, state)
	for range 2 { // a refused start changes nothing
		_, err = upNode(t, dir, "n2", "", slog.DiscardHandler)
		var refused *api.Error
		if !errors.As(err, &refused) || refused.Code != api.CodeDamage || !strings.Contains(refused.Why, "earlier moment") || !strings.Contains(refused.Hint, "--replace") {
			t.Fatalf("with the state of before: %v", err)
		}
	}
	said, err := OfflineLog{Data: dir}.Verify(t.Context())
	if err != nil || !slices.ContainsFunc(said.Problems, func(p api.LogProblem) bool { return strings.Contains(p.Next, "is refused") }) {
		t.Errorf("verify: %+v, %v", said.Problems, err)
	}
	putDir(t, last, state)
	run("")
}

// TestStateOfASoleNode: nobody else has anything of its promises, so it goes on with what it has.
func TestStateOfASoleNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "n1")
	state, old := filepath.Join(dir, "state"), filepath.Join(t.TempDir(), "old")
	run := func() {
		t.Helper()
		n, err := upNode(t, dir, "n1", "", slog.DiscardHandler)
		if err != nil {
			t.Fatal(err)
		}
		tokenOf(t, n)
		stopNode(t, n)
	}
	run()
	putDir(t, state, old)
	run()
	putDir(t, old, state)
	run()
}
