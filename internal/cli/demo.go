package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-sync/lockstep/internal/cli/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var cfg demo.Config
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a whole cluster at work on this machine, on real files",
		Long: `Start a whole cluster on this machine, as processes on loopback, in a temporary directory. The first
node gets a copy of real files; watch the others fill, see how fast an edit arrives, what happens
when the leader is killed and comes back, and how a conflict is kept. Then look around yourself.`,
		Example: "  lockstep demo\n  lockstep demo --nodes 5 --dir ~/photos\n  lockstep demo --exit",
		Args:    wants,
		RunE: func(cmd *cobra.Command, _ []string) error {
			binary, err := os.Executable()
			if err != nil {
				return fmt.Errorf("demo: find this program's file: %w", err)
			}
			cfg.Binary = binary
			cfg.Out, cfg.Terminal = a.env.Stdout, isTerminal(a.env.Stdout)
			// What is set for this machine's node is not for the demo's.
			cfg.Environ = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "LOCKSTEP_") })
			return demo.Run(cmd.Context(), cfg)
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.Nodes, "nodes", 3, fmt.Sprintf("how many nodes, 1 to %d", demo.MaxNodes))
	f.StringVar(&cfg.Dir, "dir", "", "directory to copy from (default: the sources of the Go installation, or generated files)")
	f.BoolVar(&cfg.Exit, "exit", false, "end after the last scene; status 0 only if all directories are identical")
	f.BoolVar(&cfg.Keep, "keep", false, "leave the demo's directory behind")
	return c
}
