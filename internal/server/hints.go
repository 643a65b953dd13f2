package server

import (
	"maps"
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

func (h *hints) role() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h.Role
}

func (h *hints) opened() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h.Opened
}

func (h *hints) setOpened() error {
	h.mu.Lock()
	next := h.h
	h.mu.Unlock()
	next.Opened = true
	return h.update(next)
}

// update writes the file if something changed.
func (h *hints) update(next hint) error {
	h.mu.Lock()
	next.Opened = next.Opened || h.h.Opened
	same := next.Role == h.h.Role && next.Opened == h.h.Opened && maps.Equal(next.Peers, h.h.Peers)
	h.h = next
	h.mu.Unlock()
	if same {
		return nil
	}
	return writeJSON(h.path, next)
}
