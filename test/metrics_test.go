package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

// metric reads one value of a node's /metrics.
func metric(ctx context.Context, node *farm.Node, name string) (v float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+node.API+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(all), "\n"+name+" ")
	if !ok {
		return 0, fmt.Errorf("%s has no %s", node.Name, name)
	}
	_, err = fmt.Sscan(rest, &v)
	return v, err
}

// TestContentIsCounted: an operator sees what a directory's contents cost on the network, and what was spared.
func TestContentIsCounted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := &farm.Farm{Binary: binary, Dir: t.TempDir()}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	n1, err := f.Add(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n2, err := f.Add(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WaitVoting(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := n1.Client.DirCreate(ctx, api.DirCreate{Name: "web", Paths: map[string]string{n1.Name: n1.Tree, n2.Name: n2.Tree}}); err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	data := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(data); err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{data, bytes.Join([][]byte{data, []byte("a little more")}, nil)} {
		if err := os.WriteFile(filepath.Join(n1.Tree, "large"), content, 0o644); err != nil {
			t.Fatal(err)
		}
		if w, err := n1.Client.DirWait(ctx, "web", api.DirWaitFor{Mode: api.WaitAll, Timeout: "30s"}, nil); err != nil || !w.Done {
			t.Fatal(w, err)
		}
	}
	for _, c := range []struct {
		node      *farm.Node
		name      string
		low, high float64
	}{
		{n1, "sent", size, 1.5 * size}, {n2, "received", size, 1.5 * size}, {n2, "reused", size / 2, size},
		{n1, "received", 0, 0}, {n2, "sent", 0, 0},
	} {
		v, err := metric(ctx, c.node, `lockstep_dir_content_`+c.name+`_bytes_total{group="web"}`)
		if err != nil || v < c.low || v > c.high {
			t.Errorf("%s %s: %.0f bytes, %v; want %.0f to %.0f", c.node.Name, c.name, v, err, c.low, c.high)
		}
	}
	for _, n := range []*farm.Node{n1, n2} {
		applied, err := metric(ctx, n, `lockstep_group_applied_index{group="web"}`)
		if err != nil {
			t.Fatal(err)
		}
		if commit, err := metric(ctx, n, `lockstep_group_commit_index{group="web"}`); err != nil || commit < applied {
			t.Errorf("%s: %.0f committed, %.0f applied, %v", n.Name, commit, applied, err)
		}
	}
}
