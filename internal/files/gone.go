package files

import "github.com/lockstep-sync/lockstep/internal/files/manifest"

// A deletion by this node leaves no record, and the log tells this node of its own changes late: the answer comes from the
// leader. Without more, what the log says of the time before the deletion would be placed once more, in the way of whoever
// made the path again. So until the log has told of the deletion itself, and what was read of the manifest before is
// through, it is remembered; and what stands in the manifest at such a path does not count.

// settleGone says that the deletion of path, which is claimed, is committed at index.
func (b *board) settleGone(path string, index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone[path] = index
}

// outlived says whether what a state of the manifest has at path was deleted since by this node.
func (b *board) outlived(path string, n *manifest.Node) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return n.Kind != manifest.Absent && n.Version < b.gone[path]
}

// forgetGone forgets deletions of which the log has told, and before which nothing that is still to be placed was read.
func (b *board) forgetGone() {
	if b.behind || b.walking {
		return
	}
	for path, index := range b.gone {
		if st := b.paths[path]; index <= b.committed && (st == nil || st.want == nil && st.placing == nil) {
			delete(b.gone, path)
		}
	}
}
