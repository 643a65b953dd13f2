package server

import (
	"errors"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// TestSettle: an account counts only if it is of the history that the group is on.
func TestSettle(t *testing.T) {
	before, now := [16]byte{1}, [16]byte{2}
	down := errors.New("down")
	type account struct {
		f   fateAnswer
		err error
	}
	says := func(fate string, h [16]byte) account {
		return account{fateAnswer{Fate: fate, Why: "so", History: h}, nil}
	}
	silent := account{err: down}
	confirm := func(f fateAnswer) error {
		if f.History != now {
			return errBehind
		}
		return nil
	}
	for name, c := range map[string]struct {
		accounts []account
		confirm  func(fateAnswer) error
		want     string // empty: nobody answers
		asked    int
	}{
		"the first one tells":                       {[]account{says(api.FateCommitted, now), says(api.FateLost, now)}, confirm, api.FateCommitted, 1},
		"the first one is down":                     {[]account{silent, says(api.FateLost, now)}, confirm, api.FateLost, 2},
		"the first one is behind":                   {[]account{says(api.FateCommitted, before), says(api.FateLost, now)}, confirm, api.FateLost, 2},
		"the first one is behind and does not know": {[]account{says(api.FateUnknown, before), says(api.FateCommitted, now)}, confirm, api.FateCommitted, 2},
		"all are behind":                            {[]account{says(api.FateCommitted, before), silent}, confirm, api.FateUnknown, 2},
		"nobody knows":                              {[]account{says(api.FateUnknown, now), says(api.FateLost, before)}, confirm, api.FateUnknown, 1},
		"the control group is silent":               {[]account{says(api.FateCommitted, now), says(api.FateLost, now)}, func(fateAnswer) error { return down }, api.FateUnknown, 1},
		"all are down":                              {[]account{silent, silent}, confirm, "", 2},
	} {
		members := make([]control.Member, len(c.accounts))
		for i := range members {
			members[i].Replica = uint64(i)
		}
		asked := 0
		got, answered := settle(members, func(m control.Member) (fateAnswer, error) {
			asked++
			a := c.accounts[m.Replica]
			return a.f, a.err
		}, c.confirm)
		if got.Fate != c.want || answered != (c.want != "") || asked != c.asked || answered && got.Why == "" {
			t.Errorf("%s: %+v, %v, %d asked; want %q of %d", name, got, answered, asked, c.want, c.asked)
		}
	}
}

// TestTokenOfAWriteOverAFork: the write is submitted before the fork and taken after it. Its token is of the history that
// has it.
func TestTokenOfAWriteOverAFork(t *testing.T) {
	s := startSealed(t)
	defer func() { stopNode(t, s.node) }()
	accepted := func(g *control.Group) (token string) {
		t.Helper()
		await(t, "a write is accepted", func() bool {
			p, err := s.probe(t.Context(), g, api.GroupProbeRequest{Ack: "local"})
			if err != nil {
				t.Fatal(err)
			}
			token = p.Token
			return token != ""
		})
		return token
	}
	fate := func(token string) string {
		t.Helper()
		f, err := s.GroupToken(t.Context(), "web", token)
		if err != nil {
			t.Fatal(err)
		}
		return f.Fate
	}
	before := s.web()
	early := accepted(before)
	if _, err := s.recoverHere(t.Context(), groupRequest{Group: before.ID, Path: "n1"}); err != nil {
		t.Fatal(err)
	}
	s.awaitRuns()
	late := accepted(before) // asked for by what was known before
	for what, token := range map[string]string{"before": early, "over": late} {
		if got := fate(token); got != api.FateCommitted {
			t.Errorf("of a write %s the fork: %s", what, got)
		}
	}
	w, err := parseWriteToken(late)
	if err != nil || w.history != s.web().History {
		t.Errorf("the token %s is of another history than %x, %v", late, s.web().History, err)
	}
	if err := s.confirmHistory(t.Context(), before.ID, before.History); !errors.Is(err, errBehind) {
		t.Errorf("the history that was given up is confirmed: %v", err)
	}
	if err := s.confirmHistory(t.Context(), before.ID, w.history); err != nil {
		t.Error(err)
	}
	h, err := s.holding(before.ID)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := fateOf(t.Context(), doubtfulMember{h.member}, s.web(), w); !errors.Is(err, engine.ErrQuarantined) {
		t.Errorf("by a state in quarantine: %+v, %v", f, err)
	}
}

// doubtfulMember is a member whose state is in quarantine.
type doubtfulMember struct{ member }

func (doubtfulMember) Quarantine() *replica.Quarantine { return &replica.Quarantine{Mark: 1} }

// TestFateDuringAStart: a node answers calls, and may have loaded the control group's state, before its part of that group
// runs.
func TestFateDuringAStart(t *testing.T) {
	n := &node{ctl: newControlPlane()}
	n.ctl.publish(&control.State{Groups: []control.Group{{ID: control.ControlGroup}}})
	token := writeToken{history: [16]byte{1}, at: core.Position{Term: 1, Index: 2}}.String()
	if _, err := n.fateHere(t.Context(), groupRequest{Group: control.ControlGroup, Path: token}); !errors.Is(err, errStarting) {
		t.Error(err)
	}
}
