package engine

import (
	"errors"
	"sync/atomic"

	"go.etcd.io/raft/v3/raftpb"
)

// Room tells which nodes' disks are full. Every method is called often, from any goroutine, and must cost no more than
// an atomic load or two.
type Room interface {
	Full() bool              // this node's
	FullAt(node uint64) bool // a peer's, as far as it has said
	Scarce() bool            // false: neither this node's is nor that of any peer
}

// ErrFull: a write was not taken, because there is no quorum of voters with room on their disks.
var ErrFull = errors.New("engine: the disks are full")

// graceBytes is how many bytes of appends the replicas of a node that has become full still take, all together. Writes
// that are on their way use it up, within a second if there are many; only graceKept of it is left to the first entries
// of new leaders, which replicas that have dropped nothing take. It is an eighth of the log's reserve
// (logstore.DefaultReserve segments); the rest is for votes and terms.
const (
	graceBytes = 4 << 20
	graceKept  = 1 << 20
	// graceAppend is what an append takes beside its entries: at most, a block that it shares with no other.
	graceAppend = 4 << 10
)

// grace counts what was spent of graceBytes.
type grace struct{ spent atomic.Uint64 }

// spend takes n bytes of what may be spent up to limit.
func (g *grace) spend(n, limit uint64) bool {
	for {
		spent := g.spent.Load()
		if spent+n > limit {
			return false
		}
		if g.spent.CompareAndSwap(spent, spent+n) {
			return true
		}
	}
}

// restoreGrace gives the grace back when there is room.
func (e *Engine) restoreGrace() {
	if e.grace.spent.Load() != 0 && !e.full() {
		e.grace.spent.Store(0)
	}
}

// full says whether this node's disk is.
func (e *Engine) full() bool { return e.cfg.Room != nil && e.cfg.Room.Full() }

// groupRoom is Room as a group's core sees it.
type groupRoom struct {
	eng *Engine
	g   *Group // nil while the group is being opened
}

func (r *groupRoom) Full() bool   { return r.eng.full() }
func (r *groupRoom) Scarce() bool { return r.eng.cfg.Room != nil && r.eng.cfg.Room.Scarce() }

func (r *groupRoom) Spend(bytes uint64, begins bool) bool {
	limit := uint64(graceBytes - graceKept)
	if begins {
		limit = graceBytes
	}
	return r.eng.grace.spend(bytes+graceAppend, limit)
}

func (r *groupRoom) FullAt(replica uint64) bool {
	if r.g == nil {
		return false
	}
	node, ok := r.g.NodeOf(replica)
	return ok && r.eng.cfg.Room.FullAt(node)
}

// wasted says whether a peer on a full disk would drop m: it is not sent then, as if it had been lost. Small ones are,
// they may be what the peer's grace is for.
func wasted(m *raftpb.Message) bool {
	const small = 64 << 10
	n := 0
	for _, e := range m.GetEntries() {
		n += len(e.GetData())
	}
	return m.GetType() == raftpb.MsgApp && n > small
}
