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

type nodeChange api.NodeChange

// groupMembers shows the members, or changes them one after the other.
func (a *app) groupMembers() *cobra.Command {
	var role string
	c := &cobra.Command{
		Use:   "members GROUP [add|remove|promote|demote|replace NODE…] [--role ROLE]",
		Short: "Show or change who belongs to a group, and who votes",
		Long: `Show the members of a group, or change them. The group's leader carries changes out one at a time,
so that a majority is there at every moment; lockstep group show follows it.

  add NODE[:DIR]…          as --role voter, observer or spare; without it, as the group needs.
                           DIR defaults to the path of the others
  remove NODE…             its files stay
  promote NODE…            it votes from now on
  demote NODE…             it only observes; if it leads, leadership moves first
  replace OLD NEW[:DIR]    NEW takes the place of OLD

A spare observes until a voter is down for longer than the group's repair-after
(lockstep group set GROUP --repair-after 10m), and takes its seat then.`,
		Example: "  lockstep group members web add n4:/srv/web --role spare\n  lockstep group members web demote n1",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) == 2 || len(args) > 2 && args[1] == "replace" && len(args) != 4 {
				return &api.Error{Code: api.CodeUsage, Op: opName(cmd), Why: "an argument is missing", Hint: "usage: " + cmd.UseLine()}
			}
			return nil
		},
	}
	show := asking(a, func(ctx context.Context, c *client.Client, args []string) (groupShown, error) {
		g, err := c.Group(ctx, args[0])
		return groupShown(g), err
	})
	change := asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
		var all api.Done
		for i, req := range memberChanges(args[1], args[2:], role) {
			d, err := c.GroupMember(ctx, args[0], req)
			if err != nil {
				return doneResult{}, behind(args[2:2+i], err)
			}
			if i > 0 {
				d.Text = all.Text + "; " + d.Text
			}
			all = d
		}
		return doneResult(all), nil
	})
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return show(cmd, args)
		}
		return change(cmd, args)
	}
	c.Flags().StringVar(&role, "role", "", "with add: voter, observer or spare")
	return c
}

// behind says in err which of the nodes were changed before it.
func behind(changed []string, err error) error {
	if e := (*api.Error)(nil); len(changed) > 0 && errors.As(err, &e) {
		told := *e
		told.Why += "; " + strings.Join(changed, ", ") + " was changed before"
		return &told
	}
	return err
}

func memberChanges(op string, words []string, role string) (list []api.GroupMember) {
	if op == "replace" {
		with, path, _ := strings.Cut(words[1], ":")
		return []api.GroupMember{{Op: op, Node: words[0], With: with, Path: path}}
	}
	for _, w := range words {
		req := api.GroupMember{Op: op, Node: w}
		if op == "add" {
			req.Node, req.Path, _ = strings.Cut(w, ":")
			req.Role = role
		}
		list = append(list, req)
	}
	return list
}

func (a *app) groupDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:        "delete GROUP --yes",
		SuggestFor: []string{"dir delete"},
		Short:      "End a group; the files stay where they are, on every node",
		Example:    "  lockstep group delete web --yes",
		Args:       wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			if !yes {
				return doneResult{}, &api.Error{Code: api.CodeUsage, Op: "group delete", Subject: args[0],
					Why: "its history ends on every node, and cannot be taken up again", Hint: "add --yes if that is meant"}
			}
			d, err := c.GroupDelete(ctx, args[0])
			return doneResult(d), err
		}),
	}
	c.Flags().BoolVar(&yes, "yes", false, "it is meant")
	return c
}

func (a *app) nodeDrain() *cobra.Command {
	return &cobra.Command{
		Use:   "drain NODE",
		Short: "Move a node's votes and leaderships to others, and wait for it",
		Long: `Move a node's votes and leaderships to others, and wait until it has none. It goes on keeping its
directories in step; afterwards it can be stopped at any time, removed, or undrained.`,
		Example: "  lockstep node drain n3",
		Args:    wants,
		RunE: asking(a, a.changeNode(func(ctx context.Context, c *client.Client, node string, p func(api.Progress)) (api.NodeChange, error) {
			return c.NodeDrain(ctx, node, api.NodeDrain{}, p)
		})),
	}
}

func (a *app) nodeUndrain() *cobra.Command {
	return &cobra.Command{
		Use:     "undrain NODE",
		Short:   "Let a drained node take part again",
		Example: "  lockstep node undrain n3",
		Args:    wants,
		RunE: asking(a, a.changeNode(func(ctx context.Context, c *client.Client, node string, p func(api.Progress)) (api.NodeChange, error) {
			return c.NodeDrain(ctx, node, api.NodeDrain{Off: true}, p)
		})),
	}
}

func (a *app) nodeRemove() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "remove NODE [--force]",
		Short: "Take a node out of the cluster; its files stay",
		Long: `Take a node out of the cluster: it is drained, the others get what only it has, and from then on
nobody speaks with it any more. A full disk does not keep it; if it cannot give what only it has, because
of that or of a directory that has stopped, the command ends after 30s and says so. A node that is lost
for good is removed with --force. Refused is what would cost a group its majority or its last copy.`,
		Example: "  lockstep node remove n3\n  lockstep node remove n3 --force",
		Args:    wants,
		RunE: asking(a, a.changeNode(func(ctx context.Context, c *client.Client, node string, p func(api.Progress)) (api.NodeChange, error) {
			return c.NodeRemove(ctx, node, api.NodeRemove{Force: force}, p)
		})),
	}
	c.Flags().BoolVar(&force, "force", false, "the node is down and does not come back")
	return c
}

// changeNode shows progress while a node is changed.
func (a *app) changeNode(do func(context.Context, *client.Client, string, func(api.Progress)) (api.NodeChange, error),
) func(context.Context, *client.Client, []string) (nodeChange, error) {
	return func(ctx context.Context, c *client.Client, args []string) (nodeChange, error) {
		p := a.newProgress()
		r, err := do(ctx, c, args[0], p.update)
		p.end()
		return nodeChange(r), err
	}
}

func (r nodeChange) text(w io.Writer) error {
	text := r.Node + " is " + r.State
	if len(r.Moved) > 0 {
		text += "; its seats in " + strings.Join(r.Moved, ", ") + " have moved"
	}
	for _, warning := range r.Warnings {
		text += "\nwarning: " + warning
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
