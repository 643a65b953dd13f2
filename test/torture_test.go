package test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/farm"
)

var tortureLogs = flag.String("torture.logs", "", "copy the processes' logs into this directory")

var tortureTime = flag.Duration("torture.duration", 20*time.Second, "how long real processes are tortured")

const (
	tortured   = 3
	volumeSize = 256 << 20
)

// torture is a cluster of real processes to which bad things happen while clients write down what they see.
type torture struct {
	t       *testing.T
	ctx     context.Context
	farm    *farm.Farm
	places  []farm.Place
	net     *farm.Network // nil: there are no partitions
	volume  *farm.Volume  // of the last node; nil: no disk is filled
	rng     *rand.Rand
	history *history
	faults  map[string]int
	story   []string // what was done when
}

// TestTorture kills, stops, cuts off, fills the disk and moves the clocks of real processes while clients work, and
// holds what the clients saw against the models in history_test.go.
func TestTorture(t *testing.T) {
	if testing.Short() && *tortureTime == 0 {
		t.Skip("no time for it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), *tortureTime+4*time.Minute)
	defer cancel()
	x := &torture{t: t, ctx: ctx, rng: rand.New(rand.NewPCG(*seed, 77)), faults: map[string]int{}}
	x.build()
	x.history = newHistory(x.farm, x.places)
	stop := x.history.begin(ctx, *tortureTime)
	deadline := time.Now().Add(*tortureTime)
	for time.Now().Before(deadline) && !t.Failed() {
		x.round()
	}
	stop()
	x.healed()
	x.history.finalReads(ctx)
	x.history.check(t)
	if t.Failed() {
		t.Logf("what was done:\n%s", strings.Join(x.story, "\n"))
	}
	x.report()
}

// build starts the cluster in as much isolation as this machine allows.
func (x *torture) build() {
	dir := x.t.TempDir()
	var err error
	if x.net, err = farm.NewNetwork(tortured); err != nil {
		x.t.Logf("no partitions: %v", err)
	} else {
		x.t.Cleanup(func() {
			if err := x.net.Close(); err != nil {
				x.t.Error(err)
			}
		})
	}
	if x.volume, err = farm.NewVolume(dir, volumeSize); err != nil {
		x.t.Logf("no full disk: %v", err)
	} else {
		x.t.Cleanup(func() {
			if err := x.volume.Close(); err != nil {
				x.t.Error(err)
			}
		})
	}
	x.farm = &farm.Farm{Binary: withMovableClock(x.t), Dir: dir}
	x.t.Cleanup(func() {
		if err := x.farm.Close(); err != nil {
			x.t.Error(err)
		}
		if x.t.Failed() {
			x.keepLogs()
		}
	})
	for i := 1; i <= tortured; i++ {
		place := x.place(dir, i)
		x.places = append(x.places, place)
		if _, err := x.farm.AddAt(x.ctx, place); err != nil {
			x.t.Fatal(err)
		}
	}
	if err := x.farm.Share(x.ctx, group, x.farm.Nodes...); err != nil {
		x.t.Fatal(err)
	}
	settle(x.t, x.ctx, x.farm)
}

// keepLogs shows what the processes had to say, or copies it to where it was asked for.
func (x *torture) keepLogs() {
	for _, n := range x.farm.Nodes {
		if *tortureLogs == "" {
			x.t.Logf("--- log of %s\n%s", n.Name, n.Log())
			continue
		}
		b, err := os.ReadFile(filepath.Join(x.farm.Dir, n.Name+".log"))
		if err == nil {
			err = os.WriteFile(filepath.Join(*tortureLogs, n.Name+".log"), b, 0o644)
		}
		if err != nil {
			x.t.Error(err)
		}
	}
}

func (x *torture) place(dir string, i int) farm.Place {
	p := farm.Place{Dir: filepath.Join(dir, fmt.Sprintf("n%d", i)), Env: []string{clockVariable + "=" + x.clock(dir, i)}}
	if x.net != nil {
		p.Listen, p.Under = x.net.Address(i)+":7420", x.net.Under(i)
	}
	if x.volume != nil && i == tortured {
		p.Dir = x.volume.Dir
	}
	if err := os.MkdirAll(filepath.Join(p.Dir, "aside"), 0o755); err != nil {
		x.t.Fatal(err)
	}
	return p
}

func (x *torture) clock(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("clock-%d", i))
}

// pause lets the processes live with what was done to them.
func (x *torture) pause(least, most time.Duration) {
	select {
	case <-time.After(least + time.Duration(x.rng.Int64N(int64(most-least)))):
	case <-x.ctx.Done():
	}
}

// round strikes once or twice, waits, and undoes it.
func (x *torture) round() {
	var undo []func() error
	for range 1 + x.rng.IntN(2) {
		kinds := slices.Sorted(maps.Keys(x.kinds(x.farm.Nodes[0])))
		kind := kinds[x.rng.IntN(len(kinds))]
		x.faults[kind]++
		n := x.farm.Nodes[x.rng.IntN(tortured)]
		x.tell(kind + " " + n.Name)
		end, err := x.kinds(n)[kind]()
		if err != nil {
			x.t.Errorf("%s: %v", kind, err)
			return
		}
		undo = append(undo, end)
		x.pause(0, 500*time.Millisecond)
	}
	x.pause(100*time.Millisecond, 3*time.Second)
	x.tell("undone")
	for _, end := range undo {
		if err := end(); err != nil {
			x.t.Error(err)
		}
	}
	x.revive()
	x.pause(100*time.Millisecond, 3*time.Second)
}

// tell notes what is done, so that what clients saw can be compared with it.
func (x *torture) tell(what string) {
	x.story = append(x.story, fmt.Sprintf("%d ms: %s", x.history.now()/1e6, what))
}

// kinds of faults that node n, or everybody, may meet; each returns how it is undone.
func (x *torture) kinds(n *farm.Node) map[string]func() (func() error, error) {
	i := slices.Index(x.farm.Nodes, n) + 1
	nothing := func() error { return nil }
	kinds := map[string]func() (func() error, error){
		"kill": func() (func() error, error) { return nothing, n.Kill() },
		"kill all": func() (func() error, error) {
			for _, n := range x.farm.Nodes {
				if err := n.Kill(); err != nil {
					return nothing, err
				}
			}
			return nothing, nil
		},
		"terminate": func() (func() error, error) {
			// One that is stopped by SIGSTOP does not hear SIGTERM before it is continued.
			return nothing, n.Signal(syscall.SIGTERM, false)
		},
		"stop and continue": func() (func() error, error) {
			return func() error { return n.Signal(syscall.SIGCONT, false) }, n.Signal(syscall.SIGSTOP, false)
		},
		"clock jump": func() (func() error, error) {
			jump := time.Duration((x.rng.Float64() - 0.5) * float64(2*time.Hour))
			return nothing, os.WriteFile(x.clock(x.farm.Dir, i), []byte(jump.String()), 0o644)
		},
	}
	if x.net != nil {
		kinds["partition"] = func() (func() error, error) { return x.net.Heal, x.cut(i, true, true) }
		kinds["partition, one way"] = func() (func() error, error) {
			out := x.rng.IntN(2) == 0
			return x.net.Heal, x.cut(i, out, !out)
		}
	}
	if x.volume != nil {
		kinds["full disk"] = func() (func() error, error) { return x.volume.Free, x.volume.Fill() }
	}
	return kinds
}

func (x *torture) cut(i int, out, in bool) error {
	for other := 1; other <= tortured; other++ {
		if other == i {
			continue
		}
		if out {
			if err := x.net.Cut(i, other); err != nil {
				return err
			}
		}
		if in {
			if err := x.net.Cut(other, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// revive starts what does not run.
func (x *torture) revive() {
	for _, n := range x.farm.Nodes {
		if n.Ended() || !n.Running() {
			x.tell("start " + n.Name)
			if err := x.farm.Run(n, ""); err != nil {
				x.t.Error(err)
			}
		}
	}
}

// healed waits until all that run are in step again.
func (x *torture) healed() {
	err := farm.Poll(x.ctx, 100*time.Millisecond, func() error {
		x.revive() // one that had no room ends, or was told to end, a little late
		for _, n := range x.farm.Nodes {
			if st, err := n.Client.Status(x.ctx); err != nil || !st.Ready {
				return fmt.Errorf("%s is not ready: %v %v", n.Name, st.Warnings, err)
			}
		}
		return nil
	})
	if err != nil {
		x.t.Fatal(err)
	}
	settle(x.t, x.ctx, x.farm)
}

// report is one line for machines.
func (x *torture) report() {
	sum := map[string]any{"seconds": tortureTime.Seconds(), "faults": x.faults, "operations": x.history.counts()}
	line, err := json.Marshal(sum)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Logf("torture %s", line)
}

// clockVariable names the file that says by how much a process's clock is wrong.
const clockVariable = "LOCKSTEP_TORTURE_CLOCK"

// movableClock is put in the place of time.Now where the engine gets its clock: the time of day belongs to the whole
// machine, so it cannot be moved for one process from outside.
const movableClock = `package server

import (
	"os"
	"time"
)

func movableClock() time.Time {
	b, err := os.ReadFile(os.Getenv("` + clockVariable + `"))
	if err != nil {
		return time.Now()
	}
	d, err := time.ParseDuration(string(b))
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(d)
}
`

// withMovableClock builds the binary with nothing changed but the engine's clock.
func withMovableClock(t *testing.T) string {
	dir := t.TempDir()
	start, err := filepath.Abs("../internal/server/start.go")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(start)
	if err != nil {
		t.Fatal(err)
	}
	const seam = "Now: time.Now,"
	if strings.Count(string(source), seam) != 1 {
		t.Fatalf("%s has %d clocks, want one: %s", start, strings.Count(string(source), seam), seam)
	}
	replace := map[string]string{}
	put := func(target, name, text string) {
		replace[target] = filepath.Join(dir, name)
		if err := os.WriteFile(replace[target], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(start, "start.go", strings.Replace(string(source), seam, "Now: movableClock,", 1))
	put(filepath.Join(filepath.Dir(start), "movableclock.go"), "movableclock.go", movableClock)
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	spec, out := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "lockstep")
	if err := os.WriteFile(spec, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", spec, "-o", out, "github.com/lockstep-sync/lockstep/cmd/lockstep")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build with a movable clock: %v\n%s", err, text)
	}
	return out
}

// each runs f for every node at once.
func each(f *farm.Farm, do func(i int, n *farm.Node)) {
	var wait sync.WaitGroup
	for i, n := range f.Nodes {
		wait.Go(func() { do(i, n) })
	}
	wait.Wait()
}

// waitFor is a `dir wait`; true if it is done in time.
func waitFor(ctx context.Context, n *farm.Node, req api.DirWaitFor) bool {
	w, err := n.Client.DirWait(ctx, group, req, nil)
	return err == nil && w.Done
}
