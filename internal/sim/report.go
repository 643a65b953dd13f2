package sim

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lockstep-sync/lockstep/internal/engine/catchup"
	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

const (
	codes = 16 // more than core has codes
	modes = 8  // more than catchup has modes
)

// rules of package catchup, as far as the simulator meets them.
var ruleNames = [...]string{"R0", "R1", "R2", "R3", "R4", "R5", "R6", "R7"}

// Report says what one or more runs came to, so that a reader sees that they did something.
type Report struct {
	Seed, Seeds uint64 // the first one and how many
	Hash        uint64 // of everything that happened, in order: equal seeds, equal hashes
	Simulated   int64  // ms

	Groups, Voters, Observers int // of all runs together

	Events, Writes, Reads, ObserverReads, Retries, Given    int
	AcceptedKept, AcceptedLost, LocalAsQuorum, LossesTold   int
	Duplicates, Elections, Conflicts, Expired               int
	Crashes, Snapshots, ObserverSnapshots, Changes, Digests int
	Fed, CutOff, Reattached                                 int // entries sent to observers; observers cut off, or left by a silent source
	Relayed, Moved                                          int // entries sent by observers; observers that went over to a better source
	Forged                                                  int // observers that came back with what the group never had
	Adopted                                                 int // observers that went on from what they had under a new history
	Loops, TooDeep, Circles                                 int // paths refused for either; circles of observers seen
	Duplicated                                              int // messages that arrived twice
	InSync, Shrunk                                          int // in-sync sets recorded, and those that were smaller
	Damaged, Waits                                          int // logs that were found damaged; steps not taken since nobody agreed
	Ended, Rotted, Aside                                    int // replicas ended by damage beside others; logs that rotted while theirs went on; those that then stepped aside
	Ruins, Recovered                                        int // most logs of a group altered; groups recovered from the rest
	Renewed, Returned                                       int // replicas that began again under another id; those of them that voted
	Mixed, Installed, Raised, RaisesRefused                 int // seeds with two programs; programs exchanged, cluster levels raised, and not
	Unfit, StartsRefused, Newer, NewerRefused               int // processes ended and not started for their program; commands of level 2
	Faults                                                  [faultKinds]int
	Answers                                                 [codes]int
	Plans                                                   [len(ruleNames)][modes]int
}

func (r *Report) answer(c core.Code) { r.Answers[c]++ }

func (r *Report) shaped(s *shape) {
	r.Groups, r.Voters, r.Observers = s.groups, s.voters, s.observers
	if s.mixed {
		r.Mixed = 1
	}
}

func (r *Report) plan(rule string, mode catchup.Mode) {
	for i, name := range ruleNames {
		if strings.HasPrefix(rule, name) {
			r.Plans[i][mode]++
		}
	}
}

// Add sums up.
func (r *Report) Add(o Report) {
	if r.Seeds == 0 {
		r.Seed = o.Seed
	}
	r.Seeds += o.Seeds
	r.Hash ^= o.Hash
	r.Simulated += o.Simulated
	r.Groups += o.Groups
	r.Voters += o.Voters
	r.Observers += o.Observers
	for i, n := range o.counters() {
		*r.counters()[i].at += *n.at
	}
	for i := range o.Faults {
		r.Faults[i] += o.Faults[i]
	}
	for i := range o.Answers {
		r.Answers[i] += o.Answers[i]
	}
	for i := range o.Plans {
		for j := range o.Plans[i] {
			r.Plans[i][j] += o.Plans[i][j]
		}
	}
}

type counter struct {
	name string
	at   *int
}

// counters names what is counted, in the order in which it is printed.
func (r *Report) counters() []counter {
	return []counter{
		{"events", &r.Events}, {"writes", &r.Writes}, {"linearizable reads", &r.Reads},
		{"of them at observers", &r.ObserverReads}, {"requests repeated", &r.Retries},
		{"requests given up", &r.Given}, {"sessions expired", &r.Expired},
		{"retries answered from the table", &r.Duplicates},
		{"accepted and kept", &r.AcceptedKept}, {"accepted and lost", &r.AcceptedLost},
		{"losses told by the leaders that had accepted", &r.LossesTold},
		{"not accepted but committed, being not certain to be executed", &r.LocalAsQuorum},
		{"elections", &r.Elections}, {"crashes", &r.Crashes}, {"membership changes", &r.Changes},
		{"snapshots of members", &r.Snapshots}, {"snapshots of observers", &r.ObserverSnapshots},
		{"entries fed to observers", &r.Fed}, {"observers cut off", &r.CutOff},
		{"observers left by a silent source", &r.Reattached},
		{"observers that came back with a state that never was", &r.Forged},
		{"observers that took up a new history with what they had", &r.Adopted},
		{"entries fed by observers", &r.Relayed}, {"observers that went over to a better source", &r.Moved},
		{"feeds refused or left for a loop", &r.Loops}, {"and for too long a path", &r.TooDeep},
		{"circles of observers, left again", &r.Circles},
		{"in-sync sets recorded", &r.InSync}, {"of them smaller", &r.Shrunk},
		{"clusters of two programs", &r.Mixed}, {"programs exchanged", &r.Installed}, {"cluster levels raised", &r.Raised},
		{"raises refused", &r.RaisesRefused}, {"processes ended, their program being too old", &r.Unfit},
		{"and not started for it", &r.StartsRefused}, {"writes of the newer level", &r.Newer}, {"and refused below it", &r.NewerRefused},
		{"damaged logs found", &r.Damaged}, {"of them begun again under another id", &r.Renewed},
		{"of these, voting again", &r.Returned}, {"steps of damaged replicas put off", &r.Waits},
		{"replicas ended by damage, their hosts going on", &r.Ended}, {"logs that rotted while their replicas went on", &r.Rotted},
		{"of these, stepped aside", &r.Aside},
		{"most logs of a group altered", &r.Ruins}, {"of these groups, recovered from the rest", &r.Recovered},
		{"messages twice", &r.Duplicated}, {"conflicts", &r.Conflicts}, {"digests compared", &r.Digests},
	}
}

// Count is one line of a printed report.
type Count struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

// Tables are the report's counts by what they count.
type Tables struct {
	Counts  []Count `json:"counts"`
	Faults  []Count `json:"faults"`
	CatchUp []Count `json:"catch_up"`
	Answers []Count `json:"answers"`
}

// Tables lists what happened; what a newer version counts in addition shows as a new name.
func (r *Report) Tables() (t Tables) {
	for _, c := range r.counters() {
		t.Counts = append(t.Counts, Count{c.name, *c.at})
	}
	for f, n := range r.Faults {
		t.Faults = append(t.Faults, Count{fault(f).String(), n})
	}
	for i, byMode := range r.Plans {
		for m, n := range byMode {
			if n > 0 {
				t.CatchUp = append(t.CatchUp, Count{ruleNames[i] + " " + catchup.Mode(m).String(), n})
			}
		}
	}
	for c, n := range r.Answers {
		if n > 0 {
			t.Answers = append(t.Answers, Count{core.Code(c).String(), n})
		}
	}
	return t
}

// String is for people.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds from %d: %d simulated seconds, %d groups on %d voters and %d observers\n",
		r.Seeds, r.Seed, r.Simulated/1000, r.Groups, r.Voters, r.Observers)
	t := r.Tables()
	for _, part := range []struct {
		title  string
		counts []Count
	}{{"happened", t.Counts}, {"faults", t.Faults}, {"catch-up", t.CatchUp}, {"answers", t.Answers}} {
		fmt.Fprintf(&b, "%s:\n", part.title)
		for _, c := range part.counts {
			fmt.Fprintf(&b, "  %12d %s\n", c.Count, c.Name)
		}
	}
	return b.String()
}

// Encode and DecodeReport carry a report between the processes of one run.
func (r *Report) Encode() ([]byte, error) { return json.Marshal(r) }

// DecodeReport is the inverse of Encode.
func DecodeReport(b []byte) (r Report, err error) {
	if err = json.Unmarshal(b, &r); err != nil {
		err = fmt.Errorf("decode the report of a simulation: %w", err)
	}
	return r, err
}
