package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/api"
)

type versionResult api.Version

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Say what this binary is",
		Example: "  lockstep version",
		Args:    wants,
		RunE: func(*cobra.Command, []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			return a.print(versionResult(a.env.Build))
		},
	}
}

func (v versionResult) text(w io.Writer) error {
	commit := ""
	if v.Commit != "" {
		commit = " commit " + short(v.Commit)
	}
	level := fmt.Sprintf("cluster level %d", v.Level)
	if v.MinLevel < v.Level {
		level = fmt.Sprintf("cluster levels %d to %d", v.MinLevel, v.Level)
	}
	_, err := fmt.Fprintf(w, "lockstep %s%s (%s, %s)\n", v.Version, commit, v.Go, level)
	return err
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print a script that completes commands and flags in bash, zsh or fish",
		Example:   "  source <(lockstep completion bash)",
		Args:      wants,
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.env.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.env.Stdout)
			case "fish":
				return root.GenFishCompletion(a.env.Stdout, true)
			}
			return &api.Error{Code: api.CodeUsage, Op: opName(cmd), Subject: args[0], Why: "not a known shell", Hint: "one of: bash, zsh, fish"}
		},
	}
}
