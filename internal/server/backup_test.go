package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/backup"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// moment is a manifest that names contents, and what can be read of them while it is looked at.
type moment struct {
	named    map[string]string // path → content
	readable map[string]string // path → what a reader finds; absent: nowhere
	closed   *int
}

func (m moment) Close() error { *m.closed++; return nil }

func (m moment) state(t *testing.T) kv.Reader {
	t.Helper()
	store := kv.NewMemory()
	b := manifest.Batch{Author: "n"}
	for path, text := range m.named {
		b.Changes = append(b.Changes, manifest.Change{Path: path, Node: manifest.Node{Kind: manifest.File, Mode: 0o644, Size: int64(len(text)), Hash: blake3.Sum256([]byte(text))}})
	}
	tx := store.Batch()
	if _, err := manifest.New(manifest.Config{}).Apply(tx, machine.Command{Index: 2, Time: 1, Payload: manifest.EncodeBatch(b)}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return store
}

// disk reads what the present moment lets it.
type disk struct{ now *moment }

func (d disk) Content(_ context.Context, path string, _ *manifest.Node) (io.ReadCloser, bool, error) {
	text, ok := d.now.readable[path]
	return io.NopCloser(strings.NewReader(text)), ok, nil
}

// TestCollectWaitsForAMomentThatIsWhole: files change while they are read, and vanish. No state is taken whose contents
// are not all there, and none is stored under a name that is not its own.
func TestCollectWaitsForAMomentThatIsWhole(t *testing.T) {
	closed := 0
	moments := []moment{
		{map[string]string{"a": "1", "b": "0", "c": ""}, map[string]string{"a": "1", "b": "2"}, &closed}, // b changed while it was read
		{map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "9"}, &closed},                    // b is nowhere; a was read before
		{map[string]string{"a": "9", "b": "3"}, map[string]string{"a": "9", "b": "3"}, &closed},
	}
	var file bytes.Buffer
	out := backup.NewFragment(&file, nil)
	d := disk{}
	took := 0
	m, err := collect(t.Context(), &d, out, func() (moment, error) {
		d.now = &moments[took]
		took++
		return *d.now, nil
	}, func(m moment) kv.Reader { return m.state(t) })
	if err != nil || took != 3 || m.named["b"] != "3" || closed != 2 {
		t.Fatalf("took %d moments, closed %d, ended with %v, %v", took, closed, m.named, err)
	}
	if err := out.EndGroup(); err != nil {
		t.Fatal(err)
	}
	held := map[string]bool{}
	err = backup.ReadFragment(&file, backup.Handler{Content: func(h backup.Hash, _ uint64, body io.Reader) error {
		b, err := io.ReadAll(body)
		if errors.Is(err, backup.ErrGivenUp) {
			return nil
		}
		if h != blake3.Sum256(b) {
			t.Errorf("%q stands under %s", b, h)
		}
		held[string(b)] = true
		return err
	}})
	if err != nil || !held["9"] || !held["3"] || !held[""] || held["2"] {
		t.Errorf("the file holds %v, %v", held, err)
	}
}

func TestCollectGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	closed := 0
	m := moment{map[string]string{"gone": "1"}, nil, &closed}
	took := 0
	_, err := collect(ctx, &disk{&m}, backup.NewFragment(io.Discard, nil), func() (moment, error) {
		if took++; took == 2 {
			cancel()
		}
		return m, nil
	}, func(m moment) kv.Reader { return m.state(t) })
	if !errors.Is(err, context.Canceled) || closed != took {
		t.Errorf("%d of %d moments closed, %v", closed, took, err)
	}
}
