package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// machineOf lays out a machine: a binding of a node that is stopped, and another node's data directory.
func machineOf(t *testing.T) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bound/sub", "data/identity", "data/work", "free", "own", "above/deep/data/identity"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, data := range []string{"data", "above/deep/data"} {
		if err := os.WriteFile(filepath.Join(root, data, "identity", "node.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(place.EnsureMarker(filepath.Join(root, "bound"), "web-1", time.Unix(1, 0)),
		os.Symlink("bound/sub", filepath.Join(root, "link"))); err != nil {
		t.Fatal(err)
	}
	return root
}

// refusedWith makes sure of the code, and that the error names what is in the way and ends with a way out.
func refusedWith(t *testing.T, what string, err error, code api.Code, words string) {
	t.Helper()
	var e *api.Error
	if words == "" {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Why, words) || e.Hint == "" || e.Subject == "" {
		t.Errorf("%s: got %v, want %s with %q", what, err, code, words)
	}
}

func TestDataDirectoryInABinding(t *testing.T) {
	root := machineOf(t)
	for dir, words := range map[string]string{
		"free": "", "free/new/deep": "", "data": "",
		"bound":           "bound, which is kept in step (web-1)",
		"bound/sub":       "bound, which is kept in step",
		"bound/new/deep":  "bound, which is kept in step",
		"link/new":        "bound, which is kept in step", // by what the link leads to
		"bound/.lockstep": "bound, which is kept in step",
	} {
		refusedWith(t, dir, checkOutside(filepath.Join(root, dir)), api.CodeConflict, words)
		if _, err := os.Stat(filepath.Join(root, "bound/new")); err == nil {
			t.Fatalf("%s: something was made", dir)
		}
	}
}

func TestBindingInAnothersDirectory(t *testing.T) {
	root := machineOf(t)
	n := &node{data: &dataDir{path: filepath.Join(root, "own")}, holdings: map[uint64]*holding{}}
	for dir, want := range map[string]struct {
		code  api.Code
		words string
	}{
		"free":           {},
		"free/new/deep":  {},
		"data":           {api.CodeUsage, "a node's data directory"},
		"data/work/tree": {api.CodeUsage, "part of " + root + "/data, which is a node's data directory"},
		"above":          {api.CodeUsage, "it holds " + root + "/above/deep/data"},
		"bound":          {api.CodeConflict, "root marker of another group (web-1)"},
		"bound/sub":      {api.CodeConflict, "part of " + root + "/bound, which carries the root marker of a group (web-1)"},
		"own/tree":       {api.CodeUsage, "overlaps the node's data directory"},
	} {
		refusedWith(t, dir, n.checkHere(filepath.Join(root, dir), ""), want.code, want.words)
	}
	// A restore takes over what a directory carries, not what is around it.
	refusedWith(t, "taken over", n.checkHere(filepath.Join(root, "bound"), anyMark), "", "")
	refusedWith(t, "below one", n.checkHere(filepath.Join(root, "bound/sub"), anyMark), api.CodeConflict, "carries the root marker")
	// What is this node's own is for the control group to judge.
	n.holdings[7] = &holding{path: filepath.Join(root, "bound")}
	refusedWith(t, "own", n.checkHere(filepath.Join(root, "bound/sub"), ""), "", "")
}
