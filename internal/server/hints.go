package server

import (
	"maps"
	"reflect"
	"slices"
	"sync"
)

// hints keeps cluster.json: where the peers were last.
type hints struct {
	path string
	mu   sync.Mutex
	h    hint
}

func newHints(path string, h hint) *hints {
	if h.Peers == nil {
		h.Peers = map[uint64]string{}
	}
	return &hints{path: path, h: h}
}

func (h *hints) address(node uint64) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.h.Peers[node]
	return a, ok
}

// nodes are all known peers but self, in order.
func (h *hints) nodes(self uint64) []uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(h.h.Peers)), func(n uint64) bool { return n == self })
}

// seat is this node's part of the control group as the hints have it; zero: not known yet.
func (h *hints) seat() (role string, replica uint64, recast bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h.Role, h.h.Replica, h.h.Recast
}

// setSeat notes, durably, which replica of the control group this node is.
func (h *hints) setSeat(role string, replica uint64, recast bool) error {
	return h.update(func(h *hint) { h.Role, h.Replica, h.Recast = role, replica, recast })
}

func (h *hints) opened() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h.Opened
}

// starts is how many starts of the node were counted before this one.
func (h *hints) starts() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h.Starts
}

// setOpened notes, durably, that log and state exist, and the start that found or made them.
func (h *hints) setOpened(starts uint64) error {
	return h.update(func(h *hint) { h.Opened, h.Starts = true, starts })
}

// setPeers replaces the addresses.
func (h *hints) setPeers(peers map[uint64]string) error {
	return h.update(func(h *hint) { h.Peers = peers })
}

// update writes the file if something changed. Maps are replaced, never changed.
func (h *hints) update(change func(*hint)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.h
	change(&next)
	if reflect.DeepEqual(next, h.h) {
		return nil
	}
	if err := writeJSON(h.path, next); err != nil {
		return err
	}
	h.h = next
	return nil
}
