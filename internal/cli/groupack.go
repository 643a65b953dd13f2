package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type (
	probeResult api.GroupProbe
	tokenFate   api.GroupToken
	checkResult api.GroupCheck
)

func (a *app) groupCheck() *cobra.Command {
	var req api.GroupCheckRequest
	c := &cobra.Command{
		Use:   "check GROUP [--deep]",
		Short: "Have a group's replicas compare their states now",
		Long: `Have a group's replicas compare their states now, as they do by themselves at intervals (group set --check-every).

A replica whose state is not that of a majority of the voters replaces it by itself. Where no majority agrees nothing
is repaired. Observers compare themselves with the majority, and are not listed here.

The exit status is 0 if all that answered agree, else 8.`,
		Example: "  lockstep group check web --deep",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (checkResult, error) {
			r, err := c.GroupCheck(ctx, args[0], req)
			return checkResult(r), err
		}),
	}
	c.Flags().BoolVar(&req.Deep, "deep", false, "from all records, whatever was remembered of them")
	return c
}

func (c checkResult) text(w io.Writer) error {
	rows := [][]string{{"NODE", "STATE", "DIGEST"}}
	for _, n := range c.Nodes {
		state := "as the majority"
		switch {
		case n.Digest == "":
			state = n.Error
		case slices.Contains(c.Odd, n.Node):
			state = "differs"
		case !c.Agreed:
			state = "no majority"
		}
		rows = append(rows, []string{n.Node, state, orDash(short(n.Digest))})
	}
	if _, err := fmt.Fprintf(w, "%s after entry %d\n\n", c.Group, c.Index); err != nil {
		return err
	}
	return table(w, rows)
}

func (c checkResult) verdict() error {
	if len(c.Odd) == 0 {
		return nil
	}
	e := &api.Error{Code: api.CodeDamage, Op: "group check", Subject: c.Group, Why: "the state of " + strings.Join(c.Odd, ", ") + " differs from that of the majority",
		Hint: "it is replaced by itself; look for damage on that node's disk"}
	if !c.Agreed {
		e.Why, e.Hint = "replicas differ and no majority agrees: nothing is repaired", "decide for one and bind the others again"
	}
	return e
}

func (a *app) groupProbe() *cobra.Command {
	var req api.GroupProbeRequest
	c := &cobra.Command{
		Use:   "probe GROUP [--ack ACK]",
		Short: "Write an entry that changes nothing, and show how it is answered",
		Long: `Write an entry that changes nothing to a group's log, and show how the write is answered and how long that takes.

The exit status is 0 if the answer is what was asked for, 3 if only a majority has it (COMMITTED_QUORUM_ONLY),
7 if there was no answer in time (UNKNOWN).`,
		Example: "  lockstep group probe web\n  lockstep group probe web --ack all",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (probeResult, error) {
			p, err := c.GroupProbe(ctx, args[0], req)
			return probeResult(p), err
		}),
	}
	c.Flags().StringVar(&req.Ack, "ack", "", "local, quorum or all (default: the group's)")
	return c
}

func (a *app) groupToken() *cobra.Command {
	return &cobra.Command{
		Use:   "token GROUP TOKEN",
		Short: "Tell what became of a write that was answered ACCEPTED",
		Long: `Tell what became of a write that was answered ACCEPTED: COMMITTED, LOST (another leader was elected before a
majority had it), or UNKNOWN: not decided yet, or too long ago to be remembered.

The exit status is 0 for COMMITTED, 3 for LOST, 7 for UNKNOWN.`,
		Example: "  lockstep group token web 5f0c…e1.4.1207.0",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (tokenFate, error) {
			t, err := c.GroupToken(ctx, args[0], args[1])
			return tokenFate(t), err
		}),
	}
}

func (p probeResult) text(w io.Writer) error {
	line := fmt.Sprintf("%s in %s", p.Answer, seconds(p.Seconds))
	if p.Index > 0 {
		line += fmt.Sprintf(", entry %d of term %d", p.Index, p.Term)
	}
	if p.Set > 0 {
		line += fmt.Sprintf(", in-sync set %d", p.Set)
	}
	if len(p.Missing) > 0 {
		line += ", missing: " + strings.Join(p.Missing, ", ")
	}
	if p.Token != "" {
		line += "\ntoken " + p.Token
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

func (p probeResult) verdict() error {
	e := &api.Error{Op: "group probe", Subject: p.Group}
	switch p.Answer {
	case api.AnswerQuorumOnly:
		e.Code, e.Why, e.Hint = api.CodePartial, "a majority has the write, not every member of the in-sync set", "lockstep group show "+p.Group+" shows who lags"
	case api.AnswerUnknown:
		e.Code, e.Why, e.Hint = api.CodeUnavailable, "no answer in time", "lockstep group show "+p.Group+" shows whether it has a leader"
	default:
		return nil
	}
	return e
}

func (t tokenFate) text(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s: %s\n", t.Fate, t.Why)
	return err
}

func (t tokenFate) verdict() error {
	e := &api.Error{Op: "group token", Subject: t.Group}
	switch t.Fate {
	case api.FateLost:
		e.Code, e.Why, e.Hint = api.CodePartial, "the write is lost", "write again; --ack quorum keeps what was answered"
	case api.FateUnknown:
		e.Code, e.Why, e.Hint = api.CodeUnavailable, "the write's fate is not known", "lockstep group show "+t.Group+" shows whether it has a leader"
	default:
		return nil
	}
	return e
}

// inSyncLine says who holds what was answered COMMITTED_ALL, and what was lost of what was ACCEPTED.
func inSyncLine(g groupShown) string {
	var line string
	if g.InSync.Version > 0 {
		line = fmt.Sprintf("in-sync set %d: %s (%s)\n", g.InSync.Version, strings.Join(g.InSync.Nodes, ", "), g.InSync.Why)
	}
	if g.Losses > 0 {
		line += count(g.Losses, "accepted write", "accepted writes") + " lost\n"
	}
	return line
}
