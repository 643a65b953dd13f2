package httpdoor

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

// fakeNode records what it is asked and answers with err, or something small.
type fakeNode struct {
	mu    sync.Mutex
	asked []any
	err   error
	ready []api.Check
	// block, if not nil, holds DirVerify until it is closed or the request ends.
	block chan struct{}
}

func (n *fakeNode) note(args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = args
	return n.err
}

func (n *fakeNode) last() []any {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

func (n *fakeNode) Version(context.Context) (api.Version, error) {
	return api.Version{Version: "1", Go: "go1"}, n.note("version")
}
func (n *fakeNode) Status(context.Context) (api.Status, error) {
	return api.Status{Cluster: "c"}, n.note("status")
}
func (n *fakeNode) Ready(context.Context) []api.Check           { return n.ready }
func (n *fakeNode) Nodes(context.Context) ([]api.Node, error)   { return nil, n.note("nodes") }
func (n *fakeNode) Groups(context.Context) ([]api.Group, error) { return nil, n.note("groups") }
func (n *fakeNode) Group(_ context.Context, g string) (api.Group, error) {
	return api.Group{Name: g}, n.note("group", g)
}
func (n *fakeNode) Level(context.Context) (api.ClusterLevel, error) {
	return api.ClusterLevel{Level: 1}, n.note("level")
}
func (n *fakeNode) LevelRaise(_ context.Context, r api.LevelRaise) (api.LevelRaised, error) {
	return api.LevelRaised{From: 1, To: r.To}, n.note("level raise", r)
}
func (n *fakeNode) TokenCreate(_ context.Context, ttl time.Duration) (api.Token, error) {
	return api.Token{Token: "t", ID: "i"}, n.note("token create", ttl)
}
func (n *fakeNode) TokenList(context.Context) ([]api.Token, error) { return nil, n.note("tokens") }
func (n *fakeNode) TokenRevoke(_ context.Context, id string) error { return n.note("revoke", id) }
func (n *fakeNode) GroupProbe(_ context.Context, g string, r api.GroupProbeRequest) (api.GroupProbe, error) {
	return api.GroupProbe{Group: g}, n.note("probe", g, r)
}
func (n *fakeNode) GroupCheck(_ context.Context, g string, deep bool) (api.GroupCheck, error) {
	return api.GroupCheck{Group: g}, n.note("check", g, deep)
}
func (n *fakeNode) GroupToken(_ context.Context, g, token string) (api.GroupToken, error) {
	return api.GroupToken{Group: g, Token: token}, n.note("token", g, token)
}
func (n *fakeNode) TransferLeader(_ context.Context, g, node string) error {
	return n.note("transfer", g, node)
}
func (n *fakeNode) GroupMember(_ context.Context, g string, r api.GroupMember) error {
	return n.note("member", g, r)
}
func (n *fakeNode) GroupDelete(_ context.Context, g string) error { return n.note("delete", g) }
func (n *fakeNode) NodeDrain(_ context.Context, node string, off bool, progress func(api.Progress)) (api.NodeChange, error) {
	progress(api.Progress{What: "draining", Node: node, Unit: "groups"})
	return api.NodeChange{Node: node}, n.note("drain", node, off)
}
func (n *fakeNode) NodeRemove(_ context.Context, node string, force bool, _ func(api.Progress)) (api.NodeChange, error) {
	return api.NodeChange{Node: node}, n.note("remove", node, force)
}
func (n *fakeNode) ClusterSet(_ context.Context, r api.ClusterSet) error {
	return n.note("cluster set", r)
}
func (n *fakeNode) GroupSet(_ context.Context, g string, r api.GroupSet) error {
	return n.note("group set", g, r)
}
func (n *fakeNode) GroupRecover(_ context.Context, g string, r api.GroupRecover) (api.GroupRecovered, error) {
	return api.GroupRecovered{Group: g}, n.note("group recover", g, r)
}
func (n *fakeNode) Backup(_ context.Context, r api.BackupCreate, w io.Writer) error {
	if err := n.note("backup", r); err != nil {
		return err
	}
	_, err := io.WriteString(w, "the backup")
	return err
}
func (n *fakeNode) Restore(_ context.Context, r api.Restore, body io.Reader) (api.Restored, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return api.Restored{}, err
	}
	return api.Restored{Group: r.As, Paths: r.Paths}, n.note("restore", r, string(b))
}
func (n *fakeNode) DirCreate(_ context.Context, r api.DirCreate) error { return n.note("create", r) }
func (n *fakeNode) DirBind(_ context.Context, g, node, path string) error {
	return n.note("bind", g, node, path)
}
func (n *fakeNode) DirUnbind(_ context.Context, g, node string) error {
	return n.note("unbind", g, node)
}
func (n *fakeNode) DirConfirm(_ context.Context, g, node string) error {
	return n.note("confirm", g, node)
}
func (n *fakeNode) DirStatus(_ context.Context, g string) (api.DirStatus, error) {
	return api.DirStatus{Group: g}, n.note("dir", g)
}
func (n *fakeNode) DirList(_ context.Context, g string, r api.DirList) (api.DirEntries, error) {
	return api.DirEntries{}, n.note("ls", g, r)
}
func (n *fakeNode) DirConflicts(_ context.Context, g string) ([]api.Conflict, error) {
	return nil, n.note("conflicts", g)
}
func (n *fakeNode) DirWait(ctx context.Context, g string, r api.DirWaitFor, progress func(api.Progress)) (api.DirWait, error) {
	_, limited := ctx.Deadline()
	progress(api.Progress{What: "waiting", Done: 1, Total: 2, Unit: "nodes"})
	return api.DirWait{Group: g, Done: true}, n.note("wait", g, r, limited)
}
func (n *fakeNode) DirVerify(ctx context.Context, g string, repair bool, progress func(api.Progress)) (api.DirVerify, error) {
	progress(api.Progress{What: "verifying", Node: "n1", Done: 1, Unit: "files"})
	if n.block != nil {
		select {
		case <-n.block:
		case <-ctx.Done():
			return api.DirVerify{}, ctx.Err()
		}
	}
	return api.DirVerify{Group: g}, n.note("verify", g, repair)
}
