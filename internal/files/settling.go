package files

import (
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/place"
)

// A file that is being written is looked at when that is over: what is proposed before is read, staged and placed for nothing.
// But some are written all the time, such as logs. So nothing that is written waits longer than settleMost for its look, and
// a large file, which takes long to read, not longer than it would take to read it at settleRate.
const (
	settleTime = 300 * time.Millisecond // since the last write
	settleMost = 5 * time.Second        // since the first
	settleRate = 16 << 20               // bytes a second
)

// settle asks for a look at path, which is being written. It returns false if there is no room.
func (b *board) settle(path string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.looks) >= looksMax {
		return false
	}
	st := b.state(path)
	if st.written.IsZero() {
		st.written = now
	}
	at := now.Add(settleTime)
	if most := st.written.Add(settleMost); most.Before(at) {
		at = most
	}
	b.hintLocked(path, at)
	return true
}

// writtenSince is when the first of the writes to path came for which no look had an outcome yet; zero: there were none.
func (b *board) writtenSince(path string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.paths[path].written
}

// settles says whether a file, which is claimed, is too large to be read while it is written, for now.
func (a *Agent) settles(path string, s *place.Stat) bool {
	most := time.Duration(s.Size/settleRate) * time.Second
	if s.Kind != manifest.File || most <= settleMost {
		return false
	}
	now := a.cfg.Now()
	since := a.board.writtenSince(path)
	return !since.IsZero() && now.Sub(since) < most && now.Sub(time.Unix(0, s.MTime)).Abs() < settleTime
}
