package server

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// TestWantsUpload: what a group began with is kept by the node that it began on, for as long as that holds it.
func TestWantsUpload(t *testing.T) {
	const self, id = 4, "0123456789abcdef"
	fork := &control.Fork{Seed: 5, Upload: id, Cause: control.ForkRestore}
	for name, c := range map[string]struct {
		g    control.Group
		want bool
	}{
		"the seed":                  {control.Group{Fork: fork, Members: []control.Member{{Node: self, Replica: 5, Binding: 5}}}, true},
		"it observes by now":        {control.Group{Fork: fork, Members: []control.Member{{Node: self, Replica: 9, Binding: 5}}}, true},
		"an older binding":          {control.Group{Fork: fork, Members: []control.Member{{Node: self, Replica: 5, Binding: 2}}}, true},
		"deleted":                   {control.Group{Deleted: true, Fork: fork, Members: []control.Member{{Node: self, Replica: 5, Binding: 5}}}, false},
		"unbound":                   {control.Group{Fork: fork, Members: []control.Member{{Node: 1, Replica: 6, Binding: 6}}}, false},
		"unbound, and bound again":  {control.Group{Fork: fork, Members: []control.Member{{Node: self, Replica: 8, Binding: 8}}}, false},
		"restored again since":      {control.Group{Fork: &control.Fork{Seed: 5, Upload: "other"}, Members: []control.Member{{Node: self, Replica: 5, Binding: 5}}}, false},
		"it never had an upload":    {control.Group{Members: []control.Member{{Node: self, Replica: 5, Binding: 5}}}, false},
		"recovered after a restore": {control.Group{Fork: &control.Fork{Seed: 5, Cause: control.ForkRecover}, Members: []control.Member{{Node: self, Replica: 5, Binding: 5}}}, false},
	} {
		if got := wantsUpload(&control.State{Groups: []control.Group{c.g}}, self, id); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestTidyUploads: an upload that arrives is left alone however long one content takes, and what has arrived for an hour
// after that; what nobody came for goes.
func TestTidyUploads(t *testing.T) {
	n := &node{data: &dataDir{path: t.TempDir()}, ctl: newControlPlane()}
	n.ctl.current.Store(&control.State{})
	const id = "0123456789abcdef"
	body, arrives := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- n.receiveUpload(id, body) }()
	if _, err := arrives.Write([]byte("l")); err != nil { // somebody reads: it has begun
		t.Fatal(err)
	}
	dated := func(name string, age time.Duration) {
		t.Helper()
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(n.uploadDir(name), "contents"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	dated(id, 2*uploadAge)
	for name, age := range map[string]time.Duration{"old": 2 * uploadAge, "young": uploadAge / 2} {
		if err := os.MkdirAll(filepath.Join(n.uploadDir(name), "contents"), 0o700); err != nil {
			t.Fatal(err)
		}
		dated(name, age)
	}
	// A removal that was interrupted has left the state, which was read later than the contents.
	rest := n.uploadDir("half removed")
	if err := os.MkdirAll(rest, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rest, "state"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * uploadAge)
	if err := os.Chtimes(rest, long, long); err != nil {
		t.Fatal(err)
	}
	if err := n.tidyUploads(); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{id: true, "young": true, "old": false, "half removed": false} {
		if _, err := os.Stat(n.uploadDir(name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	arrives.Close()
	if err := <-ended; err == nil {
		t.Error("half an upload was taken")
	}
	if n.uploads.underWay(id) {
		t.Error("it is still under way")
	}
}
