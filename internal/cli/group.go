package cli

import (
	"context"
	"fmt"
	"io"
	"time"

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
	return a.noun("group", "Look at groups and who leads them", "  lockstep group list", list, show, a.groupRecover(), transfer,
		a.groupMembers(), a.groupDelete(), a.groupSet(), a.groupProbe(), a.groupToken(), a.groupCheck())
}

func (a *app) groupSet() *cobra.Command {
	var req api.GroupSet
	c := &cobra.Command{
		Use:   "set GROUP [--ack ACK] [--in-sync-after TIME] [--check-every TIME] [--topology TOPOLOGY] [--repair-after TIME]",
		Short: "Change settings of a group",
		Long: `Change settings of a group. They take effect at once, for what is written from then on.

--ack, what must have happened before a write is answered:

  local   the leader has it on its disk: ACCEPTED, a failover may lose it
  quorum  a majority has it, and the leader has applied it: COMMITTED
  all     every member of the in-sync set has it too: COMMITTED_ALL

--in-sync-after, how long a member may lag or be down before it leaves the in-sync set (5s).

--check-every, how often the replicas compare their states, if something was written (1m).

--repair-after, how long a voter may be down before a spare takes its seat (as the cluster's, see
lockstep cluster set; inherit goes back to that).

--topology, how observers, the members that do not vote, are fed:

  star    each by a voter
  chain   one by the other, in chains of at most eight
  tree:K  the voters feed K of them (for each zone), and each of those feeds K more
  auto    tree:8, which is a star for as many as eight

Observers move to their new upstream one by one, without a gap.`,
		Example: "  lockstep group set web --ack all --in-sync-after 10s\n  lockstep group set web --topology tree:4",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			if req == (api.GroupSet{}) {
				return doneResult{}, &api.Error{Code: api.CodeUsage, Op: "group set", Subject: args[0], Why: "nothing is to be changed",
					Hint: "for instance: lockstep group set " + args[0] + " --topology chain"}
			}
			d, err := c.GroupSet(ctx, args[0], req)
			return doneResult(d), err
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Ack, "ack", "", "local, quorum or all")
	f.StringVar(&req.InSyncAfter, "in-sync-after", "", "from 1s to 1h")
	f.StringVar(&req.CheckEvery, "check-every", "", "from 1s to 24h")
	f.StringVar(&req.RepairAfter, "repair-after", "", "at least 10s, off, or inherit")
	f.StringVar(&req.Topology, "topology", "", "star, chain, tree:K or auto")
	return c
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
	if err == nil && g.Topology != "" {
		_, err = fmt.Fprintf(w, ", topology %s", g.Topology)
	}
	if err == nil && g.RepairAfter != "" && (g.RepairAfter != "off" || !g.RepairInherited) {
		_, err = fmt.Fprintf(w, ", repair after %s", repairText(g))
	}
	if err == nil {
		_, err = io.WriteString(w, "\n"+inSyncLine(g)+"\n")
	}
	if err == nil && g.Fork != nil {
		_, err = fmt.Fprintf(w, "history %s, forked at %d by %s on %s, %s\n\n", g.History, g.Fork.Index, g.Fork.Cause, orDash(g.Fork.Node), g.Fork.Time.Format(time.RFC3339))
	}
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "ROLE", "MODE", "UPSTREAM", "HOPS", "APPLIED", "BEHIND", "LAG", "WHY"}}
	for _, r := range g.Replicas {
		rows = append(rows, []string{r.Node, r.Role, r.Mode, orDash(r.Upstream), hops(r), fmt.Sprint(r.Applied), fmt.Sprint(r.LagEntries),
			seconds(r.LagSeconds), orDash(why(r))})
	}
	return table(w, rows)
}

// repairText says how long, and who said so.
func repairText(g groupShown) string {
	if g.RepairInherited {
		return g.RepairAfter + " (the cluster's)"
	}
	return g.RepairAfter
}

func hops(r api.Replica) string {
	if r.Hops == 0 {
		return "-"
	}
	return fmt.Sprint(r.Hops)
}

// why names the rule that decided, and how far a snapshot has come.
func why(r api.Replica) string {
	s := r.Why
	if r.Rule != "" {
		s = r.Rule + ": " + s
	}
	if r.Received > 0 {
		s += " (" + size(r.Received) + " received)"
	}
	return s
}
