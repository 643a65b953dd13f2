package files

// manyPaths is from how many paths at once on a time was busy.
const manyPaths = 4096

// rest gives back what a busy time left: maps and slices keep their largest size otherwise.
func (b *board) rest() {
	b.rested = b.rested || b.most > manyPaths
	b.most = 0
	b.paths = map[string]*pathState{}
	if len(b.flying) == 0 {
		b.flying = map[string]struct{}{}
	}
	if len(b.laying) == 0 {
		b.laying, b.filled = map[string]struct{}{}, map[string]*filling{}
	}
	b.naming = naming{}
	if len(b.looks) == 0 {
		b.looks = nil
	}
	if len(b.places) == 0 {
		b.places = nil
	}
}

// takeRest says once that a busy time is over.
func (b *board) takeRest() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	rested := b.rested && len(b.paths) == 0
	b.rested = b.rested && !rested
	return rested
}
