package server

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// TestDamagedStateStore: a disk alters the tables of the state store under what a node knows of a directory's files. The
// node says that it is its store and not the directory, and what leads out.
func TestDamagedStateStore(t *testing.T) {
	s := startSealed(t)
	const files = 1500
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", `cd "$0" && for i in $(seq `+strconv.Itoa(files)+`); do echo $i >some-file-with-a-name-$i; done`, s.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	await(t, "the group has every file", func() bool { return s.files() == files })
	g := s.web()
	m, _ := g.Member(s.self)
	table := append(tablePrefix(g.ID, m.Binding), "t/p"...) // the records of paths
	s.stop()
	state := filepath.Join(s.data, "state")
	alterTables(t, state, table)
	var err error
	if s.node, err = upNode(t, s.data, "n1", "", slog.DiscardHandler); err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	var status api.Status
	stopped := func(w api.Warning) bool { return w.Name == "dir_stopped" && !strings.Contains(w.Text, "being opened") }
	await(t, "the binding cannot be opened", func() bool {
		if status, err = s.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(status.Warnings, stopped)
	})
	for _, name := range []string{"dir_stopped", "state_damaged"} {
		i := slices.IndexFunc(status.Warnings, func(w api.Warning) bool { return w.Name == name })
		if i < 0 {
			t.Fatalf("no %s in %+v", name, status.Warnings)
		}
		w := status.Warnings[i]
		if !strings.Contains(w.Text, "damaged") || strings.Contains(w.Text, "\n") || !strings.Contains(w.Hint, "--replace") {
			t.Errorf("%s: %s → %s", name, w.Text, w.Hint)
		}
	}
}

// alterTables flips a bit in a table of a store that is not open, where what is beneath prefix cannot be read any more by it
// and the rest can.
func alterTables(t *testing.T, dir string, prefix []byte) {
	t.Helper()
	store := openState(t, dir) // which makes tables of the log
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for part := range 31 {
			at := len(raw) * (part + 1) / 32
			raw[at] ^= 4
			if err := os.WriteFile(name, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if reads(t, dir, nil, prefix) && !reads(t, dir, prefix, kv.PrefixEnd(prefix)) && reads(t, dir, kv.PrefixEnd(prefix), nil) {
				return
			}
			raw[at] ^= 4
		}
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("no place found where only the placed table suffers")
}

// reads tells whether a part of a store can be read.
func reads(t *testing.T, dir string, from, to []byte) bool {
	t.Helper()
	view, err := kv.ViewPebble(dir, kv.PebbleOptions{OnError: func(error) {}})
	if err != nil {
		return false
	}
	defer view.Close()
	err = view.Scan(from, to, func(_, _ []byte) error { return nil })
	if err != nil && !errors.Is(err, kv.ErrDamaged) {
		t.Fatalf("%v", err)
	}
	return err == nil
}
