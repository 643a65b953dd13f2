package content

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// RoomError says that a content was not staged because a node's disk has no room for it. It is ErrNoSpace.
type RoomError struct {
	Dir     string // on the disk; "": another member's
	Need    int64  // bytes that are still to come
	Reserve uint64 // bytes that staging leaves free
	Free    int64  // bytes that are free and not promised to other contents
}

func (e *RoomError) Error() string {
	disk := "the member's disk"
	if e.Dir != "" {
		disk = "the disk of " + e.Dir
	}
	return fmt.Sprintf("not enough space on %s: %s needed and %s to be left free, %s free",
		disk, sizeText(e.Need), sizeText(int64(e.Reserve)), sizeText(e.Free))
}

// Unwrap makes it ErrNoSpace.
func (e *RoomError) Unwrap() error { return ErrNoSpace }

// sizeText is a size for people.
func sizeText(n int64) string {
	unit, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for len(units) > 1 && unit >= 1024 {
		unit, units = unit/1024, units[1:]
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", unit, units[0])
}

// room fails with a RoomError if n more bytes would cut into the reserve or into what large contents that are under
// way still need.
func (s *Store) room(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomLocked(n)
}

func (s *Store) roomLocked(n int64) error {
	if len(s.gone.byName) > 0 {
		s.yieldLocked(n + int64(s.opts.Reserve))
	}
	free, err := s.opts.Free(s.opts.Dir)
	if err != nil {
		return err
	}
	if left := int64(free) - s.promised; left < n+int64(s.opts.Reserve) {
		return &RoomError{s.opts.Dir, n, s.opts.Reserve, max(left, 0)}
	}
	return nil
}

// promise keeps room for n bytes of a large content, which keep and the end of its staging give back.
func (s *Store) promise(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.roomLocked(n); err != nil {
		return err
	}
	s.promised += n
	return nil
}

// keep takes n bytes, which are written now or will not be, from what was promised to g.
func (g *staging) keep(n int64) {
	n = min(n, g.owed)
	g.owed -= n
	g.s.mu.Lock()
	g.s.promised -= n
	g.s.mu.Unlock()
}

// block is the least that a file or a directory can need, in bytes.
const block = 4096

// missing is how much room the content still needs, as a later attempt will see it: what is kept for it, or once all was
// written, what of that takes no room yet, and a block for the name.
func (g *staging) missing() int64 {
	if g.owed > 0 {
		return g.owed
	}
	info, err := g.f.Stat()
	if err != nil {
		return block
	}
	return max(block, g.size-allocated(info))
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// full makes a RoomError of an error that says that the disk has become full under our hands, before the staging ends.
func (g *staging) full(err error) error {
	if !isFull(err) || errors.As(err, new(*RoomError)) {
		return err
	}
	_ = g.s.GiveUp(err) // for a later attempt
	free, ferr := g.s.opts.Free(g.s.opts.Dir)
	return errors.Join(&RoomError{g.s.opts.Dir, g.missing(), g.s.opts.Reserve, int64(free)}, err, ferr)
}

// allocated is how much of a file takes room; the rest of its size is holes.
func allocated(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return min(st.Blocks*512, info.Size())
	}
	return info.Size()
}

// FetchError is what kept a Fetch from being complete.
type FetchError struct {
	NoRoom map[manifest.Hash]*RoomError // contents for which there is no room here
	Err    error
}

func (e *FetchError) Error() string { return e.Err.Error() }
func (e *FetchError) Unwrap() error { return e.Err }
