package server

import (
	"fmt"
	"strings"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// A replica in quarantine heals from one that is known to be right (engine, quarantine.go). If there is none, since all the
// others are gone for good, or are in quarantine, too, the group answers nothing: its state is known to be wrong, and nobody
// trusts it by himself. Then people decide: a backup, or one of the states, named (group recover --from), which the audit
// trail keeps.

// allDoubtful says whether voters answer, and the states of all of them are in quarantine. One whose log is damaged, or that
// has gone astray, is no voter.
func allDoubtful(ends []logEndAnswer) bool {
	doubtful := false
	for _, e := range ends {
		if e.Damaged || e.Astray || !contains(e.Voters, e.Replica) {
			continue
		}
		if !e.Doubtful {
			return false
		}
		doubtful = true
	}
	return doubtful
}

// doubtfulError refuses to choose among states that are in quarantine, and says what there is to choose from.
func (n *node) doubtfulError(op string, g *control.Group, ends []logEndAnswer) error {
	var have []string
	for i, e := range ends {
		if e.Last.Index == 0 {
			continue
		}
		what := "in quarantine"
		if !e.Doubtful {
			what = "not in quarantine"
		}
		have = append(have, fmt.Sprintf("%s up to entry %d, %s", n.nameOf(g.Members[i].Node), e.Last.Index, what))
	}
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: g.Name,
		Why:  "the state of every voter that answers is in quarantine: it is not what a majority had. There is: " + strings.Join(have, "; "),
		Hint: doubtfulWayOut(g.Name, "NODE")}
}

// doubtfulWayOut is what can be done about a group whose voters are all in quarantine.
func doubtfulWayOut(group, node string) string {
	return fmt.Sprintf("start the voters that are down; if they are lost for good, restore the group: lockstep restore FILE --group %[1]s --over-living; "+
		"or, to go on with what %[2]s has though it may be wrong: lockstep group recover %[1]s --unsafe --from %[2]s --yes-lose-data %[1]s", group, node)
}

// doubtWarnings are about replicas in quarantine.
func doubtWarnings(g *control.Group, shown api.Group, reports []report) (list []api.Warning) {
	votes, _ := votersBy(g, reports)
	var voting []string
	sound := false
	for i, r := range reports {
		name := shown.Replicas[i].Node
		if r.Doubtful {
			list = append(list, api.Warning{Name: "quarantine", Subject: g.Name + " on " + name, Text: r.Why,
				Hint: "it heals by itself from a replica that is right; look for damage on that node's disk and in its memory"})
		}
		switch {
		case !r.reports() || !votes(g.Members[i]):
		case r.Doubtful:
			voting = append(voting, name)
		default:
			sound = true
		}
	}
	if sound || len(voting) == 0 {
		return list
	}
	return []api.Warning{{Name: "no_sound_state", Subject: g.Name,
		Text: fmt.Sprintf("every voter that answers is in quarantine (%s): nothing is read or written", strings.Join(voting, ", ")),
		Hint: doubtfulWayOut(g.Name, voting[0])}}
}
