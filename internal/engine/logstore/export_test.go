package logstore

import "encoding/binary"

// DropCache makes reads of a log go to the disk.
func DropCache(l Log) {
	var st *logState
	switch l := l.(type) {
	case *pebbleLog:
		st = &l.logState
	case *segLog:
		st = &l.logState
	}
	st.mu.Lock()
	st.x.cache.evict(-1)
	st.mu.Unlock()
}

// SetLevel changes the format level of every frame of a segment.
func SetLevel(data []byte, level byte) {
	frames, _ := scan(data, 0)
	for _, f := range frames {
		h := data[f.at : f.at+headerSize]
		h[3] = level
		binary.LittleEndian.PutUint32(h[60:], crcOf(h[:60]))
	}
}

// GroupsAt are the groups that the batch says something about in which a byte of a segment lies.
func GroupsAt(data []byte, at int64) (groups []uint64) {
	frames, _ := scan(data, 0)
	for i := range frames {
		if f := &frames[i]; f.at <= at && at < f.at+f.aligned() && f.flags&flagMark == 0 {
			for _, c := range f.about() {
				groups = append(groups, c.group)
			}
		}
	}
	return groups
}

// Span is a part of a file.
type Span struct {
	Name     string
	From, To int64
}

// Has says whether a byte lies in it.
func (s Span) Has(name string, at int64) bool { return name == s.Name && s.From <= at && at < s.To }

// Newest finds where the newest batch of a store lies that is closed and sound, and the mark behind it.
func Newest(files map[string][]byte) (batch, mark Span) {
	newest := uint64(0) // segment
	for name, data := range files {
		frames, _ := scan(data, 0)
		for i := range frames {
			f := &frames[i]
			if f.segment < newest {
				continue
			}
			newest = f.segment
			if here := (Span{name, f.at, f.at + int64(f.length)}); f.flags&flagMark != 0 {
				mark = here
			} else {
				batch, mark = here, Span{}
			}
		}
	}
	return batch, mark
}
