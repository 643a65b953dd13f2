package test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// TestMovingFromAMirror: what the page about moving promises of a directory and a mirror of it that has drifted. What is equal
// is not sent, the directory that was first keeps the names and the metadata, nothing is lost, and the way back is clean.
func TestMovingFromAMirror(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := farm.Start(ctx, binary, t.TempDir(), 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.WaitVoting(ctx); err != nil {
		t.Fatal(err)
	}
	n1, n2 := f.Nodes[0], f.Nodes[1]
	equal, before := bytes.Repeat([]byte("equal"), 100_000), time.Unix(1_500_000_000, 0)
	for _, w := range []struct {
		node *farm.Node
		name string
		data []byte
		time time.Time
	}{
		{n1, "equal", equal, before}, {n2, "equal", equal, before},
		{n1, "touched", equal, before}, {n2, "touched", equal, before.Add(time.Hour)},
		{n1, "edited", []byte("original"), before}, {n2, "edited", []byte("edited on the mirror"), before.Add(time.Hour)},
		{n2, "only on the mirror", []byte("stale"), before},
	} {
		name := filepath.Join(w.node.Tree, w.name)
		if err := os.WriteFile(name, w.data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, w.time, w.time); err != nil {
			t.Fatal(err)
		}
	}
	wait := func() {
		t.Helper()
		if w, err := n1.Client.DirWait(ctx, group, api.DirWaitFor{Mode: api.WaitAll, Timeout: "30s"}, nil); err != nil || !w.Done {
			t.Fatal(w, err)
		}
	}
	if err := f.Share(ctx, group, n1); err != nil {
		t.Fatal(err)
	}
	wait()
	if _, err := n1.Client.DirBind(ctx, group, api.DirBind{Node: n2.Name, Path: n2.Tree}); err != nil {
		t.Fatal(err)
	}
	wait()

	conflicts, err := n1.Client.DirConflicts(ctx, group)
	if err != nil || len(conflicts) != 1 || conflicts[0].Path != "edited" {
		t.Fatalf("conflicts: %+v, %v", conflicts, err)
	}
	for _, n := range f.Nodes {
		for name, want := range map[string]string{"edited": "original", conflicts[0].Copy: "edited on the mirror", "only on the mirror": "stale"} {
			if got, err := os.ReadFile(filepath.Join(n.Tree, name)); err != nil || string(got) != want {
				t.Errorf("%s has %q in %s, %v; want %q", n.Name, got, name, err, want)
			}
		}
		if is, err := os.Stat(filepath.Join(n.Tree, "touched")); err != nil || !is.ModTime().Equal(before) {
			t.Errorf("%s: the time of what the first had: %v, %v", n.Name, is, err)
		}
		for _, way := range []string{"sent", "received"} {
			if v, err := metric(ctx, n, `lockstep_dir_content_`+way+`_bytes_total{group="web"}`); err != nil || v >= float64(len(equal)) {
				t.Errorf("%s has %s %.0f bytes of contents, %v", n.Name, way, v, err)
			}
		}
	}

	if _, err := n1.Client.GroupDelete(ctx, group); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes {
		err := farm.Poll(ctx, 50*time.Millisecond, func() error {
			if _, err := os.Lstat(filepath.Join(n.Tree, ".lockstep")); !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(errors.New(".lockstep is still there"), err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		if got, err := os.ReadFile(filepath.Join(n.Tree, "equal")); err != nil || !bytes.Equal(got, equal) {
			t.Errorf("%s: a file after the way back: %d bytes, %v", n.Name, len(got), err)
		}
	}
}
