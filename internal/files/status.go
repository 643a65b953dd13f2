package files

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-sync/lockstep/api"
	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// problemsMax bounds the list of problems; of further ones it is only said that there are some.
const problemsMax = 1000

// status is what the agent says about itself. Safe for concurrent use.
type status struct {
	now     func() time.Time
	pending atomic.Int64 // changes seen, not yet committed
	drift   atomic.Uint64
	settled [manifest.Refused + 1]atomic.Uint64
	listed  atomic.Int64 // len(problems), so that the usual case takes no lock

	mu       sync.Mutex
	mode     string
	why      string
	scans    int
	problems map[string]api.Problem
	more     bool // than are in problems
}

func (s *status) start(now func() time.Time) {
	s.now, s.mode, s.problems = now, "scan", map[string]api.Problem{}
}

// Keys of problems that are not of one path. No path contains NUL.
const (
	aboutBinding   = "\x00binding"
	aboutProposed  = "\x00proposed"
	aboutSpace     = "\x00space"
	aboutDeletions = "\x00deletions"
	aboutStaging   = "\x00staging " // and the path, as after what follows
	aboutReading   = "\x00reading "
	aboutPlacing   = "\x00placing "
)

func (s *status) problem(path string, err error) { s.problemHint(path, err, "") }

// problemHint says what is wrong at a path, or with what one of the keys above is about; since when stays until it is solved.
func (s *status) problemHint(path string, err error, hint string) { s.say("", path, err, hint) }

// unstaged says that the content at a path cannot be staged, until staged.
func (s *status) unstaged(path string, err error, hint string) { s.say(aboutStaging, path, err, hint) }

// unread says that what is at a path and beneath it cannot be compared, until read.
func (s *status) unread(path string, err error) { s.say(aboutReading, path, err, "") }

// unplaced says why a path cannot be brought to what is wanted, until placed.
func (s *status) unplaced(path string, err error, hint string) { s.say(aboutPlacing, path, err, hint) }

func (s *status) say(about, path string, err error, hint string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.problems[about+path]
	if !known && len(s.problems) >= problemsMax {
		s.more = true
		return
	}
	p := api.Problem{What: err.Error(), Hint: hint, Since: s.now()}
	if known {
		p.Since = old.Since
	}
	if !strings.HasPrefix(path, "\x00") {
		p.Path = api.EscapePath(path)
	}
	s.problems[about+path] = p
	s.listed.Store(int64(len(s.problems)))
}

// staged ends what unstaged said.
func (s *status) staged(path string) {
	if s.listed.Load() > 0 {
		s.solved(aboutStaging + path)
	}
}

// placed ends what unplaced said.
func (s *status) placed(path string) {
	if s.listed.Load() > 0 {
		s.solved(aboutPlacing + path)
	}
}

// read ends what unread said.
func (s *status) read(path string) { s.solved(aboutReading + path) }

func (s *status) solved(path string) {
	if s.listed.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.problems, path)
	s.more = s.more && len(s.problems) > 0
	s.listed.Store(int64(len(s.problems)))
}

func (s *status) setMode(mode, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode, s.why = mode, why
}

// scanning counts scans that run; without one the binding is live, if nothing else is said.
func (s *status) scanning(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scans += by
	if s.mode == "stopped" {
		return
	}
	if s.mode, s.why = "live", ""; s.scans > 0 {
		s.mode, s.why = "scan", "comparing the disk with what was placed"
	}
}

func (s *status) drifted() { s.drift.Add(1) }

func (s *status) proposed(c manifest.OutcomeCode) { s.settled[c].Add(1) }

// Counters count outcomes of this node's changes since Run.
type Counters struct {
	Accepted, Same, Conflicted, Superseded, Drifted uint64
}

// Counters returns what became of this node's changes.
func (a *Agent) Counters() Counters {
	n := func(c manifest.OutcomeCode) uint64 { return a.status.settled[c].Load() }
	return Counters{
		Accepted: n(manifest.Accepted), Same: n(manifest.Same), Conflicted: n(manifest.Conflicted),
		Superseded: n(manifest.Superseded), Drifted: a.status.drift.Load(),
	}
}

// Moved is how many bytes of contents this node has received since New. It grows with every chunk of a large one, and so
// as long as a transfer to this node gets on.
func (a *Agent) Moved() uint64 { return uint64(a.Traffic().Received) }

// Traffic counts the bytes of contents that went from member to member beside the log since the directory was opened.
func (a *Agent) Traffic() content.Traffic { return a.store.Stats().Traffic }

// Mode is what Status calls by that name, and costs next to nothing.
func (a *Agent) Mode() (mode, why string) {
	a.status.mu.Lock()
	defer a.status.mu.Unlock()
	return a.status.mode, a.status.why
}

// Status returns this node's row of the directory's status; Role is the caller's to fill in, as is Mode when
// the group itself catches up.
func (a *Agent) Status() (api.DirNode, error) {
	out := api.DirNode{Node: a.cfg.Node, Path: a.cfg.Root, Applied: a.cfg.Log.Applied(), Placed: a.board.placedIndex()}
	view, err := a.cfg.Log.View()
	if err != nil {
		return out, err
	}
	defer view.Close()
	digest, err := manifest.TreeDigest(view)
	if err != nil {
		return out, err
	}
	stats, err := manifest.ReadStats(view)
	if err != nil {
		return out, err
	}
	out.Digest, out.Conflicts = digest.String(), stats.Conflicts
	if w := a.currentWatcher(); w != nil {
		mode, why := w.Mode()
		if out.Watcher = mode; why != "" {
			out.Watcher += " (" + why + ")"
		}
	}
	changes, bytes, since := a.board.backlog()
	out.BehindFiles, out.BehindBytes = uint64(changes), uint64(max(bytes, 0))
	if !since.IsZero() {
		out.LagSeconds = max(a.cfg.Now().Sub(since), 0).Seconds()
	}
	out.Pending = uint64(max(a.status.pending.Load(), 0))
	out.LingeringBytes = uint64(max(a.store.Stats().Lingering, 0))
	out.Mode, out.Why = a.Mode()
	a.status.fill(&out)
	for _, what := range a.placer.Problems() {
		out.Problems = append(out.Problems, api.Problem{What: what})
	}
	for _, k := range a.kept {
		out.Problems = append(out.Problems, api.Problem{Path: api.EscapePath(k.Origin), What: "kept aside as " + k.Path, Hint: "look at it and remove it"})
	}
	return out, nil
}

func (s *status) fill(out *api.DirNode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Problems = make([]api.Problem, 0, len(s.problems))
	for _, p := range s.problems {
		out.Problems = append(out.Problems, p)
	}
	if s.more {
		out.Problems = append(out.Problems, api.Problem{What: fmt.Sprintf("more than %d paths have problems", problemsMax)})
	}
}
