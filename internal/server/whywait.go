package server

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// whyMissing says what keeps the members of a directory that a wait was in vain for. The wait's own time is over: this
// takes answerTime at most.
func (n *node) whyMissing(ctx context.Context, g *control.Group, missing []string) map[string]string {
	why := map[string]string{}
	reports := n.survey(context.WithoutCancel(ctx), g)
	led := slices.ContainsFunc(reports, func(r report) bool { return r.Leader != 0 })
	for _, d := range n.describeDir(g, reports).Nodes {
		if slices.Contains(missing, d.Node) {
			why[d.Node] = whatKeeps(&d, led)
		}
	}
	return why
}

// whatKeeps says what keeps a member from having everything on its disk; led: the group has a leader.
func whatKeeps(d *api.DirNode, led bool) string {
	var parts []string
	switch {
	case d.Mode != "live" && d.Why != "":
		parts = append(parts, d.Mode+": "+d.Why)
	case d.Mode != "live":
		parts = append(parts, map[string]string{"scan": "still comparing its directory with the group"}[d.Mode])
		if parts[0] == "" {
			parts[0] = d.Mode
		}
	case d.Why != "":
		parts = append(parts, d.Why)
	}
	if d.BehindFiles > 0 {
		parts = append(parts, "files that it lacks: "+fmt.Sprint(d.BehindFiles))
	}
	if d.Pending > 0 {
		parts = append(parts, "changes of its own that are not committed: "+fmt.Sprint(d.Pending))
	}
	if !led && d.Mode != "down" {
		parts = append(parts, "the group has no leader")
	}
	for _, p := range d.Problems[:min(len(d.Problems), 3)] {
		at := api.EscapePath(p.Path) + ": "
		if p.Path == "" {
			at = ""
		}
		parts = append(parts, at+p.What)
	}
	if len(parts) == 0 {
		return "not there yet"
	}
	return strings.Join(parts, "; ")
}
