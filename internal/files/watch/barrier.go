package watch

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// barriers are the ids asked for and not delivered yet.
type barriers struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]struct{}
}

func (b *barriers) next() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	b.open[b.last] = struct{}{}
	return b.last
}

// done says whether id was still open, and closes it.
func (b *barriers) done(id uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.open[id]
	delete(b.open, id)
	return ok
}

func (b *barriers) waiting() []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.open))
}

// cookies makes and recognises the files that stand for barriers in the kernel's queue. Their names carry the
// process and a descriptor of it, so that watchers which share a work directory do not take each other's.
type cookies struct {
	dir    *os.File
	prefix string
}

func openCookies(work string) (*cookies, error) {
	dir, err := os.OpenFile(work, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	return &cookies{dir: dir, prefix: fmt.Sprintf(".cookie-%d-%d-", os.Getpid(), dir.Fd())}, nil
}

// place makes the kernel queue id: a file is created and removed.
func (c *cookies) place(id uint64) error {
	name := c.prefix + strconv.FormatUint(id, 10)
	fd := int(c.dir.Fd())
	for {
		err := unix.Mknodat(fd, name, unix.S_IFREG|0o600, 0)
		if err == unix.EEXIST { // left behind by a crash of a process with our id
			if err = unix.Unlinkat(fd, name, 0); err == nil {
				continue
			}
		}
		if err == nil {
			err = unix.Unlinkat(fd, name, 0)
		}
		if err != nil {
			return fmt.Errorf("place cookie: %w", &fs.PathError{Op: "mknod", Path: c.dir.Name() + "/" + name, Err: err})
		}
		return nil
	}
}

// id recognises a cookie of ours by its name.
func (c *cookies) id(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, c.prefix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 64)
	return id, err == nil
}

func (c *cookies) close() error { return c.dir.Close() }
