package files

import (
	"bytes"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// walkStep is how many entries of the manifest are compared at a time.
const walkStep = 4096

// walk compares the whole manifest with the placed table, piece by piece, and asks for what differs. Events
// go on meanwhile; hold keeps the placed index from passing the place where the walk began.
type walk struct {
	a     *Agent
	hold  *epoch
	index uint64
	after string // last path of the manifest that was compared
	begun bool
}

// beginWalk starts a walk if one is due.
func (a *Agent) beginWalk() *walk {
	hold, index := a.board.beginWalk()
	if hold == nil {
		return nil
	}
	return &walk{a: a, hold: hold, index: index}
}

// step compares the next piece. done: that was the last.
func (w *walk) step() (done bool, err error) {
	v, err := w.a.cfg.Log.View()
	if err != nil {
		return false, err
	}
	defer v.Close()
	nodes := make(map[string]manifest.Node, walkStep)
	if !w.begun {
		if root, ok, err := manifest.Get(v, ""); err != nil {
			return false, err
		} else if ok {
			nodes[""] = root
		}
	}
	from := []byte(nil)
	if w.after != "" {
		from = append(manifest.AppendKey(nil, w.after), 0)
	}
	order := make([]string, 0, walkStep)
	err = manifest.Walk(v, "", w.after, func(path string, n manifest.Node) error {
		order = append(order, path)
		nodes[path] = n
		if len(order) == walkStep {
			return kv.ErrStop
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	var to []byte
	if done = len(order) < walkStep; !done {
		w.after = order[len(order)-1]
		to = manifest.AppendKey(nil, w.after)
	}
	if err := w.compare(from, to, nodes); err != nil {
		return false, err
	}
	w.begun = true
	if n, ok := nodes[""]; ok {
		w.a.board.wantHeld(w.hold, w.index, manifest.Changed{Path: "", Node: n})
	}
	for _, path := range order { // what is left was never placed, or is not as wanted
		if n, ok := nodes[path]; ok {
			w.a.board.wantHeld(w.hold, w.index, manifest.Changed{Path: path, Node: n})
		}
	}
	return done, nil
}

// compare takes from nodes what is placed as wanted, and asks for the removal of what is placed only.
func (w *walk) compare(from, to []byte, nodes map[string]manifest.Node) error {
	return w.a.table.walk(w.a.cfg.Table, from, func(key []byte, path string, rec record) error {
		if to != nil && bytes.Compare(key, to) > 0 {
			return kv.ErrStop
		}
		n, ok := nodes[path]
		switch {
		case !ok && path != "": // the root is never removed
			w.a.board.wantHeld(w.hold, w.index, manifest.Changed{Path: path})
		case ok && w.a.asWanted(&rec, &n):
			delete(nodes, path)
		}
		return nil
	})
}
