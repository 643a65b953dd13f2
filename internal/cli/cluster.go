package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

func (a *app) clusterCommand() *cobra.Command {
	var req api.ClusterSet
	set := &cobra.Command{
		Use:   "set --repair-after TIME",
		Short: "Change what holds for all groups",
		Long: `Change what holds for all groups that do not say otherwise (lockstep group set).

--repair-after, how long a voter may be down before a spare takes its seat (off).`,
		Example: "  lockstep cluster set --repair-after 10m",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (doneResult, error) {
			if req == (api.ClusterSet{}) {
				return doneResult{}, &api.Error{Code: api.CodeUsage, Op: "cluster set", Subject: "cluster", Why: "nothing is to be changed",
					Hint: "for instance: lockstep cluster set --repair-after 10m"}
			}
			d, err := c.ClusterSet(ctx, req)
			return doneResult(d), err
		}),
	}
	set.Flags().StringVar(&req.RepairAfter, "repair-after", "", "at least 10s, or off")
	return a.noun("cluster", "Change what holds for all groups", "  lockstep cluster set --repair-after 10m", set)
}
