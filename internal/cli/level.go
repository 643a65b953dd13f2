package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type (
	clusterLevel api.ClusterLevel
	levelRaised  api.LevelRaised
)

func (a *app) levelCommand() *cobra.Command {
	show := &cobra.Command{
		Use:     "show",
		Short:   "Show the cluster level, and the levels that each node knows",
		Example: "  lockstep level show\n  lockstep level show -o json",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (clusterLevel, error) {
			l, err := c.Level(ctx)
			return clusterLevel(l), err
		}),
	}
	var to uint64
	raise := &cobra.Command{
		Use:   "raise [--to LEVEL]",
		Short: "Let the cluster use what its newest common version brings; there is no way back",
		Long: `Let the cluster use what its newest common version brings: raise the cluster level as far as every
node knows, or to LEVEL. Before that, any node can go back to the version that ran before; afterwards
a version that does not know the level is refused, and the level is never lowered again.`,
		Example: "  lockstep level raise\n  lockstep level raise --to 2",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (levelRaised, error) {
			r, err := c.LevelRaise(ctx, api.LevelRaise{To: to})
			return levelRaised(r), err
		}),
	}
	raise.Flags().Uint64Var(&to, "to", 0, "not further than this level (default: as far as every node knows)")
	return a.noun("level", "Look at the cluster level, and raise it after an upgrade", "  lockstep level show", show, raise)
}

func (l clusterLevel) text(w io.Writer) error {
	state := "no node knows more"
	if l.Reach > l.Level {
		state = fmt.Sprintf("may be raised to %d", l.Reach)
	} else if l.ahead() {
		state = "may be raised when every node knows more"
	}
	if _, err := fmt.Fprintf(w, "cluster level %d; %s\n\n", l.Level, state); err != nil {
		return err
	}
	rows := [][]string{{"NODE", "VERSION", "LEVELS"}}
	for _, n := range l.Nodes {
		rows = append(rows, []string{n.Node, orDash(n.Version), levels(n.Levels)})
	}
	return table(w, rows)
}

// ahead says whether some node knows more than all do.
func (l clusterLevel) ahead() bool {
	for _, n := range l.Nodes {
		if n.Levels.Max > l.Level {
			return true
		}
	}
	return false
}

func (r levelRaised) text(w io.Writer) error {
	if r.From == r.To {
		_, err := fmt.Fprintf(w, "the cluster is at level %d already\n", r.To)
		return err
	}
	_, err := fmt.Fprintf(w, "cluster level raised from %d to %d\n", r.From, r.To)
	return err
}

// levels is a range in words; "-" if it is not known.
func levels(l api.Levels) string {
	switch {
	case l.Max == 0:
		return "-"
	case l.Min == l.Max:
		return fmt.Sprint(l.Max)
	}
	return fmt.Sprintf("%d-%d", l.Min, l.Max)
}
