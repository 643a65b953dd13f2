package files

import (
	"context"
	"time"
)

// holdScan keeps a scan that is due among the looks that a flush waits for.
func (b *board) holdScan() *epoch {
	b.mu.Lock()
	defer b.mu.Unlock()
	ep := b.looking.current(b.flush)
	ep.left++
	return ep
}

func (b *board) endScan(ep *epoch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ep.left--
	if b.looking.settle() {
		b.wake.Broadcast()
	}
}

// hintWait is hint for a scan, which can wait for room. What a scan finds counts as due when the scan was.
func (b *board) hintWait(ctx context.Context, path string, scan *epoch) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.looks) >= looksMax && !b.closed && ctx.Err() == nil {
		b.wake.Wait()
	}
	b.hintForScan(path, scan)
	return ctx.Err()
}

func (b *board) hintForScan(path string, scan *epoch) {
	b.hintLocked(path, time.Time{})
	if st := b.state(path); scan != nil && st.look {
		scan.left++
		st.lookEpochs = append(st.lookEpochs, scan)
	}
}

// hintClaimed has everything beneath dir looked at once more that somebody has now, before dir is scanned: it was found or
// placed in the directory that was there, which may have been moved away since, and is recorded only after the scan, which
// sees neither an entry nor a record.
func (b *board) hintClaimed(dir string, scan *epoch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, claimed := range []map[string]struct{}{b.flying, b.laying} {
		for path := range claimed {
			if beneath(path, dir) {
				b.hintForScan(path, scan)
			}
		}
	}
}

// beneath says whether path is of something in dir, at any depth.
func beneath(path, dir string) bool {
	return dir == "" || len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}
