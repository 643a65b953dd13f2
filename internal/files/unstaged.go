package files

import (
	"errors"
	"time"

	"github.com/lockstep-sync/lockstep/api"
)

const (
	unstagedMost   = time.Minute // between attempts to stage a content
	unstagedShifts = 6           // doublings until then
)

// unstaged gives back a finding whose content too few members could take; each time in a row for longer.
func (a *Agent) unstaged(path string, err error) {
	hint := ""
	var known *api.Error
	if errors.As(err, &known) {
		hint = known.Hint
	}
	a.status.unstaged(path, err, hint)
	a.board.lookLater(path, a.cfg.Now())
}

// lookLater ends a look whose content could not be staged: the next one comes after a pause that doubles up to
// unstagedMost, or with a hint.
func (b *board) lookLater(path string, now time.Time) {
	b.mu.Lock()
	st := b.paths[path]
	pause := min(retryTime<<st.unstaged, unstagedMost)
	st.unstaged = min(st.unstaged+1, unstagedShifts)
	b.mu.Unlock()
	b.lookDone(path, now.Add(pause))
}
