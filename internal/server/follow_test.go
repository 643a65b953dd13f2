package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-sync/lockstep/internal/control"
)

// TestIntroducedInTwoSteps: the cluster's description is in the control group and its file is gone, but what follows failed.
// The next attempt goes on from there.
func TestIntroducedInTwoSteps(t *testing.T) {
	n, err := upNode(t, filepath.Join(t.TempDir(), "n1"), "n1", "", slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { stopNode(t, n) }()
	tokenOf(t, n) // it is introduced
	if _, err := os.Stat(n.data.sub(initFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	n.cfg.Version.Version = "newer"
	st := n.ctl.state()
	if err := n.introduceOnce(t.Context(), &control.Init{Cluster: st.Cluster, Node: st.Nodes[0]}); err != nil {
		t.Error(err)
	}
	if p, _ := n.ctl.state().Node(n.self); p.Version != "newer" {
		t.Errorf("the control group has version %q of it", p.Version)
	}
}
