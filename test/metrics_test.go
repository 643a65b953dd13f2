package test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

// metrics reads a node's /metrics.
func metrics(ctx context.Context, node *farm.Node) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+node.API+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: /metrics: %s: %s", node.Name, resp.Status, all)
	}
	return string(all), err
}

// metric reads one value of it.
func metric(ctx context.Context, node *farm.Node, name string) (v float64, err error) {
	all, err := metrics(ctx, node)
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(all, "\n"+name+" ")
	if !ok {
		return 0, fmt.Errorf("%s has no %s", node.Name, name)
	}
	_, err = fmt.Sscan(rest, &v)
	return v, err
}

// becomes waits until a metric has a value.
func becomes(ctx context.Context, node *farm.Node, name string, want float64) error {
	return farm.Poll(ctx, 50*time.Millisecond, func() error {
		v, err := metric(ctx, node, name)
		if err == nil && v != want {
			err = fmt.Errorf("%s: %s is %g, not %g", node.Name, name, v, want)
		}
		return err
	})
}

// TestContentIsCounted: an operator sees what a directory's contents cost on the network, and what was spared.
func TestContentIsCounted(t *testing.T) {
	ctx, f := start(t, 2)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	const size = 1 << 20
	data := noise(t, 1, size)
	for _, content := range []string{data, data + "a little more"} {
		write(t, n1, "large", content)
		settle(t, ctx, f)
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

// documented are the metrics that a page about them lists in the first cells of its tables.
func documented(t *testing.T, page string) []string {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	return sortedMatches(`(?m)^\| `+"`"+`(lockstep_[a-z_]+)`, string(b))
}

func sortedMatches(pattern, text string) (list []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// TestMetricsForOperators: there is every metric that the pages tell of and no other, those that alarms go by follow what
// happens to a directory, and a node that comes back under its name with another id is counted once.
func TestMetricsForOperators(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	f, err := farm.Start(ctx, binary, t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	n1, n3 := f.Nodes[0], f.Nodes[2]
	if err := f.Share(ctx, "web", f.Nodes...); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n1.Tree, "a"), []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{`dir_files{group="web"}`: 1, `dir_bytes{group="web"}`: 5, "ready": 1,
		`dir_stopped{group="web"}`: 0, `dir_conflicts{group="web"}`: 0, `group_damaged{group="web"}`: 0, `group_damaged{group="control"}`: 0} {
		if err := becomes(ctx, n3, "lockstep_"+name, want); err != nil {
			t.Error(err)
		}
	}
	all, err := metrics(ctx, n1)
	if err != nil {
		t.Fatal(err)
	}
	offered := sortedMatches(`(?m)^# TYPE (lockstep_[a-z_]+) `, all)
	for _, page := range []string{"../docs/en/monitoring.md", "../docs/zh/monitoring.md"} {
		if told := documented(t, page); !slices.Equal(told, offered) {
			t.Errorf("%s tells of\n%v, there are\n%v", page, told, offered)
		}
	}

	away := n3.Tree + ".away"
	if err := os.Rename(n3.Tree, away); err != nil {
		t.Fatal(err)
	}
	if err := becomes(ctx, n3, `lockstep_dir_stopped{group="web"}`, 1); err != nil {
		t.Error(err)
	}
	if err := os.Rename(away, n3.Tree); err != nil {
		t.Fatal(err)
	}
	if err := becomes(ctx, n3, `lockstep_dir_stopped{group="web"}`, 0); err != nil {
		t.Error(err)
	}

	token, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := n3.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n3.Data); err != nil {
		t.Fatal(err)
	}
	if err := f.Run(n3, token, "--replace"); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitUp(ctx, n3); err != nil {
		t.Fatal(err)
	}
	if err := becomes(ctx, n1, fmt.Sprintf("lockstep_peer_up{peer=%q}", n3.Name), 1); err != nil {
		t.Error(err)
	}
}
