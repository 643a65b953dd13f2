package cli

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
)

// serveWith runs `lockstep serve` and returns what it would have started.
func serveWith(t *testing.T, env map[string]string, args ...string) (ServeConfig, int, string) {
	t.Helper()
	var got ServeConfig
	var out, errs bytes.Buffer
	code := Main(t.Context(), Env{Args: append([]string{"serve"}, args...), Stdout: &out, Stderr: &errs,
		Getenv: func(k string) string { return env[k] },
		Serve: func(_ context.Context, cfg ServeConfig) error {
			got = cfg
			return nil
		}})
	return got, code, errs.String()
}

func TestSettingsPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lockstep.toml")
	toml := "data = '/from/file'\nname = 'file'\nlisten = '10.0.0.1:1'\nreplace = true\nlog_level = 'debug'\n"
	if err := os.WriteFile(file, []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	used := t.TempDir()
	if err := os.Mkdir(filepath.Join(used, "identity"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(used, "identity", "cert.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		env  map[string]string
		args []string
		want ServeConfig
	}{
		{"a data directory that knows its node's name", nil, []string{"--data", used},
			ServeConfig{Data: used, Listen: ":7420", API: "127.0.0.1:7421"}},
		{"defaults", nil, []string{"--name", "n1"},
			ServeConfig{Data: DefaultData, Name: "n1", Listen: ":7420", API: "127.0.0.1:7421"}},
		{"file over default", nil, []string{"--config", file},
			ServeConfig{Data: "/from/file", Name: "file", Listen: "10.0.0.1:1", API: "127.0.0.1:7421", Replace: true}},
		{"environment over file", map[string]string{"LOCKSTEP_CONFIG": file, "LOCKSTEP_DATA": "/from/env", "LOCKSTEP_REPLACE": "false"}, nil,
			ServeConfig{Data: "/from/env", Name: "file", Listen: "10.0.0.1:1", API: "127.0.0.1:7421"}},
		{"flag over environment", map[string]string{"LOCKSTEP_CONFIG": file, "LOCKSTEP_DATA": "/from/env", "LOCKSTEP_JOIN": "tok"}, []string{"--data", "/from/flag", "--name", "flag"},
			ServeConfig{Data: "/from/flag", Name: "flag", Listen: "10.0.0.1:1", API: "127.0.0.1:7421", Join: "tok", Replace: true}},
		{"flag equal to the default over file", nil, []string{"--config", file, "--data", DefaultData, "--replace=false"},
			ServeConfig{Data: DefaultData, Name: "file", Listen: "10.0.0.1:1", API: "127.0.0.1:7421"}},
		{"a rate", map[string]string{"LOCKSTEP_SNAPSHOT_RATE": "50M"}, []string{"--name", "n1"},
			ServeConfig{Data: DefaultData, Name: "n1", Listen: ":7420", API: "127.0.0.1:7421", SnapshotRate: 50 << 20}},
		{"api off", nil, []string{"--name", "n1", "--api", "off", "--advertise", "n1.example:7420"},
			ServeConfig{Data: DefaultData, Name: "n1", Listen: ":7420", Advertise: "n1.example:7420"}},
	} {
		got, code, errs := serveWith(t, tc.env, tc.args...)
		if got.Log == nil {
			t.Fatalf("%s: exit status %d, %s", tc.name, code, errs)
		}
		if debug := got.Log.Enabled(t.Context(), slog.LevelDebug); debug != (tc.want.Name == "file" || tc.env["LOCKSTEP_CONFIG"] != "") {
			t.Errorf("%s: debug logging is %v", tc.name, debug)
		}
		got.Log = nil
		if code != 0 || got != tc.want {
			t.Errorf("%s: got %+v (%d), want %+v", tc.name, got, code, tc.want)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, args := range [][]string{
		{"--data", ""}, {"--listen", ""}, {"--listen", "1.2.3.4"}, {"--listen", ":99999"}, {"--advertise", "x"},
		{"--name", ".x"}, {"--name", strings.Repeat("x", 64)}, {"--log-level", "loud"}, {"--log", "xml"},
		{"--snapshot-rate", "fast"}, {"--snapshot-rate", "-1"}, {"--snapshot-rate", "1MM"}, {"--snapshot-rate", "1K"}, {"--snapshot-rate", "16383"},
	} {
		if _, code, errs := serveWith(t, nil, append([]string{"--name", "n1"}, args...)...); code != 2 {
			t.Errorf("%v: exit status %d, %s", args, code, errs)
		}
	}
	if _, code, _ := serveWith(t, map[string]string{"LOCKSTEP_REPLACE": "perhaps"}, "--name", "n1"); code != 2 {
		t.Errorf("LOCKSTEP_REPLACE=perhaps: exit status %d", code)
	}
}

func TestExitStatus(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		ctx  context.Context
		err  error
		want int
	}{
		{t.Context(), nil, 0},
		{t.Context(), errors.New("broke"), 1},
		{t.Context(), &api.Error{Code: api.CodeConflict}, 5},
		{t.Context(), &api.Error{Code: "new"}, 1},
		{cancelled, context.Canceled, 130},
		{cancelled, &api.Error{Code: api.CodeInterrupted, Op: "ask node", Why: "context canceled"}, 130},
	} {
		var errs bytes.Buffer
		got := Main(tc.ctx, Env{Args: []string{"serve", "--name", "n1"}, Stdout: &errs, Stderr: &errs, Getenv: func(string) string { return "" },
			Serve: func(context.Context, ServeConfig) error { return tc.err }})
		if got != tc.want {
			t.Errorf("%v: %d, want %d (%s)", tc.err, got, tc.want, errs.String())
		}
		if tc.want == 130 && errs.String() != "lockstep: interrupted\n" {
			t.Errorf("%v: said %q", tc.err, errs.String())
		}
	}
}

// TestEveryCommandExplainsItself: a line, and an example that the command itself would understand.
func TestEveryCommandExplainsItself(t *testing.T) {
	root := (&app{}).root()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || !strings.Contains(c.Example, "lockstep") {
			t.Errorf("%s: short %q, example %q", c.CommandPath(), c.Short, c.Example)
		}
		for line := range strings.SplitSeq(c.Example, "\n") {
			words := strings.Fields(line)
			if len(words) == 0 || words[0] != "lockstep" {
				continue
			}
			at, _, err := root.Find(words[1:])
			if err != nil || at == root {
				t.Errorf("%s: the example %q is not a command: %v", c.CommandPath(), line, err)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

func TestFormat(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10188: "9.9 KiB", 10240: "10 KiB",
		1048000: "1023 KiB", 1048575: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0s", -1: "0s", 0.0123: "12ms", 12.34: "12.3s", 75.2: "1m15s"} {
		if got := seconds(s); got != want {
			t.Errorf("seconds(%g) = %q, want %q", s, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	clock := time.Unix(0, 0)
	now := func() time.Time { return clock }
	part := func(node string, done, total uint64) api.Progress {
		return api.Progress{What: "verifying", Node: node, Done: done, Total: total, Unit: "files"}
	}
	var log bytes.Buffer
	p := newProgress(&log, now)
	for range 25 { // 12.5 s
		p.update(part("n1", 10, 40))
		p.update(part("n2", 30, 40))
		clock = clock.Add(500 * time.Millisecond)
	}
	p.end()
	want := "verifying 50%: 40 of 80 files (n1 25%, n2 75%) after 1s\n"
	if lines := strings.SplitAfter(log.String(), "\n"); len(lines) != 4 || lines[0] != want {
		t.Errorf("a log got %q, want three lines like %q", log.String(), want)
	}

	var term bytes.Buffer
	p = newProgress(&term, now)
	p.tty = true
	p.update(part("", 1, 0))
	if term.Len() != 0 {
		t.Errorf("shown at once: %q", term.String())
	}
	clock = clock.Add(quiet)
	p.update(part("", 3, 6))
	p.end()
	clock = clock.Add(quiet)
	p.update(api.Progress{What: "saving", Node: "n1", Done: 0, Total: 2, Unit: "groups"})
	if got, want := term.String(), "saving ["+strings.Repeat("░", barColumns)+"] 0%: 0 of 2 groups (n1 0%)"; !strings.HasSuffix(got, want) {
		t.Errorf("the next step got %q, want %q", got, want)
	}
	term.Reset()
	p.update(part("", 3, 6))
	clock = clock.Add(quiet)
	p.update(part("", 3, 6))
	p.end()
	if got, want := term.String(), "\r\x1b[Kverifying ["+strings.Repeat("█", 15)+strings.Repeat("░", 15)+"] 50%: 3 of 6 files\r\x1b[K"; got != want {
		t.Errorf("a terminal got %q, want %q", got, want)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"web → später": "web → später", "a\nb": "a\nb", "a\x1b[31mb": `a\x1b[31mb`, "bad\xff": `bad\xff`, "\u009b": `\xc2\x9b`, "": "",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestAwaiting: what takes long is told once, unless the command tells itself, and never after the answer.
func TestAwaiting(t *testing.T) {
	for name, c := range map[string]struct {
		takes   time.Duration
		telling bool
		want    string
	}{
		"quick":             {quiet - time.Millisecond, false, ""},
		"over a second":     {quiet + time.Millisecond, false, "waiting for the answer of h:1\n"},
		"slow":              {10 * quiet, false, "waiting for the answer of h:1\n"},
		"slow with its own": {10 * quiet, true, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			var errs bytes.Buffer
			a := &app{env: Env{Stderr: &errs}}
			answered := a.awaiting("h:1")
			if c.telling {
				a.newProgress()
			}
			<-time.After(c.takes)
			answered()
			<-time.After(time.Hour)
			if errs.String() != c.want {
				t.Errorf("%s: %q", name, errs.String())
			}
		})
	}
}
