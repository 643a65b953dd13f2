package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// ours is whose figures the peers' are held against.
const ours = "lockstep"

// aim is what the median of a figure should be: at most its limit, or at least.
type aim struct {
	atLeast bool
	limit   float64
}

func atMost(limit float64) aim  { return aim{limit: limit} }
func atLeast(limit float64) aim { return aim{atLeast: true, limit: limit} }

func (a aim) String() string {
	if a.atLeast {
		return "≥ " + strconv.FormatFloat(a.limit, 'f', -1, 64)
	}
	return "≤ " + strconv.FormatFloat(a.limit, 'f', -1, 64)
}

func (a aim) metBy(median float64) bool {
	if a.atLeast {
		return median >= a.limit
	}
	return median <= a.limit
}

// outcome is what the runs of one workload measured.
type outcome struct {
	Name    string    `json:"name"`
	What    string    `json:"what"`
	Load    float64   `json:"load"`          // of the machine, over the minute before the first run
	Steal   float64   `json:"steal_percent"` // of the processor time of the runs, taken by the host
	Figures []*figure `json:"figures"`
	Without []string  `json:"without"` // peers that were not measured in some run, and why
}

// figure is one quantity, whose name ends in its unit: ours, and of the peers beside it.
type figure struct {
	Name   string    `json:"figure"`
	Aim    string    `json:"aim,omitempty"`
	Missed bool      `json:"missed,omitempty"` // the aim, by our median
	Series []*series `json:"series"`
}

// series is one figure of one program, a value a run.
type series struct {
	Of     string    `json:"of"`
	Values []float64 `json:"values"`
	Ratio  []float64 `json:"ratio,omitempty"` // ours to this one's, run by run
}

// add notes a value of ours.
func (o *outcome) add(name string, value float64) { o.of(ours, name, value) }

// of notes a value of any program.
func (o *outcome) of(program, name string, value float64) {
	i := slices.IndexFunc(o.Figures, func(f *figure) bool { return f.Name == name })
	if i < 0 {
		i = len(o.Figures)
		o.Figures = append(o.Figures, &figure{Name: name})
	}
	f := o.Figures[i]
	k := slices.IndexFunc(f.Series, func(s *series) bool { return s.Of == program })
	if k < 0 {
		k = len(f.Series)
		f.Series = append(f.Series, &series{Of: program})
	}
	f.Series[k].Values = append(f.Series[k].Values, value)
}

// without notes, once, that a peer was not measured.
func (o *outcome) without(why string) {
	if !slices.Contains(o.Without, why) {
		o.Without = append(o.Without, why)
	}
}

// judge adds ratios and aims when all values are there. A ratio is of values that were measured beside each other, so a
// program that missed a run has none.
func (o *outcome) judge(aims map[string]aim) {
	for _, f := range o.Figures {
		mine := slices.IndexFunc(f.Series, func(s *series) bool { return s.Of == ours })
		if mine < 0 {
			continue
		}
		values := f.Series[mine].Values
		if a, ok := aims[f.Name]; ok {
			f.Aim, f.Missed = a.String(), !a.metBy(median(values))
		}
		for k, s := range f.Series {
			if k == mine || len(s.Values) != len(values) {
				continue
			}
			for i, v := range s.Values {
				s.Ratio = append(s.Ratio, values[i]/v)
			}
		}
	}
}

// print writes the outcome as a table.
func (o *outcome) print(w io.Writer) error {
	fmt.Fprintf(w, "\n%s: %s (load %.1f, steal %.1f %%)\n", o.Name, o.What, o.Load, o.Steal)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  figure\tof\tmedian [range]\truns\tours to it\taim")
	for _, f := range o.Figures {
		for i, s := range f.Series {
			name, aimed, ratio := f.Name, f.Aim, ""
			if i > 0 {
				name, aimed = "", ""
			}
			if f.Missed && i == 0 {
				aimed += ", missed"
			}
			if len(s.Ratio) > 0 {
				ratio = spread(s.Ratio)
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%d\t%s\t%s\n", name, s.Of, spread(s.Values), len(s.Values), ratio, aimed)
		}
	}
	err := t.Flush()
	for _, why := range o.Without {
		fmt.Fprintf(w, "  without %s\n", why)
	}
	return err
}

// report is everything, for other programs to read.
type report struct {
	Seed      uint64     `json:"seed"`
	Workloads []*outcome `json:"workloads"`
}

func (r *report) write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// median is the upper one of two in the middle.
func median(v []float64) float64 {
	return slices.Sorted(slices.Values(v))[len(v)/2]
}

// spread is median [lowest–highest].
func spread(v []float64) string {
	m, precision := median(v), 2
	switch {
	case m >= 100:
		precision = 0
	case m >= 10:
		precision = 1
	}
	text := func(x float64) string { return strconv.FormatFloat(x, 'f', precision, 64) }
	return fmt.Sprintf("%s [%s–%s]", text(m), text(slices.Min(v)), text(slices.Max(v)))
}

// processorTicks is what all processors have done since the machine started, and what the host took of it.
func processorTicks() (all, stolen float64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, f := range fields[1:9] {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		all += v
		if i == 7 {
			stolen = v
		}
	}
	return all, stolen, nil
}

// loadAverage of the last minute.
func loadAverage() (float64, error) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), " ")
	return strconv.ParseFloat(first, 64)
}
