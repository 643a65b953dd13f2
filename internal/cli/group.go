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
	groupList  []api.Group
	groupShown api.Group
)

func (a *app) groupCommand() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the groups, their leaders and members",
		Example: "  lockstep group list",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (groupList, error) {
			return c.Groups(ctx)
		}),
	}
	show := &cobra.Command{
		Use:     "show GROUP",
		Short:   "Show a group's members: role, how each is fed and why, how far behind",
		Example: "  lockstep group show web",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (groupShown, error) {
			g, err := c.Group(ctx, args[0])
			return groupShown(g), err
		}),
	}
	transfer := &cobra.Command{
		Use:     "transfer GROUP NODE",
		Short:   "Hand a group's leadership to another node",
		Example: "  lockstep group transfer web n2",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			d, err := c.GroupTransfer(ctx, args[0], api.GroupTransfer{Node: args[1]})
			return doneResult(d), err
		}),
	}
	return a.noun("group", "Look at groups and who leads them", "  lockstep group list", list, show, transfer)
}

func (l groupList) text(w io.Writer) error {
	rows := [][]string{{"GROUP", "KIND", "LEADER", "TERM", "COMMIT", "MEMBERS"}}
	for _, g := range l {
		rows = append(rows, []string{g.Name, g.Kind, orDash(g.Leader), fmt.Sprint(g.Term), fmt.Sprint(g.Commit), fmt.Sprint(len(g.Replicas))})
	}
	return table(w, rows)
}

func leadership(g groupShown) string {
	if g.Leader == "" {
		return "no leader"
	}
	return fmt.Sprintf("led by %s in term %d", g.Leader, g.Term)
}

func (g groupShown) text(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s (%s): %s, committed up to %d", g.Name, g.Kind, leadership(g), g.Commit)
	if err == nil && g.Ack != "" {
		_, err = fmt.Fprintf(w, ", ack %s", g.Ack)
	}
	if err == nil {
		_, err = io.WriteString(w, "\n\n")
	}
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "ROLE", "MODE", "APPLIED", "BEHIND", "LAG", "WHY"}}
	for _, r := range g.Replicas {
		rows = append(rows, []string{r.Node, r.Role, r.Mode, fmt.Sprint(r.Applied), fmt.Sprint(r.LagEntries), seconds(r.LagSeconds), orDash(r.Why)})
	}
	return table(w, rows)
}
