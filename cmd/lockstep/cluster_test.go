package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstep-sync/lockstep/internal/farm"
)

// patience bounds what a script waits for.
const patience = 20 * time.Second

// startCluster runs N nodes until the script ends: cluster N. Their data directories are n1/data …, the directories
// that they may bind n1/tree …; commands ask n1.
func startCluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: cluster N")
	}
	size, err := strconv.Atoi(args[0])
	ts.Check(err)
	binary, err := exec.LookPath("lockstep")
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f, err := farm.Start(ctx, binary, ts.MkAbs("."), size)
	ts.Check(err)
	*ts.Value(clusterKey{}).(**farm.Farm) = f
	ts.Defer(func() {
		if err := f.Close(); err != nil {
			ts.Logf("%v", err)
		}
	})
	ts.Setenv("LOCKSTEP_DATA", f.Nodes[0].Data)
	for _, n := range f.Nodes {
		ts.Setenv(n.Name, "unix://"+filepath.Join(n.Data, "lockstep.sock"))
	}
}

// until runs a command again and again until it succeeds and prints something that matches:
// until 'n2 +up' lockstep node list
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(farm.Poll(ctx, 100*time.Millisecond, func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		if out := ts.ReadFile("stdout"); !pattern.MatchString(out) {
			return fmt.Errorf("nothing matches %s in\n%s", pattern, out)
		}
		return nil
	}))
}

// untilNot runs a command again and again until it succeeds and prints nothing that matches.
func untilNot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until-not PATTERN COMMAND…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(farm.Poll(ctx, 100*time.Millisecond, func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		if out := ts.ReadFile("stdout"); pattern.MatchString(out) {
			return fmt.Errorf("%s is still in\n%s", pattern, out)
		}
		return nil
	}))
}

// gone waits until a file is no longer there: gone n2/tree/a
func gone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: gone FILE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(farm.Poll(ctx, 10*time.Millisecond, func() error {
		if _, err := os.Lstat(ts.MkAbs(args[0])); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is still there (%v)", args[0], err)
		}
		return nil
	}))
}

// appears waits until a file is there and holds a text: appears n2/tree/a 'hello'
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: appears FILE TEXT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(farm.Poll(ctx, 10*time.Millisecond, func() error {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && strings.TrimSuffix(string(b), "\n") != args[1] {
			err = fmt.Errorf("%s holds %q", args[0], b)
		}
		return err
	}))
}

// capture sets a variable to the first group of what matches in the last output: capture TOKEN '(\S+)$'
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture NAME PATTERN")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	found := pattern.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) < 2 {
		ts.Fatalf("nothing matches %s", pattern)
	}
	ts.Setenv(args[0], found[1])
}

// shape writes what kind of JSON the last output is into a file: field names and types without values, a list as
// what its elements have together.
func shape(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: shape FILE")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	var out strings.Builder
	ts.Check(describe(&out, "", v))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(out.String()), 0o644))
}

// describe writes one line for each field below v: its path and its type.
func describe(out *strings.Builder, path string, v any) error {
	lines := map[string]bool{}
	var walk func(path string, v any) error
	walk = func(path string, v any) error {
		switch v := v.(type) {
		case map[string]any:
			for k, field := range v {
				if err := walk(strings.TrimPrefix(path+"."+k, "."), field); err != nil {
					return err
				}
			}
		case []any:
			lines[path+"[]"] = true
			for _, element := range v {
				if err := walk(path+"[]", element); err != nil {
					return err
				}
			}
		case nil:
			return errors.New(path + " is null")
		case string:
			lines[path+" string"] = true
		case float64:
			lines[path+" number"] = true
		case bool:
			lines[path+" bool"] = true
		}
		return nil
	}
	err := walk(path, v)
	for _, line := range slices.Sorted(maps.Keys(lines)) {
		out.WriteString(line + "\n")
	}
	return err
}
