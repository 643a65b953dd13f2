package files

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// shipmentsMax is how many batches may wait for one member; one that is slower is skipped and fetches later.
const shipmentsMax = 4

// largeWorkers is how many shipments of large contents are under way to one member: while a very large one moves, others
// do too.
const largeWorkers = 2

// shipping pushes contents to the other members. Each has two lines, with a connection of its own each: what is small
// goes in order and is not behind what is large.
type shipping struct {
	a       *Agent
	mu      sync.Mutex
	lines   map[lane]*line
	running sync.WaitGroup
}

type lane struct {
	member uint64
	large  bool
}

type line struct {
	pusher *content.Pusher
	queue  chan *shipment
}

func newShipping(a *Agent) *shipping { return &shipping{a: a, lines: map[lane]*line{}} }

// close ends all pushes. Nothing may be shipped any more.
func (s *shipping) close() {
	s.mu.Lock()
	for _, l := range s.lines {
		l.pusher.Close()
		close(l.queue)
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *shipping) line(to lane) *line {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[to]
	if l != nil {
		return l
	}
	l = &line{pusher: s.a.store.Pusher(to.member), queue: make(chan *shipment, shipmentsMax)}
	s.lines[to] = l
	workers := 1
	if to.large {
		workers = largeWorkers
	}
	for range workers {
		s.running.Go(func() {
			for sh := range l.queue {
				sh.answer(to.member, l.pusher.Push(s.a.ctx, sh.items))
			}
		})
	}
	return l
}

// ship decides how each finding's content travels: in the entry, or staged on the members first. It returns
// the findings that may be proposed now, and the members that should have had the contents and have them not; with an
// error, none of those returned was given back. Given back is what could not be read as it was, and what too few members
// could take while they took the rest.
func (a *Agent) ship(ctx context.Context, found []finding) (kept []finding, lacking []uint64, err error) {
	inline := a.cfg.Log.Backlog() <= inlineQueue
	room := inlineBatch
	var items []content.Item
	var index []int
	for i := range found {
		f := &found[i]
		f.change.Inline = nil // of an earlier try
		n := &f.change.Node
		if n.Kind != manifest.File || n.Size == 0 {
			continue
		}
		if f.sameContent() {
			f.change.SameContent = true
			continue
		}
		if inline && n.Size <= inlineMax && n.Size <= int64(room) {
			f.change.Inline = f.data
			room -= len(f.data)
			continue
		}
		items = append(items, a.item(f))
		index = append(index, i)
	}
	if len(items) == 0 {
		return found, nil, nil
	}
	out, err := a.pushAll(ctx, items)
	if err != nil {
		return found, nil, err
	}
	drop := make([]bool, len(found))
	for k, err := range out.failed {
		a.unreadable(found[index[k]].change.Path, err)
		drop[index[k]] = true
	}
	for k, err := range out.stuck {
		if _, failed := out.failed[k]; !failed {
			a.unstaged(found[index[k]].change.Path, err)
			drop[index[k]] = true
		}
	}
	return keep(found, drop), out.lacking, nil
}

func (a *Agent) item(f *finding) content.Item {
	path := f.change.Path
	it := content.Item{Hash: f.change.Node.Hash, Size: f.change.Node.Size, PathHint: path}
	if f.data != nil {
		it.Bytes = f.data
		return it
	}
	it.Open = func() (content.Source, error) {
		file, _, err := a.root.Open(path)
		if err != nil {
			return nil, err
		}
		return file, nil
	}
	return it
}

// unreadable gives back a finding whose content could not be read as it was.
func (a *Agent) unreadable(path string, err error) {
	if !errors.Is(err, content.ErrChanged) {
		a.status.problem(path, err)
	}
	a.board.lookDone(path, a.cfg.Now().Add(settleTime))
}

// keep returns the findings that are not to be dropped, in the same place.
func keep(found []finding, drop []bool) []finding {
	kept := found[:0]
	for i := range found {
		if !drop[i] {
			kept = append(kept, found[i])
		}
	}
	return kept
}

// pushAll stages items, by the line of the first, on the members that are up and waits until those that must have
// them durably do (staging.run). Slower ones go on with what is under way. What is large and not offered to them yet they get
// when they place it: offered after that it would be staged for nothing, until it expires.
func (a *Agent) pushAll(ctx context.Context, items []content.Item) (outcome, error) {
	said, large, size := false, items[0].Size > content.SmallMax, int64(0)
	for i := range items {
		size += items[i].Size
	}
	st := &staging{
		sh: newShipment(items), peers: a.cfg.Peers, quiet: stagingQuiet + time.Duration(size/stagingSlow)*time.Second,
		line: func(member uint64) chan<- *shipment { return a.shipping.line(lane{member, large}).queue },
		says: func(err error) { said = true; a.waits(err) },
	}
	out, err := st.run(ctx)
	st.sh.over.Store(true)
	if err == nil && said {
		a.status.solved(aboutProposed)
	}
	return out, err
}

// expire drops what was staged and is named by nothing that waits to be placed (I4).
func (a *Agent) expire(now time.Time) {
	needed := func(h manifest.Hash) bool { return a.board.names(h) || a.unsynced.keeps(h) }
	if err := a.store.Expire(now, needed); err != nil {
		a.log.Warn("drop staged contents", "err", err)
	}
}
