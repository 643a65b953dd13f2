package content

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// A large file that was renamed on another node is mostly deleted here before its new name comes. So a large file that
// leaves its path stays for a while in WORK/gone, as HASH-N, for whoever is offered its content or has to fetch it, and for
// the chunks in it. It is nobody's only copy: whatever had to keep the content had done so before it was removed. Nothing
// is believed of it: programs may have it open still, so it is read and hashed whenever it is used, see reuse.
const (
	// A lingering file goes lingerTime after it was put aside or after the last one was of use, whichever is later, and a
	// second later for each lingerRead bytes of it: so long its author may take to read it under its new name.
	lingerTime = time.Minute
	lingerRead = 64 << 20
	lingerMost = time.Hour // at the very most
	// No file lingers while less is free than lingerRoom or, if that is less, one part in lingerShare of the file system.
	lingerRoom  = 1 << 30
	lingerShare = 20
	lingerFiles = 16 << 10 // so many at most; others go at once
)

// lingering is a file in WORK/gone.
type lingering struct {
	hash  manifest.Hash
	size  int64
	path  string // where it was in the binding
	name  string // in WORK/gone
	since time.Time
	noted bool // the table of chunks says where it is now
	taken bool // it is staged: the file is not here any more
}

// lingerers are the files in WORK/gone; guarded by Store.mu.
type lingerers struct {
	byName map[string]*lingering
	byPath map[string]*lingering // the one that was there last
	next   uint64                // number of the next name
	bytes  int64                 // in those that are not taken
	used   time.Time             // when one was of use last
	wiped  []string              // names that the table of chunks has to forget
}

func (s *Store) goneDir() string { return filepath.Join(s.opts.Dir, "gone") }

func (s *Store) goneName(name string) string { return filepath.Join(s.goneDir(), name) }

// openGone makes WORK/gone and removes what an earlier process left in it.
func (s *Store) openGone() error {
	if err := os.MkdirAll(s.goneDir(), 0o700); err != nil {
		return err
	}
	left, err := os.ReadDir(s.goneDir())
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.Remove(s.goneName(e.Name())); err != nil {
			return err
		}
	}
	if s.opts.Roomy == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(s.goneDir(), &st); err != nil {
			return fmt.Errorf("size of the file system of %s: %w", s.goneDir(), err)
		}
		s.opts.Roomy = min(st.Blocks*uint64(st.Bsize)/lingerShare, lingerRoom)
	}
	return s.table.forgetGone()
}

// Retire implements place.Contents: the file at the path `file`, which has left its path in the binding and is believed to
// hold the content, is taken over and goes after a while. false: it is the caller's to remove, since it is small, or there
// is no room for it.
func (s *Store) Retire(h manifest.Hash, size int64, path, file string) bool {
	if size <= SmallMax {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &s.gone
	if len(g.byName) >= lingerFiles || !s.roomyLocked() {
		return false
	}
	name := fmt.Sprintf("%s-%d", hex.EncodeToString(h[:]), g.next)
	if os.Rename(file, s.goneName(name)) != nil {
		return false
	}
	g.next++
	if old := g.byPath[path]; old != nil && !old.taken { // of a file that is replaced again and again only one lingers
		s.forgoLocked(old)
	}
	l := &lingering{hash: h, size: size, path: path, name: name, since: s.opts.Now()}
	g.byName[name], g.byPath[path] = l, l
	g.bytes += size
	return true
}

// roomyLocked says whether there is room enough for files to linger.
func (s *Store) roomyLocked() bool {
	free, err := s.opts.Free(s.opts.Dir)
	return err == nil && free >= s.opts.Roomy
}

// forgoLocked removes a lingering file; that which cannot be removed is left to the next start.
func (s *Store) forgoLocked(l *lingering) {
	g := &s.gone
	delete(g.byName, l.name)
	if g.byPath[l.path] == l {
		delete(g.byPath, l.path)
	}
	if !l.taken {
		g.bytes -= l.size
		if err := os.Remove(s.goneName(l.name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.opts.Log.Warn("remove a file that lingers", "err", err)
		}
	}
	if l.noted {
		g.wiped = append(g.wiped, l.name)
	}
}

// forgo removes a lingering file, unless that was done before.
func (s *Store) forgo(l *lingering) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone.byName[l.name] == l {
		s.forgoLocked(l)
	}
}

// forgoAllLocked removes all lingering files. What reads one goes on, and keeps it from making room until then.
func (s *Store) forgoAllLocked() {
	for _, l := range s.gone.byName {
		s.forgoLocked(l)
	}
}

// Yield makes n bytes of room, and the reserve, by removing lingering files, oldest first. It says whether any was removed.
func (s *Store) Yield(n int64) (some bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.yieldLocked(n + int64(s.opts.Reserve))
}

func (s *Store) yieldLocked(n int64) (some bool) {
	for {
		free, err := s.opts.Free(s.opts.Dir)
		lack := n - (int64(free) - s.promised)
		if err != nil || lack <= 0 || lack > s.gone.bytes { // enough, or all would not be
			return some
		}
		var oldest *lingering
		for _, l := range s.gone.byName {
			if !l.taken && (oldest == nil || l.since.Before(oldest.since)) {
				oldest = l
			}
		}
		s.forgoLocked(oldest) // there is one, or nothing would linger
		some = true
	}
}

// GiveUp removes all lingering files if err says that there is no room, be it for inodes or by a quota, and returns it.
func (s *Store) GiveUp(err error) error {
	if !isFull(err) || errors.As(err, new(*RoomError)) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgoAllLocked()
	return err
}

// Sweep removes lingering files whose time is over, and all if there is little room. To be called every second or so.
func (s *Store) Sweep(now time.Time) {
	for _, name := range s.sweep(now) {
		if err := s.table.forget(goneMark + name); err != nil {
			s.opts.Log.Warn("forget the chunks of a file that lingered", "err", err) // only hints
		}
	}
}

func (s *Store) sweep(now time.Time) (wiped []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := &s.gone
	if g.bytes > 0 && !s.roomyLocked() {
		s.forgoAllLocked()
	}
	for _, l := range g.byName {
		from := l.since
		if g.used.After(from) {
			from = g.used
		}
		until := from.Add(lingerTime + time.Duration(l.size/lingerRead)*time.Second)
		if most := l.since.Add(lingerMost); until.After(most) {
			until = most
		}
		if !now.Before(until) {
			s.forgoLocked(l)
		}
	}
	wiped, g.wiped = g.wiped, nil
	return wiped
}

// lingers returns a file that is believed to have the content.
func (s *Store) lingers(h manifest.Hash) *lingering {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.gone.byName {
		if l.hash == h && !l.taken {
			return l
		}
	}
	return nil
}

// served says that a lingering file was of use.
func (s *Store) served() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone.used = s.opts.Now()
}

// openAt opens the file that the table of chunks knows by path. It knows a file by the path that it has left until the file
// that came there is recorded.
func (s *Store) openAt(path string) (Source, bool) {
	name, gone := strings.CutPrefix(path, goneMark)
	if !gone {
		name, gone = s.justLeft(path)
	}
	if !gone {
		if s.opts.OpenPath == nil {
			return nil, false
		}
		return s.opts.OpenPath(path)
	}
	f, err := os.Open(s.goneName(name))
	if err != nil {
		return nil, false
	}
	s.served()
	return f, true
}

// justLeft is the file in WORK/gone of which the table of chunks does not know yet that it has left path.
func (s *Store) justLeft(path string) (name string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.gone.byPath[path]; l != nil && !l.noted && !l.taken {
		return l.name, true
	}
	return "", false
}

// movedChunks says from which path to which other one the table of chunks has to change what it has of a path that lost
// its file, and of the one where a content is now; "" from nowhere.
func (s *Store) movedChunks(path string, h manifest.Hash) (away, back string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.gone.byPath[path]; l != nil && !l.noted {
		l.noted = true
		away = goneMark + l.name
	}
	for _, l := range s.gone.byName {
		if l.hash == h && l.taken && l.noted {
			back = goneMark + l.name
		}
	}
	return away, back
}
