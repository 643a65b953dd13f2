package server

import (
	"testing"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

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
