package files

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// TestStuckPathSparesTheLog: a path that cannot be placed holds the placed index, but not the log: contents that
// came with later entries are staged, survive a crash without those entries, and are placed in the end.
func TestStuckPathSparesTheLog(t *testing.T) {
	f := newFarm(t, 1)
	nd := f.nodes[0]
	f.up()
	f.flush()
	nothing := manifest.Node{Kind: manifest.File, Mode: 0o644, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Size: 5, Hash: manifest.Hash{1}}
	propose := func(changes ...manifest.Change) uint64 {
		index, _, err := nd.Propose(t.Context(), manifest.EncodeBatch(manifest.Batch{Author: "gone", Changes: changes}), nil)
		must(t, err)
		return index
	}
	stuck := propose(manifest.Change{Path: "nowhere", Node: nothing})
	// The placer is held, so that the contents wait in memory when the log is cut.
	nd.agent.board.stop()
	var last uint64
	for i := range 20 {
		data := fmt.Appendf(nil, "content of %d", i)
		last = propose(inlineFile(fmt.Sprintf("f%d", i), data))
	}
	eventually(t, func() string {
		if at := nd.agent.Floor(); at < last {
			return fmt.Sprintf("the log is needed above %d, %d is the last entry", at, last)
		}
		return ""
	})
	if at := nd.agent.Placed(); at >= stuck {
		t.Fatalf("placed up to %d, the content of %d is nowhere", at, stuck)
	}
	nd = f.image(nd, nd.agent.Floor())
	nd.up()
	for i := range 20 {
		want := fmt.Sprintf("content of %d", i)
		eventually(t, func() string {
			if got, err := os.ReadFile(nd.path(fmt.Sprintf("f%d", i))); err != nil || string(got) != want {
				return fmt.Sprintf("f%d: %q, %v", i, got, err)
			}
			return ""
		})
	}
}

// image replaces nd by what a crash would leave of it now, with a log that is cut at floor.
func (f *farm) image(nd *node, floor uint64) *node {
	t := f.t
	t.Helper()
	base := t.TempDir()
	out, err := exec.Command("cp", "-a", filepath.Dir(nd.root)+"/.", base).CombinedOutput()
	if err != nil {
		t.Fatalf("copy: %v\n%s", err, out)
	}
	all := func(n int) int { return n }
	twin := &node{f: f, id: nd.id, name: nd.name, root: filepath.Join(base, "root"), boot: "another", applied: nd.Applied(),
		state: nd.state.Crash(all), table: nd.table.Crash(all)}
	nd.down()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes = []*node{twin}
	f.cut = floor
	return twin
}

func inlineFile(path string, data []byte) manifest.Change {
	return manifest.Change{Path: path, Inline: data, Node: manifest.Node{Kind: manifest.File, Mode: 0o644, UID: uint32(os.Geteuid()),
		GID: uint32(os.Getegid()), Size: int64(len(data)), Hash: blake3.Sum256(data)}}
}

// TestEpochsStayFew: entries that come while one path cannot be placed do not pile up.
func TestEpochsStayFew(t *testing.T) {
	b := newBoard(time.Now)
	b.want(1, manifest.Changed{Path: "stuck"})
	w := b.takeWants(1)
	for i := uint64(2); i < 100_000; i++ {
		b.commit(i, []manifest.Changed{{Path: "other"}})
		for _, o := range b.takeWants(1) {
			b.placeDone(o)
		}
	}
	if n := len(b.placing.open); n > 3*epochsMany {
		t.Errorf("%d epochs are open", n)
	}
	if at := b.placedIndex(); at != 0 {
		t.Errorf("placed up to %d with a path of 1 open", at)
	}
	b.placeDone(w[0])
	if at := b.placedIndex(); at != 99_999 {
		t.Errorf("placed up to %d, want 99999", at)
	}
}
