package files

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/files/scan"
	"github.com/lockstep-sync/lockstep/internal/files/watch"
)

// scanQueue is the directories to be compared with the placed table.
type scanQueue struct {
	mu   sync.Mutex
	dirs map[string]bool
	hold *epoch
	runs bool // what was taken is being compared

	judges bool // no more than whether too much is gone: that is no reason to wait with the same question

	unread map[string]bool // what could not be read at last: it is compared again every minute
}

// found takes what could not be read at and beneath dir, and returns what can be read now and could not before.
func (q *scanQueue) found(dir string, unread []scan.Problem) (readable []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := make(map[string]bool, len(unread))
	for _, p := range unread {
		now[p.Path] = true
	}
	for path := range q.unread {
		if !now[path] && (path == dir || beneath(path, dir)) {
			readable = append(readable, path)
			delete(q.unread, path)
		}
	}
	if q.unread == nil {
		q.unread = map[string]bool{}
	}
	for path := range now {
		if len(q.unread) < problemsMax {
			q.unread[path] = true
		}
	}
	return readable
}

func (q *scanQueue) stillUnread() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Sorted(maps.Keys(q.unread))
}

// take removes all; directories below others that are there too are left out.
func (q *scanQueue) take() (dirs []string, hold *epoch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range slices.Sorted(maps.Keys(q.dirs)) {
		if n := len(dirs); n > 0 && (dirs[n-1] == "" || strings.HasPrefix(d, dirs[n-1]+"/")) {
			continue
		}
		dirs = append(dirs, d)
	}
	hold, q.hold, q.dirs = q.hold, nil, nil
	q.runs = len(dirs) > 0
	return dirs, hold
}

// done says that what was taken has been compared.
func (q *scanQueue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.runs = false
}

func (q *scanQueue) judge(judges bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.judges = judges
}

// busy says whether a scan is due or under way.
func (q *scanQueue) busy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.runs && !q.judges || len(q.dirs) > 0
}

// scanSoon has dir and all beneath it compared.
func (a *Agent) scanSoon(dir string) {
	q := &a.scanDue
	q.mu.Lock()
	if q.dirs == nil {
		q.dirs, q.hold = map[string]bool{}, a.board.holdScan()
	}
	q.dirs[dir] = true
	q.mu.Unlock()
	select {
	case a.rescan <- struct{}{}:
	default:
	}
}

func (a *Agent) rescanAll() { a.scanSoon("") }

// scanLoop carries out scans, one at a time.
func (a *Agent) scanLoop(ctx context.Context) {
	slow := time.NewTicker(a.cfg.ScanEvery)
	defer slow.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-slow.C:
			a.rescanAll()
			continue
		case <-a.rescan:
		}
		dirs, hold := a.scanDue.take()
		for _, dir := range dirs {
			if err := a.scan(ctx, dir, hold); err != nil && ctx.Err() == nil {
				a.broken(fmt.Errorf("scan %q: %w", dir, err))
			}
		}
		a.scanDue.done()
		if hold != nil {
			a.board.endScan(hold)
		}
	}
}

// scan compares dir and what is beneath it with the placed table and has differences looked at. What is
// gone is looked at only if it is not suspiciously much. An error means that the root or the placed table cannot be read.
func (a *Agent) scan(ctx context.Context, dir string, hold *epoch) error {
	a.checkRoot()
	a.status.scanning(+1)
	defer a.status.scanning(-1)
	if err := a.board.hintWait(ctx, dir, hold); err != nil {
		return err
	}
	a.board.hintClaimed(dir, hold)
	var gone []string
	deleted := int64(0)
	most := limit(a.guard.files.Load())
	opts := scan.Options{Ignore: a.cfg.Ignore}
	stats, err := scan.Compare(ctx, a.root.Fd(), dir, a.table, opts, func(d scan.Difference) error {
		if d.Stat.Kind != manifest.Absent || d.Stat.Other {
			return a.board.hintWait(ctx, d.Path, hold)
		}
		if d.Placed.Stat.Kind == manifest.File {
			deleted++
		}
		gone = append(gone, d.Path)
		return nil
	})
	if err != nil {
		return err
	}
	a.scanned(dir, stats.Problems)
	if deleted > most && !a.guard.confirmed() {
		few, err := a.lostBelow(ctx, most, gone)
		if err != nil {
			return err
		}
		if !few {
			a.stop(stopDeletions, fmt.Sprintf("more than %d of %d files are gone", most, a.guard.files.Load()),
				a.howToConfirm())
			return nil
		}
	}
	for _, path := range gone {
		if err := a.board.hintWait(ctx, path, hold); err != nil {
			return err
		}
	}
	return nil
}

// scanned says in the status what could not be read, and no longer what can be.
func (a *Agent) scanned(dir string, unread []scan.Problem) {
	for _, path := range a.scanDue.found(dir, unread) {
		a.status.read(path)
	}
	for _, p := range unread {
		a.status.unread(p.Path, p.Err)
	}
}

// scanUnread compares once more what could not be read.
func (a *Agent) scanUnread() {
	for _, path := range a.scanDue.stillUnread() {
		a.scanSoon(path)
	}
}

func (a *Agent) openWatcher() error {
	quiet := append(a.store.Dirs(), a.cfg.Quiet...)
	w, err := a.cfg.Watch(watch.Config{Root: a.cfg.Root, Work: a.cfg.Work, Quiet: quiet, Ignore: a.cfg.Ignore, Log: a.log})
	if err != nil {
		return err
	}
	a.watchMu.Lock()
	defer a.watchMu.Unlock()
	a.watcher = w
	return nil
}

func (a *Agent) currentWatcher() watch.Watcher {
	a.watchMu.Lock()
	defer a.watchMu.Unlock()
	return a.watcher
}

// closeWatcher closes the watcher, if there is one; it stays the current one, for what is said of it.
func (a *Agent) closeWatcher() {
	w := a.currentWatcher()
	if w == nil {
		return
	}
	if err := w.Close(); err != nil {
		a.log.Warn("close watcher", "err", err)
	}
}

// watchLoop turns events into hints.
func (a *Agent) watchLoop(ctx context.Context) {
	defer a.closeWatcher()
	w := a.currentWatcher()
	for {
		events, err := w.Read(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, watch.ErrGone) {
				a.broken(fmt.Errorf("watch: %w", err))
			} else if ctx.Err() == nil {
				a.checkRoot()
			}
			return
		}
		now := a.cfg.Now()
		for _, e := range events {
			a.event(e, now)
		}
	}
}

// lookSoon has path looked at, or all of the binding where there is no room for one more look.
func (a *Agent) lookSoon(path string) { a.lookLater(path, time.Time{}) }

// lookLater is lookSoon, at the earliest at `after`.
func (a *Agent) lookLater(path string, after time.Time) {
	if !a.board.hint(path, after) {
		a.rescanAll()
	}
}

func (a *Agent) event(e watch.Event, now time.Time) {
	switch e.Kind {
	case watch.Look:
		a.lookSoon(e.Path)
	case watch.Settle:
		if !a.board.settle(e.Path, now) {
			a.rescanAll()
		}
	case watch.Rescan:
		a.scanSoon(e.Path)
	case watch.Barrier:
		a.barriers.reached(e.ID)
	case watch.Gone:
		a.stop(stopGone, "the directory vanished", "mount or restore it; it goes on by itself")
	}
}

// barrierWaits are those who wait for the watcher to have delivered everything before a barrier. A later barrier says it of
// the earlier ones too.
type barrierWaits struct {
	mu      sync.Mutex
	last    uint64 // that was reached
	waiting map[uint64]chan struct{}
}

func (b *barrierWaits) reached(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = max(b.last, id)
	for id, ch := range b.waiting {
		if id <= b.last {
			delete(b.waiting, id)
			close(ch)
		}
	}
}

// wait waits for a barrier, for each of which there is one who does.
func (b *barrierWaits) wait(ctx context.Context, over <-chan struct{}, id uint64) error {
	b.mu.Lock()
	if id <= b.last {
		b.mu.Unlock()
		return nil
	}
	if b.waiting == nil {
		b.waiting = map[uint64]chan struct{}{}
	}
	ch := make(chan struct{})
	b.waiting[id] = ch
	b.mu.Unlock()
	err := errEnded
	select {
	case <-ch:
		return nil
	case <-over:
	case <-ctx.Done():
		err = ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, id)
	return err
}

// Flush returns when everything that changed on the disk before the call has been committed or found to need
// no commit. It fails with ErrStopped while a guard holds the binding, with ctx's error, and when the agent ends: what it
// has not committed then the next one finds.
func (a *Agent) Flush(ctx context.Context) error {
	select {
	case <-a.begun:
	case <-a.over:
		return fmt.Errorf("flush: %w", errEnded)
	case <-ctx.Done():
		return fmt.Errorf("flush: %w", ctx.Err())
	}
	w := a.currentWatcher()
	if w == nil {
		return fmt.Errorf("flush: %w", errEnded)
	}
	id, err := w.Barrier()
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	if err := a.barriers.wait(ctx, a.over, id); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	if err := a.board.settled(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}
