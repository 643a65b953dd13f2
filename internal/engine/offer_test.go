package engine

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// TestOfferIsItsOwn: an offer that has ended does not end the one that was made after it, which has its own time to be taken
// up.
func TestOfferIsItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const nobody = 9
		f := newFarm(t, 1, func(f *farm) { f.config.Nodes[nobody] = nobody })
		defer f.close()
		f.write(1, 10)
		g := f.groups[1]
		onLoop := func(do func()) {
			done := make(chan struct{})
			g.box.call(func() { do(); close(done) })
			<-done
		}
		offer := func() {
			onLoop(func() {
				g.offerSnapshot(&raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: proto.Uint64(1), To: proto.Uint64(nobody),
					Snapshot: &raftpb.Snapshot{Metadata: g.rep.SnapshotMeta()}})
			})
		}
		open := func() (is bool) {
			onLoop(func() { _, is = g.offers[nobody] })
			return is
		}
		offer()
		onLoop(func() { g.pulled(nobody, nil) })
		if open() {
			t.Error("it was taken up, and is open")
		}
		wait(snapshotPatience / 2)
		offer()
		wait(snapshotPatience/2 + time.Second)
		if !open() {
			t.Error("the second offer has ended with the time of the first")
		}
		wait(snapshotPatience / 2)
		if open() {
			t.Error("nobody took it up, and it is open")
		}
	})
}
