package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type statusResult api.Status

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show the cluster at a glance, as one node sees it",
		Long:    "Show the cluster at a glance: its nodes, groups and directories, and everything that asks for attention.",
		Example: "  lockstep status\n  lockstep status -o json --server 127.0.0.1:7421",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, _ []string) (statusResult, error) {
			s, err := c.Status(ctx)
			return statusResult(s), err
		}),
	}
}

func (s statusResult) text(w io.Writer) error {
	ready := "ready"
	if !s.Ready {
		ready = "not ready"
	}
	level := ""
	if s.Level > 0 {
		level = fmt.Sprintf(" at level %d", s.Level)
	}
	_, err := fmt.Fprintf(w, "cluster %s%s, seen by %s (%s)\n\n", orDash(s.Cluster), level, s.Node.Name, ready)
	if err == nil {
		err = nodeList(s.Nodes).text(w)
	}
	if err == nil && len(s.Groups) > 0 {
		_, err = io.WriteString(w, "\n")
		err = errors.Join(err, groupList(s.Groups).text(w))
	}
	if err == nil && len(s.Groups) > 0 {
		err = replicaTable(w, s.Groups)
	}
	if err == nil && len(s.Dirs) > 0 {
		err = dirTable(w, s.Dirs)
	}
	if err == nil && s.Ready && len(s.Dirs) == 0 {
		_, err = io.WriteString(w, "\n")
		err = errors.Join(err, bullet(w, "no directory is kept in step yet", nextStep(s.Nodes)))
	}
	if err == nil && len(s.Warnings) > 0 {
		_, err = io.WriteString(w, "\n")
	}
	for _, warning := range s.Warnings {
		err = errors.Join(err, bullet(w, warning.Name+" "+warning.Subject+": "+warning.Text, warning.Hint))
	}
	return err
}

// nextStep is what a new cluster needs: other servers first, unless it is to do with one.
func nextStep(nodes []api.Node) string {
	names := make([]string, 0, len(nodes))
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	create := "lockstep dir create NAME --path DIR --on " + strings.Join(names, ",")
	if len(nodes) == 1 {
		return "lockstep token create lets other servers join; " + create
	}
	return create
}

// replicaTable says how each replica is fed and why.
func replicaTable(w io.Writer, groups []api.Group) error {
	rows := [][]string{{"REPLICA", "NODE", "ROLE", "MODE", "UPSTREAM", "HOPS", "BEHIND", "WHY"}}
	for _, g := range groups {
		for _, r := range g.Replicas {
			rows = append(rows, []string{g.Name, r.Node, r.Role, r.Mode, orDash(r.Upstream), hops(r), fmt.Sprint(r.LagEntries), orDash(why(r))})
		}
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	return table(w, rows)
}

func dirTable(w io.Writer, dirs []api.DirStatus) error {
	rows := [][]string{{"DIRECTORY", "FILES", "BYTES", "POSITION", "IN STEP", "CONFLICTS", "PROBLEMS"}}
	for _, d := range dirs {
		var inStep, problems int
		var conflicts uint64
		for _, n := range d.Nodes {
			if n.Mode == "live" && n.BehindFiles == 0 && n.Placed >= d.Position {
				inStep++
			}
			problems += len(n.Problems)
			conflicts = max(conflicts, n.Conflicts)
		}
		rows = append(rows, []string{d.Group, thousands(d.Files), size(d.Bytes), fmt.Sprint(d.Position),
			fmt.Sprintf("%d of %d", inStep, len(d.Nodes)), fmt.Sprint(conflicts), fmt.Sprint(problems)})
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	return table(w, rows)
}
