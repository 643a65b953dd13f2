package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/control"
)

// life counts the age of this node up in DATA/life.json: at every start, and while it runs, so that a copy of the
// data directory, or an image of it that is put back, is younger than what the peers have heard of. Beside it stands
// what this node has heard of its peers, so that its own restart does not make it forget.
type life struct {
	path string
	boot uint64

	mu    sync.Mutex
	rec   lifeRecord
	past  map[uint64][]uint64 // boots of peers that were succeeded: they never come back
	addrs map[uint64]string   // under which a peer said it is to be found
}

// lifeFile holds a lifeRecord.
const lifeFile = "life.json"

// liveEvery is how often a running node grows older, which is as much of its past as an old image can hide.
const liveEvery = 10 * time.Second

type lifeRecord struct {
	Age   uint64                  `json:"age"`
	Peers map[uint64]control.Life `json:"peers,omitempty"`
	// Refused is what the cluster said when it would not have this node as it is. It is never taken back, and every
	// start counts the age up: without it, a copy that is started often enough would pass for the successor.
	Refused *api.Error `json:"refused,omitempty"`
}

// openLife begins a new run, if the cluster has not refused this data directory before.
func openLife(data *dataDir, boot uint64) (*life, error) {
	l := &life{path: data.sub(lifeFile), boot: boot, past: map[uint64][]uint64{}, addrs: map[uint64]string{}}
	if err := data.load(lifeFile, &l.rec, true); err != nil {
		return nil, err
	}
	if l.rec.Refused != nil {
		return nil, l.rec.Refused
	}
	if l.rec.Peers == nil {
		l.rec.Peers = map[uint64]control.Life{}
	}
	return l, l.grow()
}

// grow is durable before anybody hears of it.
func (l *life) grow() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(func(r *lifeRecord) { r.Age++ })
}

// write changes the record on the disk first; the lock is held.
func (l *life) write(change func(*lifeRecord)) error {
	next := l.rec
	change(&next)
	if err := writeJSON(l.path, next); err != nil {
		return err
	}
	l.rec = next
	return nil
}

// end makes this run the last one of the data directory.
func (l *life) end(why *api.Error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(func(r *lifeRecord) { r.Refused = why })
}

func (l *life) now() control.Life {
	l.mu.Lock()
	defer l.mu.Unlock()
	return control.Life{Boot: l.boot, Age: l.rec.Age}
}

// live grows older until ctx ends.
func (n *node) live(ctx context.Context) {
	t := time.NewTicker(liveEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		err := n.life.grow()
		if isFull(err) {
			continue // a little of its past would be missing from an old image; the next time may have room
		}
		if err != nil {
			n.failed(err)
			return
		}
	}
}

// maxPast bounds the boots that are remembered of one peer.
const maxPast = 16

// admit decides about a peer that proved who it is. recorded is what the control group knows of it. The first word of
// a new run is on the disk before that run is admitted, unless the disk is full: then what the control group recorded is
// what outlives a restart of this node.
func (l *life) admit(id uint64, next, recorded control.Life, addr string) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.rec.Peers[id]
	if slices.Contains(l.past[id], next.Boot) || !before.Admits(next) || !recorded.Admits(next) {
		return false, nil
	}
	if addr != "" {
		l.addrs[id] = addr
	}
	if next == (control.Life{}) {
		return true, nil
	}
	l.rec.Peers[id] = control.Life{Boot: next.Boot, Age: next.Age}
	if next.Boot == before.Boot {
		l.rec.Peers[id] = control.Life{Boot: next.Boot, Age: max(next.Age, before.Age)}
		return true, nil
	}
	if before.Boot != 0 {
		l.past[id] = append(l.past[id], before.Boot)
		l.past[id] = l.past[id][max(0, len(l.past[id])-maxPast):]
	}
	err := writeJSON(l.path, l.rec)
	if isFull(err) {
		err = nil
	}
	return true, err
}

// address is where a peer said it is, if it said so later than what the control group recorded.
func (l *life) address(id uint64, recorded control.Life) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	addr, ok := l.addrs[id]
	return addr, ok && l.rec.Peers[id].Age >= recorded.Age
}

// admit refuses nodes that were removed, and data directories that have forgotten what their node did.
func (n *node) admit(id, boot, age uint64, addr string) *api.Error {
	p, ok := n.ctl.state().Node(id)
	var recorded control.Life
	name := n.nameOf(id)
	if ok {
		if p.Removed {
			return control.Expelled(name)
		}
		recorded = p.Life
	}
	if id == n.self {
		return nil
	}
	ok, err := n.life.admit(id, control.Life{Boot: boot, Age: age}, recorded, addr)
	switch {
	case err != nil:
		n.failed(err)
		return &api.Error{Code: api.CodeUnavailable, Op: "connect", Subject: name, Why: "this node's disk failed"}
	case !ok:
		n.log.Warn("peer refused: its data directory is a copy or an old image", "peer", name, "boot", boot, "age", age)
		return control.Outlived(name)
	}
	return nil
}

// denied hears that a peer refuses this node for good. Peers speak with the authority of the cluster, and what they
// refuse for is never taken back.
func (n *node) denied(by uint64, why *api.Error) {
	if why.Code == api.CodeDenied || why.Code == api.CodeDamage {
		n.log.Error("refused by a peer", "peer", n.nameOf(by), "why", why.Why)
		n.expel(why)
	}
}

// expel ends the node in good order, and for good: the cluster does not want it as it is.
func (n *node) expel(why *api.Error) {
	if err := n.life.end(why); err != nil {
		n.log.Error("the refusal is not on the disk: the next start has to be refused again", "err", err)
	}
	n.depart(departure{why: why, expelled: true})
}

// peerAddresses is where nodes are to be found, as far as is known.
func (n *node) peerAddresses(st *control.State) map[uint64]string {
	peers := map[uint64]string{}
	for _, p := range st.Nodes {
		if addr, ok := n.resolve(p.ID); ok {
			peers[p.ID] = addr
		}
	}
	return peers
}
