package main

import (
	"slices"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	o := &outcome{}
	for _, v := range []float64{4, 9, 2} {
		o.add("p50 ms", v)
		o.of("slow", "p50 ms", 2*v)
	}
	o.of("absent once", "p50 ms", 1)
	o.of("alone", "disk ms", 1)
	o.judge(map[string]aim{"p50 ms": atMost(4)})
	f := o.Figures[0]
	if f.Missed || f.Aim != "≤ 4" {
		t.Errorf("a median of 4 misses %s", f.Aim)
	}
	if got := f.Series[1].Ratio; !slices.Equal(got, []float64{0.5, 0.5, 0.5}) {
		t.Errorf("ratios run by run %v", got)
	}
	if got := f.Series[2].Ratio; got != nil {
		t.Errorf("a program that missed runs has ratios %v", got)
	}
	if len(o.Figures) != 2 || o.Figures[1].Series[0].Ratio != nil {
		t.Error("a figure that is not ours has a ratio")
	}
	var text strings.Builder
	if err := o.print(&text); err != nil || !strings.Contains(text.String(), "4.00 [2.00–9.00]") {
		t.Errorf("%v %s", err, text.String())
	}
}

func TestAim(t *testing.T) {
	for _, c := range []struct {
		aim    aim
		median float64
		met    bool
	}{
		{atMost(6), 5.9, true}, {atMost(6), 6, true}, {atMost(6), 6.1, false},
		{atLeast(6), 5.9, false}, {atLeast(6), 6, true}, {atLeast(6), 6.1, true},
	} {
		if c.aim.metBy(c.median) != c.met {
			t.Errorf("%v by %v: not %v", c.aim, c.median, c.met)
		}
	}
}

func TestChoose(t *testing.T) {
	all := []workload{{name: "engine-1"}, {name: "engine-64"}, {name: "event"}}
	for only, want := range map[string]int{"": 3, "engine": 2, "engine-64": 1, "event,engine": 3, "eng": -1, "event,nothing": -1} {
		got, err := choose(all, only)
		if (err != nil) != (want < 0) || err == nil && len(got) != want {
			t.Errorf("%q: %d workloads, %v", only, len(got), err)
		}
	}
}
