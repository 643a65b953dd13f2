package transport

import (
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// TestSignsOfLifeGather: heartbeats of many groups go as one batch, a little later; whatever somebody waits for goes at once
// and takes along what is queued.
func TestSignsOfLifeGather(t *testing.T) {
	kind := func(k raftpb.MessageType, context string) []*raftpb.Message {
		return []*raftpb.Message{{Type: k.Enum(), Context: []byte(context)}}
	}
	for _, c := range []struct {
		what string
		last []*raftpb.Message
		wait time.Duration
	}{
		{"a heartbeat", kind(raftpb.MsgHeartbeat, ""), gather},
		{"an answer to one", kind(raftpb.MsgHeartbeatResp, ""), gather},
		{"entries", kind(raftpb.MsgApp, ""), 0},
		{"a heartbeat that a read waits for", kind(raftpb.MsgHeartbeat, "read"), 0},
		{"its answer", kind(raftpb.MsgHeartbeatResp, "read"), 0},
		{"a heartbeat and entries", append(kind(raftpb.MsgHeartbeat, ""), kind(raftpb.MsgApp, "")...), 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(&Transport{cfg: Config{QueueMessages: 1000, QueueBytes: 1 << 20}}, 2)
			p.running = true // here, by the test
			for group := range uint64(100) {
				p.send(group, kind(raftpb.MsgHeartbeat, ""))
			}
			p.send(100, c.last)
			began := time.Now()
			<-p.work
			if waited := time.Since(began); waited != c.wait {
				t.Errorf("%s behind 100 heartbeats waited %v, want %v", c.what, waited, c.wait)
			}
			if batch := p.take(); len(batch) != 100+len(c.last) || batch[0].group != 0 || batch[100].group != 100 {
				t.Errorf("%s: %d messages went together, want all, in order", c.what, len(batch))
			}
			p.send(1, kind(raftpb.MsgHeartbeat, "")) // the next burst is not forgotten
			<-p.work
			if waited := time.Since(began); waited > 2*gather {
				t.Errorf("%s: the next heartbeat waited until %v", c.what, waited)
			}
		})
	}
}
