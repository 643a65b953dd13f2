package place

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	spaceAge     = time.Second // how old a figure of the free space may be
	reserveMax   = 64 << 20
	reserveShare = 100 // the default reserve is at most one part in this many
)

// space guards a reserve of free space, so that a binding that fills up stops here, with a word, and not in
// the middle of somebody else's write. Safe for concurrent use.
type space struct {
	fd      int // any descriptor on the file system
	reserve int64
	now     func() time.Time

	mu   sync.Mutex
	read time.Time // when free was asked for
	free int64     // bytes above the reserve, less what was taken since
}

// take announces that n bytes are about to be written. It returns an error that wraps ENOSPC if the reserve
// would suffer, and nil if the file system does not say.
func (s *space) take(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if n > s.free || s.read.IsZero() || now.Sub(s.read) >= spaceAge {
		free, err := s.ask()
		if err != nil {
			return nil
		}
		s.free, s.read = free, now
	}
	if n > s.free {
		return fmt.Errorf("%d bytes needed, %d free above the reserve: %w", n, max(s.free, 0), unix.ENOSPC)
	}
	s.free -= n
	return nil
}

func (s *space) ask() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(s.fd, &st); err != nil {
		return 0, err
	}
	reserve := s.reserve
	if reserve == 0 {
		reserve = min(int64(st.Blocks)*st.Bsize/reserveShare, reserveMax)
	}
	return int64(st.Bavail)*st.Bsize - max(reserve, 0), nil
}
