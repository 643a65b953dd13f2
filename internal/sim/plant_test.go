package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	allMutants  = flag.Bool("sim.mutants", false, "plant every bug, not only the quick ones")
	mutantSeeds = flag.Int("sim.mutantseeds", 10000, "seeds within which a planted bug must be seen")
	onlyMutant  = flag.String("sim.mutant", "", "plant this bug only")
)

// TestMutants plants bugs, one at a time, and wants the simulator to see each of them.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the simulator several times")
	}
	var seen []PlantedBug
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			file, err := filepath.Abs(filepath.Join("..", filepath.FromSlash(m.file)))
			if err != nil {
				t.Fatal(err)
			}
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), m.old); n != 1 {
				t.Fatalf("%s holds %d times, want once:\n%s", m.file, n, m.old)
			}
			if *onlyMutant != "" && m.name != *onlyMutant || *onlyMutant == "" && !m.quick && !*allMutants {
				t.Skip("only its place was checked; plant it with -sim.mutants")
			}
			first, what := plant(t, m, file, strings.Replace(string(source), m.old, m.new, 1))
			t.Logf("seen: seed %d: %.300s", first, what)
			seen = append(seen, PlantedBug{Name: m.name, File: "internal/" + m.file, Why: m.why, Seeds: first + 1, Commit: commit(t)})
		})
	}
	if *record && len(seen) > 0 {
		r := readRecord(t)
		r.planted(seen, func(name string) bool {
			return slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == name })
		})
		saveRecord(t, r)
	}
}

// plant builds the simulator with the bug in it and returns the first seed that shows it, and how.
func plant(t *testing.T, m mutant, file, source string) (first uint64, what string) {
	dir := t.TempDir()
	changed, overlay, binary := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sim.test")
	spec, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(changed, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, spec, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlay, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var out []byte
	for from, count := 0, 24; from < *mutantSeeds; from, count = from+count, 4*count { // few at first: most are seen soon
		count = min(count, *mutantSeeds-from)
		args := []string{"-test.run=^TestSim$", "-sim.failfast", fmt.Sprint("-sim.from=", from), fmt.Sprint("-sim.seeds=", count)}
		if m.whole {
			args = []string{"-test.run=^TestBubble$", "-test.failfast", fmt.Sprint("-sim.bubblesfrom=", from), fmt.Sprint("-sim.bubbles=", count)}
		}
		out, err = exec.CommandContext(ctx, binary, args...).CombinedOutput()
		if first, what, found := firstSeen(out); err != nil && found {
			return first, what
		} else if err != nil && (ctx.Err() != nil || bytes.Contains(out, []byte("panic: "))) {
			break
		}
	}
	t.Fatalf("not seen in %d seeds, though %s: %v\n%s", *mutantSeeds, m.why, err, out)
	return 0, ""
}

var seenAt = regexp.MustCompile(`: seed (\d+)[:,] ([^\n]*)`)

// firstSeen is the lowest seed that a run complained of; each of its processes stops at its own first.
func firstSeen(out []byte) (first uint64, what string, found bool) {
	for _, match := range seenAt.FindAllSubmatch(out, -1) {
		seed, err := strconv.ParseUint(string(match[1]), 10, 64)
		if err == nil && (!found || seed < first) {
			first, what, found = seed, string(match[2]), true
		}
	}
	return first, what, found
}
