package watch

// maxFound bounds the hints that one directory tree which appeared may add; beyond that it is one Rescan.
const maxFound = 1 << 16

// batch collects the events of one Read, merging those of one path.
type batch struct {
	events []Event
	index  map[string]int // path → position in events; never Barrier or Gone
	path   []byte         // scratch for a path that may be there already
}

// add notes a hint for name in dir; an empty name means dir itself.
func (b *batch) add(kind Kind, dir, name string) {
	p := append(b.path[:0], dir...)
	if dir != "" && name != "" {
		p = append(p, '/')
	}
	p = append(p, name...)
	b.path = p
	if i, ok := b.index[string(p)]; ok {
		if strength(kind) > strength(b.events[i].Kind) {
			b.events[i].Kind = kind
		}
		return
	}
	if b.index == nil {
		b.index = map[string]int{}
	}
	path := string(p)
	b.index[path] = len(b.events)
	b.events = append(b.events, Event{Kind: kind, Path: path})
}

func (b *batch) barrier(id uint64) { b.events = append(b.events, Event{Kind: Barrier, ID: id}) }

func (b *batch) gone() { b.events = append(b.events, Event{Kind: Gone}) }

// take hands the collected events over.
func (b *batch) take() []Event {
	events := b.events
	b.events = nil
	if len(b.index) > 4096 {
		b.index = nil // clearing a map costs as much as it ever held
	} else {
		clear(b.index)
	}
	return events
}

func strength(k Kind) int {
	switch k {
	case Settle:
		return 0
	case Look:
		return 1
	}
	return 2
}
