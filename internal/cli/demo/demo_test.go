package demo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
)

// TestMain lets the test binary be the nodes of the demo.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(fakeServe(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// output collects what the demo shows and tells when a text has appeared.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	want string
	seen chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.buf.Write(p)
	if o.want != "" && strings.Contains(o.buf.String(), o.want) {
		o.want = ""
		close(o.seen)
	}
	return n, err
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// sample makes a small tree to copy.
func sample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a.txt", "sub/b.txt", "sub/deep/c.txt"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("content of "+name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func config(t *testing.T, fake string, nodes int) (Config, *output) {
	t.Helper()
	out := &output{}
	t.Setenv("TMPDIR", t.TempDir())
	return Config{Binary: os.Args[0], Nodes: nodes, Dir: sample(t), Exit: true, Out: out, Environ: append(os.Environ(), "FAKE="+fake)}, out
}

func leftBehind(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "lockstep-demo-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDemo(t *testing.T) {
	for _, nodes := range []int{1, 2, 3} {
		cfg, out := config(t, "", nodes)
		before, _ := picture(cfg.Dir)
		if err := Run(t.Context(), cfg); err != nil {
			t.Fatalf("%d nodes: %v\n%s", nodes, err, out)
		}
		want := []string{"started a new cluster", "3 files", "identical on"}
		if nodes > 1 {
			want = append(want, "joined with a token", "readable on n2 after", "kill -9", "n1 started again", "n1 caught up by diff: the fake says so",
				"n1 holds everything again", "nothing is lost", conflictName)
		}
		if nodes > 2 {
			want = append(want, "n2 leads now", "on n3 after")
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%d nodes: %q is not in the output:\n%s", nodes, w, out)
			}
		}
		if after, _ := picture(cfg.Dir); len(after) != len(before) {
			t.Errorf("the user's directory was written to: %v", after)
		}
		leftBehind(t)
	}
}

// TestDemoBesideFilesOfItsNames: the user's tree may hold what the demo would make.
func TestDemoBesideFilesOfItsNames(t *testing.T) {
	cfg, out := config(t, "", 3)
	if err := os.Mkdir(filepath.Join(cfg.Dir, meanwhileName), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	leftBehind(t)
}

// TestDemoFindsOut: what the nodes do wrong ends the demo with an error.
func TestDemoFindsOut(t *testing.T) {
	for fake, words := range map[string]string{
		"crash":  "n1 did not start",
		"sloppy": "differences between the directories",
		"forget": "no copy holds the other text",
	} {
		cfg, out := config(t, fake, 2)
		err := Run(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: got %v, want %q\n%s", fake, err, words, out)
		}
		if fake == "crash" && !strings.Contains(out.String(), "last words of a crash") {
			t.Errorf("the log is not shown:\n%s", out)
		}
		leftBehind(t)
	}
}

func TestDemoStaysUpUntilInterrupted(t *testing.T) {
	cfg, out := config(t, "", 1)
	cfg.Exit = false
	out.want, out.seen = "Logs:", make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	<-out.seen
	if !strings.Contains(out.String(), "--server 127.0.0.1:") {
		t.Errorf("does not say how to look around:\n%s", out)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	leftBehind(t)

	cfg.Exit = true
	if err := Run(ctx, cfg); !errors.Is(err, &api.Error{Code: api.CodeInterrupted}) {
		t.Errorf("interrupted before the end: %v", err)
	}
	leftBehind(t)
}

func TestCopyTree(t *testing.T) {
	from, to := sample(t), t.TempDir()
	at := time.Unix(1700000000, 123456789)
	err := errors.Join(
		os.Symlink("nowhere", filepath.Join(from, "link")),
		os.WriteFile(filepath.Join(from, "a.txt"), []byte("x"), 0o640),
		os.Chmod(filepath.Join(from, "a.txt"), 0o640|fs.ModeSetuid),
		os.Chtimes(filepath.Join(from, "a.txt"), at, at),
		os.Mkdir(filepath.Join(from, ".lockstep"), 0o755),
		os.Chmod(filepath.Join(from, "sub"), 0o555),
		unix.Mkfifo(filepath.Join(from, "sub", "fifo"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := copyTree(t.Context(), from, to, func(tally) {})
	if err != nil || sum.files != 3 {
		t.Fatalf("copied %+v, %v", sum, err)
	}
	diffs, paths, err := compareAll(t.Context(), []string{from, to})
	if want := []string{"sub/fifo: missing"}; err != nil || paths != 8 || !slices.Equal(diffs[0], want) {
		t.Errorf("%d paths, differences %q, %v; want %q", paths, diffs, err, want)
	}
	if err := removeTree(to); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

// TestCompareSeesEverything changes one thing at a time.
func TestCompareSeesEverything(t *testing.T) {
	for words, change := range map[string]func(p string) error{
		"missing":            os.Remove,
		"other content":      func(p string) error { return os.WriteFile(p, []byte("CONTENT of a.txt"), 0) },
		"mode -rw-------":    func(p string) error { return os.Chmod(p, 0o600) },
		"mtime differs by 1": func(p string) error { return os.Chtimes(p, time.Time{}, time.Unix(1700000000, 1)) },
		"another kind":       func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o644)) },
		"another.txt: too":   func(p string) error { return os.WriteFile(filepath.Join(filepath.Dir(p), "another.txt"), nil, 0o644) },
	} {
		from, to := sample(t), t.TempDir()
		p := filepath.Join(from, "a.txt")
		if err := os.Chtimes(p, time.Time{}, time.Unix(1700000000, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := copyTree(t.Context(), from, to, func(tally) {}); err != nil {
			t.Fatal(err)
		}
		if err := change(filepath.Join(to, "a.txt")); err != nil {
			t.Fatal(err)
		}
		diffs, _, err := compareAll(t.Context(), []string{from, to})
		if err != nil || !strings.Contains(strings.Join(diffs[0], "\n"), words) {
			t.Errorf("%s: differences %q, %v", words, diffs, err)
		}
	}
}

func TestBars(t *testing.T) {
	var log, term bytes.Buffer
	total := tally{100, 2e6}
	bars := []bar{{"n1", total, total, "live"}, {"n2", tally{50, 1e6}, total, "snap"}}
	s := newShow(&log, false)
	s.bars(bars, false)
	s.bars(bars, false) // too soon
	if want := "  n1  [████████████████████████████████] 100%     100 files     2.0 MB  live\n" +
		"  n2  [████████████████░░░░░░░░░░░░░░░░]  50%      50 files     1.0 MB  snap\n"; log.String() != want {
		t.Errorf("got\n%swant\n%s", log.String(), want)
	}
	s = newShow(&term, true)
	s.bars(bars, false)
	s.bars(bars, true)
	if !strings.Contains(term.String(), "\x1b[2A\x1b[2K  n1") {
		t.Errorf("a terminal is not redrawn: %q", term.String())
	}
}

func TestSource(t *testing.T) {
	if _, err := source(t.Context(), filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing directory was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := source(t.Context(), file); err == nil {
		t.Error("a file was taken for a directory")
	}
	dir := t.TempDir()
	sum, err := generate(t.Context(), dir, 100, 7, func(tally) {})
	text, _ := picture(dir)
	if err != nil || sum.files != 100 || len(text) < 100 {
		t.Errorf("generated %+v, %d paths, %v", sum, len(text), err)
	}
}
