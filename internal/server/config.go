package server

import (
	"log/slog"

	"github.com/lockstep-sync/lockstep/api"
)

// Config is a node's own facts, complete and checked. Everything that is shared lives in the control group.
type Config struct {
	Data      string // absolute path of the data directory
	Name      string // the node's name; empty: what the data directory says
	Listen    string // HOST:PORT for other nodes
	Advertise string // HOST:PORT under which they reach it; empty: Listen, if it names a host
	API       string // loopback HOST:PORT of the HTTP API; empty: only the unix socket
	Join      string // token; empty: start a new cluster, or go on with what Data holds
	Zone      string // what fails together with this node: a rack, a room; empty: unknown
	Replace   bool   // join under the name of a node that lost its data directory
	Version   api.Version
	// SnapshotRate bounds the bytes a second that the node sends of whole states; 0: no bound.
	SnapshotRate uint64
	Log          *slog.Logger
}
