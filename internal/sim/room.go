package sim

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstep-sync/lockstep/internal/engine/core"
)

// A host whose disk is full writes on into the reserve of its log. It may put into that what its replicas are granted
// and no more: else there comes a vote for which there is no room.

// graceBytes is how many bytes of entries a full host grants to all its replicas together, graceKept how many of them
// are for the beginnings of terms.
const (
	graceBytes = 2000
	graceKept  = 500
)

// reserve is what a full host has put into its log's reserve.
type reserve struct {
	granted uint64
	used    uint64
}

// fillUp takes the room away.
func (h *host) fillUp() { h.full, h.reserve = true, reserve{} }

// charge notes what a replica has written, and fails if it was more than the host granted.
func (h *host) charge(m *member, a *core.Append) {
	if !h.full {
		return
	}
	for _, e := range a.Entries {
		if e.GetType() == raftpb.EntryNormal {
			h.reserve.used += uint64(len(e.GetData()))
		}
	}
	if h.reserve.used > h.reserve.granted {
		fail("%s put %d bytes of entries into the reserve of a full disk, which granted %d", m, h.reserve.used, h.reserve.granted)
	}
}

// hostRoom is core.Room: of others a host knows what they said with their last tick.
type hostRoom struct{ m *member }

func (r hostRoom) Full() bool { return r.m.h.full }

func (r hostRoom) FullAt(replica uint64) bool {
	other := r.m.gr.member(replica)
	return other != nil && other.h.up && other.h.saidFull
}

func (r hostRoom) Scarce() bool {
	if r.m.h.full {
		return true
	}
	for _, other := range r.m.h.w.hosts {
		if other.up && other.saidFull {
			return true
		}
	}
	return false
}

func (r hostRoom) Spend(n uint64, begins bool) bool {
	limit := uint64(graceBytes)
	if !begins {
		limit -= graceKept
	}
	if r.m.h.reserve.granted+n > limit {
		return false
	}
	r.m.h.reserve.granted += n
	return true
}
