// Package httpdoor serves a node's HTTP API: on a unix socket in the data directory for whoever may open it,
// and on loopback. It translates between HTTP and the methods of Node and knows nothing of what is behind
// them. It has no users and no passwords yet, so it refuses to listen anywhere but on loopback.
//
// Goroutines: net/http's own, one a listener and one a connection. Close ends them and waits.
package httpdoor

import (
	"context"
	"io"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// Node is what the door needs of the node that it belongs to. An error is an *api.Error or wraps one;
// anything else is reported as api.CodeFailed. Lists that are nil are answered as empty. All methods are
// called concurrently and return soon after ctx has ended. Paths in arguments are raw bytes, paths in results
// are as api.EscapePath makes them.
type Node interface {
	Version(ctx context.Context) (api.Version, error)
	Status(ctx context.Context) (api.Status, error)
	Ready(ctx context.Context) []api.Check // at least one; all OK: ready to serve
	Nodes(ctx context.Context) ([]api.Node, error)
	Level(ctx context.Context) (api.ClusterLevel, error)
	LevelRaise(ctx context.Context, req api.LevelRaise) (api.LevelRaised, error)

	TokenCreate(ctx context.Context, ttl time.Duration) (api.Token, error) // ttl in (0, MaxTTL]
	TokenList(ctx context.Context) ([]api.Token, error)
	TokenRevoke(ctx context.Context, id string) error

	Groups(ctx context.Context) ([]api.Group, error)
	Group(ctx context.Context, group string) (api.Group, error)
	GroupProbe(ctx context.Context, group string, req api.GroupProbeRequest) (api.GroupProbe, error)
	GroupCheck(ctx context.Context, group string, deep bool) (api.GroupCheck, error)
	GroupToken(ctx context.Context, group, token string) (api.GroupToken, error)
	TransferLeader(ctx context.Context, group, node string) error
	GroupMember(ctx context.Context, group string, req api.GroupMember) error
	GroupDelete(ctx context.Context, group string) error
	// NodeDrain returns when the node has no seat left, or takes part again (off).
	NodeDrain(ctx context.Context, node string, off bool, progress func(api.Progress)) (api.NodeChange, error)
	NodeRemove(ctx context.Context, node string, force bool, progress func(api.Progress)) (api.NodeChange, error)
	ClusterSet(ctx context.Context, req api.ClusterSet) error
	GroupSet(ctx context.Context, group string, req api.GroupSet) error
	GroupRecover(ctx context.Context, group string, req api.GroupRecover) (api.GroupRecovered, error)

	// Backup writes a backup to w; after the first byte errors are in the backup as well.
	Backup(ctx context.Context, req api.BackupCreate, w io.Writer) error
	// Restore reads what a backup holds of the group from body. Paths in req are raw bytes.
	Restore(ctx context.Context, req api.Restore, body io.Reader) (api.Restored, error)

	DirCreate(ctx context.Context, req api.DirCreate) error
	DirBind(ctx context.Context, group, node, path string) error
	DirUnbind(ctx context.Context, group, node string) error
	// DirConfirm lets the node's binding go on after a guard has stopped it.
	DirConfirm(ctx context.Context, group, node string) error
	DirStatus(ctx context.Context, group string) (api.DirStatus, error)
	// DirList returns at most req.Limit (1 … api.DirListMax) entries directly below req.Path.
	DirList(ctx context.Context, group string, req api.DirList) (api.DirEntries, error)
	DirConflicts(ctx context.Context, group string) ([]api.Conflict, error)
	// DirWait waits until req (Mode filled in, Timeout already in ctx) is reached. When ctx's deadline
	// comes first, it returns what was reached, with Done false, and no error.
	DirWait(ctx context.Context, group string, req api.DirWaitFor, progress func(api.Progress)) (api.DirWait, error)
	// DirVerify reads and hashes everything on every node.
	DirVerify(ctx context.Context, group string, repair bool, progress func(api.Progress)) (api.DirVerify, error)
}

// Limits of the door.
const (
	DefaultTTL = time.Hour
	MaxTTL     = 30 * 24 * time.Hour

	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	plainTimeout  = 60 * time.Second // of an operation that does not stream
	writeTimeout  = 30 * time.Second // of one answer, or of one line of a stream
	idleTimeout   = 2 * time.Minute
)
