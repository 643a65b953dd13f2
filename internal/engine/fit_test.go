package engine

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// TestLogFits: a state ahead of its log is one that was just installed, or not of the same moment; so is a state that ends
// before its log.
func TestLogFits(t *testing.T) {
	logs := logstore.NewMemory()
	at := func(term, index uint64) core.Position { return core.Position{Term: term, Index: index} }
	log, err := logs.Create(7, &raftpb.SnapshotMetadata{Index: new(uint64(5)), Term: new(uint64(2)), ConfState: &raftpb.ConfState{Voters: []uint64{1}}})
	if err != nil {
		t.Fatal(err)
	}
	var entries []*raftpb.Entry
	for i := uint64(6); i <= 8; i++ {
		entries = append(entries, &raftpb.Entry{Index: new(i), Term: new(uint64(3))})
	}
	hard := &raftpb.HardState{Term: new(uint64(3)), Vote: new(uint64(0)), Commit: new(uint64(6))}
	if err := logs.Write([]logstore.Write{{Group: 7, Entries: entries, HardState: hard}}); err != nil {
		t.Fatal(err)
	}
	none := core.Position{}
	for name, c := range map[string]struct {
		at, installed core.Position
		fits, damaged bool
	}{
		"where the log begins":                  {at(2, 5), none, true, false},
		"within the log":                        {at(3, 6), none, true, false},
		"where the log ends":                    {at(3, 8), at(2, 4), true, false},
		"installed ahead":                       {at(3, 12), at(3, 12), false, false},
		"ahead, never installed":                {at(3, 12), none, false, true},
		"ahead, applied since the installation": {at(3, 12), at(3, 11), false, true},
		"installed, the log has others":         {at(4, 7), at(4, 7), false, false},
		"the log has others":                    {at(4, 7), at(3, 6), false, true},
		"before the log":                        {at(2, 4), none, true, true},
		"installed before the log":              {at(2, 4), at(2, 4), true, true},
		"no state":                              {none, none, true, false},
	} {
		st := replica.Standing{At: c.at, Installed: c.installed}
		fits, err := LogFits(log, st)
		if errors.Is(err, logstore.ErrDamaged) != c.damaged || err != nil && !c.damaged || fits != c.fits {
			t.Errorf("%s: %v, %v", name, fits, err)
		}
		end, err := stoppedEnd(log, st)
		if errors.Is(err, logstore.ErrDamaged) != c.damaged {
			t.Errorf("%s: its end is %+v, %v", name, end, err)
		}
		if !c.damaged && !c.fits && end != (LogEnd{Commit: c.at, Last: c.at}) {
			t.Errorf("%s: it is to be reset, and its end is %+v", name, end)
		}
	}
}

// TestOlderLogAfterInstall: a follower gets the whole state, and nothing is written after that. Then its log, which may hold
// a vote, is exchanged for the one from before: that does not pass for a log that was not reset yet.
func TestOlderLogAfterInstall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f, r, _ := rotting(t, 3, 1, true)
		defer f.close()
		f.write(5, 100)
		f.leads(1)
		f.reaches(3)
		f.kill(3)
		older, err := f.logs[3].(*logstore.Memory).Crash(nil, func(n int) int { return n })
		if err != nil {
			t.Fatal(err)
		}
		at := f.index
		f.write(20, 100)
		r.rot(at+5, at+7)
		f.startVoter(3)
		f.reaches(3)
		g := f.groups[3]
		if c := g.Catchup(); c.By != ModeSnap {
			t.Fatalf("it caught up by %s: %s", c.By, c.Why)
		}
		f.until("it knows that its log leads to the state", func() bool { return g.rep.Standing().Installed == core.Position{} })
		f.kill(3)
		f.startVoter(3) // a log that was reset is as good as any
		f.reaches(3)
		f.kill(3)
		f.logs[3] = older
		cfg := f.config
		cfg.Replica, cfg.Machine, cfg.Initial = 3, f.machine(3), f.voters
		if _, err := f.open(3).StartGroup(cfg); !errors.Is(err, logstore.ErrDamaged) {
			t.Errorf("it starts with an older log: %v", err)
		}
	})
}
