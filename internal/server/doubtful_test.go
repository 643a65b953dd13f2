package server

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

func TestAllDoubtful(t *testing.T) {
	sound := logEndAnswer{Replica: 1, Voters: []uint64{1, 2, 3}}
	doubtful := logEndAnswer{Replica: 2, Voters: []uint64{1, 2, 3}, Doubtful: true}
	damaged, astray := logEndAnswer{Replica: 3, Damaged: true}, logEndAnswer{Replica: 3, Astray: true}
	learner := logEndAnswer{Replica: 9, Voters: []uint64{1, 2, 3}}
	observer, down := logEndAnswer{Replica: 8}, logEndAnswer{}
	for name, c := range map[string]struct {
		ends []logEndAnswer
		want bool
	}{
		"nobody answers":           {[]logEndAnswer{down, down}, false},
		"all is well":              {[]logEndAnswer{sound, down}, false},
		"one heals from the other": {[]logEndAnswer{doubtful, sound}, false},
		"the others are down":      {[]logEndAnswer{down, doubtful, down}, true},
		"and who does not vote":    {[]logEndAnswer{observer, doubtful, damaged, astray, learner}, true},
		"only observers":           {[]logEndAnswer{observer, down}, false},
	} {
		if got := allDoubtful(c.ends); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDoubtWarnings(t *testing.T) {
	g := &control.Group{Name: "web", Members: []control.Member{{Replica: 1, Node: 1, Role: control.RoleVoter}, {Replica: 2, Node: 2, Role: control.RoleVoter},
		{Replica: 3, Node: 3, Role: control.RoleObserver}}}
	shown := api.Group{Name: "web", Replicas: []api.Replica{{Node: "n1"}, {Node: "n2"}, {Node: "n3"}}}
	sound, doubtful, down := report{Mode: "live"}, report{Mode: "diverged", Why: "it differs", Doubtful: true}, report{Mode: "down"}
	for name, c := range map[string]struct {
		reports []report
		want    string
	}{
		"all is well":          {[]report{sound, sound, sound}, ""},
		"one heals":            {[]report{doubtful, sound, sound}, "quarantine web on n1"},
		"an observer heals":    {[]report{sound, sound, doubtful}, "quarantine web on n3"},
		"the only one that is": {[]report{doubtful, down, sound}, "no_sound_state web"},
		"all voters":           {[]report{doubtful, doubtful, sound}, "no_sound_state web"},
		"nobody is there":      {[]report{down, down, sound}, ""},
	} {
		var got []string
		for _, w := range doubtWarnings(g, shown, c.reports) {
			got = append(got, w.Name+" "+w.Subject)
			if w.Text == "" || w.Hint == "" {
				t.Errorf("%s: %+v", name, w)
			}
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
}

// putInQuarantine has a stopped node's state of a group be in quarantine.
func putInQuarantine(t *testing.T, dir string, group uint64) {
	t.Helper()
	state := openState(t, dir)
	v := make([]byte, 32)
	v = append(v, (&replica.Verdict{Mark: 3, Digest: [32]byte{1}, Agree: []uint64{7, 8}}).Encode()...)
	b := state.Batch()
	err := b.Set(append(kvGroup(group), "e/doubtful"...), v)
	if err := errors.Join(err, b.Commit(), state.Sync(), state.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestTheOnlyVoterIsInQuarantine: it answers nothing and says what can be done; it is trusted if it is named, and the audit
// trail has that.
func TestTheOnlyVoterIsInQuarantine(t *testing.T) {
	s := startSealed(t)
	s.put("before")
	id := s.web().ID
	stopNode(t, s.node)
	putInQuarantine(t, filepath.Join(s.data, "state"), id)
	s.start()
	defer func() { stopNode(t, s.node) }()
	await(t, "it runs", func() bool { h, err := s.holding(id); return err == nil && h.grp != nil })
	h, err := s.holding(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.grp.Barrier(t.Context()); !errors.Is(err, engine.ErrQuarantined) {
		t.Errorf("it reads: %v", err)
	}
	await(t, "status says so", func() bool {
		status, err := s.Status(t.Context())
		return err == nil && slices.ContainsFunc(status.Warnings, func(w api.Warning) bool {
			return w.Name == "no_sound_state" && strings.Contains(w.Hint, "--from n1") && strings.Contains(w.Hint, "lockstep restore")
		})
	})
	var refused *api.Error
	was := s.web().History
	if _, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web"}); !errors.As(err, &refused) || refused.Code != api.CodeConflict || !strings.Contains(refused.Hint, "--from NODE") {
		t.Errorf("nobody was named: %v", err)
	}
	dry, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web", From: "n1", DryRun: true})
	if err != nil || !dry.Doubtful || dry.Node != "n1" || s.web().History != was {
		t.Errorf("%+v, %v", dry, err)
	}
	done, err := s.GroupRecover(t.Context(), "web", api.GroupRecover{Confirm: "web", From: "n1"})
	if err != nil || !done.Doubtful {
		t.Fatalf("%+v, %v", done, err)
	}
	s.awaitRuns()
	s.put("after")
	if s.files() != 2 {
		t.Errorf("%d files", s.files())
	}
	if !slices.ContainsFunc(s.ctl.state().Audit, func(a control.Audit) bool { return strings.Contains(a.What, "its state was in quarantine") }) {
		t.Error("the audit trail does not have it")
	}
}

// TestOfflineRecoverDoesNotTrustAStateInQuarantine: not unless that was said.
func TestOfflineRecoverDoesNotTrustAStateInQuarantine(t *testing.T) {
	s := startSealed(t)
	stopNode(t, s.node)
	putInQuarantine(t, filepath.Join(s.data, "state"), control.ControlGroup)
	log := slog.New(slog.DiscardHandler)
	var refused *api.Error
	if _, err := OfflineRecover(t.Context(), s.data, "n1", false, log); !errors.As(err, &refused) || refused.Code != api.CodeConflict || !strings.Contains(refused.Hint, "--doubtful") {
		t.Fatalf("%v", err)
	}
	out, err := OfflineRecover(t.Context(), s.data, "n1", true, log)
	if err != nil || !out.Doubtful {
		t.Fatalf("%+v, %v", out, err)
	}
	s.start()
	defer func() { stopNode(t, s.node) }()
	await(t, "the control group answers", func() bool { _, err := s.ctl.member().Barrier(t.Context()); return err == nil })
}
