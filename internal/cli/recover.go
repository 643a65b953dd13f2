package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type (
	recovered        api.GroupRecovered
	offlineRecovered api.OfflineRecovered
)

// OfflineRecover are the settings of `offline recover`.
type OfflineRecover struct {
	Data    string
	Confirm string // the node's name
	// Doubtful goes on with a state that is in quarantine.
	Doubtful bool
}

func (a *app) groupRecover() *cobra.Command {
	var unsafe, dry bool
	var confirm, from string
	c := &cobra.Command{
		Use:   "recover GROUP --unsafe --yes-lose-data GROUP",
		Short: "Go on with what survives when a group's majority is gone for good",
		Long: `Go on with what survives when the majority of a group's voters is gone for good: the survivor whose
log goes farthest becomes the only voter, under a new history. All that it has is kept; what only the
others had is lost. Members that come back later are told and follow; files of theirs that differ are
kept as conflict copies.

Refused while enough members answer. If the control group was itself recovered from an older copy, it
may not know the history that a node has; that node then keeps what it has and warns. With --from, the
group goes on with that node's copy, whatever the others have.

Refused as well if every voter that answers is in quarantine: its state is not what a majority had. If there
is no backup, --from says with whose state the group goes on though it may be wrong; the audit trail keeps that.

If the control group has lost its majority, too, recover that first: lockstep offline recover.`,
		Example: "  lockstep group recover web --unsafe --dry-run\n  lockstep group recover web --unsafe --yes-lose-data web",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (recovered, error) {
			if !unsafe {
				return recovered{}, &api.Error{Code: api.CodeUsage, Op: "group recover", Subject: args[0],
					Why: "this may lose what was acknowledged", Hint: "if the majority is gone for good, add --unsafe"}
			}
			if dry && confirm == "" {
				confirm = args[0]
			}
			r, err := c.GroupRecover(ctx, args[0], api.GroupRecover{Confirm: confirm, DryRun: dry, From: from})
			return recovered(r), err
		}),
	}
	c.Flags().BoolVar(&unsafe, "unsafe", false, "yes, without a majority")
	c.Flags().StringVar(&confirm, "yes-lose-data", "", "the group's name again, as a confirmation")
	c.Flags().StringVar(&from, "from", "", "begin with this node, whose history is not known, or whose state is in quarantine")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen")
	return c
}

func (r recovered) text(w io.Writer) error {
	verb := "goes on"
	if r.DryRun {
		verb = "would go on"
	}
	_, err := fmt.Fprintf(w, "%s %s on %s, with everything up to position %d\n", r.Group, verb, r.Node, r.Last)
	if err == nil && r.History != "" {
		_, err = fmt.Fprintf(w, "  history %s, forked from %s at %d\n", r.History, r.Before, r.Fork)
	}
	if err == nil && r.Doubtful {
		_, err = io.WriteString(w, "  its state is in quarantine: a majority had another one\n")
	}
	if err == nil && len(r.Lost) > 0 {
		_, err = fmt.Fprintf(w, "  lost: what only %s had; who of them comes back follows by itself\n", strings.Join(r.Lost, ", "))
	}
	return err
}

func (a *app) offlineCommand() *cobra.Command {
	return a.noun("offline", "Work on the data directory of a node that is stopped", "  lockstep offline recover --data /var/lib/lockstep --yes-lose-data n1",
		a.offlineRecover(), a.offlineLog())
}

func (a *app) offlineRecover() *cobra.Command {
	var cfg OfflineRecover
	c := &cobra.Command{
		Use:   "recover --data DIR --yes-lose-data NODE",
		Short: "Let this node alone go on when the control group's majority is gone for good",
		Long: `Make this node the only voter of the control group, under a new history, when the majority of the
control group's voters is gone for good. The node must be stopped. What only the others knew of the
cluster (nodes that joined, groups that were made) is lost. Start the node afterwards; then recover the
groups that have lost their majorities: lockstep group recover. If the log of the control group is damaged
here, it goes on from the state alone: also on the only node of a cluster.

Refused if the node's state is in quarantine, since it is not what a majority had. If no other node has the
control group, and there is no backup, --doubtful goes on with it as it is.

Do this on one node only. Others that come back are told and follow. If it was done on two nodes, they
stay apart and warn, until one is wiped and joins again.`,
		Example: "  lockstep offline recover --data /var/lib/lockstep --yes-lose-data n1",
		Args:    wants,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			r, err := a.env.OfflineRecover(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return a.print(offlineRecovered(r))
		},
	}
	c.Flags().StringVar(&cfg.Data, "data", DefaultData, "data directory of the node")
	c.Flags().StringVar(&cfg.Confirm, "yes-lose-data", "", "the node's name, as a confirmation")
	c.Flags().BoolVar(&cfg.Doubtful, "doubtful", false, "also with a state that is in quarantine, and trust it from now on")
	return c
}

func (r offlineRecovered) text(w io.Writer) error {
	_, err := fmt.Fprintf(w, "the control group goes on at %s, with everything up to position %d\n  history %s, forked from %s at %d\n",
		r.Node, r.Last, r.History, r.Before, r.Fork)
	if err == nil && r.StateOnly {
		_, err = fmt.Fprintln(w, "  from its state alone: its log was damaged")
	}
	if err == nil && len(r.Others) > 0 {
		_, err = fmt.Fprintf(w, "  %s: follow by themselves when they come back; remove those that never will\n", strings.Join(r.Others, ", "))
	}
	return err
}
