package server

import (
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// TestTokensAcrossAFork: what the seed's log held at the fork is decided by the terms, nothing else.
func TestTokensAcrossAFork(t *testing.T) {
	one, two, other := [16]byte{1}, [16]byte{2}, [16]byte{9}
	forked := replica.Line{History: two, Before: one, Fork: core.Position{Term: 3, Index: 100}, Start: 106, Seed: 1}
	early := forked
	early.Start = 0
	for name, c := range map[string]struct {
		line    replica.Line
		history [16]byte
		index   uint64
		want    string // empty: the terms decide
	}{
		"its own history":                 {forked, two, 200, ""},
		"shared by both":                  {forked, one, 100, ""},
		"the first of the seed's tail":    {forked, one, 101, ""},
		"the last of the seed's tail":     {forked, one, 105, ""},
		"behind the seed's tail":          {forked, one, 106, api.FateLost},
		"of another history":              {forked, other, 50, api.FateUnknown},
		"of none, where there is no fork": {replica.Line{History: two}, [16]byte{}, 50, api.FateUnknown},
		"shared, the start is not known":  {early, one, 100, ""},
		"the start is not known":          {early, one, 101, api.FateUnknown},
	} {
		got, sure := fateByLine(c.line, writeToken{history: c.history, at: core.Position{Term: 3, Index: c.index}})
		if got.Fate != c.want || sure != (c.want != "") || sure && got.Why == "" {
			t.Errorf("%s: %+v, %v; want %q", name, got, sure, c.want)
		}
	}
}

func TestParseWriteToken(t *testing.T) {
	want := writeToken{history: [16]byte{1, 0xab}, at: core.Position{Term: 4, Index: 1 << 60}, place: 7}
	if got, err := parseWriteToken(want.String()); err != nil || got != want {
		t.Errorf("%s became %+v, %v", want, got, err)
	}
	const history = "01ab0000000000000000000000000000"
	for _, bad := range []string{
		"", "...", history, history + ".1.2", history + ".1.2.3.4", history + ".0.2.3", history + ".1.0.3", history + ".-1.2.3",
		history + ".1.2.4294967296", history + ".1.2. 3", history + ".01.2.3", "01AB" + history[4:] + ".1.2.3", history[2:] + ".1.2.3",
	} {
		if got, err := parseWriteToken(bad); err == nil {
			t.Errorf("%q was taken as %+v", bad, got)
		}
	}
}

func FuzzParseWriteToken(f *testing.F) {
	f.Add(writeToken{history: [16]byte{5}, at: core.Position{Term: 1, Index: 2}, place: 3}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := parseWriteToken(s); err == nil && tok.String() != s {
			t.Errorf("%q became %q", s, tok)
		}
	})
}
