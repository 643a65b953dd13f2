package files

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/manifest"
	"github.com/lockstep-sync/lockstep/internal/vfs"
)

const (
	looksMax    = 1 << 16  // paths waiting for a look; above it a scan waits, and the watcher's hints become a scan
	wantsMax    = 1 << 16  // paths waiting to be placed; above it the manifest is walked instead
	inlineWaits = 64 << 20 // bytes of contents that came with entries and wait
	manyLooks   = 256      // above it a directory is looked at after its entries, not with each of them
)

var (
	// ErrStopped says that a guard stopped the binding: the status says which and what to do.
	ErrStopped = errors.New("the binding is stopped")
	errEnded   = errors.New("the binding is closed")
)

// want is a path that has to be brought to a state.
type want struct {
	manifest.Changed
	index  uint64 // position of the state that Node is of
	epochs []*epoch
	tries  int

	next, prev *want // of those that name the same content, see naming
}

// board knows for every path with something to do whether it waits for a look at the disk, or for the placer,
// and who has it now: the pipeline or the placer, never both (I2).
type board struct {
	now     func() time.Time
	mu      sync.Mutex
	wake    sync.Cond // something to take, room, an epoch's end, or the end
	closed  bool
	stopped bool // by a guard: nothing is handed out
	nudged  bool // the placer has rechecks to answer

	paths  map[string]*pathState
	most   int                 // paths at once in this busy time
	rested bool                // one is over
	flying map[string]struct{} // claimed for a look: read, or on its way into the log
	ending map[string]struct{} // of those, the directories that are on their way to be none any more, see above.go
	gone   map[string]uint64   // paths whose deletion by this node is committed, and where, see gone.go
	laying map[string]struct{} // claimed by the placer
	filled map[string]*filling // directories in which the placer has something
	looks  []string            // ready to be looked at
	places []string            // ready to be placed
	later  alarms              // not to be looked at before
	retry  alarms              // not to be placed again before

	looking    epochs // marks are flush numbers
	flush      uint64
	placing    epochs
	compacted  int                // epochs of placing that the last compaction left
	committed  uint64             // index up to which Changed was called
	taken      uint64             // index up to which contents that came with entries are in wants, on disk or staged,
	lost       uint64             // except for some of this one
	inlineSize int                // bytes of content that wait with wants
	behind     bool               // events were dropped: the manifest has to be walked
	walking    bool               // it is
	asked      bool               // and all paths that lack a content which it drops are in wants
	urged      bool               // a file waits for that
	stranded   []manifest.Changed // with contents that no want has any more
	withheld   map[string]bool    // paths that are gone, where too much is, and the directories above
	naming     naming             // the wants by content
	wants      int                // that wait or that the placer has
	wantsSize  int64              // bytes of their files
}

type claim uint8

const (
	free claim = iota
	looked
	placed
)

type pathState struct {
	claim      claim
	look       bool // needs one (more)
	lookQueued bool
	lookEpochs []*epoch // of the look that waits
	heldEpochs []*epoch // of the look that runs
	want       *want    // the newest one that waits
	placing    *want    // the one that the placer has
	wantQueued bool
	afterLook  bool                // the want waits for a look
	above      string              // the directory that the look waits for; "": it waits for none
	alone      bool                // none is waited for: it will not be recorded
	waiting    map[string]struct{} // paths whose looks wait for the one at this path to end
	written    time.Time           // since when it is written without a look that had an outcome, see settling.go
	unstaged   int                 // how often in a row its content could not be staged
	young      bool                // what was read may have changed since without a trace: nothing is placed before it is read again
}

func newBoard(now func() time.Time) *board {
	b := &board{now: now, paths: map[string]*pathState{}, naming: naming{},
		flying: map[string]struct{}{}, ending: map[string]struct{}{}, laying: map[string]struct{}{}, filled: map[string]*filling{}, withheld: map[string]bool{}, gone: map[string]uint64{}}
	b.wake.L = &b.mu
	return b
}

func (b *board) state(path string) *pathState {
	st := b.paths[path]
	if st == nil {
		st = &pathState{}
		b.paths[path] = st
		b.most = max(b.most, len(b.paths))
	}
	return st
}

// hint asks for a look at path, at the earliest at `after` (zero: now). It returns false if there is no room.
func (b *board) hint(path string, after time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.looks) >= looksMax {
		return false
	}
	b.hintLocked(path, after)
	return true
}

func (b *board) hintLocked(path string, after time.Time) {
	st := b.state(path)
	if !st.look {
		st.look = true
		ep := b.looking.current(b.flush)
		ep.left++
		st.lookEpochs = append(st.lookEpochs, ep)
	}
	if !after.IsZero() {
		if !st.lookQueued {
			b.later.set(path, after)
		}
		return
	}
	b.queueLook(path, st)
}

func (b *board) queueLook(path string, st *pathState) {
	if st.look && !st.lookQueued && st.claim == free {
		st.lookQueued = true
		b.looks = append(b.looks, path)
		b.wake.Broadcast()
	}
}

func (b *board) queueWant(path string, st *pathState) {
	if b.retry.has(path) {
		return
	}
	if st.want != nil && !st.wantQueued && !st.afterLook && !st.young && st.claim == free {
		st.wantQueued = true
		b.places = append(b.places, path)
		b.wake.Broadcast()
	}
}

// due moves what had to wait until now to the queues.
func (b *board) due(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for path, ok := b.later.next(now); ok; path, ok = b.later.next(now) {
		b.queueLook(path, b.state(path))
	}
	for path, ok := b.retry.next(now); ok; path, ok = b.retry.next(now) {
		b.queueWant(path, b.state(path))
	}
	b.forgetGone()
}

// takeLooks waits for something to look at and claims up to most paths that follow each other and are in one
// directory; nil at the end.
func (b *board) takeLooks(most int) (paths []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(paths) == 0 {
		for (len(b.looks) == 0 || b.stopped) && !b.closed {
			b.wake.Wait()
		}
		if b.closed {
			return nil
		}
		dir, _ := vfs.Split(b.looks[0])
		for len(b.looks) > 0 && len(paths) < most {
			path := b.looks[0]
			if d, _ := vfs.Split(path); d != dir {
				break
			}
			if b.looks = b.looks[1:]; len(b.looks) == looksMax/2 {
				b.wake.Broadcast()
			}
			st := b.paths[path]
			st.lookQueued = false
			if st.claim == free {
				b.claimLook(path, st)
				b.later.drop(path)
				paths = append(paths, path)
			}
		}
	}
	return paths
}

func (b *board) claimLook(path string, st *pathState) {
	b.flying[path] = struct{}{}
	b.waitNoMore(path, st)
	st.claim, st.look = looked, false
	st.heldEpochs, st.lookEpochs = append(st.heldEpochs, st.lookEpochs...), nil
}

// follow asks for a look at path that follows from one at `from`, which is claimed: who waits for that one
// waits for this one too.
func (b *board) follow(from, path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.followLocked(b.paths[from], path)
}

func (b *board) followLocked(from *pathState, path string) {
	st := b.state(path)
	st.look = true
	for _, ep := range from.heldEpochs {
		if !slices.Contains(st.lookEpochs, ep) {
			ep.left++
			st.lookEpochs = append(st.lookEpochs, ep)
		}
	}
	b.queueLook(path, st)
}

// alsoLook is follow, but claims path at once if nobody has it; else it returns false. While many looks wait, it
// is follow: once for the directory of many changes instead of once for each.
func (b *board) alsoLook(from, path string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.state(path)
	if st.claim != free || len(b.looks) > manyLooks {
		b.followLocked(b.paths[from], path)
		return false
	}
	b.claimLook(path, st)
	st.heldEpochs = append(st.heldEpochs, hold(b.paths[from].heldEpochs)...)
	return true
}

// claimIdle claims a path that nobody has, as for a look, and leaves the look that it perhaps waits for to come;
// false if somebody has it, or if it is about to be looked at and then placed. lookDone ends the claim.
func (b *board) claimIdle(path string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if st := b.paths[path]; st != nil && (st.claim != free || st.afterLook || st.young) {
		return false
	}
	b.flying[path] = struct{}{}
	b.state(path).claim = looked
	return true
}

// lookDone ends a look. again, if not zero, is when to look once more: what waits for this look goes on waiting.
func (b *board) lookDone(path string, again time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.paths[path]
	st.claim, st.afterLook = free, false
	delete(b.flying, path)
	delete(b.ending, path)
	if again.IsZero() {
		st.young, st.alone, st.unstaged, st.written = false, false, 0, time.Time{}
		b.letFollow(st)
		finish(st.heldEpochs)
		st.heldEpochs = nil
		if b.looking.settle() {
			b.wake.Broadcast()
		}
	} else {
		st.keepDue()
		b.later.set(path, again)
		return
	}
	b.after(path, st)
}

// keepDue ends a look without an outcome: what waits for it goes on waiting for the next one.
func (st *pathState) keepDue() {
	st.look = true
	st.lookEpochs = append(st.lookEpochs, st.heldEpochs...) // they stay held
	st.heldEpochs = nil
	st.afterLook = st.afterLook || st.want != nil
}

// after queues what waits for a path that became free, or forgets the path.
func (b *board) after(path string, st *pathState) {
	if !b.later.has(path) {
		b.queueLook(path, st)
	}
	if st.want != nil {
		b.queueWant(path, st)
	}
	if !st.look && st.want == nil && st.claim == free && !st.lookQueued && !st.wantQueued {
		delete(b.paths, path)
		b.later.drop(path)
		b.retry.drop(path)
		if len(b.paths) == 0 {
			b.rest()
		}
	}
}

// commit adds what an entry changed; false if there is no room and the events were not taken.
func (b *board) commit(index uint64, changes []manifest.Changed) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.committed = max(b.committed, index)
	b.nudged = true
	if b.behind || len(b.places)+len(changes) > wantsMax || b.inlineSize > inlineWaits {
		b.behind = true
		b.wake.Broadcast()
		return false
	}
	ep := b.placingEpoch(index)
	for i := range changes {
		b.wantLocked(&want{Changed: changes[i], index: index}, ep)
	}
	b.placing.settle()
	b.wake.Broadcast()
	return true
}

// want asks for one path to be brought to c; index is the position that it belongs to.
func (b *board) want(index uint64, c manifest.Changed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &want{Changed: c, index: index}
	b.strand(w)
	b.wantLocked(w, b.placingEpoch(index))
}

// wantHeld is want for a walk: hold, which began it, does not end before the path is on disk. A newer epoch, of what was
// committed while the walk went on, must not have it: the placed index would pass the place where the walk began.
func (b *board) wantHeld(hold *epoch, index uint64, c manifest.Changed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &want{Changed: c, index: index}
	b.strand(w)
	b.wantLocked(w, hold)
}

func (b *board) wantLocked(w *want, ep *epoch) {
	ep.left++
	w.epochs = append(w.epochs, ep)
	if from := b.paths[w.From]; w.From != "" && from != nil { // what it had may be here only, and another want replaces it
		for _, old := range []*want{from.want, from.placing} {
			if w.inherit(old) { // the log is needed from the entry that brought the content
				w.epochs = append(w.epochs, hold(old.epochs)...)
			}
		}
	}
	st := b.state(w.Path)
	if old := st.want; old != nil {
		if old.index > w.index { // an event came while the manifest was read for this one
			old.epochs = append(old.epochs, w.epochs...)
			return
		}
		b.count(old, -1)
		w.epochs = append(w.epochs, old.epochs...)
		w.inherit(old)
	}
	st.want = w
	b.retry.drop(w.Path)
	b.count(w, +1)
	b.queueWant(w.Path, st)
}

// inherit takes over the content that came with an older want, if it is the same: it may be nowhere else yet. It reports
// whether it did.
func (w *want) inherit(old *want) bool {
	if old == nil || old.Inline == nil || w.Inline != nil || w.Node.Kind != manifest.File || w.Node.Hash != old.Node.Hash {
		return false
	}
	w.Inline = old.Inline
	return true
}

// count notes that w is among the wants of its path, by being 1, or no longer, -1.
func (b *board) count(w *want, by int) {
	b.inlineSize += by * len(w.Inline)
	b.wants += by
	b.wantsSize += int64(by) * w.Node.Size
	if by > 0 {
		b.naming.add(w)
	} else {
		b.naming.remove(w)
	}
}

// takeWants claims up to n paths to place, fewer once their files have placeBytes, without waiting.
func (b *board) takeWants(n int) []*want {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*want
	for size := int64(0); len(b.places) > 0 && len(out) < n && size < placeBytes; {
		path := b.places[0]
		b.places = b.places[1:]
		st := b.paths[path]
		st.wantQueued = false
		if st.claim != free || st.want == nil || st.afterLook {
			continue
		}
		st.claim = placed
		b.lay(path)
		out, size = append(out, st.want), size+st.want.Node.Size
		st.placing, st.want = st.want, nil
	}
	return out
}

// placeDone ends the placing of w for good.
func (b *board) placeDone(w *want) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.paths[w.Path]
	st.claim, st.placing = free, nil
	b.laid(w.Path)
	b.count(w, -1)
	finish(w.epochs)
	if b.placing.settle() {
		b.wake.Broadcast()
	}
	b.after(w.Path, st)
}

// placeAgain puts w back until `at`, and has the path looked at before.
func (b *board) placeAgain(w *want, lookFirst bool, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.paths[w.Path]
	st.claim, st.placing = free, nil
	b.laid(w.Path)
	w.tries++
	if newer := st.want; newer != nil {
		newer.epochs = append(newer.epochs, w.epochs...)
		b.count(w, -1)
		b.count(newer, -1)
		newer.inherit(w)
		b.count(newer, +1)
	} else {
		st.want = w
	}
	if st.want == w {
		b.retry.set(w.Path, at)
	}
	if lookFirst {
		st.afterLook = true
		b.hintLocked(w.Path, time.Time{})
		return
	}
	b.after(w.Path, st)
}

// placedIndex is the position up to which everything is on disk.
func (b *board) placedIndex() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.placing.ended
}

func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.wake.Broadcast()
}

// restart says that the manifest at index has to be compared with what is placed, as a whole.
func (b *board) restart(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.committed = max(b.committed, index)
	b.behind = true
	b.wake.Broadcast()
}

// beginWalk answers restart and overflow: events are taken again from here on, and hold keeps the placed
// index where it is until endWalk. nil: no walk is due.
func (b *board) beginWalk() (hold *epoch, index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.behind {
		return nil, 0
	}
	b.behind, b.walking, b.asked, b.urged = false, true, false, false
	hold = b.placingEpoch(b.committed)
	hold.left++
	return hold, b.committed
}

func (b *board) endWalk(hold *epoch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	hold.left--
	b.walking = false
	b.placing.settle()
	b.wake.Broadcast()
}

// waitPlace waits until there may be something to place, and does not wait if a walk is under way. It returns
// false at the end.
func (b *board) waitPlace(walking bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for (b.stopped || len(b.places) == 0 && !b.behind && !b.nudged && !walking) && !b.closed {
		b.wake.Wait()
	}
	b.nudged = false
	return !b.closed
}

// nudge makes the placer look for rechecks.
func (b *board) nudge() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nudged = true
	b.wake.Broadcast()
}

func (b *board) committedIndex() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.committed
}

// stop and resume halt the binding: nothing is handed out to be looked at or placed.
func (b *board) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
}

func (b *board) resume() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = false
	b.wake.Broadcast()
}

// settled waits until every look, scan and proposal that was due when it was called has ended.
func (b *board) settled(ctx context.Context) error {
	unblock := context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.wake.Broadcast()
	})
	defer unblock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush++
	mark := b.flush
	for path, st := range b.paths {
		if st.look && st.claim == free {
			st.written = time.Time{} // whoever flushes wants what is there now
			b.later.drop(path)
			b.queueLook(path, st)
		}
	}
	b.looking.settle()
	for len(b.looking.open) > 0 && b.looking.open[0].mark < mark {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case b.closed:
			return errEnded
		case b.stopped:
			return ErrStopped
		}
		b.wake.Wait()
	}
	return nil
}
