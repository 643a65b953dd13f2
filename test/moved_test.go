package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// noise is a content that nothing else shares a chunk with.
func noise(t *testing.T, seed byte, size int) string {
	t.Helper()
	data := make([]byte, size)
	random := rand.NewChaCha8([32]byte{seed})
	if _, err := random.Read(data); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestMovedContentStays: what is moved is not sent again, though the other nodes carry out the deletion first: neither a
// renamed directory, nor a log that is rotated, but for what was written to it meanwhile.
func TestMovedContentStays(t *testing.T) {
	ctx, f := start(t, 3)
	nodes, n1 := f.Nodes, f.Nodes[0]
	received := func() (sum float64) {
		t.Helper()
		for _, n := range nodes {
			v, err := metric(ctx, n, `lockstep_dir_content_received_bytes_total{group="web"}`)
			if err != nil {
				t.Fatal(err)
			}
			sum += v
		}
		return sum
	}
	const files, size = 6, 6 << 20
	year := filepath.Join(n1.Tree, "2025")
	if err := os.MkdirAll(year, 0o755); err != nil {
		t.Fatal(err)
	}
	contents := map[string]string{}
	for i := range files {
		name := fmt.Sprintf("video%d", i)
		contents["archive/2025/"+name] = noise(t, byte(i+1), size)
		write(t, n1, "2025/"+name, contents["archive/2025/"+name])
	}
	log := noise(t, 100, size)
	write(t, n1, "app.log", log)
	settle(t, ctx, f)
	before := received()
	if before < 2*(files+1)*size {
		t.Fatalf("%.0f bytes of contents received; the counter does not count", before)
	}

	if err := os.Mkdir(filepath.Join(n1.Tree, "archive"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(year, filepath.Join(n1.Tree, "archive/2025")); err != nil {
		t.Fatal(err)
	}
	settle(t, ctx, f)
	for path, want := range contents {
		for _, n := range nodes {
			appears(t, ctx, n, path, want)
		}
	}
	moved := received() - before
	t.Logf("a directory of %d bytes was renamed: %.0f bytes of contents crossed the network", files*size, moved)
	if moved > size/10 {
		t.Errorf("a directory of %d bytes was renamed: %.0f bytes of contents crossed the network", files*size, moved)
	}

	before = received()
	log += noise(t, 101, 200_000)
	write(t, n1, "app.log", log)
	if err := os.Rename(filepath.Join(n1.Tree, "app.log"), filepath.Join(n1.Tree, "app.log.1")); err != nil {
		t.Fatal(err)
	}
	write(t, n1, "app.log", "a new day\n")
	settle(t, ctx, f)
	for _, n := range nodes {
		appears(t, ctx, n, "app.log.1", log)
		appears(t, ctx, n, "app.log", "a new day\n")
	}
	moved = received() - before
	t.Logf("a log of %d bytes was appended to and rotated: %.0f bytes of contents crossed the network", len(log), moved)
	if moved > 3<<20 { // the new end and the chunk before it, to two nodes
		t.Errorf("a log of %d bytes was appended to and rotated: %.0f bytes of contents crossed the network", len(log), moved)
	}
}
