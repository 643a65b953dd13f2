// Package cli is the lockstep command line: one file a noun, every command a function from its arguments to
// one result that is printed as text or as JSON. It speaks to a node through package client and knows nothing
// of a node's inside; what `serve` starts is handed in.
//
// It starts no goroutine of its own but a timer's that says what takes long; the demo (package demo) does.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/client"
)

// DefaultData is the data directory of a node that is not told another.
const DefaultData = "/var/lib/lockstep"

// Env is what a run gets from outside. All fields are required.
type Env struct {
	Args           []string // without the program's name
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Build          api.Version // what this binary is
	// Serve runs a node until ctx ends; it returns nil after an orderly stop.
	Serve func(ctx context.Context, cfg ServeConfig) error
	// OfflineRecover lets a stopped node alone go on as the control group.
	OfflineRecover func(ctx context.Context, cfg OfflineRecover) (api.OfflineRecovered, error)
	// OfflineLog looks at the log below a stopped node's data directory; progress may be nil.
	OfflineLog func(data string, progress func(api.Progress)) OfflineLog
	// Backup reads a backup on disk; progress may be nil.
	Backup func(path string, progress func(api.Progress)) BackupFile
	// TryRestore says what a restore of groups into a new cluster, in the directory data with one node of that name, would
	// do, or why it would be refused.
	TryRestore func(ctx context.Context, data, name string, reqs []api.Restore) ([]api.Restored, error)
}

// app is one run.
type app struct {
	env    Env
	server string // --server
	output string // --output

	telling atomic.Bool // a command shows its progress itself
}

// Main runs the command line and returns the exit status (see api.Codes).
func Main(ctx context.Context, env Env) int {
	a := &app{env: env}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := a.completeBelow(root)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return 0
	}
	return a.report(ctx, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lockstep",
		Short: "Keep directories of a farm of servers in step",
		Long: `Lockstep keeps directories of a farm of servers in step: any server may change them, all hold the same.

Every server runs "lockstep serve". The other commands talk to one of them: the one on this
machine, or the one that --server names.`,
		Example: `  lockstep demo                                            see it work, on this machine alone

  lockstep serve                                           on the first server: a new cluster
  lockstep token create                                    there: a token for the others
  lockstep serve --join TOKEN                              on each of the others
  lockstep dir create web --path /srv/web --on n1,n2,n3    keep /srv/web in step on n1, n2 and n3
  lockstep status                                          who has what, and what asks for attention`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          a.unknownOrHelp(true),
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if form := outputAsked(a.env.Args); form != "" {
			a.output = form
		}
		return flagError(cmd, err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.server, "server", "", "node to talk to: unix:///PATH or HOST:PORT (default: the node of this machine; $LOCKSTEP_SERVER)")
	flags.StringVarP(&a.output, "output", "o", "text", "text or json")
	grouped(root, "Everyday commands:", a.serveCommand(), a.demoCommand(), a.statusCommand(), a.tokenCommand(), a.dirCommand())
	grouped(root, "To run a cluster:", a.clusterCommand(), a.nodeCommand(), a.groupCommand(), a.levelCommand())
	grouped(root, "Backup and repair:", a.backupCommand(), a.restoreCommand(), a.offlineCommand())
	root.AddCommand(a.versionCommand(), a.completionCommand())
	root.SetHelpCommand(helpCommand())
	return root
}

// grouped adds commands that help lists under one title.
func grouped(root *cobra.Command, title string, list ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: title, Title: title})
	for _, c := range list {
		c.GroupID = title
		root.AddCommand(c)
	}
}

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND] [COMMAND]",
		Short:   "Explain a command",
		Example: "  lockstep help dir create",
		Args:    wants,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 && at.HasSubCommands() {
				err = at.RunE(at, rest[:1]) // it only says what it does not know
			}
			if err != nil {
				return err
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}

// noun makes a command that only holds others.
func (a *app) noun(use, short, example string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: a.unknownOrHelp(false)}
	c.AddCommand(sub...)
	return c
}

// unknownOrHelp is what a command does that only holds others: called with a word it does not know, it
// suggests; called without, the root shows help and a noun asks for a verb.
func (a *app) unknownOrHelp(root bool) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		if len(args) == 0 {
			if root {
				return cmd.Help()
			}
			return &api.Error{Code: api.CodeUsage, Op: opName(cmd), Why: "what to do?",
				Hint: "one of: " + strings.Join(names, ", ") + fmt.Sprintf("; `%s -h` explains them", cmd.CommandPath())}
		}
		hint := fmt.Sprintf("see `%s -h`", cmd.CommandPath())
		if near := api.Nearest(args[0], names); near != "" {
			hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near)
		} else if meant := meantBy(cmd, args[0]); len(meant) > 0 {
			hint = "did you mean " + orList(meant) + "?"
		}
		return &api.Error{Code: api.CodeUsage, Op: opName(cmd), Why: fmt.Sprintf("unknown command %q", args[0]), Hint: hint}
	}
}

// result is what a command found out. It is encoded as it is for -o json; text writes it for people.
type result interface{ text(w io.Writer) error }

// verdict is a result that may mean an exit status other than 0 although it is complete.
type verdict interface{ verdict() error }

// asking makes a command's body: it connects (lazily), lets do ask, and prints the result.
func asking[R result](a *app, do func(ctx context.Context, c *client.Client, args []string) (R, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		c, err := client.New(a.serverAddress())
		if err != nil {
			return err
		}
		defer c.Close()
		answered := a.awaiting(c.Server())
		r, err := do(cmd.Context(), c, args)
		answered()
		if err != nil {
			return err
		}
		return a.print(r)
	}
}

func (a *app) print(r result) error {
	var err error
	if a.output == "json" {
		err = writeJSON(a.env.Stdout, r)
	} else {
		err = r.text(a.env.Stdout)
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if v, ok := r.(verdict); ok {
		return v.verdict()
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (a *app) checkOutput() error {
	if a.output == "text" || a.output == "json" {
		return nil
	}
	bad := a.output
	a.output = "text"
	return &api.Error{Code: api.CodeUsage, Op: "--output", Subject: bad, Why: "not a known form of output", Hint: "use text or json"}
}

func (a *app) serverAddress() string {
	if a.server != "" {
		return a.server
	}
	if s := a.env.Getenv("LOCKSTEP_SERVER"); s != "" {
		return s
	}
	data := DefaultData
	if d := a.env.Getenv("LOCKSTEP_DATA"); d != "" {
		data = d
	}
	if abs, err := filepath.Abs(data); err == nil {
		data = abs
	}
	return "unix://" + filepath.Join(data, "lockstep.sock")
}

// report prints err and returns its exit status.
func (a *app) report(ctx context.Context, err error) int {
	var e *api.Error
	isAPI := errors.As(err, &e)
	switch {
	case isAPI && e.Code == api.CodeInterrupted && e.Hint != "": // it says how things are now
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || isAPI && e.Code == api.CodeInterrupted):
		e = &api.Error{Code: api.CodeInterrupted, Why: "interrupted"}
	case isAPI:
	default:
		e = &api.Error{Code: api.CodeFailed, Why: err.Error()}
	}
	info := e.Code.Info()
	if a.output == "json" {
		if werr := writeJSON(a.env.Stderr, e); werr != nil {
			return api.CodeFailed.Info().Exit
		}
		return info.Exit
	}
	out := "lockstep: " + printable(e.Error()) + "\n"
	if e.Hint != "" {
		out += "  → " + printable(e.Hint) + "\n"
	}
	if _, werr := io.WriteString(a.env.Stderr, out); werr != nil {
		return api.CodeFailed.Info().Exit
	}
	return info.Exit
}
