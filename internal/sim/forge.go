package sim

import (
	"errors"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// Now and then an observer comes back with a state that the group never had: it ends with an entry that was not committed
// at its index. That is for the sources to notice (R2). It must not be fed as if nothing were, and it must feed nobody,
// until the whole state has replaced what it has; a relay's word for it is not enough. What it answers to reads until then
// nobody can vouch for.

// forgedTerm is above all terms that a run comes to.
const forgedTerm = 1 << 20

// forge ends an observer's process and has it start again with such a state; false if h has members, or no observer.
func (n *nemesis) forge(w *world, h *host) bool {
	var o *observer
	for i, m := range h.members {
		if m != nil {
			return false
		}
		if o == nil && h.observers[i].alive() && h.observers[i].rep.Applied().Index > 0 {
			o = h.observers[i]
		}
	}
	if o == nil {
		return false
	}
	h.crash()
	n.until(w, second, func() {
		if h.up || h.full {
			return
		}
		o.forge()
		h.start()
	})
	return true
}

// forge appends an entry to the state on the disk, if members have another one there.
func (o *observer) forge() {
	rep, err := replica.OpenLimited(kv.Prefixed(o.h.store, o.gr.prefix()), o.gr.work.machine(o.h), o.h.limits())
	var newer *replica.NewerLevelError
	if errors.As(err, &newer) {
		return // its program was exchanged meanwhile
	}
	must(err, "open observer")
	at := rep.Applied()
	if _, passed := o.gr.ledger.entry(at.Index + 1); !passed || at.Index == 0 || o.forged {
		return
	}
	_, err = rep.Apply([]*raftpb.Entry{{Index: proto.Uint64(at.Index + 1), Term: proto.Uint64(at.Term + forgedTerm)}}, nil)
	must(err, "forge a state")
	must(o.h.store.Sync(), "sync state")
	o.forged = true
	o.gr.w.report.Forged++
}

// diverged is a source's word that the observer's state is not the group's.
func (o *observer) diverged(f *feed) {
	if !o.forged {
		fail("%s is told by %s that its state has diverged", o, f.src)
	}
	if _, voter := f.src.(*member); !voter || o.feed != f {
		return
	}
	if o.rep.Quarantine() == nil {
		must(o.rep.Distrust(replica.Quarantine{Mark: o.rep.Applied().Index}), "distrust the state")
	}
	if o.whole == 0 {
		o.whole = f.node
	}
}
