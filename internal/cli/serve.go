package cli

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
)

// ServeConfig is a node's own facts, complete and checked. Everything that is shared lives in the cluster.
type ServeConfig struct {
	Data      string // absolute path of the data directory
	Name      string // the node's name; empty: the one that Data knows
	Listen    string // HOST:PORT for other nodes; HOST may be empty: all addresses
	Advertise string // HOST:PORT under which other nodes reach it; empty: found out from Listen
	API       string // loopback HOST:PORT of the HTTP API; empty: only the unix socket
	Join      string // token; empty: start a new cluster, or go on with what Data holds
	Zone      string // what fails together with this node; empty: unknown
	Replace   bool   // join under the name of a node that lost its data directory
	// SnapshotRate bounds the bytes a second that the node sends of whole states; 0: no bound.
	SnapshotRate uint64
	Log          *slog.Logger
}

func (a *app) serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "serve",
		SuggestFor: []string{"init", "join", "start", "run", "up"},
		Short:      "Run this server's node",
		Long: `Run this server's node, in the foreground, until it is told to stop by SIGTERM or an interrupt.

With an empty data directory it starts a new cluster of one, or, with --join, becomes part of the
cluster that the token is from. Later starts need neither.

Every setting can be a flag, an environment variable (--data is LOCKSTEP_DATA), or a line of the
TOML file that --config or LOCKSTEP_CONFIG names (data = "/srv/lockstep"); the first of these wins.`,
		Example: "  lockstep serve --data /var/lib/lockstep\n  lockstep serve --data /var/lib/lockstep --join TOKEN",
		Args:    wants,
	}
	flags := c.Flags()
	flags.String("config", "", "TOML file with settings")
	for _, s := range settings() {
		if s.toggle {
			flags.Bool(s.flag(), false, s.usage)
		} else {
			flags.String(s.flag(), s.value, s.usage)
		}
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		values, err := loadSettings(cmd.Flags(), a.env.Getenv)
		if err != nil {
			return err
		}
		cfg, err := serveConfig(values, a.env.Stderr)
		if err != nil {
			return err
		}
		if err := a.env.Serve(cmd.Context(), cfg); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	}
	return c
}
