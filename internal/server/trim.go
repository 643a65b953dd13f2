package server

import (
	"context"
	"runtime/debug"
	"time"
)

// trimAfter is how long nothing may have been applied before memory is given back.
const trimAfter = 5 * time.Second

// trimMemory returns what a busy time left behind to the system, once after each: the Go runtime would keep it
// for minutes, and a node is idle most of its life.
func (n *node) trimMemory(ctx context.Context) {
	t := time.NewTicker(trimAfter)
	defer t.Stop()
	var seen, trimmed uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := n.appliedEverywhere()
		if now == seen && now != trimmed {
			debug.FreeOSMemory()
			trimmed = now
		}
		seen = now
	}
}

// appliedEverywhere grows with every entry that any replica of this node applies.
func (n *node) appliedEverywhere() (sum uint64) {
	sum = n.ctl.member().Applied().Index
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.holdings {
		sum += h.member.Applied().Index
	}
	return sum
}
