package sim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Record is what has been simulated so far, over all runs, and what came of it. It is kept as JSON; the page for
// people is made from it.
type Record struct {
	Runs []RecordedRun `json:"runs"`
	Bugs []Bug         `json:"bugs"`
	// Planted are bugs that were put there on purpose.
	Planted []PlantedBug `json:"planted"`
	// Bubbles are runs of whole engines.
	Bubbles []RecordedBubbles `json:"bubbles,omitempty"`
	// Torture are runs against real processes, as their test has reported them.
	Torture []json.RawMessage `json:"torture"`
}

// RecordedRun is a range of seeds run with one state of the sources.
type RecordedRun struct {
	Commit    string  `json:"commit"`
	Date      string  `json:"date"`
	From      uint64  `json:"from"`
	Seeds     uint64  `json:"seeds"`
	Failed    uint64  `json:"failed"`  // of them
	Seconds   float64 `json:"seconds"` // wall time
	Simulated int64   `json:"simulated_seconds"`
	Groups    int     `json:"groups"`
	Tables
}

// RecordedBubbles is a range of seeds that whole engines were run with. The same range may be run again: the scheduler has
// a say in what comes of it.
type RecordedBubbles struct {
	Commit  string  `json:"commit"`
	Date    string  `json:"date"`
	From    int     `json:"from"`
	Seeds   int     `json:"seeds"`
	Failed  int     `json:"failed"`
	Seconds float64 `json:"seconds"` // wall time
	Writes  int     `json:"writes"`  // acknowledged
	Faults  []Count `json:"faults"`
	CatchUp []Count `json:"catch_up"`
}

// Bug is something that the simulator has found in what it simulates.
type Bug struct {
	Seed   uint64 `json:"seed"`
	Commit string `json:"commit"` // at which the seed shows it
	What   string `json:"what"`
	Fixed  string `json:"fixed"`
}

// PlantedBug is a mutant of the sources that the simulator has seen through.
type PlantedBug struct {
	Name   string `json:"name"`
	File   string `json:"file"`
	Why    string `json:"why"`   // what it breaks
	Seeds  uint64 `json:"seeds"` // run until it was seen, from seed 0
	Commit string `json:"commit"`
}

// planted enters what was seen in the place of what is known of the same bugs, and drops the bugs that are not listed.
func (r *Record) planted(seen []PlantedBug, listed func(name string) bool) {
	kept := slices.DeleteFunc(r.Planted, func(b PlantedBug) bool {
		return !listed(b.Name) || slices.ContainsFunc(seen, func(s PlantedBug) bool { return s.Name == b.Name })
	})
	r.Planted = append(kept, seen...)
	slices.SortFunc(r.Planted, func(a, b PlantedBug) int { return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Name, b.Name)) })
}

// ReadRecord reads what WriteRecord wrote; a file that is not there is an empty record.
func ReadRecord(path string) (r Record, err error) {
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read track record %s: %w", path, err)
	}
	return r, nil
}

// Encode is the form in which the record is kept.
func (r *Record) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", " ")
	return append(b, '\n'), err
}

// Next is the first seed above all that were run.
func (r *Record) Next() (seed uint64) {
	for _, run := range r.Runs {
		seed = max(seed, run.From+run.Seeds)
	}
	return seed
}

// Page is the record for people, in Markdown.
func (r *Record) Page() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Track record\n")
	line("What the simulator (`internal/sim`) has been through, written by `make track-record SEEDS=n` from the runs")
	line("themselves (`docs/track-record.json`). Every run continues at the seed after the last. A seed is a whole")
	line("cluster with its own shape and its own faults; what is counted was done to, or by, production code.\n")
	line("## Runs\n")
	line("| date | commit | seeds | failed | simulated | wall time | seeds/s |\n|---|---|---|---|---|---|---|")
	var sum RecordedRun
	for _, run := range r.Runs {
		line("| %s | %s | %d–%d | %d | %d h | %.0f s | %.1f |", run.Date, run.Commit, run.From, run.From+run.Seeds-1,
			run.Failed, run.Simulated/3600, run.Seconds, float64(run.Seeds)/run.Seconds)
		sum.add(&run)
	}
	line("| **all** | | **%d** | **%d** | **%d h** | **%.0f s** | |\n", sum.Seeds, sum.Failed, sum.Simulated/3600, sum.Seconds)
	line("Wall time is with one process for each processor, at 60faa95 with a single one, beside whatever else the machine did.\n")
	for _, part := range []struct {
		title  string
		counts []Count
	}{{"Faults injected", sum.Faults}, {"Catch-up: rules and what they decided", sum.CatchUp}, {"Answers given", sum.Answers}, {"What happened", sum.Counts}} {
		line("## %s\n\n| | |\n|---|---|", part.title)
		for _, c := range part.counts {
			line("| %s | %d |", c.Name, c.Count)
		}
		line("")
	}
	line("## Bugs found\n")
	line("A seed replays a bug at the commit that is named: `go test ./internal/sim -run TestSim -sim.seed=SEED`. A change")
	line("of the simulator itself gives seeds another meaning.\n")
	line("| seed | commit | what was wrong | what became of it |\n|---|---|---|---|")
	for _, bug := range r.Bugs {
		line("| %d | %s | %s | %s |", bug.Seed, bug.Commit, bug.What, bug.Fixed)
	}
	line("\n## Bugs planted\n")
	line("`make mutants` puts each of these into the sources, alone, and runs seeds from 0 until one shows it.\n")
	line("| planted | in | because of it | seeds until seen | commit |\n|---|---|---|---|---|")
	for _, bug := range r.Planted {
		line("| %s | `%s` | %s | %d | %s |", bug.Name, bug.File, bug.Why, bug.Seeds, bug.Commit)
	}
	r.bubbles(line)
	line("\n## Real processes\n")
	line("Reports of `make torture`, one a run.\n\n```")
	for _, t := range r.Torture {
		var one bytes.Buffer
		if err := json.Compact(&one, t); err != nil {
			line("%s", t)
			continue
		}
		line("%s", one.String())
	}
	line("```")
	return b.String()
}

// bubbles is the part of the page about whole engines.
func (r *Record) bubbles(line func(format string, args ...any)) {
	if len(r.Bubbles) == 0 {
		return
	}
	line("\n## Whole engines\n")
	line("Runs of `go test ./internal/sim -run TestBubble -sim.bubblesfrom=FROM -sim.bubbles=n -sim.record`.\n")
	line("| date | commit | seeds | failed | writes acknowledged | wall time |\n|---|---|---|---|---|---|")
	var faults, plans []Count
	for _, run := range r.Bubbles {
		line("| %s | %s | %d–%d | %d | %d | %.0f s |", run.Date, run.Commit, run.From, run.From+run.Seeds-1, run.Failed, run.Writes, run.Seconds)
		faults, plans = addCounts(faults, run.Faults), addCounts(plans, run.CatchUp)
	}
	for _, part := range []struct {
		title  string
		counts []Count
	}{{"what was done to them, and seen", faults}, {"how they caught up", plans}} {
		line("\n| %s | |\n|---|---|", part.title)
		for _, c := range part.counts {
			line("| %s | %d |", c.Name, c.Count)
		}
	}
}

func (r *RecordedRun) add(o *RecordedRun) {
	r.Seeds += o.Seeds
	r.Failed += o.Failed
	r.Seconds += o.Seconds
	r.Simulated += o.Simulated
	r.Counts = addCounts(r.Counts, o.Counts)
	r.Faults = addCounts(r.Faults, o.Faults)
	r.CatchUp = addCounts(r.CatchUp, o.CatchUp)
	r.Answers = addCounts(r.Answers, o.Answers)
}

func addCounts(to, more []Count) []Count {
	for _, c := range more {
		i := slices.IndexFunc(to, func(x Count) bool { return x.Name == c.Name })
		if i < 0 {
			to = append(to, c)
		} else {
			to[i].Count += c.Count
		}
	}
	return to
}
