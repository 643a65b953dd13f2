package content

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lockstep-sync/lockstep/internal/files/content/pack"
	"github.com/lockstep-sync/lockstep/internal/files/manifest"
)

// Want is a content that this node needs.
type Want struct {
	Hash     manifest.Hash
	Size     int64  // as the manifest says
	PathHint string // where the content is in the binding; its old version here may share chunks
}

// Fetch gets contents from other members, the first of nodes first, and from the next one what is then still
// missing, or not yet moved when one fails. What is here already is not fetched. It returns what no node had;
// the error, a *FetchError, then says what else went wrong, if anything did. Fetched contents are verified and staged, small
// ones durable only after Sync.
func (s *Store) Fetch(ctx context.Context, nodes []uint64, wants []Want) (missing []Want, err error) {
	missing = s.lacking(unique(wants))
	s.reuseAll(ctx, missing)
	missing = s.lacking(missing)
	var errs []error
	full := noRoom{}
	for _, node := range nodes {
		if len(missing) == 0 || ctx.Err() != nil {
			break
		}
		err := s.fetchFrom(ctx, node, missing, full)
		missing = s.lacking(missing)
		if err != nil {
			errs = append(errs, fmt.Errorf("fetch from node %d: %w", node, err))
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return s.lacking(wants), &FetchError{full, err}
	}
	return s.lacking(wants), nil
}

// reuseAll stages what lingers of the wants, and waits for what is being received. What is placed the caller has found.
func (s *Store) reuseAll(ctx context.Context, wants []Want) {
	for _, w := range wants {
		if w.Size <= SmallMax {
			continue
		}
		end, err := s.coming(ctx, w.Hash)
		if err != nil {
			return // so does the fetch
		}
		s.reuse(ctx, w, false)
		end()
	}
}

// noRoom is FetchError.NoRoom while it grows.
type noRoom map[manifest.Hash]*RoomError

func (n noRoom) add(h manifest.Hash, err error) {
	var r *RoomError
	if errors.As(err, &r) {
		n[h] = r
	}
}

// small notes an error that ended the connection on which small contents were to come.
func (n noRoom) small(missing []Want, err error) {
	var r *RoomError
	if !errors.As(err, &r) {
		return
	}
	for _, w := range missing {
		if w.Size <= SmallMax {
			n[w.Hash] = r
		}
	}
}

func unique(wants []Want) []Want {
	asked := make(map[manifest.Hash]bool, len(wants))
	once := make([]Want, 0, len(wants))
	for _, w := range wants {
		if !asked[w.Hash] {
			asked[w.Hash] = true
			once = append(once, w)
		}
	}
	return once
}

func (s *Store) lacking(wants []Want) []Want {
	var missing []Want
	for _, w := range wants {
		if !s.Has(w.Hash) {
			missing = append(missing, w)
		}
	}
	return missing
}

func (s *Store) fetcher(node uint64) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.fetchers[node]
	if p == nil {
		p = &peer{s: s, node: node, slots: requestsMax, handle: (*session).found}
		s.fetchers[node] = p
	}
	return p
}

// fetchFrom asks one node; on a connection that was open before it tries once more with a new one.
func (s *Store) fetchFrom(ctx context.Context, node uint64, wants []Want, full noRoom) error {
	p := s.fetcher(node)
	for {
		c, fresh, err := p.acquire(ctx)
		if err != nil {
			return err
		}
		err = s.fetchOn(ctx, c, wants, full)
		c.unhold()
		if c.reason() == nil || fresh || ctx.Err() != nil || s.ctx.Err() != nil {
			return err
		}
		wants = s.lacking(wants)
	}
}

func (s *Store) fetchOn(ctx context.Context, c *session, wants []Want, full noRoom) error {
	job := &fetchJob{c: c, ctx: ctx, full: full}
	var running sync.WaitGroup
	running.Go(func() { job.large(wants) })
	err := job.small(wants)
	running.Wait()
	if err != nil {
		full.small(s.lacking(wants), err)
	}
	return errors.Join(err, job.err)
}

type fetchJob struct {
	c   *session
	ctx context.Context

	mu   sync.Mutex
	err  error
	full noRoom
}

func (j *fetchJob) fail(h manifest.Hash, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.full.add(h, err)
	j.err = errors.Join(j.err, fmt.Errorf("%x: %w", h[:4], err))
}

// requestBytes is about how much one request for small contents brings.
const requestBytes = 4 << 20

// small asks for the small contents, several requests at a time, and waits for the answers.
func (j *fetchJob) small(wants []Want) error {
	var waits []chan struct{}
	for i := 0; i < len(wants); {
		frame := beginFrame(nil, kindGetSmall, 0)
		empty := len(frame)
		bytes := int64(0)
		for ; i < len(wants) && bytes < requestBytes; i++ {
			w := wants[i]
			if w.Size > SmallMax || len(w.PathHint) > hintMax {
				continue
			}
			if len(frame)+wantSize(w.PathHint) > empty+wantsMax {
				break
			}
			frame = appendWant(frame, w)
			bytes += w.Size + pack.HeaderSize
		}
		if len(frame) == empty {
			continue
		}
		answered, err := j.request(frame)
		if err != nil {
			return err
		}
		waits = append(waits, answered)
	}
	for _, answered := range waits {
		if err := j.c.wait(j.ctx, answered); err != nil {
			return err
		}
	}
	return nil
}

func (j *fetchJob) request(frame []byte) (answered chan struct{}, err error) {
	if err := j.c.slot(j.ctx, j.c.smallSlots); err != nil {
		return nil, err
	}
	answered = make(chan struct{})
	c := j.c
	c.mu.Lock()
	c.last++
	setNumber(frame, c.last)
	c.gets[c.last] = answered
	c.mu.Unlock()
	return answered, c.write(finishFrame(frame))
}

// found handles what a member answers to a fetch.
func (c *session) found(k kind, number uint64, body []byte) error {
	c.mu.Lock()
	answered := c.gets[number]
	if k == kindGot {
		delete(c.gets, number)
	}
	c.mu.Unlock()
	switch {
	case answered == nil:
		return fmt.Errorf("%w: answer to request %d", errProtocol, number)
	case k == kindFound:
		n := len(body)
		// What does not match its hash stays missing, and another member is asked.
		if err := c.s.stage(body, func(int) {}); err != nil {
			return err
		}
		c.s.count(Traffic{Received: int64(n)})
		return nil
	case k == kindGot:
		close(answered)
		<-c.smallSlots
		return nil
	}
	return fmt.Errorf("%w: frame kind %d to a fetcher", errProtocol, k)
}

// large asks for the large contents, a few at a time.
func (j *fetchJob) large(wants []Want) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, w := range wants {
		if w.Size <= SmallMax || len(w.PathHint) > hintMax {
			continue
		}
		if j.c.slot(j.ctx, j.c.largeSlots) != nil {
			return // small finds the same reason
		}
		running.Go(func() {
			defer func() { <-j.c.largeSlots }()
			if err := j.c.fetchOne(j.ctx, w); err != nil && !errors.Is(err, errMissing) {
				j.fail(w.Hash, err)
			}
		})
	}
}

func (c *session) fetchOne(ctx context.Context, w Want) error {
	end, err := c.s.coming(ctx, w.Hash)
	if err != nil {
		return err
	}
	defer end()
	if c.s.Has(w.Hash) {
		return nil
	}
	t, ok := c.begin(c.number())
	if !ok {
		return c.reason()
	}
	defer c.finish(t)
	if err := c.write(finishFrame(appendWant(beginFrame(nil, kindGetLarge, t.id), w))); err != nil {
		return err
	}
	err = c.receiveLarge(ctx, t, w, true)
	if err != nil && c.reason() == nil && !errors.As(err, new(peerResult)) {
		// The sender may be waiting for credit.
		err = errors.Join(err, c.writeShort(kindResult, t.id, appendResult(nil, err)...))
	}
	return err
}
