package logstoretest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-sync/lockstep/internal/engine/logstore"
)

// Disk is a disk in memory for segments that can lose its power. What was written without a sync, and a write that
// the power cut falls into, is then on it in parts: grain bytes are there as a whole or not at all.
type Disk struct {
	mu    sync.Mutex
	files map[string]*memFile
	grain int
	bad   func(op, name string) error

	rng   *rand.Rand
	armed bool
	left  int // synced writes until the cut
	clone *Disk
}

type memFile struct {
	durable, live []byte
}

// NewDisk makes an empty disk.
func NewDisk(grain int, rng *rand.Rand) *Disk {
	return &Disk{files: map[string]*memFile{}, grain: grain, rng: rng}
}

// SetFault has f asked before every operation (list, open, create, remove, read, write, sync); nil: nothing fails.
func (d *Disk) SetFault(f func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad = f
}

// Eventually waits for what another goroutine brings about.
func Eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// Arm has the power cut fall into one of the next synced writes.
func (d *Disk) Arm(writes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.left = true, writes
}

// Cut says whether the armed cut has happened, and disarms it.
func (d *Disk) Cut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = false
	return d.clone != nil
}

// Crash is the disk after the cut, or after one now.
func (d *Disk) Crash() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.clone != nil {
		return d.clone
	}
	return d.torn()
}

// Clone is the disk as a process that is killed leaves it: nothing is lost.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := NewDisk(d.grain, d.rng)
	for name, f := range d.files {
		c.files[name] = &memFile{bytes.Clone(f.live), bytes.Clone(f.live)}
	}
	return c
}

// Files are the names of the files and their contents, which may be changed.
func (d *Disk) Files() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string][]byte{}
	for name, f := range d.files {
		f.durable = f.live
		out[name] = f.live
	}
	return out
}

// Delete takes a file away behind the store's back.
func (d *Disk) Delete(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
}

// Put adds files, which are durable.
func (d *Disk) Put(files map[string][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, content := range files {
		d.files[name] = &memFile{bytes.Clone(content), bytes.Clone(content)}
	}
}

// Truncate cuts a file off behind the store's back.
func (d *Disk) Truncate(name string, size int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	f.live = f.live[:size]
	f.durable = f.live
}

func (d *Disk) torn() *Disk {
	c := NewDisk(d.grain, d.rng)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		left := bytes.Clone(f.durable)
		for at := 0; at < len(left); at += d.grain {
			end := min(at+d.grain, len(left))
			if !bytes.Equal(f.live[at:end], left[at:end]) && d.rng.IntN(2) == 0 {
				copy(left[at:end], f.live[at:end])
			}
		}
		c.files[name] = &memFile{left, bytes.Clone(left)}
	}
	return c
}

func (d *Disk) fault(op, name string) error {
	if d.bad == nil {
		return nil
	}
	if err := d.bad(op, name); err != nil {
		return fmt.Errorf("%s %s: %w", op, name, err)
	}
	return nil
}

// List implements logstore.Disk.
func (d *Disk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.files)), d.fault("list", "")
}

// Open implements logstore.Disk.
func (d *Disk) Open(name string) (logstore.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] == nil {
		return nil, os.ErrNotExist
	}
	return &handle{d, name, d.files[name]}, d.fault("open", name)
}

// Create implements logstore.Disk.
func (d *Disk) Create(name string, size int64, _ bool) (logstore.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault("create", name); err != nil {
		return nil, err
	}
	if d.files[name] != nil {
		return nil, os.ErrExist
	}
	d.files[name] = &memFile{make([]byte, size), make([]byte, size)}
	return &handle{d, name, d.files[name]}, nil
}

// Remove implements logstore.Disk.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return d.fault("remove", name)
}

// Close implements logstore.Disk.
func (d *Disk) Close() error { return nil }

type handle struct {
	d    *Disk
	name string
	f    *memFile
}

var errBeyond = errors.New("write beyond the end of a segment")

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.d.fault("read", h.name); err != nil {
		return 0, err
	}
	n := copy(p, h.f.live[min(off, int64(len(h.f.live))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) write(p []byte, off int64) error {
	if off+int64(len(p)) > int64(len(h.f.live)) {
		return errBeyond
	}
	copy(h.f.live[off:], p)
	return nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.d.fault("write", h.name); err != nil {
		return 0, err
	}
	return len(p), h.write(p, off)
}

func (h *handle) WriteSync(p []byte, off int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.d.fault("write", h.name); err != nil {
		return err
	}
	if err := h.write(p, off); err != nil {
		return err
	}
	if h.d.armed {
		if h.d.left--; h.d.left < 0 {
			h.d.armed, h.d.clone = false, h.d.torn()
		}
	}
	if err := h.d.fault("sync", h.name); err != nil {
		return err
	}
	copy(h.f.durable[off:], p)
	return nil
}

func (h *handle) Sync() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.d.fault("sync", h.name); err != nil {
		return err
	}
	copy(h.f.durable, h.f.live)
	return nil
}

func (h *handle) Size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return int64(len(h.f.live)), nil
}

func (h *handle) Close() error { return nil }
