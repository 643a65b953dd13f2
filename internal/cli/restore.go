package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

// restoreOptions are the flags of restore.
type restoreOptions struct {
	group, as, path string
	on              []string
	data, name      string
	dirs            []string
	over, dry       bool
}

// restoreResult is what happened to each group.
type restoreResult struct {
	Cluster string         `json:"cluster,omitempty"` // the new one, with --data
	Data    string         `json:"data,omitempty"`
	Groups  []api.Restored `json:"groups"`
	DryRun  bool           `json:"dry_run"`
}

func (a *app) restoreCommand() *cobra.Command {
	var o restoreOptions
	c := &cobra.Command{
		Use:   "restore FILE [--data DIR] [--group GROUP]",
		Short: "Make a new cluster, or a group of this one, out of a backup",
		Long: `With --data: make the first node of a new cluster in an empty data directory, with all groups of the
backup, or one. The new cluster has an id, a CA and keys of its own; members of the old one cannot
join it with what they have. Groups go to the directories that the node of that name had (else the
first member's), or where --dir says. Directories that hold files, or carry a root marker, are used
only with --over-living; those that a running node keeps never are.

With --group, without --data: make one group of the backup a group of the running cluster, under its
own name or another one (--as), on the nodes that --on names. A group that exists is replaced only with
--over-living: its present state is given up, under a new history, and every node sets aside the files
that differ from the backup's, in its work area under kept/.

The whole file is verified before anything is done. --dry-run only says what would be done.`,
		Example: `  lockstep restore monday.lockstep --data /var/lib/lockstep --name n1
  lockstep restore monday.lockstep --group web --as web-monday --path /srv/web-monday --on n1,n2
  lockstep restore monday.lockstep --group web --over-living`,
		Args: wants,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			r, err := a.restore(cmd.Context(), args[0], o)
			if said := (*api.Error)(nil); cmd.Context().Err() != nil && err != nil && (!errors.As(err, &said) || said.Code != api.CodeInterrupted || said.Hint == "") {
				return interrupted(args[0], "nothing had been done yet", "do it again when it suits")
			}
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := c.Flags()
	f.StringVar(&o.data, "data", "", "empty data directory of the first node of a new cluster")
	f.StringVar(&o.name, "name", "", "its name (default: this host's)")
	f.StringArrayVar(&o.dirs, "dir", nil, "with --data: where a group goes, GROUP=DIR; may be given several times")
	f.StringVar(&o.group, "group", "", "the group of the backup")
	f.StringVar(&o.as, "as", "", "the group's name here (default: as in the backup)")
	f.StringVar(&o.path, "path", "", "the directory, for every node of --on that is not given its own")
	f.StringSliceVar(&o.on, "on", nil, "nodes that keep it: NODE or NODE:DIR, comma-separated")
	f.BoolVar(&o.over, "over-living", false, "replace a group that exists, and use directories that hold files")
	f.BoolVar(&o.dry, "dry-run", false, "only say what would be done")
	return c
}

func (a *app) restore(ctx context.Context, file string, o restoreOptions) (restoreResult, error) {
	usage := func(why, hint string) error {
		return &api.Error{Code: api.CodeUsage, Op: "restore", Subject: file, Why: why, Hint: hint}
	}
	switch {
	case o.data == "" && o.group == "":
		return restoreResult{}, usage("it is not said what is to be restored", "name one with --group, or make a new cluster with --data DIR")
	case o.data != "" && (o.path != "" || len(o.on) > 0 || o.as != ""):
		return restoreResult{}, usage("--path, --on and --as are for a running cluster", "with --data, say where groups go with --dir GROUP=DIR")
	case o.data == "" && (len(o.dirs) > 0 || o.name != ""):
		return restoreResult{}, usage("--dir and --name are for a new cluster", "say which with --data DIR")
	}
	p := a.newProgress()
	defer p.end()
	f := a.env.Backup(file, p.update)
	if o.data != "" {
		return a.restoreCluster(ctx, f, o)
	}
	req, _, err := f.Request(ctx, o.group)
	if err != nil {
		return restoreResult{}, err
	}
	if req.Paths, err = ownPaths(o.path, o.on); err != nil {
		return restoreResult{}, err
	}
	if req.As = o.as; o.as == "" {
		req.As = o.group
	}
	req.OverLiving, req.DryRun = o.over, o.dry
	c, err := client.New(a.serverAddress())
	if err != nil {
		return restoreResult{}, err
	}
	defer c.Close()
	r, err := sendGroup(ctx, c, f, req)
	return restoreResult{Groups: []api.Restored{r}, DryRun: o.dry}, err
}

// sendGroup asks for a restore and streams what the backup holds behind the request.
func sendGroup(ctx context.Context, c *client.Client, f BackupFile, req api.Restore) (api.Restored, error) {
	if req.DryRun {
		return c.Restore(ctx, req, nil)
	}
	// What cannot be done is refused before anything is sent.
	trial := req
	trial.DryRun = true
	if r, err := c.Restore(ctx, trial, nil); err != nil {
		return r, err
	}
	r, w := io.Pipe()
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := f.Send(ctx, req.Group, w)
		sent <- err
		w.CloseWithError(err)
	}()
	out, err := c.Restore(ctx, req, r)
	r.Close() // ends Send if the node did not want the rest
	failed := <-sent
	switch {
	case err != nil && caller.Err() != nil && failed == nil:
		return out, interrupted(req.As, "everything had been sent", "the restore may happen all the same: lockstep group show "+req.As+" tells")
	case err != nil && caller.Err() != nil:
		return out, interrupted(req.As, "not everything had been sent", "nothing was restored, and the node drops what it had got; do it again when it suits")
	case err != nil && failed != nil && !errors.Is(failed, io.ErrClosedPipe):
		return out, failed
	}
	return out, err
}

// interrupted says how things are after an interruption.
func interrupted(subject, why, hint string) error {
	return &api.Error{Code: api.CodeInterrupted, Op: "restore", Subject: subject, Why: "interrupted: " + why, Hint: hint}
}

// restoreCluster runs the first node of a new cluster for as long as it takes to restore the groups into it.
func (a *app) restoreCluster(ctx context.Context, f BackupFile, o restoreOptions) (out restoreResult, err error) {
	data, err := filepath.Abs(o.data)
	if err != nil {
		return out, err
	}
	if entries, err := os.ReadDir(data); err == nil && len(entries) > 0 {
		return out, &api.Error{Code: api.CodeConflict, Op: "restore", Subject: data, Why: "the data directory is not empty",
			Hint: "a new cluster needs a data directory of its own; to restore a group into a running cluster leave --data out"}
	}
	values := map[string]string{}
	for _, s := range settings() {
		values[s.key] = s.value
	}
	values["data"], values["name"], values["listen"], values["api"], values["join"], values["replace"] = data, o.name, "127.0.0.1:0", "off", "", ""
	cfg, err := serveConfig(values, a.env.Stderr)
	if err != nil {
		return out, err
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	reqs, err := clusterRequests(ctx, f, o, cfg.Name)
	if err != nil {
		return out, err
	}
	if o.dry {
		groups, err := a.env.TryRestore(ctx, data, cfg.Name, reqs)
		return restoreResult{Data: data, Groups: groups, DryRun: true}, err
	}
	out, err = a.runRestore(ctx, f, cfg, reqs)
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		err = interrupted(data, "the new cluster was not finished", "its data directory is removed; "+leftIn(reqs))
	}
	return out, errors.Join(err, os.RemoveAll(data)) // it was empty before
}

// leftIn says what an unfinished restore leaves where the groups were to go.
func leftIn(reqs []api.Restore) string {
	var dirs []string
	for _, req := range reqs {
		dirs = append(dirs, slices.Collect(maps.Values(req.Paths))...)
	}
	slices.Sort(dirs)
	return "some files may be in " + strings.Join(dirs, ", ") + " already: empty them, .lockstep included, or add --over-living, and do it again"
}

// clusterRequests says where each group goes: --dir, else where the node of this name had it, else the first member.
func clusterRequests(ctx context.Context, f BackupFile, o restoreOptions, name string) (reqs []api.Restore, err error) {
	dirs, err := groupDirs(o.dirs)
	if err != nil {
		return nil, err
	}
	info, err := f.Verify(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range info.Groups {
		if o.group != "" && g.Name != o.group {
			continue
		}
		req, _, err := f.Request(ctx, g.Name)
		if err != nil {
			return nil, err
		}
		dir, ok := dirs[g.Name]
		delete(dirs, g.Name)
		if !ok {
			dir, ok = g.Paths[name]
		}
		if first := slices.Sorted(maps.Keys(g.Paths)); !ok && len(first) > 0 {
			dir = g.Paths[first[0]]
		}
		req.Paths = map[string]string{name: api.EscapePath(dir)}
		req.OverLiving = o.over
		reqs = append(reqs, req)
	}
	for group := range dirs {
		return nil, &api.Error{Code: api.CodeNotFound, Op: "restore", Subject: group, Why: "the backup has no such group", Hint: "lockstep backup ls FILE lists them"}
	}
	if len(reqs) == 0 && o.group != "" {
		return nil, &api.Error{Code: api.CodeNotFound, Op: "restore", Subject: o.group, Why: "the backup has no such group", Hint: "lockstep backup ls FILE lists them"}
	}
	return reqs, nil
}

// runRestore starts the node, restores into it, waits until all is on disk, and stops it.
func (a *app) runRestore(ctx context.Context, f BackupFile, cfg ServeConfig, reqs []api.Restore) (out restoreResult, err error) {
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- a.env.Serve(running, cfg); stop() }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	c, err := client.New("unix://" + filepath.Join(cfg.Data, "lockstep.sock"))
	if err != nil {
		return out, err
	}
	defer c.Close()
	out = restoreResult{Data: cfg.Data, Groups: []api.Restored{}}
	if out.Cluster, err = firstReady(running, c); err != nil {
		return out, err
	}
	for _, req := range reqs {
		r, err := sendGroup(running, c, f, req)
		if err != nil {
			return out, err
		}
		w, err := c.DirWait(running, req.As, api.DirWaitFor{Mode: api.WaitAll}, nil)
		if err != nil {
			return out, err
		}
		if !w.Done {
			r.Warnings = append(r.Warnings, "not all files are on disk yet: the node goes on with that when it is started")
		}
		out.Groups = append(out.Groups, r)
	}
	return out, nil
}

// firstReady waits until the node that was just started knows its cluster.
func firstReady(ctx context.Context, c *client.Client) (cluster string, err error) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		st, err := c.Status(ctx)
		if err == nil && st.Ready {
			return st.Cluster, nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return "", fmt.Errorf("the new node did not start: %w", errors.Join(ctx.Err(), err))
		}
	}
}

func (r restoreResult) text(w io.Writer) error {
	verb := "is restored"
	if r.DryRun {
		verb = "would be restored"
	}
	if r.Data != "" {
		line := "a new cluster would be made in " + r.Data
		if !r.DryRun {
			line = "cluster " + r.Cluster + " begins in " + r.Data + ", with a CA and keys of its own; start it: lockstep serve --data " + r.Data
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	for _, g := range r.Groups {
		if _, err := fmt.Fprintf(w, "%s %s from position %d: %s, %s, beginning on %s\n", g.Group, verb, g.Fork, amount(g.Files, "files"), size(g.Bytes), g.Node); err != nil {
			return err
		}
		if g.GivenUp > 0 {
			if _, err := fmt.Fprintf(w, "  what it held before is given up, up to its position %d\n", g.GivenUp); err != nil {
				return err
			}
		}
		for _, node := range slices.Sorted(maps.Keys(g.Paths)) {
			if _, err := fmt.Fprintf(w, "  %s:%s\n", node, g.Paths[node]); err != nil {
				return err
			}
		}
		for _, warning := range g.Warnings {
			if err := bullet(w, warning, ""); err != nil {
				return err
			}
		}
	}
	return nil
}
