package files

import (
	"context"
	"errors"
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
				sh.answer(id, l.pusher.Push(s.a.ctx, sh.items))
			}
		})
	}
	return l
}

// ship decides how each finding's content travels: in the entry, or staged on the members first. It returns
// the findings that may be proposed now, and the members that should have had the contents and have them not; with an
// error, none of those returned was given back.
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
		return found, nil, nil
	}
	failed, lacking, err := a.pushAll(ctx, items)
	if err != nil {
		return found, nil, err
	}
	return a.dropFailed(found, index, failed), lacking, nil
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

// pushAll stages items on the members that are up and waits until those that must have them durably do (staging.run).
// Slower ones go on.
func (a *Agent) pushAll(ctx context.Context, items []content.Item) (failed map[int]error, lacking []uint64, err error) {
	said := false
	st := &staging{
		sh: newShipment(items), peers: a.cfg.Peers,
		line: func(member uint64) chan<- *shipment { return a.shipping.line(member).queue },
		says: func(err error) { said = true; a.waits(err) },
	}
	if lacking, err = st.run(ctx); err != nil {
		return nil, nil, err
	}
	if said {
		a.status.solved(aboutProposed)
	}
	st.sh.mu.Lock()
	defer st.sh.mu.Unlock()
	return maps.Clone(st.sh.failed), lacking, nil
}

// expire drops what was staged and is named by nothing that waits to be placed (I4).
func (a *Agent) expire(now time.Time) {
	needed := func(h manifest.Hash) bool { return a.board.names(h) || a.unsynced.keeps(h) }
	if err := a.store.Expire(now, needed); err != nil {
		a.log.Warn("drop staged contents", "err", err)
	}
}
