package server

import (
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine/replica"
)

// A control group that was recovered from an old copy, or a copy of its state that is healing, may want a group on a history
// that was given up since: by a recovery or a restore that it does not know of. What this node has of the later one may be
// all that there is of it. So a node gives a history up only if the control group says that it was given up
// (control.Group.Past, rule F7). A replica of any other history does not run and keeps all that it has; people decide.

// errAstray: the control group's state does not know of what this replica has.
var errAstray = errors.New("the control group knows nothing of the history that this replica has: it was recovered from an older copy")

// known fails for a replica with a state of a history that is neither the group's nor one that was given up for it.
func known(g *control.Group, st replica.Standing) error {
	if st.At.Index == 0 || g.Knows(st.Line.History) {
		return nil
	}
	return fmt.Errorf("%w (history %x at %d, the control group wants %x)", errAstray, st.Line.History, st.At.Index, g.History)
}

// wentOn fails for the seed of a recovery whose log has grown since the fork was agreed on.
func (n *node) wentOn(g *control.Group) error {
	_, end, err := n.eng.StoppedEnd(g.ID)
	if err != nil || end.Last.Index < g.Fork.Start {
		return err
	}
	return fmt.Errorf("%w (it was to begin history %x at %d and has gone on to %d)", errAstray, g.History, g.Fork.Start, end.Last.Index)
}

// standAside keeps a replica that has gone astray as it is.
func (n *node) standAside(g *control.Group, replica uint64, err error) {
	n.suspect(g, suspicion{replica: replica, cause: err, astray: true})
}

// wayOut is what can be done about a replica that has gone astray.
func wayOut(group, node string) string {
	return fmt.Sprintf("lockstep group show %[1]s says what the other members do; to go on with what this one has: "+
		"lockstep group recover %[1]s --unsafe --from %[2]s --yes-lose-data %[1]s; to give it up: lockstep dir unbind %[1]s %[2]s, then bind it again (its files stay)", group, node)
}

// from chooses the member that was named to begin with. It must have gone astray, or all voters that answer be in
// quarantine: of the others the one that has most begins.
func (n *node) from(g *control.Group, name string, ends []logEndAnswer) (int, error) {
	for i, m := range g.Members {
		switch {
		case n.nameOf(m.Node) != name:
		case ends[i].Astray, ends[i].Last.Index > 0 && allDoubtful(ends):
			return i, nil
		case ends[i].Replica == 0:
			return 0, &api.Error{Code: api.CodeUnavailable, Op: "group recover", Subject: name, Why: "it does not answer, or does not run the group",
				Hint: "lockstep group show " + g.Name + " says what it does; start it, and try again"}
		default:
			return 0, &api.Error{Code: api.CodeConflict, Op: "group recover", Subject: name, Why: "the control group knows the history that it has, and a voter answers whose state is not in doubt",
				Hint: "leave --from out: of the survivors the one that has most begins"}
		}
	}
	return 0, &api.Error{Code: api.CodeNotFound, Op: "group recover", Subject: name, Why: "it is no member of group " + g.Name,
		Hint: "lockstep group show " + g.Name + " lists who is"}
}
