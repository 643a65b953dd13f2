package files

import (
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// filling is a directory in which the placer has something: it changes the directory's times and puts them back, so what a
// look at the directory sees meanwhile is nobody's change.
type filling struct {
	paths int  // directly in it
	look  bool // it was looked at meanwhile, and has to be again
}

// lay says that the placer has path.
func (b *board) lay(path string) {
	b.laying[path] = struct{}{}
	dir, ok := manifest.Parent(path)
	if !ok {
		return
	}
	if b.filled[dir] == nil {
		b.filled[dir] = &filling{}
	}
	b.filled[dir].paths++
}

// laid is the end of lay.
func (b *board) laid(path string) {
	delete(b.laying, path)
	dir, ok := manifest.Parent(path)
	if !ok {
		return
	}
	f := b.filled[dir]
	if f.paths--; f.paths > 0 {
		return
	}
	delete(b.filled, dir)
	if f.look {
		b.hintLocked(dir, time.Time{})
	}
}

// fills says whether the placer has something directly in dir. If so, dir is looked at afterwards.
func (b *board) fills(dir string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.filled[dir]
	if f == nil {
		return false
	}
	f.look = true
	return true
}
