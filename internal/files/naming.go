package files

import "github.com/lockstep-sync/lockstep/internal/files/manifest"

// namedMost is of how many paths that name one content it is asked whether they lack it. The content of more counts as needed:
// that costs one staged copy, and the alternative time for each file with it that gives way.
const namedMost = 64

// naming finds the wants of files by their content: the first of a list for each. It costs the same however many wants there
// are, and so do the questions that I10 and I4 ask for every file that gives way and for every staged content.
type naming map[manifest.Hash]*want

func names(w *want) bool { return w.Node.Kind == manifest.File && w.Node.Size > 0 }

func (n naming) add(w *want) {
	if !names(w) {
		return
	}
	w.prev, w.next = nil, n[w.Node.Hash]
	if w.next != nil {
		w.next.prev = w
	}
	n[w.Node.Hash] = w
}

func (n naming) remove(w *want) {
	if !names(w) {
		return
	}
	switch {
	case w.prev != nil:
		w.prev.next = w.next
	case w.next != nil:
		n[w.Node.Hash] = w.next
	default:
		delete(n, w.Node.Hash)
	}
	if w.next != nil {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
}

// paths returns the paths that name h and do not bring it along, at most one more than namedMost.
func (n naming) paths(h manifest.Hash) (paths []string) {
	for w := n[h]; w != nil && len(paths) <= namedMost; w = w.next {
		if w.Inline == nil {
			paths = append(paths, w.Path)
		}
	}
	return paths
}
