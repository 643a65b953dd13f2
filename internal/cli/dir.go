package cli

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

func (a *app) dirCommand() *cobra.Command {
	return a.noun("dir", "Keep directories in step", "  lockstep dir create web --path /srv/web --on n1,n2,n3\n  lockstep dir status web",
		a.dirCreate(), a.dirBind(), a.dirUnbind(), a.dirStatus(), a.dirLs(), a.dirWait(), a.dirVerify(), a.dirConflicts(), a.dirResume())
}

func (a *app) dirCreate() *cobra.Command {
	var req api.DirCreate
	var dir string
	var on []string
	c := &cobra.Command{
		Use:        "create GROUP --on NODE,…",
		SuggestFor: []string{"add", "sync", "share", "new"},
		Short:      "Start keeping a directory in step on some nodes",
		Long: `Start keeping a directory in step. What the directories hold already is merged, never wiped: names
that exist on one node only appear on all; where contents differ, the conflict policy decides and
the other content is kept beside it. A directory that does not exist is made, empty.`,
		Example: "  lockstep dir create web --path /srv/web --on n1,n2,n3\n  lockstep dir create web --on n1:/srv/web,n2:/data/web",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			var err error
			req.Name = args[0]
			if req.Paths, err = bindings(dir, on); err != nil {
				return doneResult{}, err
			}
			d, err := c.DirCreate(ctx, req)
			return doneResult(d), err
		}),
	}
	f := c.Flags()
	f.StringVar(&dir, "path", "", "the directory, for every node that is not given its own")
	f.StringSliceVar(&on, "on", nil, "nodes that keep it: NODE or NODE:DIR, comma-separated")
	f.StringVar(&req.Ack, "ack", "", "when a change counts as done: local, quorum (default) or all")
	f.StringVar(&req.Conflict, "conflict", "", "who wins when two nodes change one file at once: keep-both (default), first, newest or prefer:NODE")
	f.StringVar(&req.Mode, "mode", "", "readwrite (default, and the only one yet)")
	f.StringVar(&req.Topology, "topology", "", "how members that do not vote are fed: star (default), chain, tree:K or auto")
	return c
}

// bindings reads --on; dir is the directory of the nodes that are not given one.
func bindings(dir string, on []string) (map[string]string, error) {
	usage := func(subject, why, hint string) error {
		return &api.Error{Code: api.CodeUsage, Op: "dir create", Subject: subject, Why: why, Hint: hint}
	}
	if len(on) == 0 {
		return nil, usage("", "no node is named", "name at least one with --on, for instance --on n1,n2,n3")
	}
	paths := make(map[string]string, len(on))
	for _, word := range on {
		node, own, hasOwn := strings.Cut(word, ":")
		if !hasOwn {
			own = dir
		}
		switch {
		case node == "":
			return nil, usage(fmt.Sprintf("--on %q", word), "names no node", "write NODE or NODE:DIR")
		case own == "":
			return nil, usage("--on "+word, "has no directory", "give it one with "+node+":DIR, or all of them with --path DIR")
		case !path.IsAbs(own):
			return nil, usage(own, "the directory must be an absolute path", "write it from / on, for instance /srv/"+path.Base(own))
		}
		if _, twice := paths[node]; twice {
			return nil, usage("--on", "names "+node+" twice", "a node keeps one directory of a group: name it once")
		}
		paths[node] = api.EscapePath(path.Clean(own))
	}
	return paths, nil
}

func (a *app) dirBind() *cobra.Command {
	return &cobra.Command{
		Use:        "bind GROUP NODE:DIR",
		SuggestFor: []string{"add"},
		Short:      "Add a node that keeps the directory, at a path of its own",
		Long: `Add a node that keeps the directory in step, at a path of its own. What is there already is merged in
by the conflict policy, never wiped.`,
		Example: "  lockstep dir bind web n4:/srv/web",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			node, dir, ok := strings.Cut(args[1], ":")
			if !ok || node == "" || !path.IsAbs(dir) {
				return doneResult{}, &api.Error{Code: api.CodeUsage, Op: "dir bind", Subject: args[1], Why: "is not NODE:DIR with an absolute DIR",
					Hint: "for instance: lockstep dir bind " + args[0] + " n4:/srv/" + args[0]}
			}
			d, err := c.DirBind(ctx, args[0], api.DirBind{Node: node, Path: api.EscapePath(path.Clean(dir))})
			return doneResult(d), err
		}),
	}
}

func (a *app) dirUnbind() *cobra.Command {
	return &cobra.Command{
		Use:        "unbind GROUP NODE",
		SuggestFor: []string{"remove"},
		Short:      "Stop keeping the directory on a node; its files stay where they are",
		Long: `Stop keeping the directory on a node; its files stay where they are. The last node that holds it
stays: end the group instead ("lockstep group delete").`,
		Example: "  lockstep dir unbind web n4",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			d, err := c.DirUnbind(ctx, args[0], args[1])
			return doneResult(d), err
		}),
	}
}

func (a *app) dirResume() *cobra.Command {
	return &cobra.Command{
		Use:   "resume GROUP NODE",
		Short: "Let a node go on that has stopped because many files vanished: that was meant",
		Long: `A node stops when more than half of its files, and more than 100, vanish at once, and holds the rest of
the deletions back from the others. Look at it; if they are meant, resume lets them through. If not,
"lockstep dir unbind" and "lockstep dir bind" of that node bring the files back.

A node whose directory vanished as a whole, or its .lockstep/root, needs no resume: it goes on by itself
when that is back.`,
		Example: "  lockstep dir status web\n  lockstep dir resume web n1",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (doneResult, error) {
			d, err := c.DirConfirm(ctx, args[0], args[1])
			return doneResult(d), err
		}),
	}
}

type (
	dirStatus     api.DirStatus
	dirEntries    []api.DirEntry
	conflictsList []api.Conflict
)

func (a *app) dirStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status GROUP",
		Short: "Show how far each node is, and what keeps it back",
		Long: `Show how far each node is: the mode (live, scan, diff, snap, stopped, down) and why, what is not on its
disk yet, local changes that are not committed yet, conflict copies, and problems with single files.`,
		Example: "  lockstep dir status web\n  lockstep dir status web -o json",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (dirStatus, error) {
			s, err := c.DirStatus(ctx, args[0])
			return dirStatus(s), err
		}),
	}
}

func (s dirStatus) text(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s: %s, %s, position %d, digest %s\nack %s, conflicts %s, topology %s\n\n", s.Group,
		count(s.Files, "file", "files"), size(s.Bytes), s.Position, orDash(short(s.Digest)), s.Ack, s.Conflict, s.Topology)
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "ROLE", "MODE", "PLACED", "BEHIND", "LAG", "PENDING", "CONFLICTS", "WATCHER", "PATH"}}
	for _, n := range s.Nodes {
		behind := "-"
		if n.BehindFiles > 0 || n.BehindBytes > 0 {
			behind = count(n.BehindFiles, "file", "files") + " " + size(n.BehindBytes)
		}
		watcher, _ := watching(n)
		rows = append(rows, []string{n.Node, n.Role, n.Mode, fmt.Sprint(n.Placed), behind, seconds(n.LagSeconds),
			fmt.Sprint(n.Pending), fmt.Sprint(n.Conflicts), orDash(watcher), n.Path})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := nodeNotes(w, n); err != nil {
			return err
		}
	}
	return nil
}

// watching takes a watcher apart: what it is, and why it is not the best one.
func watching(n api.DirNode) (kind, why string) {
	kind, why, _ = strings.Cut(n.Watcher, " (")
	return kind, strings.TrimSuffix(why, ")")
}

// nodeNotes says why a node is in its mode, why it watches as it does, and its problems.
func nodeNotes(w io.Writer, n api.DirNode) error {
	watcher, why := watching(n)
	if n.Why == "" && why == "" && n.LingeringBytes == 0 && len(n.Problems) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "\n%s: %s\n", n.Node, strings.TrimSuffix(n.Mode+", "+n.Why, ", ")); err != nil {
		return err
	}
	if why != "" {
		if _, err := fmt.Fprintf(w, "  watched by %s: %s\n", watcher, why); err != nil {
			return err
		}
	}
	if n.LingeringBytes > 0 {
		if _, err := fmt.Fprintf(w, "  %s of files that are gone are kept for a while, in case that they were moved\n", size(n.LingeringBytes)); err != nil {
			return err
		}
	}
	for _, p := range n.Problems {
		where := p.Path
		if where == "" {
			where = "(the whole directory)"
		}
		if err := bullet(w, where+": "+p.What, p.Hint); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) dirLs() *cobra.Command {
	return &cobra.Command{
		Use:        "ls GROUP [PATH]",
		SuggestFor: []string{"list"},
		Short:      "List what a directory should hold, as all nodes agreed",
		Long: `List what a directory should hold on every node. A name that is not printable UTF-8 is shown with \xNN
for each such byte, and \\ for a backslash; PATH is written the same way.`,
		Example: "  lockstep dir ls web\n  lockstep dir ls web images/2024",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (dirEntries, error) {
			req := api.DirList{Limit: api.DirListMax}
			if len(args) > 1 {
				req.Path = strings.Trim(args[1], "/")
			}
			all := dirEntries{}
			for {
				page, err := c.DirList(ctx, args[0], req)
				if err != nil {
					return nil, err
				}
				all = append(all, page.Entries...)
				if !page.More || len(page.Entries) == 0 {
					return all, nil
				}
				req.After = path.Base(page.Entries[len(page.Entries)-1].Path)
			}
		}),
	}
}

func (l dirEntries) text(w io.Writer) error {
	rows := make([][]string, 0, len(l))
	for _, e := range l {
		name, bytes := path.Base(e.Path), "-"
		switch e.Kind {
		case "dir":
			name += "/"
		case "symlink":
			name += " -> " + e.Target
		default:
			bytes = fmt.Sprint(e.Size)
		}
		rows = append(rows, []string{e.Mode, fmt.Sprintf("%d:%d", e.UID, e.GID), bytes, moment(e.MTime), name})
	}
	return table(w, rows)
}

func (a *app) dirConflicts() *cobra.Command {
	return &cobra.Command{
		Use:   "conflicts GROUP",
		Short: "List the copies that were kept when two nodes changed one file at once",
		Long: `List the copies that were kept when two nodes changed one file at once. A copy is an ordinary file:
look at it, take from it what you need, and delete it; with that the conflict is over.`,
		Example: "  lockstep dir conflicts web",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (conflictsList, error) {
			return c.DirConflicts(ctx, args[0])
		}),
	}
}

func (l conflictsList) text(w io.Writer) error {
	if len(l) == 0 {
		_, err := io.WriteString(w, "no conflicts\n")
		return err
	}
	rows := [][]string{{"PATH", "COPY", "WRITTEN ON", "AT"}}
	for _, c := range l {
		rows = append(rows, []string{c.Path, c.Copy, c.Node, moment(c.Time)})
	}
	return table(w, rows)
}
