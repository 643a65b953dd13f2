package files

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/lockstep-sync/lockstep/internal/files/content"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// shipmentsMax is how many batches may wait for one member; one that is slower is skipped and fetches later.
const shipmentsMax = 4

// shipping pushes contents to the other members: one worker each, in order.
type shipping struct {
	a       *Agent
	mu      sync.Mutex
	lines   map[uint64]*line
	running sync.WaitGroup
}

type line struct {
	pusher *content.Pusher
	queue  chan *shipment
}

// shipment is the contents of one batch on their way to all members.
type shipment struct {
	items []content.Item
	need  int // members that must have all

	mu     sync.Mutex
	have   int           // members that do
	asked  int           // members that have not answered yet
	failed map[int]error // items that changed or cannot be read: the author's fault, not a member's
	err    error         // the last member's that failed
	done   chan struct{} // closed when enough have it, or too few can
	closed bool
}

func newShipping(a *Agent) *shipping { return &shipping{a: a, lines: map[uint64]*line{}} }

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

func (s *shipping) line(id uint64) *line {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[id]
	if l == nil {
		l = &line{pusher: s.a.store.Pusher(id), queue: make(chan *shipment, shipmentsMax)}
		s.lines[id] = l
		s.running.Go(func() {
			for sh := range l.queue {
				sh.answer(l.pusher.Push(s.a.ctx, sh.items))
			}
		})
	}
	return l
}

// answer takes one member's result.
func (sh *shipment) answer(err error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.asked--
	var some *content.PushError
	switch {
	case err == nil:
		sh.have++
	case errors.As(err, &some) && sh.ours(some):
		sh.have++
	default:
		sh.err = err
	}
	if !sh.closed && (sh.have >= sh.need || sh.have+sh.asked < sh.need) {
		sh.closed = true
		close(sh.done)
	}
}

// ours takes over the items that failed on our side and reports whether those were all.
func (sh *shipment) ours(e *content.PushError) bool {
	all := true
	for i, err := range e.Failed {
		if errors.Is(err, content.ErrNoSpace) || errors.Is(err, content.ErrMember) {
			all = false
			continue
		}
		sh.failed[i] = err
	}
	if !all {
		sh.err = e
	}
	return all
}

// ship decides how each finding's content travels: in the entry, or staged on the members first. It returns
// the findings that may be proposed now; with an error, none of those returned was given back.
func (a *Agent) ship(ctx context.Context, found []finding) ([]finding, error) {
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
		if f.old.Stat.Kind == manifest.File && f.old.Hash == n.Hash && f.old.Version != 0 {
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
		return found, nil
	}
	failed, err := a.pushAll(ctx, items)
	if err != nil {
		return found, err
	}
	return a.dropFailed(found, index, failed), nil
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

// dropFailed gives back the findings whose content could not be read as it was.
func (a *Agent) dropFailed(found []finding, index []int, failed map[int]error) []finding {
	if len(failed) == 0 {
		return found
	}
	drop := map[int]bool{}
	for k, err := range failed {
		i := index[k]
		drop[i] = true
		if !errors.Is(err, content.ErrChanged) {
			a.status.problem(found[i].change.Path, err)
		}
		a.board.lookDone(found[i].change.Path, a.cfg.Now().Add(settleTime))
	}
	kept := found[:0]
	for i := range found {
		if !drop[i] {
			kept = append(kept, found[i])
		}
	}
	return kept
}

// pushAll stages items on the members that are up and waits until enough of them have them durably.
func (a *Agent) pushAll(ctx context.Context, items []content.Item) (failed map[int]error, err error) {
	var up []Peer
	for _, p := range a.cfg.Peers.List() {
		if p.Up {
			up = append(up, p)
		}
	}
	// Even where no ack is asked for, one copy beside the author's makes the entry worth having.
	need := max(a.cfg.Peers.Acks(), min(1, len(up)))
	if need == 0 {
		return nil, nil
	}
	if len(up) < need {
		return nil, fmt.Errorf("stage contents: %d members are up, %d have to hold them", len(up), need)
	}
	sh := &shipment{items: items, need: need, asked: len(up), failed: map[int]error{}, done: make(chan struct{})}
	for _, p := range up {
		select {
		case a.shipping.line(p.ID).queue <- sh:
		default:
			sh.skip(ctx, a, p.ID, len(up))
		}
	}
	select {
	case <-sh.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.have < need {
		return nil, fmt.Errorf("stage contents: %d of %d members have them: %w", sh.have, need, sh.err)
	}
	return maps.Clone(sh.failed), nil // slower members go on
}

var errSlow = errors.New("the member is behind with what was pushed before")

// skip leaves out a member whose line is full, unless it is needed: then it waits for room.
func (sh *shipment) skip(ctx context.Context, a *Agent, id uint64, up int) {
	if up > sh.need {
		sh.answer(errSlow)
		return
	}
	select {
	case a.shipping.line(id).queue <- sh:
	case <-ctx.Done():
		sh.answer(ctx.Err())
	}
}

// expire drops what was staged and is named by nothing that waits to be placed (I4).
func (a *Agent) expire(now time.Time) {
	if err := a.store.Expire(now, a.board.names); err != nil {
		a.log.Warn("drop staged contents", "err", err)
	}
}
