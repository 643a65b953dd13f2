package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"github.com/lockstep-sync/lockstep/internal/engine/replica"
	"github.com/lockstep-sync/lockstep/internal/machine"
)

// Replicas compare their states through the log. The leader proposes a mark; every replica, observers included,
// computes the digest of its state after exactly that entry; the leader asks the voters for theirs and proposes a
// verdict: the digest that a majority of all voters has. Who has another one at that entry puts itself in
// quarantine and heals (quarantine.go). Where no digest has a majority nobody does anything but raise an alarm:
// nothing is ever repaired towards a minority.
//
// The configuration may change between mark, verdict and the verdict's place in the log. The leader judges by the one in
// force when the digests are there, and each voter again by the one in force at the verdict's entry; observers, which
// know no configuration, believe the leader.
//
// A replica in quarantine has no say: it answers no comparison, and what it answered before that was found out does not
// count either. Else two that are wrong in the same way, the second since the first was found out, would be the majority.
//
// Marks and verdicts change nothing that is replicated, so replaying them is harmless: a mark is computed again, a
// verdict compared again, and with equal states both come to nothing.

// MethodDigest is the transport method under which ServeDigest is registered: what a replica found at a mark.
const MethodDigest = "engine.digest"

const (
	// maxFindings is how many marks back a replica remembers what it found.
	maxFindings = 8
	// markPatience bounds the wait for the replicas' digests; deepPatience if they read everything.
	markPatience = 10 * time.Second
	deepPatience = 5 * time.Minute
)

// finding is what a replica found at a mark.
type finding struct {
	mark   uint64
	done   bool
	digest machine.Digest
	err    error // the state could not be read or decoded
	// doubtful: the state was in quarantine when the mark was reached, or has been put there since.
	doubtful bool
}

// digestBook is what a replica found at the latest marks, and the latest verdict.
type digestBook struct {
	rep *replica.Replica

	mu      sync.Mutex
	found   []finding // by mark
	verdict *replica.Verdict
	heard   uint64 // the entry of verdict
	changed *signal
}

func newDigestBook(rep *replica.Replica) *digestBook {
	return &digestBook{rep: rep, changed: newSignal()}
}

// marked computes the digest at a mark, on the applier's goroutine, or for a deep one of a view in another goroutine;
// finished is then called from there.
func (b *digestBook) marked(m replica.Mark, spawn func(func()), finished func()) {
	b.begin(m.Index)
	own := b.rep.EngineDigest()
	deep, ok := b.rep.Recomputer()
	if !m.Deep || !ok {
		d, err := b.rep.Digest()
		b.finish(m.Index, join(d, own), err)
		return
	}
	view := b.rep.View()
	spawn(func() {
		d, err := deep.Recompute(view)
		err = errors.Join(err, view.Close())
		b.finish(m.Index, join(d, own), err)
		finished()
	})
}

// join is the digest of the whole state: the machine's and the engine's own.
func join(m, own machine.Digest) machine.Digest {
	return blake3.Sum256(append(m[:], own[:]...))
}

func (b *digestBook) begin(mark uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.found = append(b.found, finding{mark: mark, doubtful: b.rep.Quarantine() != nil})
	b.found = b.found[max(0, len(b.found)-maxFindings):]
}

// doubt takes back what was found so far: the state is in quarantine. On the applier.
func (b *digestBook) doubt() {
	b.mu.Lock()
	for i := range b.found {
		b.found[i].doubtful = true
	}
	b.mu.Unlock()
	b.changed.broadcast()
}

// finish notes a finding, unless the state was replaced since.
func (b *digestBook) finish(mark uint64, d machine.Digest, err error) {
	b.mu.Lock()
	for i := range b.found {
		if f := &b.found[i]; f.mark == mark {
			f.done, f.digest, f.err = true, d, err
		}
	}
	b.mu.Unlock()
	b.changed.broadcast()
}

// judged takes a verdict, unless those that agree are no majority of the configuration in force at its entry. On the
// applier.
func (g *Group) judged(v replica.Verdict) {
	conf := g.rep.ConfState()
	v.Agree = g.book.trusted(v)
	if !majority(conf.GetVoters(), conf.GetVotersOutgoing(), v.Agree) {
		g.lg.Info("verdict on states ignored: the voters, or what is known of their states, have changed meanwhile",
			"mark", v.Mark, "agree", v.Agree, "voters", conf.GetVoters())
		return
	}
	g.book.judged(v)
	g.compare()
}

// trusted is who counts of those that agreed. If another verdict came between the mark and this one, whoever did not agree
// in that one may have been found out by it after it had answered: it does not.
func (b *digestBook) trusted(v replica.Verdict) []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.verdict == nil || b.heard <= v.Mark {
		return v.Agree
	}
	return slices.DeleteFunc(slices.Clone(v.Agree), func(r uint64) bool { return !slices.Contains(b.verdict.Agree, r) })
}

// judged notes the verdict whose entry was applied last.
func (b *digestBook) judged(v replica.Verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.verdict, b.heard = &v, b.rep.Applied().Index
}

// latest is the latest verdict; nil: none is known.
func (b *digestBook) latest() *replica.Verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.verdict
}

// reset forgets everything: the state was replaced.
func (b *digestBook) reset() {
	b.mu.Lock()
	b.found, b.verdict, b.heard = nil, nil, 0
	b.mu.Unlock()
	b.changed.broadcast()
}

// odd returns the latest verdict if this replica found something else at its mark.
func (b *digestBook) odd() (v replica.Verdict, found finding, odd bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.verdict == nil {
		return v, found, false
	}
	i := slices.IndexFunc(b.found, func(f finding) bool { return f.mark == b.verdict.Mark })
	if i < 0 || !b.found[i].done {
		return v, found, false
	}
	found = b.found[i]
	return *b.verdict, found, found.err != nil || found.digest != b.verdict.Digest
}

// wait returns what was found at a mark, once the state has reached it and the digest is computed.
func (b *digestBook) wait(ctx context.Context, mark uint64) (finding, error) {
	for {
		changed := b.changed.wait()
		b.mu.Lock()
		i := slices.IndexFunc(b.found, func(f finding) bool { return f.mark == mark })
		var f finding
		if i >= 0 {
			f = b.found[i]
		}
		b.mu.Unlock()
		switch {
		case f.done:
			return f, nil
		case i < 0 && b.rep.Applied().Index >= mark:
			return f, fmt.Errorf("engine: no digest is remembered of entry %d", mark)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return f, fmt.Errorf("engine: digest at entry %d: %w", mark, ctx.Err())
		}
	}
}

// ServeDigest answers MethodDigest: group with history u64 and mark u64 → digest.
func (e *Engine) ServeDigest(ctx context.Context, _ uint64, req []byte) ([]byte, error) {
	if len(req) != 16 {
		return nil, errShortMessage
	}
	id, tag := splitWire(binary.BigEndian.Uint64(req))
	g, ok := e.Group(id)
	if !ok || !ours(tag, g.Line().History) {
		return nil, fmt.Errorf("engine: group %d is not here", id)
	}
	f, err := g.digestAt(ctx, binary.BigEndian.Uint64(req[8:]))
	if err != nil {
		return nil, err
	}
	return f[:], nil
}

// digestAt is what this replica answers in a comparison; ErrQuarantined: it has no say.
func (g *Group) digestAt(ctx context.Context, mark uint64) (machine.Digest, error) {
	if g.rep.Quarantine() != nil {
		return machine.Digest{}, ErrQuarantined
	}
	f, err := g.book.wait(ctx, mark)
	switch {
	case err != nil:
		return machine.Digest{}, err
	case f.doubtful:
		return machine.Digest{}, ErrQuarantined
	}
	return f.digest, f.err
}

// Checkup is one comparison of a group's replicas.
type Checkup struct {
	Mark    uint64 // the entry that it is of
	Digests map[uint64]machine.Digest
	Missing map[uint64]error // replicas without an answer
	// Verdict is what the replicas were told: the digest of a majority of the voters. nil: no digest has one.
	Verdict *replica.Verdict
	Odd     []uint64 // who answered with another digest than Verdict's, or any two if there is none
}

// Check compares the replicas' states, on the leader, and has what it finds acted upon.
func (g *Group) Check(ctx context.Context, deep bool) (Checkup, error) {
	a := g.proposeOwn(ctx, replica.Mark{Deep: deep}.Encode())
	if !decided(a.Code) {
		return Checkup{}, fmt.Errorf("engine: group %d: compare replicas: the mark was answered %s", g.cfg.ID, a.Code)
	}
	c := Checkup{Mark: a.Position.Index, Digests: map[uint64]machine.Digest{}, Missing: map[uint64]error{}}
	st := g.Fresh()
	g.collect(ctx, &c, slices.Compact(slices.Sorted(slices.Values(slices.Concat(st.Voters, st.Outgoing, st.Learners)))), deep)
	st = g.Fresh() // it may have changed while they were asked
	c.Verdict, c.Odd = judge(c.Mark, st.Voters, st.Outgoing, c.Digests)
	g.raise(&c)
	if c.Verdict == nil {
		return c, nil
	}
	if a = g.proposeOwn(ctx, c.Verdict.Encode()); !decided(a.Code) {
		return c, fmt.Errorf("engine: group %d: compare replicas: the verdict was answered %s", g.cfg.ID, a.Code)
	}
	return c, nil
}

// collect asks every replica for its digest, at once.
func (g *Group) collect(ctx context.Context, c *Checkup, replicas []uint64, deep bool) {
	patience := markPatience
	if deep {
		patience = deepPatience
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, r := range replicas {
		wait.Go(func() {
			d, err := g.askDigest(ctx, r, c.Mark)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				c.Missing[r] = err
				return
			}
			c.Digests[r] = d
		})
	}
	wait.Wait()
}

func (g *Group) askDigest(ctx context.Context, r, mark uint64) (d machine.Digest, err error) {
	if r == g.cfg.Replica {
		return g.digestAt(ctx, mark)
	}
	node, ok := g.NodeOf(r)
	if !ok {
		return d, fmt.Errorf("engine: group %d: nobody knows where replica %d is", g.cfg.ID, r)
	}
	req := binary.BigEndian.AppendUint64(nil, wireGroup(g.cfg.ID, g.Line().History))
	reply, err := g.eng.cfg.Transport.Call(ctx, node, MethodDigest, binary.BigEndian.AppendUint64(req, mark))
	if err != nil {
		return d, err
	}
	if len(reply) != len(d) {
		return d, errShortMessage
	}
	return machine.Digest(reply), nil
}

// judge finds the digest that a majority of all voters has, of those of a configuration that is being left as well, and
// who has another one. Without it there is no verdict, and everybody is odd if not all that answered agree.
func judge(mark uint64, voters, outgoing []uint64, digests map[uint64]machine.Digest) (*replica.Verdict, []uint64) {
	have := map[machine.Digest][]uint64{}
	for _, r := range slices.Sorted(maps.Keys(digests)) {
		have[digests[r]] = append(have[digests[r]], r)
	}
	for d, replicas := range have {
		if !majority(voters, outgoing, replicas) {
			continue
		}
		odd := slices.DeleteFunc(slices.Sorted(maps.Keys(digests)), func(r uint64) bool { return digests[r] == d })
		return &replica.Verdict{Mark: mark, Digest: d, Agree: replicas}, odd
	}
	if len(have) < 2 {
		return nil, nil
	}
	return nil, slices.Sorted(maps.Keys(digests))
}

// majority says whether replicas are a majority of voters, and of outgoing if there are any.
func majority(voters, outgoing, replicas []uint64) bool {
	most := func(of []uint64) bool {
		votes := 0
		for _, v := range of {
			if slices.Contains(replicas, v) {
				votes++
			}
		}
		return votes > len(of)/2
	}
	return most(voters) && (len(outgoing) == 0 || most(outgoing))
}
