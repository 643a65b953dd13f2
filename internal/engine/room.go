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

// graceBytes is how many bytes of entries the replicas of a node that has become full still take, all together: the
// writes that are on their way, and the first entries of new leaders. It is an eighth of the log's reserve
// (logstore.DefaultReserve segments); the rest is for votes and terms, which take a few hundred bytes each and are
// overwritten in turn.
const graceBytes = 4 << 20

// grace counts what was spent of graceBytes.
type grace struct{ spent atomic.Uint64 }

func (e *Engine) spend(n uint64) bool {
	for {
		spent := e.grace.spent.Load()
		if spent+n > graceBytes {
			return false
		}
		if e.grace.spent.CompareAndSwap(spent, spent+n) {
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

func (r *groupRoom) Full() bool              { return r.eng.full() }
func (r *groupRoom) Scarce() bool            { return r.eng.cfg.Room != nil && r.eng.cfg.Room.Scarce() }
func (r *groupRoom) Spend(bytes uint64) bool { return r.eng.spend(bytes) }

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
