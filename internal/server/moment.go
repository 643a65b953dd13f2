package server

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// The state and the log of a data directory are of one moment. A state that was put back from an older image says of
// replicas that they have ids which were given up since; what the log has was promised under the later ones, and would
// be dropped for a group that the older state of the control group does not have, and then begun again, empty, under the
// very id that promised it. Where the log of a group begins behind the state this is found there (engine.LogFits), but not
// whose promises those were. So both the store and cluster.json count the starts of the node, the store first: it has
// never seen fewer than cluster.json says, unless it was put back.

// startsKey is where a state store counts the starts that it has seen: a number in JSON.
const startsKey = "starts"

func startsSeen(state kv.Reader) (n uint64, err error) {
	b, found, err := state.Get([]byte(startsKey))
	if err != nil || !found {
		return 0, err
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return 0, fmt.Errorf("how many starts it has seen cannot be read: %w", err)
	}
	return n, nil
}

// setStarts is durable.
func setStarts(state kv.Store, n uint64) error {
	b := state.Batch()
	defer b.Discard()
	if err := errors.Join(b.Set([]byte(startsKey), fmt.Append(nil, n)), b.Commit()); err != nil {
		return fmt.Errorf("count the start: %w", err)
	}
	if err := state.Sync(); err != nil {
		return fmt.Errorf("count the start: %w", err)
	}
	return nil
}

// sameMoment refuses a state store that is older than the rest of the data directory, and counts this start. A node that
// has never heard of another one made its promises to itself: it goes on with what it has.
func sameMoment(path string, state kv.Store, h *hints, self uint64) error {
	seen, err := startsSeen(state)
	if err != nil {
		return damaged(path, err)
	}
	counted := h.starts()
	if why := wentBack(seen, counted, len(h.nodes(self))); why != "" {
		return &api.Error{Code: api.CodeDamage, Op: "serve", Subject: path, Why: why, Hint: putBack}
	}
	next := max(seen, counted) + 1
	if err := setStarts(state, next); err != nil {
		return startError(path, err)
	}
	return startError(path, h.setOpened(next))
}

// putBack leads out.
const putBack = "put back the state/ that was there last, or " + rejoin

// wentBack says why a state store that has seen so many starts is too old for a data directory that has counted others;
// "": it is not.
func wentBack(seen, counted uint64, peers int) string {
	if seen >= counted || peers == 0 {
		return ""
	}
	return fmt.Sprintf("it is of an earlier moment than the rest of the data directory: it has seen %d starts of this node, and there were %d", seen, counted)
}
