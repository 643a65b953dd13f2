package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

// BackupFile is a backup on disk. Every method verifies all of it first.
type BackupFile interface {
	Verify(ctx context.Context) (api.BackupInfo, error)
	// List shows what a group held at, or directly below, a path of raw bytes.
	List(ctx context.Context, group, path string) ([]api.DirEntry, error)
	// Request is what a restore of a group asks for; Send writes what follows the request.
	Request(ctx context.Context, group string) (api.Restore, api.BackupInfo, error)
	Send(ctx context.Context, group string, w io.Writer) error
}

type (
	backupInfo api.BackupInfo
	backupList api.BackupInfo
)

func (a *app) backupCommand() *cobra.Command {
	verify := &cobra.Command{
		Use:   "verify FILE",
		Short: "Read all of a backup and check every byte; no cluster is needed",
		Long: `Read all of a backup and check every byte: digests of parts, contents and the whole, that every state
can be read, and that every file's content is there. Exits with 8 if anything is wrong.`,
		Example: "  lockstep backup verify /backup/web.lockstep",
		Args:    wants,
		RunE: a.reading(func(ctx context.Context, f BackupFile, _ []string) (result, error) {
			info, err := f.Verify(ctx)
			return backupInfo(info), err
		}),
	}
	ls := &cobra.Command{
		Use:     "ls FILE [GROUP] [PATH]",
		Short:   "List the groups of a backup, or what a group held",
		Example: "  lockstep backup ls web.lockstep\n  lockstep backup ls web.lockstep web images",
		Args:    wants,
		RunE: a.reading(func(ctx context.Context, f BackupFile, args []string) (result, error) {
			if len(args) == 1 {
				info, err := f.Verify(ctx)
				return backupList(info), err
			}
			at := ""
			if len(args) == 3 {
				at = strings.TrimSuffix(args[2], "/")
			}
			entries, err := f.List(ctx, args[1], at)
			return dirEntries(entries), err
		}),
	}
	return a.noun("backup", "Make backups, check them, look into them", "  lockstep backup create web.lockstep --group web", a.backupCreate(), verify, ls)
}

// reading makes the body of a command that reads the backup args[0].
func (a *app) reading(do func(ctx context.Context, f BackupFile, args []string) (result, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		p := a.newProgress()
		r, err := do(cmd.Context(), a.env.Backup(args[0], p.update), args)
		p.end()
		if err != nil {
			return err
		}
		return a.print(r)
	}
}

func (a *app) backupCreate() *cobra.Command {
	var groups []string
	c := &cobra.Command{
		Use:   "create FILE [--group GROUP,…]",
		Short: "Write a backup of the cluster, or of some groups, into one file",
		Long: `Write a backup of all groups, or of some, into one file, from a cluster that goes on working: the
description of the cluster (without its keys and tokens), and of each group its files at one position
of its log. Each position is not before anything that was acknowledged before the backup began; groups
are not at the same moment as one another. The file is verified, as by "backup verify", before it gets
its name; a file of that name is not overwritten.`,
		Example: "  lockstep backup create /backup/monday.lockstep\n  lockstep backup create web.lockstep --group web",
		Args:    wants,
		RunE: asking(a, func(ctx context.Context, c *client.Client, args []string) (backupInfo, error) {
			return a.createBackup(ctx, c, args[0], groups)
		}),
	}
	c.Flags().StringSliceVar(&groups, "group", nil, "only these groups, comma-separated")
	return c
}

// createBackup writes beside FILE, under a name that nobody else has, and gives it its name once everything was verified
// from disk. Whatever has the name by then stays.
func (a *app) createBackup(ctx context.Context, c *client.Client, file string, groups []string) (info backupInfo, err error) {
	const op = "backup create"
	if _, err := os.Lstat(file); err == nil {
		return info, fileExists(op, file)
	}
	out, err := os.CreateTemp(filepath.Dir(file), ".lockstep-backup-*")
	if err != nil {
		return info, &api.Error{Code: api.CodeFailed, Op: op, Subject: file, Why: err.Error(), Hint: "choose a directory that this user may write to"}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(out.Name()))
		}
	}()
	got, err := a.download(ctx, c, out, groups)
	if closed := out.Close(); !errors.Is(closed, fs.ErrClosed) {
		err = errors.Join(err, closed)
	}
	if err == nil {
		err = nameFile(out.Name(), file)
	}
	if errors.Is(err, fs.ErrExist) {
		return info, fileExists(op, file)
	}
	if err != nil {
		return info, err
	}
	got.File = file
	return backupInfo(got), syncDir(filepath.Dir(file))
}

func fileExists(op, file string) error {
	return &api.Error{Code: api.CodeConflict, Op: op, Subject: file, Why: "the file exists", Hint: "choose another name, or move it away"}
}

// nameFile renames without replacing anything; fs.ErrExist: something has the name.
func nameFile(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		if err != nil {
			err = &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return err
	}
	if err := os.Link(from, to); err != nil { // NFS knows no such rename
		return err
	}
	return os.Remove(from)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (a *app) download(ctx context.Context, c *client.Client, out *os.File, groups []string) (info api.BackupInfo, err error) {
	body, err := c.Backup(ctx, api.BackupCreate{Groups: groups})
	if err != nil {
		return info, err
	}
	defer body.Close()
	p := a.newProgress()
	defer p.end()
	_, err = io.Copy(out, &counted{r: body, p: p})
	if err != nil && ctx.Err() != nil {
		return info, ctx.Err()
	}
	if err == nil {
		err = errors.Join(out.Sync(), out.Close())
	}
	if err != nil {
		return info, &api.Error{Code: api.CodeFailed, Op: "backup create", Subject: out.Name(), Why: err.Error(), Hint: "see to the disk and to the node, then try again"}
	}
	info, err = a.env.Backup(out.Name(), p.update).Verify(ctx)
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeDamage { // the node gave up, or went away
		e.Code, e.Op, e.Hint = api.CodeUnavailable, "backup create", "lockstep status says whether all is well; then try again"
	}
	return info, err
}

// counted reports what is read.
type counted struct {
	r io.Reader
	p *progress
	n uint64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += uint64(n)
	c.p.update(api.Progress{What: "saving", Done: c.n, Unit: "bytes"})
	return n, err
}

func (b backupInfo) text(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s: whole, %s; cluster %s, %s, by %s\n", b.File, size(b.Size), b.Cluster, b.Created.Format(time.RFC3339), b.Node)
	if err != nil {
		return err
	}
	return groupsOf(w, b.Groups)
}

func (b backupList) text(w io.Writer) error { return groupsOf(w, b.Groups) }

func groupsOf(w io.Writer, groups []api.BackupGroup) error {
	rows := [][]string{{"GROUP", "FILES", "BYTES", "POSITION", "PATHS"}}
	for _, g := range groups {
		var paths []string
		for _, node := range slices.Sorted(maps.Keys(g.Paths)) {
			paths = append(paths, node+":"+g.Paths[node])
		}
		rows = append(rows, []string{g.Name, thousands(g.Files), size(g.Bytes), fmt.Sprint(g.Index), strings.Join(paths, " ")})
	}
	return table(w, rows)
}

// ownPaths reads --on and --path as bindings do; both may be left out.
func ownPaths(dir string, on []string) (map[string]string, error) {
	if dir == "" && len(on) == 0 {
		return nil, nil
	}
	paths, err := bindings(dir, on)
	var e *api.Error
	if errors.As(err, &e) {
		e.Op = "restore"
	}
	return paths, err
}

// groupDirs reads GROUP=DIR.
func groupDirs(words []string) (map[string]string, error) {
	dirs := map[string]string{}
	for _, word := range words {
		group, dir, ok := strings.Cut(word, "=")
		if !ok || group == "" || !path.IsAbs(dir) {
			return nil, &api.Error{Code: api.CodeUsage, Op: "restore", Subject: "--dir " + word, Why: "is not GROUP=DIR with an absolute DIR",
				Hint: "for instance: --dir web=/srv/web"}
		}
		dirs[group] = path.Clean(dir)
	}
	return dirs, nil
}
