package files

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/place"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

// Before Linux 6.13, and on file systems that have not followed, the time of a change is that of the last tick of the
// clock: a file that is written, read here and written again within a tick looks unchanged if its size is the same. So what
// is younger than that when it is read is proposed at once, but read once more a moment later, whatever it looks like then
// (git's rule of racy entries); until then nothing is placed there, and who waits for the look goes on waiting. Its record is
// made without a ctime, so that it equals nothing on the disk: the next start reads it again if this process ends before.

const (
	// youth is twice the longest tick, of 10 ms.
	youth = 20 * time.Millisecond
	// stampTries is how often in a row two changes must be told apart: a tick may be over between them by chance.
	stampTries = 5
)

// findYouth finds out for how long a change may leave no trace on the file system of dir: youth, or 0 where a change
// after a stat always has another ctime. With an error, of a full disk for one, it is youth.
func findYouth(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "stamps-*")
	if err != nil {
		return youth, fmt.Errorf("find out how times of changes are kept: %w", err)
	}
	fine, err := finelyStamped(f)
	if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return youth, fmt.Errorf("find out how times of changes are kept: %w", err)
	}
	if fine {
		return 0, nil
	}
	return youth, nil
}

// finelyStamped says whether each of some changes of f has a ctime of its own. It changes the mode only, which takes no room.
func finelyStamped(f *os.File) (bool, error) {
	last := int64(0)
	for i := range stampTries + 1 {
		if err := f.Chmod(0o600 | os.FileMode(i&1)<<6); err != nil {
			return false, err
		}
		in, err := vfs.StatFd(int(f.Fd()))
		if err != nil {
			return false, err
		}
		now := place.StatOf(in).CTime
		if now == last {
			return false, nil
		}
		last = now
	}
	return true, nil
}

// isYoung says whether a file that began to be read at began, and looked like s, may change afterwards and still look
// like s. A ctime far ahead of the clock will not come again.
func (a *Agent) isYoung(s *place.Stat, began time.Time) bool {
	age := began.Sub(time.Unix(0, s.CTime))
	return a.cfg.Youth > 0 && age < a.cfg.Youth && age > -a.cfg.Youth
}

// lookEnds ends a look that has settled what it found; young is whether it has to be read once more.
func (a *Agent) lookEnds(path string, young bool) {
	if !young {
		a.board.lookDone(path, time.Time{})
		return
	}
	a.board.lookYoung(path, a.cfg.Now().Add(a.cfg.Youth))
}

// recorded is how an entry that was found is recorded: a young one so that it has to be read again.
func (f *finding) recorded() place.Stat {
	s := f.stat
	if f.young {
		s.CTime = 0
	}
	return s
}

// asRecorded says whether what is there looks as recorded, if that tells; what was recorded without a ctime may hold something
// else all the same.
func asRecorded(now, rec place.Stat) bool {
	if rec.CTime == 0 {
		now.CTime = 0
	}
	return scan.Same(now, rec)
}

// lookYoung ends a look at what has to be read once more, at the earliest at again.
func (b *board) lookYoung(path string, again time.Time) {
	b.mu.Lock()
	b.paths[path].young = true
	b.mu.Unlock()
	b.lookDone(path, again)
}
