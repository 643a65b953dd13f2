package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/control"
	"github.com/lockstep-sync/lockstep/internal/engine"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// knock is how long a node is given to accept a connection.
const knock = 2 * time.Second

// OfflineRecover makes a stopped node the only voter of the control group under a new history. confirm is the
// node's name. It is refused while a majority of the control group's voters still accepts connections, and, unless doubtful,
// if the node's state is in quarantine; that counts from then on.
func OfflineRecover(ctx context.Context, path, confirm string, doubtful bool, log *slog.Logger) (out api.OfflineRecovered, err error) {
	const op = "offline recover"
	if _, err := os.Stat(path); err != nil {
		return out, &api.Error{Code: api.CodeNotFound, Op: op, Subject: path, Why: err.Error(), Hint: "give the node's data directory with --data"}
	}
	data, err := openDataDir(path)
	if err != nil {
		return out, forRecover(op, path, err)
	}
	defer data.Close()
	defer func() { err = forRecover(op, path, err) }()
	if err := roomToStart(data.path); err != nil {
		return out, err
	}
	id, err := access.Load(data.path, time.Now)
	if err != nil {
		return out, &api.Error{Code: api.CodeFailed, Op: op, Subject: path, Why: err.Error(), Hint: "give the data directory of a node that ran before"}
	}
	if confirm != id.Name() {
		return out, &api.Error{Code: api.CodeUsage, Op: op, Subject: id.Name(),
			Why:  "what only the other nodes know of the cluster is lost",
			Hint: "if that is meant, say the node's name: --yes-lose-data " + id.Name()}
	}
	// Whoever recovers is told that there is no room, and does not wait for it: what was done so far is done again.
	giveUp := make(chan struct{})
	close(giveUp)
	logs, err := logstore.Open(data.sub("log"), logstore.Options{Salt: mrand.Uint64(), Owner: logOwner(id), Log: log, OnError: func(error) {}, GiveUp: giveUp})
	if err != nil {
		return out, logError(data.sub("log"), id, err)
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	state, err := kv.OpenPebble(data.sub("state"), kv.PebbleOptions{Log: log, OnError: func(error) {}, NoWait: true})
	if ofDisk(err) {
		return out, err
	}
	if err != nil {
		return out, damaged(data.sub("state"), err)
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	return recoverControl(ctx, data, id, logs, state, doubtful)
}

// forRecover has an error of the disk say what to do before the recovery is tried again, and errors that a start has as
// well say what failed.
func forRecover(op, path string, err error) error {
	var e *api.Error
	switch {
	case err != nil && ofDisk(err):
		e = storageError(path, err)
		err = e
	case !errors.As(err, &e):
		return err
	}
	e.Op = op
	return err
}

func recoverControl(ctx context.Context, data *dataDir, id *access.Identity, logs logstore.Store, state kv.Store, doubtful bool) (out api.OfflineRecovered, err error) {
	const op = "offline recover"
	if err := claimState(data.sub("state"), state, id); err != nil {
		return out, err
	}
	st, err := loadControl(state)
	if err != nil {
		return out, err
	}
	g, ok := st.Group(control.ControlGroup)
	if !ok {
		return out, &api.Error{Code: api.CodeFailed, Op: op, Subject: id.Name(), Why: "this node has never known its cluster's state",
			Hint: "recover on a node that has, or restore the cluster: lockstep restore FILE --data DIR"}
	}
	up, others := answering(ctx, st, g, id.Node())
	voters := len(g.Voters())
	if 2*up > voters {
		return out, &api.Error{Code: api.CodeConflict, Op: op, Subject: id.Name(),
			Why:  fmt.Sprintf("%d of the control group's %d voters accept connections: they are enough without this node", up, voters),
			Hint: "start this node; it catches up by itself"}
	}
	var h hint
	err = data.load(hintFile, &h, false)
	if err == nil {
		err = data.checkHint(&h, id)
	}
	if err != nil {
		return out, err
	}
	if h.Replica == 0 || h.Recast {
		return out, &api.Error{Code: api.CodeFailed, Op: op, Subject: id.Name(), Why: "this node was about to change its part in the control group",
			Hint: "recover on another node"}
	}
	standing, _, err := engine.StoppedEnd(logs, state, control.ControlGroup)
	if err != nil {
		return out, err
	}
	if standing.Quarantine != nil && !doubtful {
		return out, &api.Error{Code: api.CodeConflict, Op: op, Subject: id.Name(),
			Why: fmt.Sprintf("the state of the control group on this node is in quarantine: after entry %d it is not what a majority had", standing.Quarantine.Mark),
			Hint: "recover on another node that has the control group, or restore the cluster: lockstep restore FILE --data DIR; " +
				"to go on with what this one has though it may be wrong, add --doubtful"}
	}
	cfg := engine.RecoverConfig{Group: control.ControlGroup, Replica: h.Replica, Trust: doubtful}
	rand.Read(cfg.History[:])
	line, err := engine.Recover(logs, state, cfg)
	if errors.Is(err, logstore.ErrDamaged) { // what the state has is all that can be trusted
		cfg.StateOnly = true
		line, err = engine.Recover(logs, state, cfg)
	}
	if err != nil {
		return out, err
	}
	seen, err := startsSeen(state)
	if err == nil && seen < h.Starts { // people have decided to go on with it
		err = setStarts(state, h.Starts)
	}
	if err != nil {
		return out, err
	}
	h.Role = control.RoleVoter
	if err := writeJSON(data.sub(hintFile), h); err != nil {
		return out, err
	}
	return api.OfflineRecovered{
		Node: id.Name(), Cluster: id.Cluster().String(), History: fmt.Sprintf("%x", line.History), Before: fmt.Sprintf("%x", line.Before),
		Fork: line.Fork.Index, Last: line.Start - 1, Others: others, Doubtful: standing.Quarantine != nil, StateOnly: cfg.StateOnly,
	}, state.Sync()
}

// answering counts the other voters whose address accepts a connection, and names all other members.
func answering(ctx context.Context, st *control.State, g *control.Group, self uint64) (up int, others []string) {
	others = []string{}
	var members []control.Member
	for _, m := range g.Members {
		if p, ok := st.Node(m.Node); ok && m.Node != self && !p.Removed {
			members = append(members, m)
			others = append(others, p.Name)
		}
	}
	for i, ok := range each(members, func(m control.Member) bool {
		p, _ := st.Node(m.Node)
		d := net.Dialer{Timeout: knock}
		conn, err := d.DialContext(ctx, "tcp", p.Address)
		return err == nil && conn.Close() == nil
	}) {
		if ok && members[i].Role == control.RoleVoter {
			up++
		}
	}
	return up, others
}
