package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

type (
	waitResult   api.DirWait
	verifyResult api.DirVerify
)

func (a *app) dirWait() *cobra.Command {
	var all, quorum bool
	var node string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait GROUP",
		Short: "Wait until what is on disk now is on disk everywhere",
		Long: `Wait until everything that is on disk now, on any node that is up, is on disk on all nodes, on a
majority of the voters, or on one node. Exits with 7 if the timeout comes first.`,
		Example: "  lockstep dir wait web --timeout 30s\n  lockstep dir wait web --node n3",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (waitResult, error) {
			req, err := waitFor(all, quorum, node, timeout)
			if err != nil {
				return waitResult{}, err
			}
			p := a.newProgress()
			w, err := c.DirWait(ctx, args[0], req, p.update)
			p.end()
			return waitResult(w), err
		}),
	}
	c.Flags().BoolVar(&all, "all", false, "on every node (default)")
	c.Flags().BoolVar(&quorum, "quorum", false, "on a majority of the voters")
	c.Flags().StringVar(&node, "node", "", "on this node")
	c.Flags().DurationVar(&timeout, "timeout", 0, "give up after this time (default: never)")
	return c
}

func waitFor(all, quorum bool, node string, timeout time.Duration) (api.DirWaitFor, error) {
	req := api.DirWaitFor{Mode: api.WaitAll, Node: node}
	asked := 0
	for mode, is := range map[string]bool{api.WaitAll: all, api.WaitQuorum: quorum, api.WaitNode: node != ""} {
		if is {
			asked++
			req.Mode = mode
		}
	}
	if asked > 1 {
		return req, &api.Error{Code: api.CodeUsage, Op: "dir wait", Why: "waits for one of --all, --quorum and --node NODE, not for several",
			Hint: "leave all but one out; without any it waits for every node"}
	}
	if timeout < 0 {
		return req, &api.Error{Code: api.CodeUsage, Op: "dir wait", Subject: "--timeout", Why: "must not be negative", Hint: "write for instance 30s, or leave it out to wait as long as it takes"}
	}
	if timeout > 0 {
		req.Timeout = timeout.String()
	}
	return req, nil
}

func (r waitResult) text(w io.Writer) error {
	if !r.Done {
		return nil // the verdict says it
	}
	_, err := fmt.Fprintf(w, "%s: position %d is on disk on %s after %s\n", r.Group, r.Position, strings.Join(r.Reached, ", "), seconds(r.Seconds))
	return err
}

func (r waitResult) verdict() error {
	if r.Done {
		return nil
	}
	why := fmt.Sprintf("position %d is not on disk on %s after %s", r.Position, strings.Join(r.Missing, ", "), seconds(r.Seconds))
	if r.Position == 0 {
		why = fmt.Sprintf("after %s it is still not known what there is to wait for: not all nodes have looked at their directories, or the group has no leader", seconds(r.Seconds))
	}
	for _, node := range slices.Sorted(maps.Keys(r.Why)) {
		why += fmt.Sprintf("; %s: %s", node, r.Why[node])
	}
	return &api.Error{Code: api.CodeUnavailable, Op: "dir wait", Subject: r.Group,
		Why:  why,
		Hint: fmt.Sprintf("see `lockstep dir status %s`", r.Group)}
}

func (a *app) dirVerify() *cobra.Command {
	var repair bool
	c := &cobra.Command{
		Use:   "verify GROUP",
		Short: "Read every file on every node and compare it with what was agreed",
		Long: `Read and hash every file on every node and compare with what all nodes agreed on. Exits with 3 if
something differs, with 8 if a content changed on disk that nobody wrote (damage).`,
		Example: "  lockstep dir verify web\n  lockstep dir verify web --repair",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (verifyResult, error) {
			p := a.newProgress()
			v, err := c.DirVerify(ctx, args[0], api.DirVerifyRequest{Repair: repair}, p.update)
			p.end()
			return verifyResult(v), err
		}),
	}
	c.Flags().BoolVar(&repair, "repair", false, "fetch damaged contents again from a node that has them")
	return c
}

func (r verifyResult) text(w io.Writer) error {
	rows := [][]string{{"NODE", "FILES", "BYTES", "DIFFERENCES", "DAMAGED"}}
	for _, n := range r.Nodes {
		rows = append(rows, []string{n.Node, thousands(n.Files), size(n.Bytes), fmt.Sprint(len(n.Differences)), fmt.Sprint(len(n.Damaged))})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	for _, n := range r.Nodes {
		var lines []string
		if n.Err != "" {
			lines = append(lines, "not verified: "+n.Err)
		}
		for _, d := range n.Differences {
			lines = append(lines, "differs: "+d)
		}
		for _, d := range n.Unreadable {
			lines = append(lines, "cannot be read: "+d)
		}
		for _, d := range n.Damaged {
			lines = append(lines, "damaged: "+d)
		}
		for _, line := range lines {
			if err := bullet(w, n.Node+" "+line, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r verifyResult) verdict() error {
	var differences, damaged, unread, failed int
	for _, n := range r.Nodes {
		differences += len(n.Differences)
		damaged += len(n.Damaged)
		unread += len(n.Unreadable)
		if n.Err != "" {
			failed++
		}
	}
	e := &api.Error{Op: "dir verify", Subject: r.Group}
	switch {
	case damaged > 0:
		e.Code, e.Why = api.CodeDamage, count(uint64(damaged), "file is", "files are")+" damaged"
		e.Hint = "check the disks; a run with --repair fetches damaged files again from a node that has them"
	case unread > 0:
		e.Code, e.Why = api.CodePartial, count(uint64(unread), "path", "paths")+" cannot be read"
		if differences > 0 {
			e.Why += ", " + count(uint64(differences), "path differs", "paths differ")
		}
		e.Hint = "let the user who runs the node read what is named above, then verify again"
	case differences > 0:
		e.Code, e.Why = api.CodePartial, count(uint64(differences), "path differs", "paths differ")
		e.Hint = "changes on their way look like this: `lockstep dir wait " + r.Group + "`, then verify again"
	case failed > 0:
		e.Code, e.Why = api.CodePartial, count(uint64(failed), "node was", "nodes were")+" not verified"
		e.Hint = "see `lockstep status`"
	default:
		return nil
	}
	return e
}
