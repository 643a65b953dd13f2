package sim

import (
	"bytes"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"slices"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// sector is what a disk writes as a whole or not at all.
const sector = 512

// platter is a directory of a disk in memory. What was written without a sync is lost, kept or garbled by a power cut,
// each sector for itself; names that were removed may be there again. A process that is killed loses nothing of it,
// and what was not synced still is not.
type platter struct {
	r       *mathrand.Rand
	files   map[string]*platterFile
	removed map[string]*platterFile // since names were made durable last
	cut     bool                    // the power goes during what is written from here on
	fresh   map[string]bool         // made since cut
	failing bool                    // every write returns an error
	last    span                    // what was written and synced last
}

// span is a place in a file.
type span struct {
	name     string
	from, to int64
}

type platterFile struct {
	data []byte           // as a process reads it
	old  map[int64][]byte // by sector: what is durable, where that is something else
}

func newPlatter(r *mathrand.Rand) *platter {
	return &platter{r: r, files: map[string]*platterFile{}, removed: map[string]*platterFile{}, fresh: map[string]bool{}}
}

// crash is the platter after it: with power true the machine's, else the process's.
func (p *platter) crash(power bool) *platter {
	c := newPlatter(p.r)
	c.last = p.last
	for _, name := range slices.Sorted(maps.Keys(p.files)) {
		if !p.fresh[name] || p.r.IntN(2) == 0 {
			c.files[name] = p.files[name].crash(p.r, power)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.removed)) {
		if power && c.files[name] == nil && p.r.IntN(2) == 0 {
			c.files[name] = p.removed[name].crash(p.r, power)
		}
	}
	return c
}

func (f *platterFile) crash(r *mathrand.Rand, power bool) *platterFile {
	c := &platterFile{data: bytes.Clone(f.data), old: map[int64][]byte{}}
	if !power {
		maps.Copy(c.old, f.old)
		return c
	}
	for _, at := range slices.Sorted(maps.Keys(f.old)) {
		switch here := c.data[at*sector:][:len(f.old[at])]; r.IntN(8) {
		case 0, 1, 2, 3:
			copy(here, f.old[at])
		case 4: // neither
			for range 1 + r.IntN(8) {
				here[r.IntN(len(here))] ^= 1 << r.IntN(8)
			}
		}
	}
	return c
}

// flip alters one bit of what was written and synced, other than last: nothing stands behind that yet which would tell
// it from a torn write.
func (p *platter) flip() bool {
	names := slices.Sorted(maps.Keys(p.files))
	for range 64 {
		name := names[p.r.IntN(len(names))]
		f := p.files[name]
		at := p.r.Int64N(int64(len(f.data)))
		if f.data[at] == 0 || f.old[at/sector] != nil || name == p.last.name && at >= p.last.from && at < p.last.to {
			continue
		}
		f.data[at] ^= 1 << p.r.IntN(8)
		return true
	}
	return false
}

// List implements logstore.Disk.
func (p *platter) List() ([]string, error) { return slices.Sorted(maps.Keys(p.files)), nil }

// Open implements logstore.Disk.
func (p *platter) Open(name string) (logstore.File, error) {
	if p.files[name] == nil {
		return nil, os.ErrNotExist
	}
	return &platterHandle{p, name, p.files[name]}, nil
}

// Create implements logstore.Disk. It makes names durable, those of removed files too.
func (p *platter) Create(name string, size int64, _ bool) (logstore.File, error) {
	if p.failing {
		return nil, errDisk
	}
	if p.files[name] != nil {
		return nil, os.ErrExist
	}
	f := &platterFile{data: make([]byte, size), old: map[int64][]byte{}}
	p.files[name] = f
	if p.cut {
		p.fresh[name] = true
	} else {
		clear(p.removed)
	}
	return &platterHandle{p, name, f}, nil
}

// Remove implements logstore.Disk.
func (p *platter) Remove(name string) error {
	p.removed[name] = p.files[name]
	delete(p.files, name)
	return nil
}

// Close implements logstore.Disk.
func (p *platter) Close() error { return nil }

type platterHandle struct {
	p    *platter
	name string
	f    *platterFile
}

// ReadAt implements logstore.File.
func (h *platterHandle) ReadAt(b []byte, off int64) (int, error) {
	n := copy(b, h.f.data[min(off, int64(len(h.f.data))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements logstore.File: what it replaces stays durable until a sync.
func (h *platterHandle) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > int64(len(h.f.data)) {
		fail("%s: write of %d bytes at %d", h.name, len(b), off)
	}
	for at := off / sector; at*sector < off+int64(len(b)); at++ {
		if here := h.f.data[at*sector : min((at+1)*sector, int64(len(h.f.data)))]; h.f.old[at] == nil {
			h.f.old[at] = bytes.Clone(here)
		}
	}
	return copy(h.f.data[off:], b), nil
}

// WriteSync implements logstore.File.
func (h *platterHandle) WriteSync(b []byte, off int64) error {
	switch {
	case h.p.cut:
		_, err := h.WriteAt(b, off)
		return err
	case h.p.failing:
		if _, err := h.WriteAt(b[:h.p.r.IntN(len(b)/sector+1)*sector], off); err != nil {
			return err
		}
		return errDisk
	}
	if off%sector == 0 && len(b)%sector == 0 {
		copy(h.f.data[off:], b)
	} else if _, err := h.WriteAt(b, off); err != nil {
		return err
	}
	for at := off / sector; len(h.f.old) > 0 && at*sector < off+int64(len(b)); at++ {
		delete(h.f.old, at)
	}
	h.p.last = span{h.name, off, off + int64(len(b))}
	return nil
}

// Sync implements logstore.File.
func (h *platterHandle) Sync() error {
	if h.p.failing {
		return errDisk
	}
	if !h.p.cut {
		clear(h.f.old)
	}
	return nil
}

// Size implements logstore.File.
func (h *platterHandle) Size() (int64, error) { return int64(len(h.f.data)), nil }

// Close implements logstore.File.
func (h *platterHandle) Close() error { return nil }
