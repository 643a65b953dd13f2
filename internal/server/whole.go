package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/access"
	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A data directory is used only as a whole: identity, log, state and what a node starts from belong to one node of one
// cluster. Parts that do not fit would let a node promise in another's name, or forget its own promises.

const rejoin = "move the data directory away and join again with --join TOKEN --replace"

// identityError says why an identity cannot be used, and the way out.
func identityError(path string, err error) error {
	if ofDisk(err) {
		return startError(path, err)
	}
	e := &api.Error{Code: api.CodeFailed, Op: "serve", Subject: path, Why: err.Error(),
		Hint: "see that this user can read it"}
	switch {
	case errors.Is(err, access.ErrNewerLevel):
		e.Code, e.Hint = api.CodeConflict, "start a version of lockstep that knows this level: lockstep version tells; nothing was changed"
	case errors.Is(err, access.ErrOtherNode), errors.Is(err, access.ErrOtherCluster), errors.Is(err, access.ErrNotOfCA):
		e.Hint = "the files in identity/ do not belong together: put this node's own back, or " + rejoin
	case errors.Is(err, access.ErrDamaged):
		e.Code, e.Hint = api.CodeDamage, "put identity/ of this very node back, or "+rejoin
	case errors.Is(err, access.ErrNotYetValid):
		e.Hint = "set this machine's clock; if it is right, " + rejoin
	case errors.Is(err, access.ErrPermissions):
		e.Hint = "give the file back to the user that the node runs as, with mode 0600"
	}
	return e
}

// checkUnused refuses to make a new identity over what another one has left: its log and its promises are not the new
// one's.
func (d *dataDir) checkUnused() error {
	for _, name := range []string{"log", "state"} {
		_, err := os.Stat(d.sub(name))
		if err == nil {
			return &api.Error{Code: api.CodeDamage, Op: "serve", Subject: d.path, Why: "identity/ is gone, but there is " + name + "/ of a node that ran here",
				Hint: "put identity/ of this very node back, or " + rejoin}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return dataDirError(d.path, err)
		}
	}
	return nil
}

// load reads one of the node's own files, which a start needs; may says that it need not be there.
func (d *dataDir) load(name string, v any, may bool) error {
	err := readJSON(d.sub(name), v)
	if err == nil && !may {
		_, err = os.Stat(d.sub(name))
	}
	if err == nil || ofDisk(err) {
		return startError(d.path, err)
	}
	return &api.Error{Code: api.CodeDamage, Op: "serve", Subject: d.sub(name), Why: err.Error(),
		Hint: "put the file of this very node back as it was last, or " + rejoin}
}

// checkHint refuses what another node starts from.
func (d *dataDir) checkHint(h *hint, id *access.Identity) error {
	if h.Node == id.Node() && h.Cluster == id.Cluster().String() {
		return nil
	}
	return notOurs(d.sub(hintFile), owner{h.Node, h.Cluster}, id)
}

// notOurs refuses a part of the data directory that another node has written.
func notOurs(part string, is owner, id *access.Identity) error {
	return &api.Error{Code: api.CodeDamage, Op: "serve", Subject: part,
		Why:  fmt.Sprintf("it is of node %d of cluster %s, identity/ of node %d (%s) of cluster %s", is.Node, is.Cluster, id.Node(), id.Name(), id.Cluster()),
		Hint: "give each node its own data directory, whole: put back what was exchanged, or " + rejoin}
}

// logOwner is whose log the node opens.
func logOwner(id *access.Identity) logstore.Owner {
	return logstore.Owner{Cluster: id.Cluster(), Node: id.Node()}
}

// ownerKey is where a state store says whose it is. It is the first key that is ever written, so it is there if
// anything is.
const ownerKey = "i"

// owner is the value of ownerKey.
type owner struct {
	Node    uint64 `json:"node"`
	Cluster string `json:"cluster"` // in hex
}

// claimState refuses the state of another node, and makes one that nobody has used this node's.
func claimState(path string, state kv.Store, id *access.Identity) error {
	mine := owner{id.Node(), id.Cluster().String()}
	b, found, err := state.Get([]byte(ownerKey))
	if err != nil {
		return damaged(path, err)
	}
	if !found {
		return setOwner(state, mine)
	}
	var is owner
	if err := json.Unmarshal(b, &is); err != nil {
		return damaged(path, fmt.Errorf("whose it is cannot be read: %w", err))
	}
	if is != mine {
		return notOurs(path, is, id)
	}
	return nil
}

func setOwner(state kv.Store, o owner) error {
	v, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("claim state: %w", err)
	}
	b := state.Batch()
	defer b.Discard()
	if err := errors.Join(b.Set([]byte(ownerKey), v), b.Commit()); err != nil {
		return fmt.Errorf("claim state: %w", err)
	}
	return nil
}
