package server

import (
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// A file of the state store that a disk has altered. Its blocks have checksums, so whoever reads it gets an error and
// nothing wrong; but the store cannot be mended: it is one for all groups, what it lacks is not known, and the next
// compaction of that file ends the node. The others have everything. Until somebody begins the node anew it goes on with
// what can be read, and warns.

// stateDamage is what was found first.
type stateDamage struct {
	text  string
	since time.Time
}

// stateDamaged takes the news from whoever reads; it does not wait.
func (n *node) stateDamaged(path string, err error) {
	d := &stateDamage{fmt.Sprintf("%s: %v", path, err), time.Now()}
	if n.stateHurt.CompareAndSwap(nil, d) {
		n.log.Error("the state store is damaged; "+beginAnew, "path", path, "err", err)
	}
}

// beginAnew is what leads out.
const beginAnew = "if other nodes are up, stop this one, move its data directory away and join again with --join TOKEN --replace; " +
	"if it holds the only copy of a group, first: lockstep backup create FILE"

// stateWarning is about a node's store; ok is false if nothing is wrong with it.
func stateWarning(node string, r *report) (w api.Warning, ok bool) {
	if r.StateDamage == "" {
		return w, false
	}
	return api.Warning{Name: "state_damaged", Subject: node, Text: "its state store is damaged, and the node may end at any time: " + r.StateDamage,
		Hint: "on " + node + ": " + beginAnew, Since: r.StateSince}, true
}

// unreadableState makes an error that says what to do of one by which this node's own records could not be read.
func (n *node) unreadableState(group string, err error) error {
	if !errors.Is(err, kv.ErrDamaged) {
		return err
	}
	return &api.Error{Code: api.CodeDamage, Op: "dir", Subject: group, Why: "the state store of node " + n.id.Name() + " is damaged: " + err.Error(),
		Hint: "on " + n.id.Name() + ": " + beginAnew}
}
