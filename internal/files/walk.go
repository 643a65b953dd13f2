package files

import (
	"bytes"
	"encoding/binary"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/kv"
)

// walkStep is how many entries of the manifest are compared at a time, unless the Config says otherwise.
const walkStep = 4096

// walk compares the whole manifest with the placed table, piece by piece, and asks for what differs. Events
// go on meanwhile; hold keeps the placed index from passing the place where the walk began.
//
// A placed file that is to be replaced or removed may be the only one with a content that is wanted at a path which the walk
// comes to later (I10). So at the first such file, or when an event replaces one, it goes through everything twice before it
// goes on: to learn which contents are going, and to ask for the paths that lack one of them.
type walk struct {
	a     *Agent
	hold  *epoch
	index uint64
	pass  pass
	after [passes]string      // last path of the manifest that was compared in each
	going map[uint64]struct{} // beginnings of the hashes of contents that are going; nil: not known yet
}

type pass uint8

const (
	compareAll pass = iota
	learnGoing
	askFirst
	passes
)

// piece is the next part of the manifest against the placed table.
type piece struct {
	last  bool
	order []string                 // paths of the manifest
	nodes map[string]manifest.Node // of those that are not placed as wanted
	gone  []string                 // paths that are placed only
	same  map[string]bool          // paths of nodes that hold the content already
	going []manifest.Hash          // contents of files that are to have another one, or none
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
	p, err := w.next(w.after[w.pass])
	if err != nil {
		return false, err
	}
	was := w.pass
	switch was {
	case compareAll:
		if w.going == nil && (len(p.going) > 0 || w.a.board.mustAsk()) {
			w.going, w.pass = map[uint64]struct{}{}, learnGoing
			return false, nil // this piece comes again
		}
		for _, path := range p.gone {
			w.a.board.wantHeld(w.hold, w.index, manifest.Changed{Path: path})
		}
		w.ask(p, func(string, *manifest.Node) bool { return true })
		w.a.keepStranded()
		done = p.last
	case learnGoing:
		for _, h := range p.going {
			w.going[beginning(h)] = struct{}{}
		}
		if p.last {
			w.pass = askFirst
		}
	case askFirst:
		w.ask(p, func(path string, n *manifest.Node) bool {
			_, going := w.going[beginning(n.Hash)]
			return going && n.Kind == manifest.File && !p.same[path]
		})
		w.a.keepStranded()
		if p.last {
			w.pass = compareAll
			w.a.board.haveAsked()
		}
	}
	if len(p.order) > 0 {
		w.after[was] = p.order[len(p.order)-1]
	}
	return done, nil
}

func beginning(h manifest.Hash) uint64 { return binary.LittleEndian.Uint64(h[:]) }

// ask asks for those of the piece that which chooses.
func (w *walk) ask(p *piece, which func(path string, n *manifest.Node) bool) {
	for _, path := range p.order { // what is left was never placed, or is not as wanted
		if n, ok := p.nodes[path]; ok && which(path, &n) {
			w.a.board.wantHeld(w.hold, w.index, manifest.Changed{Path: path, Node: n})
		}
	}
}

// next reads what follows the path after, "" for the beginning.
func (w *walk) next(after string) (*piece, error) {
	v, err := w.a.cfg.Log.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	p := &piece{order: make([]string, 0, w.a.cfg.walkStep+1), nodes: make(map[string]manifest.Node, w.a.cfg.walkStep), same: map[string]bool{}}
	var from []byte
	if after != "" {
		from = append(manifest.AppendKey(nil, after), 0)
	} else if root, ok, err := manifest.Get(v, ""); err != nil {
		return nil, err
	} else if ok {
		p.order, p.nodes[""] = append(p.order, ""), root
	}
	below := 0
	err = manifest.Walk(v, "", after, func(path string, n manifest.Node) error {
		p.order, p.nodes[path] = append(p.order, path), n
		if below++; below == w.a.cfg.walkStep {
			return kv.ErrStop
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var to []byte
	if p.last = below < w.a.cfg.walkStep; !p.last {
		to = manifest.AppendKey(nil, p.order[len(p.order)-1])
	}
	return p, w.compare(p, from, to)
}

// compare adds what the placed table says between the keys from and to; nil: to its end.
func (w *walk) compare(p *piece, from, to []byte) error {
	return w.a.table.walk(w.a.cfg.Table, from, func(key []byte, path string, rec record) error {
		if to != nil && bytes.Compare(key, to) > 0 {
			return kv.ErrStop
		}
		n, ok := p.nodes[path]
		switch {
		case !ok && path != "": // the root is never removed
			p.gone = append(p.gone, path)
		case ok && w.a.asWanted(&rec, &n):
			delete(p.nodes, path)
			return nil
		}
		if replaces(&rec.Stat, rec.Hash, &n) {
			p.going = append(p.going, rec.Hash)
		} else if rec.Stat.Kind == manifest.File {
			p.same[path] = true
		}
		return nil
	})
}
