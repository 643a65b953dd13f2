package watch

import "strings"

// watchTree maps inotify's watch descriptors to the directories they are on, and back.
type watchTree struct {
	top  *watched
	byID map[int32]*watched
}

// watched is one directory of a watchTree. One without a watch (id 0) only leads to others.
type watched struct {
	id       int32
	path     string
	parent   *watched
	children map[string]*watched // nil: none
}

func newWatchTree() watchTree { return watchTree{top: &watched{}, byID: map[int32]*watched{}} }

func (t *watchTree) path(id int32) (string, bool) {
	n := t.byID[id]
	if n == nil {
		return "", false
	}
	return n.path, true
}

// find descends to path, making what is missing on the way if asked to.
func (t *watchTree) find(path string, create bool) *watched {
	n := t.top
	for from := 0; from < len(path); {
		end := strings.IndexByte(path[from:], '/')
		if end < 0 {
			end = len(path)
		} else {
			end += from
		}
		child := n.children[path[from:end]]
		if child == nil {
			if !create {
				return nil
			}
			child = &watched{path: path[:end], parent: n}
			if n.children == nil {
				n.children = map[string]*watched{}
			}
			n.children[path[from:end]] = child
		}
		n, from = child, end+1
	}
	return n
}

// set says that the watch id is on the directory path. A directory has one watch, which it keeps when it is renamed,
// so any other directory that id was on is forgotten, as is any other watch that path had: replaced says so, and that
// events of that one, still to come, will be lost.
func (t *watchTree) set(path string, id int32) (replaced bool) {
	n := t.find(path, true)
	if old := t.byID[id]; old != nil && old != n {
		old.id = 0
	}
	if n.id != 0 && n.id != id {
		delete(t.byID, n.id)
		replaced = true
	}
	n.id = id
	t.byID[id] = n
	return replaced
}

// drop forgets path and all beneath it, and returns the watches that were there.
func (t *watchTree) drop(path string) []int32 {
	n := t.find(path, false)
	if n == nil {
		return nil
	}
	var ids []int32
	for stack := []*watched{n}; len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n.id != 0 {
			ids = append(ids, n.id)
			delete(t.byID, n.id)
		}
		for _, child := range n.children {
			stack = append(stack, child)
		}
	}
	if n.parent == nil {
		*t = newWatchTree()
	} else {
		delete(n.parent.children, path[strings.LastIndexByte(path, '/')+1:])
	}
	return ids
}

// missing returns the watches of old that t does not have.
func (t *watchTree) missing(old *watchTree) []int32 {
	var ids []int32
	for id := range old.byID {
		if t.byID[id] == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
