package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type nodeList []api.Node

func (a *app) nodeCommand() *cobra.Command {
	return a.noun("node", "Look at the servers of the cluster, drain and remove them", "  lockstep node list", &cobra.Command{
		Use:     "list",
		Short:   "List the nodes, their addresses and whether they are up",
		Example: "  lockstep node list\n  lockstep node list -o json",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (nodeList, error) {
			return c.Nodes(ctx)
		}),
	}, a.nodeDrain(), a.nodeUndrain(), a.nodeRemove())
}

func (l nodeList) text(w io.Writer) error {
	rows := [][]string{{"NODE", "STATE", "VOTES", "ADDRESS", "VERSION", "LEVELS", "ZONE"}}
	for _, n := range l {
		name, votes := n.Name, "no"
		if n.Self {
			name += " *"
		}
		switch {
		case n.Voter:
			votes = "yes"
		case n.Learning:
			votes = "learning"
		}
		state := n.State
		if n.Drain {
			state += ", drain"
		}
		if n.Full != nil {
			state += ", disk full"
		}
		rows = append(rows, []string{name, state, votes, n.Address, n.Version, levels(n.Levels), orDash(n.Zone)})
	}
	return table(w, rows)
}
